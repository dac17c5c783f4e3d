/* Fields of a request's body, as the protocols read them. A field that is absent or null leaves its
 * output as it was. All return 0, or -1 with the refusal, which names the field. */
#ifndef SL_DAEMON_PROTOCOL_FIELDS_H
#define SL_DAEMON_PROTOCOL_FIELDS_H

#include "daemon/protocol/request.h"

/* Returns the value of a field; NULL if it is absent or null. */
const json_t *sl_field(const json_t *object, const char *name);

/* A field's string; "" if it is absent or no string. And whether that of "type" is this one. */
const char *sl_text_in(const json_t *object, const char *name);
bool sl_has_type(const json_t *object, const char *type);

/* Checks that these fields, a list that NULL ends, are objects where they are there. */
int sl_field_objects(const json_t *object, const char *const *names, struct sl_refusal *refusal);

int sl_field_bool(const json_t *object, const char *name, bool *value, struct sl_refusal *refusal);
int sl_field_string(const json_t *object, const char *name, const char **value,
                    struct sl_refusal *refusal);

/* An integer from `min` to `max`; also one that is written as 3.0. */
int sl_field_u32(const json_t *object, const char *name, uint32_t min, uint32_t max,
                 uint32_t *value, struct sl_refusal *refusal);
int sl_field_real(const json_t *object, const char *name, double min, double max, double *value,
                  struct sl_refusal *refusal);

/* temperature, top_p, min_p, top_k and seed. */
int sl_field_sampling(struct sl_request *request, struct sl_refusal *refusal);

/* A string, or a list of up to SL_STOP_STRINGS_MAX, as the request's stops. */
int sl_field_stops(struct sl_request *request, const char *name, struct sl_refusal *refusal);

/* A word for how hard to think: "none" ends thinking, the others set the effort. Unknown words are
 * refused. */
int sl_set_effort(struct sl_chat_options *chat, const char *word, const char *param,
                  struct sl_refusal *refusal);

/* Refuses fields that ask for what cannot be given, with other values than the harmless ones. */
int sl_field_refuse_unsupported(const struct sl_request *request, struct sl_refusal *refusal);

/* ---- conversations -----------------------------------------------------------------------------
 */

/* Gives the conversation its tools, a list of {"type": "function", "function": {...}}, and the
 * format that the answer is to have; each may be NULL. They go to the leading system message, which
 * is put there if need be. Refuses a request that must call a tool which is not among them. */
int sl_messages_add_tools(struct sl_request *request, json_t *tools, json_t *response_format,
                          struct sl_refusal *refusal);

/* Brings a conversation into the form that the model knows: system messages (and developer's, which
 * are the same to clients) at the beginning become one; later ones are part of what the user says.
 * Checks that there is something to answer. Sets request->continues where the last message has
 * "prefix". */
int sl_messages_settle(struct sl_request *request, struct sl_refusal *refusal);

#endif
