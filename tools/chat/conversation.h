/* A conversation: what was asked and answered, as messages of the chat API. */
#ifndef SL_TOOLS_CHAT_CONVERSATION_H
#define SL_TOOLS_CHAT_CONVERSATION_H

#include <stdbool.h>
#include <stddef.h>

#include "core/base/err.h"
#include "core/base/json.h"

/* Starts from {0}. All calls that return an int fail with -ENOMEM, if nothing else is said. */
struct sl_conversation {
    json_t *messages; /* a list, owned; NULL: nothing yet */
};

void sl_conversation_fini(struct sl_conversation *conversation);

/* Sets what the model is told first; an empty text takes that away. */
int sl_conversation_set_system(struct sl_conversation *conversation, const char *text,
                               struct sl_err *err);

int sl_conversation_add_question(struct sl_conversation *conversation, const char *text,
                                 size_t length, struct sl_err *err);
int sl_conversation_add_answer(struct sl_conversation *conversation, const char *reasoning,
                               size_t reasoning_length, const char *text, size_t length,
                               struct sl_err *err);

/* Takes the last answer away, so that its question can be asked again; or the last question with
 * it. Return whether there was one. */
bool sl_conversation_drop_answer(struct sl_conversation *conversation);
bool sl_conversation_drop_question(struct sl_conversation *conversation);

/* Returns whether the last message is a question. */
bool sl_conversation_is_open(const struct sl_conversation *conversation);

/* Writes the conversation to a file as {"messages": [...]}, which sl_conversation_load() reads in
 * place of what there was. Fail as files do, or with -SL_EFORMAT. */
int sl_conversation_save(const struct sl_conversation *conversation, const char *path,
                         struct sl_err *err);
int sl_conversation_load(struct sl_conversation *conversation, const char *path,
                         struct sl_err *err);

#endif
