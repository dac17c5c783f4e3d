/* Asks the daemon a question of a conversation, and gives the answer as it comes. */
#ifndef SL_TOOLS_CHAT_CHAT_CLIENT_H
#define SL_TOOLS_CHAT_CHAT_CLIENT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/base/bytes.h"
#include "core/base/err.h"
#include "core/base/json.h"
#include "tools/cli/daemon_client.h"

/* Is told what comes; text is whole characters. */
struct sl_chat_listener {
    void (*on_progress)(void *context, uint64_t n_done_tokens, uint64_t n_prompt_tokens);
    void (*on_text)(void *context, bool is_reasoning, const char *text, size_t length);
    void *context;
};

/* Starts from {0}; the owner calls sl_chat_answer_fini(). */
struct sl_chat_answer {
    struct sl_bytes reasoning, content;
    char finish[16];         /* such as "stop"; "" where it was stopped from outside */
    json_t *usage, *timings; /* as the daemon told them; NULL: it did not */
};
void sl_chat_answer_fini(struct sl_chat_answer *answer);

/* Sends the body of a chat request, which must ask for a stream, and waits for the end of the
 * answer, or until *stop is set, which is no error. Fails with -EIO where the daemon cannot be
 * reached or refuses, and says why; what had come of the answer stays in it. */
int sl_chat_ask(struct sl_daemon_client *client, const json_t *body,
                const struct sl_chat_listener *listener, const atomic_bool *stop,
                struct sl_chat_answer *answer, struct sl_err *err);

#endif
