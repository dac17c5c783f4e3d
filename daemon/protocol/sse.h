/* Server-sent events, as replies are streamed. */
#ifndef SL_DAEMON_PROTOCOL_SSE_H
#define SL_DAEMON_PROTOCOL_SSE_H

#include "core/base/bytes.h"
#include "daemon/protocol/reply.h"

/* Writes `object`, which it takes, as an event; `name` may be NULL, where the data says it all. */
void sl_sse_write(struct sl_bytes *out, const char *name, json_t *object);

/* Writes a line that clients pass over, which tells a person how far the prompt is. */
void sl_sse_write_progress(struct sl_bytes *out, const struct sl_reply_progress *progress);

#endif
