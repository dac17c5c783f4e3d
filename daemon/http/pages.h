/* Pages: the server tells about itself and its model, or turns text into token ids and back. Each
 * of these answers the call. */
#ifndef SL_DAEMON_HTTP_PAGES_H
#define SL_DAEMON_HTTP_PAGES_H

#include "daemon/http/front.h"

void sl_page_models(const struct sl_front *front, struct sl_http_call *call);
void sl_page_model(const struct sl_front *front, struct sl_http_call *call);  /* /v1/models/NAME */
void sl_page_health(const struct sl_front *front, struct sl_http_call *call); /* ready to serve? */
void sl_page_live(const struct sl_front *front, struct sl_http_call *call);   /* is there at all */
void sl_page_metrics(const struct sl_front *front, struct sl_http_call *call);
void sl_page_status(const struct sl_front *front, struct sl_http_call *call);
void sl_page_tokenize(const struct sl_front *front, struct sl_http_call *call);
void sl_page_detokenize(const struct sl_front *front, struct sl_http_call *call);

/* Returns the call's body, an object, the caller's; or NULL after the call has been answered. */
json_t *sl_page_read_body(const struct sl_front *front, struct sl_http_call *call);

#endif
