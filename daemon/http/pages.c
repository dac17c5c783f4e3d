#include "daemon/http/pages.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/base/metrics.h"
#include "core/text/detokenizer.h"
#include "daemon/protocol/fields.h"

#define MODELS_PATH "/v1/models/"

static void refuse(const struct sl_front *front, struct sl_http_call *call, int status,
                   const char *why)
{
    struct sl_refusal refusal;

    sl_refuse(&refusal, status, NULL, "%s", why);
    sl_front_answer_refusal(front, call, &sl_protocol_chat, &refusal);
}

/* ---- models ------------------------------------------------------------------------------------
 */

/* A model as OpenAI and Anthropic describe one, both in one object. */
static json_t *model_object(const struct sl_front *front, const char *name)
{
    const time_t started_s = (time_t)front->started_s;
    struct tm utc;
    char text[32];

    gmtime_r(&started_s, &utc);
    strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &utc);
    return json_pack("{s:s, s:s, s:s, s:I, s:s, s:s, s:s, s:I}", "id", name, "object", "model",
                     "type", "model", "created", (json_int_t)front->started_s, "created_at", text,
                     "owned_by", "local", "display_name", name, "context_length",
                     (json_int_t)front->model.context_tokens);
}

void sl_page_models(const struct sl_front *front, struct sl_http_call *call)
{
    const char *last = front->model.names[front->model.n_names - 1];
    json_t *list = json_array();

    for (uint32_t i = 0; i < front->model.n_names; i++)
        json_array_append_new(list, model_object(front, front->model.names[i]));
    sl_front_answer_json(front, call, 200,
                         json_pack("{s:s, s:o, s:b, s:s, s:s}", "object", "list", "data", list,
                                   "has_more", 0, "first_id", front->model.names[0], "last_id",
                                   last));
}

void sl_page_model(const struct sl_front *front, struct sl_http_call *call)
{
    const char *name = sl_http_path(call) + strlen(MODELS_PATH);

    for (uint32_t i = 0; i < front->model.n_names; i++)
        if (strcmp(name, front->model.names[i]) == 0) {
            sl_front_answer_json(front, call, 200, model_object(front, name));
            return;
        }
    refuse(front, call, 404, "there is no model of that name here");
}

/* ---- state -------------------------------------------------------------------------------------
 */

static const char *state_name(enum sl_worker_state state)
{
    switch (state) {
    case SL_WORKER_LOADING:
        return "loading model";
    case SL_WORKER_READY:
        return "ok";
    case SL_WORKER_STOPPING:
        return "stopping";
    case SL_WORKER_ENDED:
        break;
    }
    return "ended";
}

void sl_page_health(const struct sl_front *front, struct sl_http_call *call)
{
    const enum sl_worker_state state = sl_worker_state(front->worker);

    sl_front_answer_json(front, call, state == SL_WORKER_READY ? 200 : 503,
                         json_pack("{s:s}", "status", state_name(state)));
}

void sl_page_live(const struct sl_front *front, struct sl_http_call *call)
{
    sl_front_answer_json(front, call, 200, json_pack("{s:s}", "status", "ok"));
}

/* A number with a label for each drive, which tables of counters do not have. */
static void write_drives(FILE *out, const struct sl_worker_status *status)
{
    fprintf(out, "# HELP sluice_drive_read_bytes_total Bytes that a drive has delivered\n"
                 "# TYPE sluice_drive_read_bytes_total counter\n");
    for (uint32_t i = 0; i < status->n_drives; i++)
        fprintf(out, "sluice_drive_read_bytes_total{drive=\"%s\"} %llu\n", status->drives[i].name,
                (unsigned long long)status->drives[i].read_bytes);
}

void sl_page_metrics(const struct sl_front *front, struct sl_http_call *call)
{
    struct sl_worker_status status;
    char *text = NULL;
    size_t length = 0;
    FILE *out = open_memstream(&text, &length);

    if (!out) {
        refuse(front, call, 500, "out of memory");
        return;
    }
    sl_worker_status(front->worker, &status);
    sl_metrics_write_prometheus(out, &sl_worker_metrics, &status.counters);
    sl_metrics_write_prometheus(out, &sl_expert_cache_metrics, &status.cache);
    write_drives(out, &status);
    if (status.keeps_images)
        sl_metrics_write_prometheus(out, &sl_images_metrics, &status.images);
    if (status.keeps_pages)
        sl_metrics_write_prometheus(out, &sl_engine_pages_metrics, &status.pages);
    if (front->batches) {
        const struct sl_batch_counters batches = sl_batch_service_counters(front->batches);

        sl_metrics_write_prometheus(out, &sl_batch_metrics, &batches);
    }
    sl_histogram_write_prometheus(out, "first_token", "Time from a request to its first token",
                                  &status.first_token);
    sl_histogram_write_prometheus(out, "next_token", "Time between tokens of a text",
                                  &status.next_token);
    if (fclose(out) == 0)
        sl_front_answer_text(front, call, "text/plain; version=0.0.4; charset=utf-8", text, length);
    else
        refuse(front, call, 500, "out of memory");
    free(text);
}

static double mean_s(const struct sl_histogram *histogram)
{
    return histogram->n > 0 ? (double)histogram->sum_ns / 1e9 / (double)histogram->n : 0;
}

/* The experts in memory: a string for each layer, of hexadecimal digits with a bit for each
 * expert. */
static json_t *resident_experts(const struct sl_front *front)
{
    const uint32_t n_bytes = (front->model.config->n_routed_experts + 7) / 8;
    json_t *layers = json_array();
    uint8_t *bits = malloc(n_bytes);
    char *digits = malloc(2 * (size_t)n_bytes + 1);

    for (uint32_t i = 0; bits && digits && i < front->model.config->num_hidden_layers; i++) {
        if (!sl_worker_resident(front->worker, i, bits))
            break;
        for (uint32_t b = 0; b < n_bytes; b++)
            snprintf(digits + 2 * (size_t)b, 3, "%02x", bits[b]);
        json_array_append_new(layers, json_string(digits));
    }
    free(bits);
    free(digits);
    return layers;
}

static json_t *drives(const struct sl_worker_status *status)
{
    json_t *list = json_array();

    for (uint32_t i = 0; i < status->n_drives; i++)
        json_array_append_new(list,
                              json_pack("{s:s, s:I}", "name", status->drives[i].name, "read_bytes",
                                        (json_int_t)status->drives[i].read_bytes));
    return list;
}

/* Who waits and is served, users before batches, in the order in which they came; nothing that they
 * said. */
static json_t *queue(const struct sl_worker_status *status)
{
    json_t *list = json_array();

    for (uint32_t i = 0; i < status->n_entries; i++) {
        const struct sl_worker_entry *entry = &status->entries[i];
        const bool in_prompt = entry->n_done_tokens < entry->n_prompt_tokens;

        json_array_append_new(
            list, json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:f}", "class",
                            entry->class == SL_JOB_BATCH ? "batch" : "interactive", "state",
                            entry->is_waiting                       ? "waiting"
                            : in_prompt && entry->n_new_tokens == 0 ? "prompt"
                                                                    : "writing",
                            "texts", (json_int_t)entry->n_texts, "prompt_tokens",
                            (json_int_t)entry->n_prompt_tokens, "prompt_tokens_done",
                            (json_int_t)entry->n_done_tokens, "new_tokens",
                            (json_int_t)entry->n_new_tokens, "age_s", (double)entry->age_ns / 1e9));
    }
    return list;
}

void sl_page_status(const struct sl_front *front, struct sl_http_call *call)
{
    json_t *object, *requests = json_object(), *cache = json_object();
    struct sl_worker_status status;

    sl_worker_status(front->worker, &status);
    sl_metrics_set_json(requests, &sl_worker_metrics, &status.counters);
    sl_metrics_set_json(cache, &sl_expert_cache_metrics, &status.cache);
    object = json_pack(
        "{s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:f, s:f, s:f, s:o, s:o, s:o, s:I, s:o, s:o}",
        "status", state_name(status.state), "model", front->model.names[0], "version",
        front->version, "chat_format", sl_chat_profile_found_name(&front->model.profile),
        "uptime_s", (json_int_t)time(NULL) - (json_int_t)front->started_s, "context_tokens",
        (json_int_t)front->model.context_tokens, "expert_slots", (json_int_t)status.slot_count,
        "tokens_per_s", status.tokens_per_s, "first_token_s", mean_s(&status.first_token),
        "next_token_s", mean_s(&status.next_token), "serving", requests, "experts", cache, "drives",
        drives(&status), "queue_length", (json_int_t)status.n_entries_all, "queue", queue(&status),
        "resident_experts", resident_experts(front));
    if (status.keeps_images) {
        json_t *images = json_object();

        sl_metrics_set_json(images, &sl_images_metrics, &status.images);
        json_object_set_new(object, "images", images);
    }
    if (status.keeps_pages) {
        json_t *pages = json_object();

        sl_metrics_set_json(pages, &sl_engine_pages_metrics, &status.pages);
        json_object_set_new(object, "kv_on_disk", pages);
    }
    json_object_set_new(object, "batches",
                        front->batches ? sl_batch_service_status(front->batches) : json_array());
    sl_front_answer_json(front, call, 200, object);
}

/* ---- token ids ---------------------------------------------------------------------------------
 */

json_t *sl_page_read_body(const struct sl_front *front, struct sl_http_call *call)
{
    size_t length;
    const char *text = sl_http_body(call, &length);
    struct sl_err err;
    json_t *body;

    if (sl_json_parse(&body, text, length, "the request's body", &err) < 0) {
        refuse(front, call, 400, err.message);
        return NULL;
    }
    if (json_is_object(body))
        return body;
    json_decref(body);
    refuse(front, call, 400, "the request's body is no JSON object");
    return NULL;
}

static json_t *tokens_object(const struct sl_token_list *list)
{
    json_t *tokens = json_array();

    for (size_t i = 0; i < list->n; i++)
        json_array_append_new(tokens, json_integer(list->ids[i]));
    return json_pack("{s:o}", "tokens", tokens);
}

static int tokenize(const struct sl_front *front, const json_t *body, struct sl_token_list *list,
                    struct sl_refusal *refusal)
{
    const json_t *content = sl_field(body, "content");
    bool add_special = false, parse_special = true;
    struct sl_encoder *encoder;
    struct sl_err err;
    int rc;

    if (!json_is_string(content))
        return sl_refuse(refusal, 400, "content", "\"content\" is no string");
    if (sl_field_bool(body, "add_special", &add_special, refusal) < 0 ||
        sl_field_bool(body, "parse_special", &parse_special, refusal) < 0)
        return -1;
    rc = sl_encoder_create(&encoder, front->model.tok, &err);
    if (rc == 0 && add_special)
        rc = sl_token_list_push(list, front->model.config->bos_token_id);
    if (rc == 0)
        rc = sl_encode(encoder, json_string_value(content), json_string_length(content),
                       parse_special ? SL_ENCODE_ADDED : 0, list, &err);
    sl_encoder_destroy(encoder);
    return rc < 0 ? sl_refuse(refusal, rc == -ENOMEM ? 500 : 400, "content", "%s", err.message) : 0;
}

void sl_page_tokenize(const struct sl_front *front, struct sl_http_call *call)
{
    json_t *body = sl_page_read_body(front, call);
    struct sl_token_list list = {0};
    struct sl_refusal refusal;

    if (!body)
        return;
    if (tokenize(front, body, &list, &refusal) < 0)
        sl_front_answer_refusal(front, call, &sl_protocol_chat, &refusal);
    else
        sl_front_answer_json(front, call, 200, tokens_object(&list));
    sl_token_list_fini(&list);
    json_decref(body);
}

static int detokenize(const struct sl_front *front, const json_t *body, struct sl_bytes *out,
                      struct sl_refusal *refusal)
{
    const json_t *tokens = sl_field(body, "tokens");
    struct sl_detokenizer *detok;
    const char *piece;
    size_t length;

    if (!json_is_array(tokens))
        return sl_refuse(refusal, 400, "tokens", "\"tokens\" is no list");
    for (size_t i = 0; i < json_array_size(tokens); i++) {
        const json_t *id = json_array_get(tokens, i);

        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) >= (json_int_t)sl_tokenizer_id_count(front->model.tok))
            return sl_refuse(refusal, 400, "tokens", "token %zu is no id of this model", i);
    }
    if (sl_detokenizer_create(&detok, front->model.tok, true, NULL) < 0)
        return sl_refuse(refusal, 500, NULL, "out of memory");
    for (size_t i = 0; i < json_array_size(tokens); i++) {
        piece = sl_detokenizer_push(detok, (uint32_t)json_integer_value(json_array_get(tokens, i)),
                                    &length);
        sl_bytes_add(out, piece, length);
    }
    piece = sl_detokenizer_flush(detok, &length);
    sl_bytes_add(out, piece, length);
    sl_detokenizer_destroy(detok);
    return out->out_of_memory ? sl_refuse(refusal, 500, NULL, "out of memory") : 0;
}

void sl_page_detokenize(const struct sl_front *front, struct sl_http_call *call)
{
    json_t *body = sl_page_read_body(front, call);
    struct sl_bytes text = {0};
    struct sl_refusal refusal;

    if (!body)
        return;
    if (detokenize(front, body, &text, &refusal) < 0)
        sl_front_answer_refusal(front, call, &sl_protocol_chat, &refusal);
    else
        sl_front_answer_json(
            front, call, 200,
            json_pack("{s:s%}", "content", text.length ? text.data : "", text.length));
    sl_bytes_fini(&text);
    json_decref(body);
}
