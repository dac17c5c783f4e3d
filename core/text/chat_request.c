#include "core/text/chat_request.h"

#include <errno.h>
#include <string.h>

static bool leads(const json_t *message)
{
    const char *role = json_string_value(json_object_get(message, "role"));

    return role && (strcmp(role, "system") == 0 || strcmp(role, "developer") == 0);
}

/* Sets what the request has (`value` may be NULL), in a copy of the message. */
static int set(json_t *message, const char *key, json_t *value)
{
    return !value || json_is_null(value) ? 0 : json_object_set(message, key, value);
}

int sl_chat_request_messages(const json_t *request, json_t **ret_messages, struct sl_err *err)
{
    json_t *given =
        json_is_array(request) ? (json_t *)request : json_object_get(request, "messages");
    json_t *tools = json_object_get(request, "tools");
    json_t *format = json_object_get(request, "response_format");
    json_t *messages, *first;
    int rc = 0;

    if (!json_is_array(given))
        return sl_err_set(err, -SL_EFORMAT,
                          "expected a list of messages, or an object with \"messages\"");
    if (tools && !json_is_null(tools) && !json_is_array(tools))
        return sl_err_set(err, -SL_EFORMAT, "\"tools\" is not a list");
    messages = json_copy(given);
    if (json_array_size(tools) > 0 || (format && !json_is_null(format))) {
        const bool has_first = leads(json_array_get(given, 0));

        first = has_first ? json_copy(json_array_get(given, 0))
                          : json_pack("{s:s, s:s}", "role", "system", "content", "");
        rc = set(first, "tools", tools) < 0 || set(first, "response_format", format) < 0 ? -1 : 0;
        if (has_first)
            rc |= json_array_set_new(messages, 0, first);
        else
            rc |= json_array_insert_new(messages, 0, first);
    }
    if (!messages || rc < 0) {
        json_decref(messages);
        return sl_err_set(err, -ENOMEM, "messages: out of memory");
    }
    *ret_messages = messages;
    return 0;
}
