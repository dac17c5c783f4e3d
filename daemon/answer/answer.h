/* An answer: one request, from the bytes of its body to the bytes of its reply, whoever carries
 * them: an HTTP call (daemon/http/exchange.h) or a batch (daemon/batch/batch_runner.h).
 *
 *     body ──read()──► request ──make_ids(), make_texts()──► ticket ──► worker
 *     out  ◄───────── protocol ◄── events ◄──take_news()──── news ◄──────┘
 *
 * Belongs to one thread at a time; the ticket is shared with the worker's. */
#ifndef SL_DAEMON_ANSWER_ANSWER_H
#define SL_DAEMON_ANSWER_ANSWER_H

#include "core/model/config.h"
#include "core/text/chat_parse.h"
#include "core/text/chat_profile.h"
#include "core/text/stop_strings.h"
#include "daemon/answer/prompt_ids.h"
#include "daemon/protocol/protocol.h"
#include "daemon/worker/ticket.h"

/* The model that answers, as its requests see it. Borrowed by all answers. */
struct sl_answer_model {
    const struct sl_tokenizer *tok;
    const struct sl_config *config;
    struct sl_chat_profile_found profile;
    uint32_t context_tokens;
    const char *const *names; /* (n_names) the first is the model's own */
    uint32_t n_names;
};

struct sl_answer;

/* One text, as its reader sees it. */
struct sl_answer_choice {
    struct sl_answer *answer;
    uint32_t index;
    struct sl_chat_parser *parser;  /* NULL: plain text */
    struct sl_stop_matcher matcher; /* of the answer, in a conversation */
    const char *stop_string;        /* has come */
    bool in_reasoning, has_ended;
    uint32_t n_calls;
};

struct sl_answer {
    struct sl_ticket ticket;
    const struct sl_answer_model *model;
    const struct sl_protocol *protocol;
    struct sl_reply_identity identity; /* the owner sets id, created_s and is_repeatable */

    /* Is told of each token that was made, before the text that it makes; NULL: nobody wants it. */
    void (*on_token)(void *context, uint32_t choice_index, const struct sl_generated *token);
    void *context;

    struct sl_request request;
    struct sl_prompt_ids ids;
    void *reply;
    struct sl_answer_choice *choices; /* (ticket.n_texts) */
    struct sl_bytes news, out;        /* `out` is the reply, which the owner takes from */
    bool needs_notice;                /* a text is unwanted, or there is room for news */
    bool has_ended, has_failed;
    struct sl_refusal refusal; /* if it has failed */
    uint32_t n_new_tokens, n_reasoning_tokens;
    struct sl_usage usage; /* once it has ended well */
};

/* Sets up a zeroed answer; both are borrowed. The owner calls sl_answer_fini() in the end, when
 * nobody holds the ticket. */
void sl_answer_init(struct sl_answer *answer, const struct sl_answer_model *model,
                    const struct sl_protocol *protocol);
void sl_answer_fini(struct sl_answer *answer);

/* Three steps, each of which returns 0, or -1 with the refusal. The first reads a body, which is
 * not needed any more then, or takes one that was parsed; the second makes the token ids of its
 * prompts, and refuses what the model cannot answer. */
int sl_answer_read(struct sl_answer *answer, const char *body, size_t length,
                   struct sl_refusal *refusal);
int sl_answer_read_object(struct sl_answer *answer, json_t *body, struct sl_refusal *refusal);
int sl_answer_make_ids(struct sl_answer *answer, struct sl_refusal *refusal);

/* Makes reply and ticket of a request that has its ids and seed. The owner sets the ticket's
 * class and functions, and submits it. */
int sl_answer_make_texts(struct sl_answer *answer, struct sl_refusal *refusal);

/* Writes an event of the owner's, such as SL_REPLY_BEGIN when the ticket has been submitted. */
void sl_answer_say(struct sl_answer *answer, const struct sl_reply_event *event);

/* Turns the news there is into bytes of the reply. Returns true where the worker is to look at the
 * ticket (sl_worker_notice()). */
bool sl_answer_take_news(struct sl_answer *answer);

#endif
