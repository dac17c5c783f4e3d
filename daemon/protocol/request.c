#include "daemon/protocol/request.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/text/utf8.h"

int sl_refuse(struct sl_refusal *refusal, int status, const char *param, const char *format, ...)
{
    va_list args;

    *refusal = (struct sl_refusal){.status = status};
    snprintf(refusal->param, sizeof(refusal->param), "%s", param ? param : "");
    va_start(args, format);
    vsnprintf(refusal->message, sizeof(refusal->message), format, args);
    va_end(args);
    sl_utf8_mend(refusal->message); /* what it quotes may be cut, and no JSON holds that */
    return -1;
}

void sl_request_fini(struct sl_request *request)
{
    json_decref(request->messages);
    free(request->prompts);
    json_decref(request->body);
    *request = (struct sl_request){0};
}
