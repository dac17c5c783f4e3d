#include "daemon/protocol/batches.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/size.h"
#include "daemon/protocol/fields.h"

#define KEY_CHARACTERS_MAX 64u
#define VALUE_CHARACTERS_MAX 512u
#define WINDOW_S_MAX (UINT64_C(100) * 365 * 86400)

/* ---- what clients ask for ----------------------------------------------------------------------
 */

bool sl_batch_window_parse(const char *text, uint64_t *ret_s)
{
    static const struct {
        char letter;
        uint64_t seconds;
    } units[] = {{'s', 1}, {'m', 60}, {'h', 3600}, {'d', 86400}};
    uint64_t sum = 0;

    if (strcmp(text, "none") == 0) {
        *ret_s = 0;
        return true;
    }
    while (*text) {
        uint64_t value = 0, seconds = 0;

        if (*text < '0' || *text > '9')
            return false;
        for (; *text >= '0' && *text <= '9' && value < WINDOW_S_MAX; text++)
            value = 10 * value + (uint64_t)(*text - '0');
        for (size_t i = 0; i < SL_ARRAY_LEN(units); i++)
            if (*text == units[i].letter)
                seconds = units[i].seconds;
        text++;
        sum += value * seconds;
        if (seconds == 0 || sum > WINDOW_S_MAX)
            return false;
    }
    *ret_s = sum;
    return sum > 0;
}

static size_t character_count(const char *text)
{
    size_t n = 0;

    for (; *text; text++)
        n += (*text & 0xC0) != 0x80;
    return n;
}

static int read_metadata(struct sl_batch_create *create, const json_t *body,
                         struct sl_refusal *refusal)
{
    const json_t *metadata = sl_field(body, "metadata");
    const char *key;
    json_t *value;

    if (!metadata)
        return 0;
    if (!json_is_object(metadata) || json_object_size(metadata) > SL_BATCH_METADATA_MAX)
        return sl_refuse(refusal, 400, "metadata",
                         "\"metadata\" must be an object of up to %u strings",
                         SL_BATCH_METADATA_MAX);
    json_object_foreach(
        (json_t *)(uintptr_t)metadata, key,
        value) if (!json_is_string(value) || character_count(key) > KEY_CHARACTERS_MAX ||
                   character_count(json_string_value(value)) >
                       VALUE_CHARACTERS_MAX) return sl_refuse(refusal, 400, "metadata",
                                                              "\"metadata\" has strings alone, of "
                                                              "up to %u characters, with keys of "
                                                              "up to %u",
                                                              VALUE_CHARACTERS_MAX,
                                                              KEY_CHARACTERS_MAX);
    create->metadata = metadata;
    return 0;
}

static int read_priority(struct sl_batch_create *create, const json_t *body,
                         struct sl_refusal *refusal)
{
    const char *text = json_string_value(json_object_get(create->metadata, "priority"));
    double priority = 0;
    char *end;

    if (text && *text) {
        const long value = strtol(text, &end, 10);

        /* A word that others give a meaning to is none of ours. */
        if (!*end && value >= -SL_BATCH_PRIORITY_MAX && value <= SL_BATCH_PRIORITY_MAX)
            priority = (double)value;
    }
    if (sl_field_real(body, "priority", -SL_BATCH_PRIORITY_MAX, SL_BATCH_PRIORITY_MAX, &priority,
                      refusal) < 0)
        return -1;
    create->priority = (int32_t)priority;
    return 0;
}

static int require(const char *value, const char *name, struct sl_refusal *refusal)
{
    return value && *value ? 0 : sl_refuse(refusal, 400, name, "\"%s\" is missing", name);
}

int sl_batch_create_read(struct sl_batch_create *create, const json_t *body,
                         struct sl_refusal *refusal)
{
    *create = (struct sl_batch_create){.window = "none"};
    if (sl_field_string(body, "input_file_id", &create->input_file_id, refusal) < 0 ||
        sl_field_string(body, "endpoint", &create->endpoint, refusal) < 0 ||
        sl_field_string(body, "completion_window", &create->window, refusal) < 0 ||
        require(create->input_file_id, "input_file_id", refusal) < 0 ||
        require(create->endpoint, "endpoint", refusal) < 0 ||
        sl_field_bool(body, "skip_bad", &create->skip_bad, refusal) < 0 ||
        read_metadata(create, body, refusal) < 0 || read_priority(create, body, refusal) < 0)
        return -1;
    if (!sl_batch_window_parse(create->window, &create->window_s))
        return sl_refuse(refusal, 400, "completion_window",
                         "\"completion_window\" must be a time such as \"24h\" or \"7d\", or "
                         "\"none\"");
    if (sl_field(body, "output_expires_after"))
        return sl_refuse(refusal, 400, "output_expires_after",
                         "files are kept until they are deleted");
    return 0;
}

/* ---- what they see -----------------------------------------------------------------------------
 */

static json_t *time_or_null(int64_t time_s)
{
    return time_s > 0 ? json_integer(time_s) : json_null();
}

static json_t *usage_of(const struct sl_batch_view *view)
{
    return json_pack("{s:I, s:{s:I}, s:I, s:{s:I}, s:I}", "input_tokens",
                     (json_int_t)view->n_prompt_tokens, "input_tokens_details", "cached_tokens",
                     (json_int_t)view->n_cached_tokens, "output_tokens",
                     (json_int_t)view->n_new_tokens, "output_tokens_details", "reasoning_tokens",
                     (json_int_t)view->n_reasoning_tokens, "total_tokens",
                     (json_int_t)(view->n_prompt_tokens + view->n_new_tokens));
}

json_t *sl_batch_object(const struct sl_batch_view *view)
{
    json_t *errors = view->errors ? json_pack("{s:s, s:O}", "object", "list", "data", view->errors)
                                  : json_null();
    json_t *object =
        json_pack("{s:s, s:s, s:s, s:s, s:o, s:s, s:s, s:s, s:s?, s:s?, s:I}", "id", view->id,
                  "object", "batch", "endpoint", view->endpoint, "model", view->model, "errors",
                  errors, "input_file_id", view->input_file_id, "completion_window", view->window,
                  "status", view->status, "output_file_id", view->output_file_id, "error_file_id",
                  view->error_file_id, "created_at", (json_int_t)view->created_s);
    const struct {
        const char *name;
        int64_t time_s;
    } times[] = {{"in_progress_at", view->in_progress_s}, {"expires_at", view->expires_s},
                 {"finalizing_at", view->finalizing_s},   {"completed_at", view->completed_s},
                 {"failed_at", view->failed_s},           {"expired_at", view->expired_s},
                 {"cancelling_at", view->cancelling_s},   {"cancelled_at", view->cancelled_s}};

    for (size_t i = 0; i < SL_ARRAY_LEN(times); i++)
        json_object_set_new(object, times[i].name, time_or_null(times[i].time_s));
    json_object_set_new(object, "request_counts",
                        json_pack("{s:I, s:I, s:I}", "total", (json_int_t)view->n_items,
                                  "completed", (json_int_t)view->n_completed, "failed",
                                  (json_int_t)view->n_failed));
    json_object_set_new(object, "usage", usage_of(view));
    json_object_set_new(object, "metadata",
                        view->metadata ? json_incref(view->metadata) : json_null());
    return object;
}
