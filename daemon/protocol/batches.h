/* Batches as OpenAI's clients create them and see them; pure. */
#ifndef SL_DAEMON_PROTOCOL_BATCHES_H
#define SL_DAEMON_PROTOCOL_BATCHES_H

#include "daemon/protocol/reply.h"
#include "daemon/protocol/request.h"

#define SL_BATCH_METADATA_MAX 16u
#define SL_BATCH_PRIORITY_MAX 1000

/* A batch as a client asks for it. Strings and metadata are parts of the body that was read. */
struct sl_batch_create {
    const char *input_file_id, *endpoint;
    const char *window;     /* as the client writes it: "24h" */
    uint64_t window_s;      /* the batch expires then; 0: never */
    int32_t priority;       /* higher ones come first */
    bool skip_bad;          /* lines that are no requests become errors, and the others go on */
    const json_t *metadata; /* NULL: none */
};

/* Reads a body, an object. Extensions are "priority", a field or a key of the metadata, and
 * "skip_bad". Returns 0, or -1 with the refusal. */
int sl_batch_create_read(struct sl_batch_create *create, const json_t *body,
                         struct sl_refusal *refusal);

/* Reads "90s", "45m", "24h", "7d" or several of them in a row, and "none", which is 0. Returns
 * whether it is any of these. */
bool sl_batch_window_parse(const char *text, uint64_t *ret_s);

/* All that clients see of a batch. Times are seconds since 1970, 0 where it has not come to that.
 * Strings and JSON are borrowed. */
struct sl_batch_view {
    const char *id, *endpoint, *input_file_id, *window, *model;
    const char *status;                         /* such as "in_progress" */
    const char *output_file_id, *error_file_id; /* NULL: there is none */
    int64_t created_s, in_progress_s, expires_s, finalizing_s, completed_s, failed_s, expired_s,
        cancelling_s, cancelled_s;
    uint64_t n_items, n_completed, n_failed;
    uint64_t n_prompt_tokens, n_cached_tokens, n_new_tokens, n_reasoning_tokens;
    json_t *metadata; /* NULL: none */
    json_t *errors;   /* a list of {code, line, message, param}; NULL: it has not failed */
};

/* Returns a batch's object; NULL when out of memory. */
json_t *sl_batch_object(const struct sl_batch_view *view);

#endif
