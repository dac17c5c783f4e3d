/* Routes: which path leads where, and who may ask. */
#ifndef SL_DAEMON_HTTP_ROUTES_H
#define SL_DAEMON_HTTP_ROUTES_H

#include "daemon/http/front.h"

/* For struct sl_http_options; the context is a struct sl_front. */
void sl_routes_handle(void *front, struct sl_http_call *call);
bool sl_routes_begin_form(void *front, struct sl_http_call *call, struct sl_http_form *form);
void sl_routes_refuse(void *front, struct sl_http_call *call, int status, const char *why,
                      struct sl_bytes *out);

#endif
