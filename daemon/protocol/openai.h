/* Parts that OpenAI's chat and completions have in common. */
#ifndef SL_DAEMON_PROTOCOL_OPENAI_H
#define SL_DAEMON_PROTOCOL_OPENAI_H

#include "daemon/protocol/reply.h"
#include "daemon/protocol/request.h"

/* Reads the fields that both have: model, stream, stream_options, return_progress, n, stop and how
 * tokens are sampled. */
int sl_openai_read(struct sl_request *request, struct sl_refusal *refusal);

/* The body of an error: {"error": {"message", "type", "param", "code"}}. */
void sl_openai_refuse(const struct sl_refusal *refusal, struct sl_bytes *out);

/* All that makes JSON returns a new reference, NULL when out of memory. This is the frame of a
 * reply; `choices` is taken. */
json_t *sl_openai_object(const struct sl_reply_identity *identity, const char *id_prefix,
                         const char *kind, json_t *choices);
json_t *sl_openai_usage(const struct sl_usage *usage);

/* The times, as llama-server tells them, and what was read. */
json_t *sl_openai_timings(const struct sl_usage *usage);

/* {"prompt_progress": {...}} */
json_t *sl_openai_progress(const struct sl_reply_progress *progress);

/* A token with its log probability and those of the likeliest at its place. */
json_t *sl_openai_token(const struct sl_tokenizer *tok, const struct sl_generated *token);

/* Bytes of a token as a JSON string; those that are no character become U+FFFD. */
json_t *sl_openai_token_text(const struct sl_tokenizer *tok, uint32_t id);

/* "stop", "length" or "tool_calls". */
const char *sl_openai_finish(const struct sl_reply_event *event);

#endif
