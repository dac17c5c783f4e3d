/* A reply: what happens to a request, as events, which each protocol turns into bytes.
 *
 *     BEGIN ──► (HEARTBEAT | TOKEN | REASONING | CONTENT | CALL | FINISH)* ──► END
 *                      └──────────────────── or ERROR, which ends it ────────┘
 *
 * The events of several choices may be mixed; each choice has one FINISH. */
#ifndef SL_DAEMON_PROTOCOL_REPLY_H
#define SL_DAEMON_PROTOCOL_REPLY_H

#include "core/base/bytes.h"
#include "core/text/completion.h"
#include "core/text/tokenizer.h"
#include "daemon/engine/generation.h"
#include "daemon/protocol/request.h"

enum sl_reply_kind {
    SL_REPLY_BEGIN,     /* the request is taken on */
    SL_REPLY_HEARTBEAT, /* streams only: nothing else has happened for a while; `progress` */
    SL_REPLY_TOKEN,     /* where log probabilities are wanted: `token`, before the text it makes */
    SL_REPLY_REASONING, /* some of it: `text` */
    SL_REPLY_CONTENT,   /* some of the answer: `text` */
    SL_REPLY_CALL,      /* of a tool: `call`, complete */
    SL_REPLY_FINISH,    /* the choice has ended: `finish` */
    SL_REPLY_END,       /* all choices have: `usage` */
    SL_REPLY_ERROR,     /* nothing more comes: `refusal` */
};

/* How far the prompts have been taken in. */
struct sl_reply_progress {
    uint32_t n_prompt_tokens, n_cached_tokens, n_done_tokens; /* done counts the cached ones */
    uint64_t elapsed_ns;
    double left_s;  /* below 0: not known */
    bool is_queued; /* has not begun */
};

struct sl_usage {
    uint32_t n_prompt_tokens, n_cached_tokens;
    uint32_t n_new_tokens, n_reasoning_tokens; /* the latter are among the former */
    uint64_t prompt_ns, decode_ns;
    uint32_t n_decoded_tokens;                             /* in decode_ns */
    uint64_t n_expert_hits, n_expert_requests, read_bytes; /* of the steps it was in */
    uint64_t seed;                                         /* of the first choice */
};

struct sl_reply_event {
    enum sl_reply_kind kind;
    uint32_t choice_index;

    const char *text; /* (length), whole characters, not terminated */
    size_t length;

    struct {
        const char *id, *name;
        uint32_t index;        /* counts the choice's calls */
        const char *arguments; /* a JSON object, terminated */
    } call;

    const struct sl_generated *token;
    bool in_reasoning; /* the token is part of it */

    enum sl_finish finish;
    uint32_t n_calls;        /* the choice has made */
    const char *stop_string; /* NULL: none ended it */

    const struct sl_reply_progress *progress;
    const struct sl_usage *usage;
    const struct sl_refusal *refusal;
};

/* Names a reply. */
struct sl_reply_identity {
    char id[32];       /* random letters and digits; protocols put their prefixes in front */
    int64_t created_s; /* since 1970 */
    const char *model;
    const struct sl_tokenizer *tok; /* for the text of tokens */
    /* The reply is to be the same bytes whenever it is made, so it tells nothing of how it was. */
    bool is_repeatable;
};

#endif
