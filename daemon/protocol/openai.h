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

/* A reply, and how its protocol names things. */
struct sl_openai_reply {
    const struct sl_request *request;
    const struct sl_reply_identity *identity;
    const char *id_prefix;   /* "chatcmpl-" */
    const char *object_kind; /* of a reply that is given whole */
    const char *chunk_kind;  /* of each chunk of a stream */
};

/* Writes a chunk with `choices`, a list, and the members of `more`, which may be NULL. Takes
 * both. */
void sl_openai_write_chunk(const struct sl_openai_reply *reply, json_t *choices, json_t *more,
                           struct sl_bytes *out);

/* Writes how far the prompt is: as a chunk where the request asks for that, or else as a line that
 * clients pass over. */
void sl_openai_write_progress(const struct sl_openai_reply *reply,
                              const struct sl_reply_progress *progress, struct sl_bytes *out);

/* Writes what ends a stream, and an error in one. */
void sl_openai_write_end(const struct sl_openai_reply *reply, const struct sl_usage *usage,
                         struct sl_bytes *out);
void sl_openai_write_error(const struct sl_refusal *refusal, struct sl_bytes *out);

/* Writes a reply that is given whole. Takes `choices`. */
void sl_openai_write_whole(const struct sl_openai_reply *reply, json_t *choices,
                           const struct sl_usage *usage, struct sl_bytes *out);

/* A token with its log probability and those of the likeliest at its place: a new reference, NULL
 * when out of memory, as all JSON here. */
json_t *sl_openai_token(const struct sl_tokenizer *tok, const struct sl_generated *token);

/* Bytes of a token as a JSON string; those that are no character become U+FFFD. */
json_t *sl_openai_token_text(const struct sl_tokenizer *tok, uint32_t id);

/* "stop", "length" or "tool_calls". */
const char *sl_openai_finish(const struct sl_reply_event *event);

#endif
