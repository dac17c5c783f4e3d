#include "daemon/protocol/fields.h"

#include <math.h>
#include <string.h>

#include "core/base/size.h"

static int no_memory(struct sl_refusal *refusal)
{
    return sl_refuse(refusal, 500, NULL, "out of memory");
}

/* ---- values ------------------------------------------------------------------------------------
 */

const json_t *sl_field(const json_t *object, const char *name)
{
    const json_t *value = json_object_get(object, name);

    return json_is_null(value) ? NULL : value;
}

const char *sl_text_in(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));

    return text ? text : "";
}

bool sl_has_type(const json_t *object, const char *type)
{
    return strcmp(sl_text_in(object, "type"), type) == 0;
}

int sl_field_objects(const json_t *object, const char *const *names, struct sl_refusal *refusal)
{
    for (; *names; names++) {
        const json_t *field = sl_field(object, *names);

        if (field && !json_is_object(field))
            return sl_refuse(refusal, 400, *names, "\"%s\" is no object", *names);
    }
    return 0;
}

int sl_field_bool(const json_t *object, const char *name, bool *value, struct sl_refusal *refusal)
{
    const json_t *field = sl_field(object, name);

    if (!field)
        return 0;
    if (!json_is_boolean(field))
        return sl_refuse(refusal, 400, name, "\"%s\" is neither true nor false", name);
    *value = json_is_true(field);
    return 0;
}

int sl_field_string(const json_t *object, const char *name, const char **value,
                    struct sl_refusal *refusal)
{
    const json_t *field = sl_field(object, name);

    if (!field)
        return 0;
    if (!json_is_string(field))
        return sl_refuse(refusal, 400, name, "\"%s\" is no string", name);
    *value = json_string_value(field);
    return 0;
}

int sl_field_real(const json_t *object, const char *name, double min, double max, double *value,
                  struct sl_refusal *refusal)
{
    const json_t *field = sl_field(object, name);

    if (!field)
        return 0;
    if (!json_is_number(field))
        return sl_refuse(refusal, 400, name, "\"%s\" is no number", name);
    if (!(json_number_value(field) >= min && json_number_value(field) <= max))
        return sl_refuse(refusal, 400, name, "\"%s\" is %g, but must be from %g to %g", name,
                         json_number_value(field), min, max);
    *value = json_number_value(field);
    return 0;
}

int sl_field_u32(const json_t *object, const char *name, uint32_t min, uint32_t max,
                 uint32_t *value, struct sl_refusal *refusal)
{
    double real = *value;
    int rc = sl_field_real(object, name, min, max, &real, refusal);

    if (rc < 0)
        return rc;
    if (real != floor(real))
        return sl_refuse(refusal, 400, name, "\"%s\" is no whole number", name);
    *value = (uint32_t)real;
    return 0;
}

/* ---- sampling ----------------------------------------------------------------------------------
 */

/* Some clients write -1 for "all tokens". */
static int read_top_k(struct sl_request *request, struct sl_refusal *refusal)
{
    const json_t *field = sl_field(request->body, "top_k");

    if (json_is_integer(field) && json_integer_value(field) == -1)
        return 0;
    return sl_field_u32(request->body, "top_k", 0, 1u << 24, &request->sampler.top_k, refusal);
}

/* A negative seed is as good as any. */
static int read_seed(struct sl_request *request, struct sl_refusal *refusal)
{
    const json_t *field = sl_field(request->body, "seed");

    if (!field)
        return 0;
    if (!json_is_integer(field))
        return sl_refuse(refusal, 400, "seed", "\"seed\" is no integer");
    request->sampler.seed = (uint64_t)json_integer_value(field);
    request->has_seed = true;
    return 0;
}

int sl_field_sampling(struct sl_request *request, struct sl_refusal *refusal)
{
    struct sl_sampler *sampler = &request->sampler;

    *sampler = SL_SAMPLER_DEFAULT;
    if (sl_field_real(request->body, "temperature", 0, 1e6, &sampler->temperature, refusal) < 0 ||
        sl_field_real(request->body, "top_p", 0, 1, &sampler->top_p, refusal) < 0 ||
        sl_field_real(request->body, "min_p", 0, 1, &sampler->min_p, refusal) < 0 ||
        read_top_k(request, refusal) < 0 || read_seed(request, refusal) < 0)
        return -1;
    /* A share of 0 means the best token alone, as the smallest share does. */
    sampler->top_p = sampler->top_p < 1e-9 ? 1e-9 : sampler->top_p;
    return 0;
}

static int add_stop(struct sl_request *request, const json_t *stop, const char *name,
                    struct sl_refusal *refusal)
{
    struct sl_err err;

    if (!json_is_string(stop))
        return sl_refuse(refusal, 400, name, "\"%s\" is neither a string nor a list of strings",
                         name);
    if (sl_stop_strings_add(&request->stops, json_string_value(stop), &err) < 0)
        return sl_refuse(refusal, 400, name, "\"%s\": %s", name, err.message);
    return 0;
}

int sl_field_stops(struct sl_request *request, const char *name, struct sl_refusal *refusal)
{
    const json_t *field = sl_field(request->body, name);
    int rc = 0;

    if (field && !json_is_array(field))
        return add_stop(request, field, name, refusal);
    for (size_t i = 0; rc == 0 && i < json_array_size(field); i++)
        rc = add_stop(request, json_array_get(field, i), name, refusal);
    return rc;
}

int sl_set_effort(struct sl_chat_options *chat, const char *word, const char *param,
                  struct sl_refusal *refusal)
{
    static const struct {
        const char *word;
        enum sl_chat_effort effort;
    } words[] = {
        {"minimal", SL_CHAT_LOW}, {"low", SL_CHAT_LOW},    {"medium", SL_CHAT_HIGH},
        {"high", SL_CHAT_HIGH},   {"xhigh", SL_CHAT_HIGH}, {"max", SL_CHAT_MAX},
        {"ultra", SL_CHAT_MAX},
    };

    if (strcmp(word, "none") == 0) {
        chat->thinking = false;
        return 0;
    }
    for (size_t i = 0; i < SL_ARRAY_LEN(words); i++)
        if (strcmp(words[i].word, word) == 0) {
            chat->effort = words[i].effort;
            /* The preview has no word for less than its default. */
            if (chat->profile == SL_CHAT_V4_PREVIEW && chat->effort == SL_CHAT_LOW)
                chat->effort = SL_CHAT_EFFORT_DEFAULT;
            return 0;
        }
    return sl_refuse(refusal, 400, param,
                     "\"%s\" is \"%s\", but none, low, high and max are known (and minimal, "
                     "medium, xhigh, ultra)",
                     param, word);
}

/* ---- what cannot be given ----------------------------------------------------------------------
 */

static bool is_harmless(const json_t *value)
{
    return !value || json_is_false(value) ||
           (json_is_number(value) && json_number_value(value) == 0) ||
           (json_is_object(value) && json_object_size(value) == 0) ||
           (json_is_array(value) && json_array_size(value) == 0);
}

int sl_field_refuse_unsupported(const struct sl_request *request, struct sl_refusal *refusal)
{
    static const char *const unsupported[] = {"logit_bias",    "audio",      "functions",
                                              "function_call", "prediction", "web_search_options"};
    static const char *const penalties[] = {"presence_penalty", "frequency_penalty"};
    const json_t *modalities = sl_field(request->body, "modalities");

    for (size_t i = 0; i < SL_ARRAY_LEN(unsupported); i++)
        if (!is_harmless(sl_field(request->body, unsupported[i])))
            return sl_refuse(refusal, 400, unsupported[i], "\"%s\" is not supported",
                             unsupported[i]);
    for (size_t i = 0; i < json_array_size(modalities); i++) {
        const char *word = json_string_value(json_array_get(modalities, i));

        if (!word || strcmp(word, "text") != 0)
            return sl_refuse(refusal, 400, "modalities", "this model answers in text only");
    }
    /* While it thinks the model ignores them anyway, by its authors' rules. */
    for (size_t i = 0; !request->chat.thinking && i < SL_ARRAY_LEN(penalties); i++)
        if (!is_harmless(sl_field(request->body, penalties[i])))
            return sl_refuse(refusal, 400, penalties[i], "\"%s\" is not supported", penalties[i]);
    return 0;
}

/* ---- conversations -----------------------------------------------------------------------------
 */

static bool is_system(const json_t *message)
{
    const char *role = sl_text_in(message, "role");

    return strcmp(role, "system") == 0 || strcmp(role, "developer") == 0;
}

static bool has_tool(const json_t *tools, const char *name)
{
    for (size_t i = 0; i < json_array_size(tools); i++) {
        const json_t *function = json_object_get(json_array_get(tools, i), "function");

        if (strcmp(sl_text_in(function, "name"), name) == 0)
            return true;
    }
    return false;
}

int sl_messages_add_tools(struct sl_request *request, json_t *tools, json_t *response_format,
                          struct sl_refusal *refusal)
{
    json_t *messages = request->messages, *first = json_array_get(messages, 0);
    int rc = 0;

    if (request->must_call_name && !has_tool(tools, request->must_call_name))
        return sl_refuse(refusal, 400, "tool_choice",
                         "\"tool_choice\" names no tool of this request");
    if (json_array_size(tools) == 0 && !response_format)
        return 0;
    if (!is_system(first)) {
        rc = json_array_insert_new(messages, 0,
                                   json_pack("{s:s, s:s}", "role", "system", "content", ""));
        first = json_array_get(messages, 0);
    }
    if (rc == 0 && json_array_size(tools) > 0)
        rc = json_object_set(first, "tools", tools);
    if (rc == 0 && response_format)
        rc = json_object_set(first, "response_format", response_format);
    return rc < 0 ? no_memory(refusal) : 0;
}

/* Adds a message's content to a list of parts. */
static int add_parts(json_t *parts, const json_t *message)
{
    json_t *content = json_object_get(message, "content");

    if (json_is_array(content))
        return json_array_extend(parts, content);
    if (!content || json_is_null(content))
        return 0;
    return json_array_append_new(parts, json_pack("{s:s, s:O}", "type", "text", "text", content));
}

/* Makes one of the first `n` messages, with blank lines between what they say. */
static int join_systems(json_t *messages, size_t n)
{
    json_t *first = json_array_get(messages, 0), *parts = json_array(), *kept = json_array();
    int rc = parts ? json_array_append(kept, first) : -1;

    for (size_t i = 0; rc == 0 && i < n; i++) {
        if (i > 0 && json_array_size(parts) > 0)
            rc = json_array_append_new(parts,
                                       json_pack("{s:s, s:s}", "type", "text", "text", "\n\n"));
        if (rc == 0)
            rc = add_parts(parts, json_array_get(messages, i));
    }
    for (size_t i = n; rc == 0 && i < json_array_size(messages); i++)
        rc = json_array_append(kept, json_array_get(messages, i));
    if (rc == 0)
        rc = json_object_set(first, "content", parts);
    if (rc == 0)
        rc = json_array_clear(messages);
    if (rc == 0)
        rc = json_array_extend(messages, kept);
    json_decref(parts);
    json_decref(kept);
    return rc;
}

static int settle_systems(json_t *messages)
{
    size_t n_systems = 0;
    int rc = 0;

    while (is_system(json_array_get(messages, n_systems)))
        n_systems++;
    if (n_systems > 0)
        rc = json_object_set_new(json_array_get(messages, 0), "role", json_string("system"));
    if (rc == 0 && n_systems > 1)
        rc = join_systems(messages, n_systems);
    for (size_t i = 1; rc == 0 && i < json_array_size(messages); i++)
        if (is_system(json_array_get(messages, i)))
            rc = json_object_set_new(json_array_get(messages, i), "role", json_string("user"));
    return rc;
}

int sl_messages_settle(struct sl_request *request, struct sl_refusal *refusal)
{
    const json_t *last;

    if (json_array_size(request->messages) == 0)
        return sl_refuse(refusal, 400, "messages", "there is no message");
    for (size_t i = 0; i < json_array_size(request->messages); i++)
        if (!json_is_object(json_array_get(request->messages, i)))
            return sl_refuse(refusal, 400, "messages", "message %zu is no object", i);
    if (settle_systems(request->messages) < 0)
        return no_memory(refusal);
    last = json_array_get(request->messages, json_array_size(request->messages) - 1);
    if (strcmp(sl_text_in(last, "role"), "system") == 0)
        return sl_refuse(refusal, 400, "messages", "there is a system message, but no question");
    if (strcmp(sl_text_in(last, "role"), "assistant") != 0)
        return 0;
    request->continues = json_is_true(json_object_get(last, "prefix"));
    if (!request->continues)
        return sl_refuse(refusal, 400, "messages",
                         "the last message is the model's own; to have it continued, give it "
                         "\"prefix\": true");
    return 0;
}
