/* The input of a batch: a file of lines, each a request (daemon/batch/batch_line.h).
 *
 * One pass checks every line by reading it as if it were to be answered, and keeps of it where it
 * lies, how long its prompt is and what it shares with others, never the line itself. A line is
 * read again when its turn comes, and refused if it is not the one that was checked.
 *
 *     open() ──► step() while it returns 1 ──► lines, in any order ──► close()
 *
 * Belongs to one thread. */
#ifndef SL_DAEMON_BATCH_BATCH_INPUT_H
#define SL_DAEMON_BATCH_BATCH_INPUT_H

#include "daemon/batch/batch_line.h"
#include "storage/io/sha256.h"

/* Faults that are kept of a file; more are counted. */
#define SL_BATCH_FAULTS_MAX 100u

struct sl_batch_item {
    uint64_t offset_bytes;
    uint64_t checksum; /* of the line */
    uint64_t group;    /* items that begin alike have the same number */
    uint32_t length;
    uint32_t line_number;       /* from 1 */
    uint32_t n_prompt_tokens;   /* of all its texts; 0: the line is faulty */
    uint32_t n_distinct_tokens; /* of them, those to compute: choices share all but the last one */
    uint32_t n_shared_tokens;   /* of these, as the item before it in the order begins, in 64s */
    uint32_t n_texts;
    uint32_t n_new_max; /* for each text; 0: no limit but the context's */
};

struct sl_batch_input_options {
    const struct sl_answer_model *model;
    const char *endpoint; /* that every line is of; NULL: any */
};

struct sl_batch_input {
    /* When all of it was read: */
    uint64_t size_bytes;
    char sha256[SL_SHA256_HEX + 1];
    struct sl_batch_item *items; /* (n_items) in the file's order, faulty ones included */
    uint32_t n_items;
    uint32_t *order; /* (n_items) indices: what begins alike together, long ones first */
    struct sl_batch_fault *faults; /* (n_faults) the first SL_BATCH_FAULTS_MAX of */
    uint32_t n_faults, n_faults_all;
    uint64_t n_prompt_tokens;   /* of all items */
    uint64_t n_computed_tokens; /* those of them that no item before has computed */

    struct sl_batch_reading *reading; /* its own */
};

/* Opens a file. `options` are copied, what they point to is borrowed. Fails as sl_file_open() does,
 * or with -ENOMEM. */
int sl_batch_input_open(struct sl_batch_input **ret_input, const char *path,
                        const struct sl_batch_input_options *options, struct sl_err *err);
void sl_batch_input_close(struct sl_batch_input *input); /* NULL is allowed */

/* Reads on for about a tenth of a second. Returns 1 while there is more, and then 0; fails with
 * -errno or -ENOMEM. Faults of lines are no failure; a file without any line has one. */
int sl_batch_input_step(struct sl_batch_input *input, struct sl_err *err);

/* Bytes of the file that step() has been through, and of all of it. */
uint64_t sl_batch_input_done_bytes(const struct sl_batch_input *input);
uint64_t sl_batch_input_file_bytes(const struct sl_batch_input *input);

/* Reads a line again. Fails with -ESTALE where it has changed since, or with -errno. */
int sl_batch_input_line(const struct sl_batch_input *input, uint32_t item_index,
                        struct sl_bytes *line, struct sl_err *err);

#endif
