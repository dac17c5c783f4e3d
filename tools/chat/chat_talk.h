/* The talk: reads what a person says, line by line, asks the daemon and shows the answers. What
 * begins with a slash is a command of the talk's own; /help lists them. */
#ifndef SL_TOOLS_CHAT_CHAT_TALK_H
#define SL_TOOLS_CHAT_CHAT_TALK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "tools/chat/chat_client.h"
#include "tools/chat/conversation.h"
#include "tools/chat/line_input.h"

/* How answers are asked for. */
struct sl_chat_settings {
    const char *effort; /* a word of the chat API; NULL: the model's default */
    json_t *sampling;   /* fields of the request's body, such as temperature; owned */
    bool has_seed;
    uint64_t seed; /* of the first answer; each further one has the next */
};

struct sl_chat_talk {
    struct sl_daemon_client *client;
    struct sl_line_input *input;
    struct sl_conversation conversation;
    struct sl_chat_settings settings;
    struct sl_bytes attached; /* by /file: goes in front of the next question */
    char *effort;             /* set by /effort: settings.effort points there; owned */
    json_t *usage, *timings;  /* of the last answer; owned, NULL: there is none */
};

/* Talks until the input ends or /quit. Client and input are borrowed. On a terminal an answer that
 * fails is told, and the talk goes on; from a pipe it ends the talk with its error. The caller
 * calls fini() in any case. */
int sl_chat_talk_run(struct sl_chat_talk *talk, struct sl_err *err);
void sl_chat_talk_fini(struct sl_chat_talk *talk);

#endif
