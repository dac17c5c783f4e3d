/* Files, as OpenAI's clients upload, list, fetch and delete them: /v1/files. Each of these answers
 * the call. */
#ifndef SL_DAEMON_HTTP_FILE_PAGES_H
#define SL_DAEMON_HTTP_FILE_PAGES_H

#include "daemon/http/front.h"

/* An upload: its form is taken to the disk as it comes; what has come of it when all is there. */
void sl_page_begin_upload(const struct sl_front *front, struct sl_http_form *form);
void sl_page_upload(const struct sl_front *front, struct sl_http_call *call);

void sl_page_files(const struct sl_front *front, struct sl_http_call *call);
void sl_page_file(const struct sl_front *front, struct sl_http_call *call);
void sl_page_file_content(const struct sl_front *front, struct sl_http_call *call);
void sl_page_remove_file(const struct sl_front *front, struct sl_http_call *call);

#endif
