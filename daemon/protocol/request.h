/* A request: what a client asks for, whatever protocol it speaks. A protocol reads the body of an
 * HTTP request into one; daemon/http makes token ids of it, and daemon/worker the texts. */
#ifndef SL_DAEMON_PROTOCOL_REQUEST_H
#define SL_DAEMON_PROTOCOL_REQUEST_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/json.h"
#include "core/text/chat_render.h"
#include "core/text/sampler.h"
#include "core/text/stop_strings.h"

/* Texts that one request can ask for, over all its prompts. */
#define SL_REQUEST_CHOICES_MAX 64u

/* Why a request is not answered; each protocol has a form of its own for it. Filled by
 * sl_refuse(). */
#define SL_REFUSAL_MESSAGE_BYTES 1024
struct sl_refusal {
    int status;             /* of HTTP */
    const char *code;       /* such as "context_length_exceeded"; NULL: nothing special */
    char param[64];         /* names the field of the body; "" if it is none's fault */
    uint32_t retry_after_s; /* 0: not told */
    char message[SL_REFUSAL_MESSAGE_BYTES];
};

/* Fills *refusal and returns -1. `param` may be NULL. */
int sl_refuse(struct sl_refusal *refusal, int status, const char *param, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* One prompt that is no conversation. */
struct sl_text_prompt {
    const char *text; /* (length); NULL: it is given as ids */
    size_t length;
    const json_t *ids; /* a list of integers */
};

struct sl_request {
    json_t *body;      /* owned, and so are the strings below, as parts of it */
    const char *model; /* as the client calls it; NULL: it names none */
    bool stream;
    bool include_usage;   /* in a stream */
    bool return_progress; /* likewise */

    /* A conversation, or else `prompts`. */
    json_t *messages;            /* as sl_chat_render() takes them; owned */
    struct sl_chat_options chat; /* its profile is the model's, filled in by the caller of read() */
    bool continues;              /* the last message is the model's, to be gone on with */
    bool must_call;              /* the answer begins with a call, */
    const char *must_call_name;  /* of this function; NULL: of any */

    struct sl_text_prompt *prompts; /* (n_prompts), owned */
    uint32_t n_prompts;
    const char *suffix; /* NULL, or the text that is to follow what is made (one prompt) */
    bool echo;          /* the prompt is part of the answer */

    uint32_t n; /* texts for each prompt */
    struct sl_sampler sampler;
    bool has_seed; /* else one is drawn */
    struct sl_stop_strings stops;
    uint32_t n_new_max; /* 0: no limit but the context's */
    bool with_logprobs;
    uint32_t n_top_logprobs;
};

/* Frees what a request owns. */
void sl_request_fini(struct sl_request *request);

#endif
