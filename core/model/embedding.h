/* The embedding: a row of the table for each token id.
 *
 * Either the table is in memory, or the rows that a step needs are read when it begins, each once
 * whatever the number of its tokens. One thread makes all calls. */
#ifndef SL_MODEL_EMBEDDING_H
#define SL_MODEL_EMBEDDING_H

#include <stdint.h>

#include "core/base/arena.h"
#include "core/base/err.h"
#include "core/model/compute.h"
#include "core/model/matrix.h"
#include "core/model/step.h"
#include "core/model/weight_source.h"

#define SL_EMBED_TENSOR "embed.weight"

#define SL_EMBEDDING_ROWS 64u /* that are read at once */

struct sl_embedding {
    struct sl_matrix table; /* not packed: tiles points to (vocab_size, hidden_size), BF16 or F32;
                               NULL if it is not in memory */
    struct sl_weight_source *source;
    struct sl_weight_reader *reader;
    uint32_t first_slot; /* of the reader's */
    uint64_t row_bytes;
    uint8_t *memory;      /* (SL_EMBEDDING_ROWS) rows, each with the whole blocks around it */
    int32_t *ids;         /* (SL_EMBEDDING_ROWS) of the rows that are there now, ascending */
    const uint8_t **rows; /* (SL_EMBEDDING_ROWS) where they are */
    uint32_t n_rows;
};

/* Takes the memory to read rows to, and the reader's slots from first_slot on. */
void sl_embedding_carve(struct sl_embedding *embedding, struct sl_arena *arena, uint64_t row_bytes,
                        uint32_t first_slot);

/* Borrows source and reader, where the table is not in memory. */
void sl_embedding_start(struct sl_embedding *embedding, struct sl_weight_source *source,
                        struct sl_weight_reader *reader);

/* Writes the rows of tokens first to end - 1 of a step to x, `stride` elements apart, each n_copies
 * times one after the other. Waits for the drives if need be. Fails as reads do and with
 * -SL_ECORRUPT (a value that is not finite), naming tensor and file; then x holds anything. */
int sl_embedding_run(struct sl_embedding *embedding, const struct sl_step *step, uint32_t first,
                     uint32_t end, float *x, size_t stride, uint32_t n_copies, struct sl_err *err);

#endif
