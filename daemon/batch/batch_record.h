/* A batch as the journal has it: what was asked for, how far it is, and how it ended.
 *
 *     VALIDATING ──► IN_PROGRESS ──► COMPLETED
 *         │              ├── cancel() ──► CANCELLING ──► CANCELLED
 *         ▼              ├── its time is over ──► EXPIRED
 *       FAILED           └── the input has changed ──► FAILED                                    */
#ifndef SL_DAEMON_BATCH_BATCH_RECORD_H
#define SL_DAEMON_BATCH_BATCH_RECORD_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/err.h"
#include "core/base/json.h"
#include "storage/io/sha256.h"

enum sl_batch_state {
    SL_BATCH_VALIDATING,
    SL_BATCH_FAILED,
    SL_BATCH_IN_PROGRESS,
    SL_BATCH_COMPLETED,
    SL_BATCH_EXPIRED,
    SL_BATCH_CANCELLING,
    SL_BATCH_CANCELLED,
    SL_BATCH_STATES
};

/* "validating" and so on, as the API has them. */
const char *sl_batch_state_name(enum sl_batch_state state);

/* Whether nothing more happens to a batch in this state. */
bool sl_batch_has_ended(enum sl_batch_state state);

#define SL_BATCH_NAME_BYTES 40

struct sl_batch_record {
    char id[SL_BATCH_NAME_BYTES]; /* "batch_" and 24 letters */
    uint32_t number;              /* rises with every batch of the journal */
    enum sl_batch_state state;
    /* Since 1970; 0: not so far. ended_s goes with the state that it ended in. */
    int64_t created_s, in_progress_s, cancelling_s, ended_s;

    /* The order. The strings are owned. */
    char *input_path, *output_path, *error_path;
    char *endpoint; /* NULL: any */
    char *about;    /* whatever the caller keeps with it, such as JSON; NULL: nothing */
    int32_t priority;
    bool skip_bad;
    int64_t expires_s; /* 0: never */

    /* Once it was validated. */
    uint64_t input_bytes;
    char input_sha256[SL_SHA256_HEX + 1];
    uint32_t n_items;
    uint64_t n_prompt_tokens; /* of all of them */

    /* Counts of the results. */
    uint32_t n_done, n_failed;
    uint64_t output_bytes, error_bytes;
    uint64_t n_in_tokens, n_cached_tokens, n_out_tokens, n_reasoning_tokens; /* of those done */
    uint64_t n_computed_tokens; /* of prompts, also of items under way, and again after kills */

    char *faults; /* if FAILED: a JSON list of {code, line, message, param}, owned; else NULL */
};

/* Copies a record, all NULL where memory ran out (-ENOMEM). fini() frees what a record owns. */
int sl_batch_record_copy(struct sl_batch_record *to, const struct sl_batch_record *from);
void sl_batch_record_fini(struct sl_batch_record *record);

/* The first turns a record without `about` into JSON for the journal, a new reference, or NULL when
 * out of memory; the second reads it back. Text from disk is checked: -SL_EFORMAT, -ENOMEM. */
json_t *sl_batch_record_write(const struct sl_batch_record *record);
int sl_batch_record_read(struct sl_batch_record *record, const char *text, size_t length,
                         const char *where, struct sl_err *err);

#endif
