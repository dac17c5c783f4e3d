/* Reads what /v1/responses is asked: tools, and a conversation in items.
 *
 * To the model all tools are functions. One in a namespace is called by both names, and a custom
 * one, whose input is no JSON, has a string as its only parameter. Pure functions. */
#ifndef SL_DAEMON_PROTOCOL_RESPONSES_READ_H
#define SL_DAEMON_PROTOCOL_RESPONSES_READ_H

#include <stdbool.h>

#include "core/base/json.h"
#include "daemon/protocol/protocol.h"

#define SL_RESPONSES_CUSTOM_INPUT "input"

struct sl_responses_tool {
    const char *space; /* NULL: in no namespace */
    const char *name;
    bool is_custom;
};

/* Finds which of the request's tools the model calls by the name `called`; what is found is the
 * request's. `space` is NULL. */
bool sl_responses_find_tool(const json_t *tools, const char *space, const char *called,
                            struct sl_responses_tool *found);

/* Is `read` of struct sl_protocol. */
int sl_responses_read(struct sl_request *request, struct sl_refusal *refusal);

#endif
