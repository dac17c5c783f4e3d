#include "daemon/batch/batch_line.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/json.h"
#include "core/base/size.h"
#include "storage/io/checksum.h"

static const struct {
    const char *url;
    const struct sl_protocol *protocol;
} endpoints[] = {
    {"/v1/chat/completions", &sl_protocol_chat},
    {"/v1/completions", &sl_protocol_completions},
    {"/v1/responses", &sl_protocol_responses},
    {"/v1/messages", &sl_protocol_messages},
};

static const struct sl_protocol *protocol_of(const char *url)
{
    for (size_t i = 0; i < SL_ARRAY_LEN(endpoints); i++)
        if (strcmp(endpoints[i].url, url) == 0)
            return endpoints[i].protocol;
    return NULL;
}

bool sl_batch_speaks(const char *url)
{
    return protocol_of(url) != NULL;
}

/* ---- reading -----------------------------------------------------------------------------------
 */

static int fault_set(struct sl_batch_fault *fault, const char *code, const char *param,
                     const char *message)
{
    snprintf(fault->code, sizeof(fault->code), "%s", code);
    snprintf(fault->param, sizeof(fault->param), "%s", param);
    snprintf(fault->message, sizeof(fault->message), "%s", message);
    return -1;
}

static int refused(struct sl_batch_fault *fault, const struct sl_refusal *refusal)
{
    char param[sizeof(fault->param)];

    snprintf(param, sizeof(param), "%s%.60s", refusal->param[0] ? "body." : "", refusal->param);
    return fault_set(fault, refusal->code ? refusal->code : "invalid_request", param,
                     refusal->message);
}

/* The name of a result alone tells its ids and, where none is given, its seed; so they are the same
 * whatever the order, the company and the number of attempts. */
static void set_identity(struct sl_answer *answer, const char *custom_id)
{
    static const char letters[] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    const size_t length = strlen(custom_id);
    uint64_t bits = 0;

    for (uint32_t i = 0; i < 24; i++) {
        if (i % 8 == 0)
            bits = sl_checksum_seeded(custom_id, length, 1 + i / 8);
        answer->identity.id[i] = letters[bits % (sizeof(letters) - 1)];
        bits /= sizeof(letters) - 1;
    }
    answer->identity.id[24] = '\0';
    answer->identity.created_s = 0;
    answer->identity.is_repeatable = true;
    if (!answer->request.has_seed)
        answer->request.sampler.seed = sl_checksum(custom_id, length) >> 11; /* exact as a double */
}

static int read_body(struct sl_answer *answer, json_t *object, const char *custom_id,
                     struct sl_batch_fault *fault)
{
    json_t *body = json_object_get(object, "body");
    struct sl_refusal refusal;

    if (!json_is_object(body))
        return fault_set(fault, "missing_required_parameter", "body",
                         "\"body\" is missing, or no object");
    if (sl_answer_read_object(answer, json_incref(body), &refusal) < 0)
        return refused(fault, &refusal);
    answer->request.stream = false; /* a result is given whole */
    set_identity(answer, custom_id);
    return sl_answer_make_ids(answer, &refusal) < 0 ? refused(fault, &refusal) : 0;
}

static int read_object(struct sl_answer *answer, const struct sl_answer_model *model,
                       const char *endpoint, json_t *object, const char *custom_id,
                       struct sl_batch_fault *fault)
{
    const char *method = json_string_value(json_object_get(object, "method"));
    const char *url = json_string_value(json_object_get(object, "url"));
    const struct sl_protocol *protocol = url ? protocol_of(url) : NULL;

    if (!custom_id || !custom_id[0] || strlen(custom_id) > SL_BATCH_ID_BYTES_MAX)
        return fault_set(fault, "invalid_custom_id", "custom_id",
                         "\"custom_id\" is to be a string of 1 to 512 bytes");
    if (!method || strcmp(method, "POST") != 0)
        return fault_set(fault, "invalid_method", "method", "\"method\" is to be \"POST\"");
    if (!protocol)
        return fault_set(fault, "invalid_url", "url",
                         "\"url\" is to be /v1/chat/completions, /v1/completions, /v1/responses "
                         "or /v1/messages");
    if (endpoint && strcmp(endpoint, url) != 0)
        return fault_set(fault, "mismatched_url", "url",
                         "\"url\" is not the endpoint that the batch was created for");
    sl_answer_init(answer, model, protocol);
    return read_body(answer, object, custom_id, fault);
}

int sl_batch_line_read(struct sl_answer *answer, const struct sl_answer_model *model,
                       const char *endpoint, const char *line, size_t length, char **ret_custom_id,
                       struct sl_batch_fault *fault)
{
    json_t *object = NULL;
    const char *custom_id;
    struct sl_err err;
    int rc;

    *ret_custom_id = NULL;
    if (length > SL_BATCH_LINE_BYTES_MAX)
        return fault_set(fault, "invalid_json_line", "", "the line is longer than 64 MiB");
    if (sl_json_parse(&object, line, length, "the line", &err) < 0)
        return fault_set(fault, "invalid_json_line", "", err.message);
    if (!json_is_object(object)) {
        json_decref(object);
        return fault_set(fault, "invalid_json_line", "", "the line is no JSON object");
    }
    custom_id = json_string_value(json_object_get(object, "custom_id"));
    if (custom_id)
        *ret_custom_id = strdup(custom_id);
    if (custom_id && !*ret_custom_id)
        rc = fault_set(fault, "server_error", "", "out of memory");
    else
        rc = read_object(answer, model, endpoint, object, custom_id, fault);
    json_decref(object);
    return rc;
}

/* ---- writing -----------------------------------------------------------------------------------
 */

static void add_string(struct sl_bytes *out, const char *key, const char *text)
{
    json_t *string = json_string(text);

    sl_bytes_add_format(out, "\"%s\":", key);
    if (string)
        sl_bytes_add_json(out, string);
    else
        sl_bytes_add_text(out, "null");
    json_decref(string);
}

void sl_batch_line_write(const char *custom_id, const struct sl_answer *answer,
                         struct sl_bytes *out)
{
    sl_bytes_add_format(out, "{\"id\":\"batch_req_%s\",", answer->identity.id);
    add_string(out, "custom_id", custom_id);
    sl_bytes_add_format(out, ",\"response\":{\"status_code\":200,\"request_id\":\"%s\",\"body\":",
                        answer->identity.id);
    sl_bytes_add(out, answer->out.data, answer->out.length);
    sl_bytes_add_text(out, "},\"error\":null}\n");
    out->out_of_memory |= answer->out.out_of_memory;
}

void sl_batch_line_write_error(const char *custom_id, const char *code, const char *message,
                               struct sl_bytes *out)
{
    struct sl_answer named = {.model = NULL};

    set_identity(&named, custom_id ? custom_id : "");
    sl_bytes_add_format(out, "{\"id\":\"batch_req_%s\",", named.identity.id);
    if (custom_id)
        add_string(out, "custom_id", custom_id);
    else
        sl_bytes_add_text(out, "\"custom_id\":null");
    sl_bytes_add_text(out, ",\"response\":null,\"error\":{");
    add_string(out, "code", code);
    sl_bytes_add_text(out, ",");
    add_string(out, "message", message);
    sl_bytes_add_text(out, "}}\n");
}
