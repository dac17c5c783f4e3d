/* An exchange: one request for texts and its reply, between a call, a protocol and the worker. */
#ifndef SL_DAEMON_HTTP_EXCHANGE_H
#define SL_DAEMON_HTTP_EXCHANGE_H

#include "daemon/http/front.h"

/* Reads the call's body, of that protocol, and answers it, at once or bit by bit. `path` is for the
 * log, and static. */
void sl_exchange_begin(const struct sl_front *front, struct sl_http_call *call,
                       const struct sl_protocol *protocol, const char *path);

/* Reads the body of sl_protocol_count_tokens and answers how many tokens its prompt has. */
void sl_exchange_count(const struct sl_front *front, struct sl_http_call *call);

#endif
