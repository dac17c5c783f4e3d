/* Batches, as OpenAI's clients create, poll, list and cancel them, and forget them, which the
 * cloud does not: /v1/batches. Each of these answers the call. */
#ifndef SL_DAEMON_HTTP_BATCH_PAGES_H
#define SL_DAEMON_HTTP_BATCH_PAGES_H

#include "daemon/http/front.h"

void sl_page_create_batch(const struct sl_front *front, struct sl_http_call *call);
void sl_page_batches(const struct sl_front *front, struct sl_http_call *call);
void sl_page_batch(const struct sl_front *front, struct sl_http_call *call);
void sl_page_cancel_batch(const struct sl_front *front, struct sl_http_call *call);
void sl_page_forget_batch(const struct sl_front *front, struct sl_http_call *call);

#endif
