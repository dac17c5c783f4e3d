/* The conversation of a request: from how the chat API has it to the messages of chat_render.h. */
#ifndef SL_TEXT_CHAT_REQUEST_H
#define SL_TEXT_CHAT_REQUEST_H

#include "core/base/err.h"
#include "core/base/json.h"

/* Takes an object with `messages`, `tools` and `response_format`, or a list of messages alone. The
 * request's tools and response format go to the first message if it is a system's or developer's,
 * in place of its own, and else to an empty system message before all. The caller frees
 * *ret_messages (json_decref); the request stays as it is. Fails with -SL_EFORMAT or -ENOMEM. */
int sl_chat_request_messages(const json_t *request, json_t **ret_messages, struct sl_err *err);

#endif
