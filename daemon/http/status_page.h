/* The page at "/": what runs, how fast, and a plain chat. It is two files in daemon/http/page,
 * which use what other clients use. */
#ifndef SL_DAEMON_HTTP_STATUS_PAGE_H
#define SL_DAEMON_HTTP_STATUS_PAGE_H

#include "daemon/http/front.h"

void sl_status_page(const struct sl_front *front, struct sl_http_call *call);
void sl_status_page_script(const struct sl_front *front, struct sl_http_call *call);

#endif
