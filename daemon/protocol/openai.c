#include "daemon/protocol/openai.h"

#include <string.h>

#include "core/text/utf8.h"
#include "daemon/protocol/fields.h"
#include "daemon/protocol/sse.h"

int sl_openai_read(struct sl_request *request, struct sl_refusal *refusal)
{
    static const char *const objects[] = {"stream_options", "thinking", "response_format", NULL};
    const json_t *options = sl_field(request->body, "stream_options");

    request->n = 1;
    if (sl_field_objects(request->body, objects, refusal) < 0 ||
        sl_field_string(request->body, "model", &request->model, refusal) < 0 ||
        sl_field_bool(request->body, "stream", &request->stream, refusal) < 0 ||
        sl_field_bool(options, "include_usage", &request->include_usage, refusal) < 0 ||
        sl_field_bool(request->body, "return_progress", &request->return_progress, refusal) < 0 ||
        sl_field_u32(request->body, "n", 1, SL_REQUEST_CHOICES_MAX, &request->n, refusal) < 0 ||
        sl_field_stops(request, "stop", refusal) < 0)
        return -1;
    return sl_field_sampling(request, refusal);
}

static const char *error_type(int status)
{
    switch (status) {
    case 401:
        return "authentication_error";
    case 403:
        return "permission_error";
    case 429:
        return "rate_limit_error";
    default:
        return status < 500 ? "invalid_request_error" : "server_error";
    }
}

void sl_openai_refuse(const struct sl_refusal *refusal, struct sl_bytes *out)
{
    json_t *object = json_pack("{s:{s:s, s:s, s:o, s:o}}", "error", "message", refusal->message,
                               "type", error_type(refusal->status), "param",
                               refusal->param[0] ? json_string(refusal->param) : json_null(),
                               "code", refusal->code ? json_string(refusal->code) : json_null());

    sl_bytes_add_json(out, object);
    json_decref(object);
}

/* ---- replies -----------------------------------------------------------------------------------
 */

static json_t *reply_object(const struct sl_openai_reply *reply, const char *kind, json_t *choices)
{
    return json_pack("{s:s+, s:s, s:I, s:s, s:s, s:o}", "id", reply->id_prefix, reply->identity->id,
                     "object", kind, "created", (json_int_t)reply->identity->created_s, "model",
                     reply->identity->model, "system_fingerprint", "sluice", "choices", choices);
}

static json_t *usage_object(const struct sl_usage *usage)
{
    const json_int_t prompt = usage->n_prompt_tokens, cached = usage->n_cached_tokens;
    const json_int_t made = usage->n_new_tokens;

    return json_pack(
        "{s:I, s:I, s:I, s:{s:I}, s:I, s:I, s:{s:I}}", "prompt_tokens", prompt, "completion_tokens",
        made, "total_tokens", prompt + made, "prompt_tokens_details", "cached_tokens", cached,
        "prompt_cache_hit_tokens", cached, "prompt_cache_miss_tokens", prompt - cached,
        "completion_tokens_details", "reasoning_tokens", (json_int_t)usage->n_reasoning_tokens);
}

static double per_second(uint64_t n, uint64_t ns)
{
    return ns > 0 ? (double)n * 1e9 / (double)ns : 0;
}

/* The times, as llama-server tells them, and what was read. */
static json_t *timings_object(const struct sl_usage *usage)
{
    const uint32_t n_prompt = usage->n_prompt_tokens - usage->n_cached_tokens;
    const uint64_t requests = usage->n_expert_requests;

    return json_pack("{s:I, s:I, s:f, s:f, s:I, s:f, s:f, s:I, s:f}", "cache_n",
                     (json_int_t)usage->n_cached_tokens, "prompt_n", (json_int_t)n_prompt,
                     "prompt_ms", (double)usage->prompt_ns / 1e6, "prompt_per_second",
                     per_second(n_prompt, usage->prompt_ns), "predicted_n",
                     (json_int_t)usage->n_new_tokens, "predicted_ms",
                     (double)usage->decode_ns / 1e6, "predicted_per_second",
                     per_second(usage->n_decoded_tokens, usage->decode_ns), "bytes_read",
                     (json_int_t)usage->read_bytes, "expert_hit_rate",
                     requests > 0 ? (double)usage->n_expert_hits / (double)requests : 0.0);
}

static json_t *progress_object(const struct sl_reply_progress *progress)
{
    return json_pack("{s:{s:I, s:I, s:I, s:I}}", "prompt_progress", "total",
                     (json_int_t)progress->n_prompt_tokens, "cache",
                     (json_int_t)progress->n_cached_tokens, "processed",
                     (json_int_t)progress->n_done_tokens, "time_ms",
                     (json_int_t)(progress->elapsed_ns / 1000000));
}

void sl_openai_write_chunk(const struct sl_openai_reply *reply, json_t *choices, json_t *more,
                           struct sl_bytes *out)
{
    json_t *chunk = reply_object(reply, reply->chunk_kind, choices);

    if (reply->request->include_usage && !json_object_get(more, "usage"))
        json_object_set_new(chunk, "usage", json_null());
    if (more)
        json_object_update(chunk, more);
    json_decref(more);
    sl_sse_write(out, NULL, chunk);
}

void sl_openai_write_progress(const struct sl_openai_reply *reply,
                              const struct sl_reply_progress *progress, struct sl_bytes *out)
{
    if (reply->request->return_progress)
        sl_openai_write_chunk(reply, json_array(), progress_object(progress), out);
    else
        sl_sse_write_progress(out, progress);
}

/* Without include_usage clients do not expect a chunk without a choice. */
void sl_openai_write_end(const struct sl_openai_reply *reply, const struct sl_usage *usage,
                         struct sl_bytes *out)
{
    if (reply->request->include_usage)
        sl_openai_write_chunk(reply, json_array(),
                              json_pack("{s:o, s:o, s:I}", "usage", usage_object(usage), "timings",
                                        timings_object(usage), "seed", (json_int_t)usage->seed),
                              out);
    sl_bytes_add_text(out, "data: [DONE]\n\n");
}

void sl_openai_write_error(const struct sl_refusal *refusal, struct sl_bytes *out)
{
    sl_bytes_add_text(out, "data: ");
    sl_openai_refuse(refusal, out);
    sl_bytes_add_text(out, "\n\n");
}

void sl_openai_write_whole(const struct sl_openai_reply *reply, json_t *choices,
                           const struct sl_usage *usage, struct sl_bytes *out)
{
    json_t *object = reply_object(reply, reply->object_kind, choices);

    json_object_set_new(object, "usage", usage_object(usage));
    if (!reply->identity->is_repeatable)
        json_object_set_new(object, "timings", timings_object(usage));
    json_object_set_new(object, "seed", json_integer((json_int_t)usage->seed));
    sl_bytes_add_json(out, object);
    json_decref(object);
}

/* ---- tokens ------------------------------------------------------------------------------------
 */

json_t *sl_openai_token_text(const struct sl_tokenizer *tok, uint32_t id)
{
    struct sl_bytes text = {0};
    size_t length;
    const uint8_t *bytes = sl_tokenizer_bytes(tok, id, &length);
    json_t *string;

    for (size_t at = 0; at < length;) {
        const int scanned = sl_utf8_scan(bytes + at, length - at);
        const size_t n = scanned == 0 ? length - at : (size_t)(scanned < 0 ? -scanned : scanned);

        if (scanned > 0)
            sl_bytes_add(&text, bytes + at, n);
        else
            sl_bytes_add_text(&text, "\xEF\xBF\xBD");
        at += n;
    }
    string = sl_bytes_string(&text);
    sl_bytes_fini(&text);
    return string;
}

static json_t *token_object(const struct sl_tokenizer *tok, uint32_t id, double logprob)
{
    json_t *list = json_array();
    size_t length;
    const uint8_t *bytes = sl_tokenizer_bytes(tok, id, &length);

    for (size_t i = 0; i < length; i++)
        json_array_append_new(list, json_integer(bytes[i]));
    return json_pack("{s:o, s:f, s:o}", "token", sl_openai_token_text(tok, id), "logprob", logprob,
                     "bytes", list);
}

json_t *sl_openai_token(const struct sl_tokenizer *tok, const struct sl_generated *token)
{
    json_t *object = token_object(tok, token->id, token->logprob), *top = json_array();

    for (uint32_t i = 0; i < token->n_top; i++)
        json_array_append_new(top, token_object(tok, token->top_ids[i], token->top_logprobs[i]));
    json_object_set_new(object, "top_logprobs", top);
    return object;
}

const char *sl_openai_finish(const struct sl_reply_event *event)
{
    switch (event->finish) {
    case SL_FINISH_TOKENS_MAX:
    case SL_FINISH_CONTEXT:
        return "length";
    default:
        return event->n_calls > 0 ? "tool_calls" : "stop";
    }
}
