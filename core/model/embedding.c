#include "core/model/embedding.h"

#include <errno.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/size.h"
#include "core/kernels/formats.h"
#include "core/model/phase.h"

static uint64_t slot_bytes(uint64_t row_bytes)
{
    return sl_round_up(row_bytes, SL_BLOCK_BYTES) + 2 * SL_BLOCK_BYTES;
}

void sl_embedding_carve(struct sl_embedding *embedding, struct sl_arena *arena, uint64_t row_bytes,
                        uint32_t first_slot)
{
    embedding->first_slot = first_slot;
    embedding->row_bytes = row_bytes;
    embedding->memory =
        sl_arena_take_aligned(arena, SL_EMBEDDING_ROWS, slot_bytes(row_bytes), SL_BLOCK_BYTES);
    embedding->ids = sl_arena_take(arena, SL_EMBEDDING_ROWS, sizeof(*embedding->ids));
    embedding->rows = sl_arena_take(arena, SL_EMBEDDING_ROWS, sizeof(*embedding->rows));
}

void sl_embedding_start(struct sl_embedding *embedding, struct sl_weight_source *source,
                        struct sl_weight_reader *reader)
{
    embedding->source = source;
    embedding->reader = reader;
}

/* ---- reading -----------------------------------------------------------------------------------
 */

/* Lists the n_max smallest distinct ids above `above` of the tokens first to end - 1. Returns how
 * many there are. */
static uint32_t list_ids(const struct sl_step *step, uint32_t first, uint32_t end, int32_t above,
                         int32_t *ids, uint32_t n_max)
{
    uint32_t n = 0;

    for (uint32_t i = first; i < end; i++) {
        const int32_t id = step->tokens[i].id;
        uint32_t at = n;

        if (id <= above || (n == n_max && id >= ids[n - 1]))
            continue;
        while (at > 0 && ids[at - 1] > id)
            at--;
        if (at > 0 && ids[at - 1] == id)
            continue;
        n -= n == n_max;
        memmove(ids + at + 1, ids + at, (n - at) * sizeof(*ids));
        ids[at] = id;
        n++;
    }
    return n;
}

/* The slots that no late drive has: reads go to them. Returns how many there are. */
static uint32_t free_slots(const struct sl_embedding *in, uint32_t slots[SL_EMBEDDING_ROWS])
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < SL_EMBEDDING_ROWS; i++)
        if (in->reader->ops->is_free(in->reader, in->first_slot + i))
            slots[n++] = i;
    return n;
}

static bool is_finite(const struct sl_matrix *table, const uint8_t *row)
{
    bool finite = true;

    for (uint32_t c = 0; c < table->cols; c++) {
        uint32_t bits = 0;

        if (table->kind == SL_MATRIX_BF16) {
            uint16_t code;

            memcpy(&code, row + c * sizeof(code), sizeof(code));
            bits = (uint32_t)code << 16;
        } else {
            memcpy(&bits, row + c * sizeof(bits), sizeof(bits));
        }
        finite &= (bits & 0x7f800000u) != 0x7f800000u;
    }
    return finite;
}

static void begin_row(struct sl_embedding *in, uint32_t i, uint32_t slot)
{
    in->reader->ops->begin(in->reader, in->first_slot + slot, SL_EMBED_TENSOR,
                           (uint64_t)in->ids[i] * in->row_bytes, in->row_bytes,
                           in->memory + slot * slot_bytes(in->row_bytes), true);
}

/* Waits for a row's read. A row that is corrupt is read again once. */
static int end_row(struct sl_embedding *in, uint32_t i, uint32_t slot, struct sl_err *err)
{
    for (int tries = 0; tries < 2; tries++) {
        int rc = in->reader->ops->end(in->reader, in->first_slot + slot, true, &in->rows[i], err);

        if (rc < 0 || is_finite(&in->table, in->rows[i]))
            return rc < 0 ? rc : 0;
        if (tries == 0)
            begin_row(in, i, slot);
    }
    return sl_err_set(
        err, -SL_ECORRUPT, "%s: tensor %s holds a value that is not finite, for token %d",
        in->source->ops->where(in->source, SL_EMBED_TENSOR), SL_EMBED_TENSOR, in->ids[i]);
}

/* Reads the next rows that the tokens need, of ids above `above`. Returns how many. */
static int read_rows(struct sl_embedding *in, const struct sl_step *step, uint32_t first,
                     uint32_t end, int32_t above, struct sl_err *err)
{
    struct sl_weight_reader *reader = in->reader;
    uint32_t slots[SL_EMBEDDING_ROWS];
    const uint32_t n_free = free_slots(in, slots);
    const uint32_t phase = sl_pool_phase(step->compute->pool, SL_PHASE_DRIVE);
    struct sl_err failure = {0};
    int rc = 0;

    in->n_rows = n_free ? list_ids(step, first, end, above, in->ids, n_free) : 0;
    for (uint32_t i = 0; i < in->n_rows; i++)
        begin_row(in, i, slots[i]);
    reader->ops->start(reader);
    for (uint32_t i = 0; i < in->n_rows; i++) { /* all of them, also after a failure */
        struct sl_err one = {0};

        if (end_row(in, i, slots[i], &one) < 0 && rc == 0) {
            rc = one.code;
            failure = one;
        }
    }
    sl_pool_phase(step->compute->pool, phase);
    if (n_free == 0)
        rc = sl_err_set(&failure, -ETIMEDOUT,
                        "no room is left to read the embedding into: drives that did not answer "
                        "may still write to it");
    if (rc < 0 && err)
        *err = failure;
    return rc < 0 ? rc : (int)in->n_rows;
}

/* ---- writing -----------------------------------------------------------------------------------
 */

struct writing {
    const struct sl_embedding *embedding;
    const struct sl_step *step;
    uint32_t first;
    float *x;
    size_t stride;
    uint32_t n_copies;
};

/* Returns the row of a token; NULL if it is not there now. */
static const uint8_t *row_of(const struct sl_embedding *in, int32_t id)
{
    uint32_t low = 0, high = in->n_rows;

    if (in->table.tiles)
        return in->table.tiles + (size_t)id * sl_table_row_bytes(&in->table);
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;

        if (in->ids[middle] == id)
            return in->rows[middle];
        if (in->ids[middle] < id)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

/* Items are tokens. */
static void write_rows(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct writing *in = context;
    const struct sl_matrix *table = &in->embedding->table;
    const size_t cols = table->cols;

    (void)thread_index;
    for (size_t i = first; i < end; i++) {
        const uint8_t *row = row_of(in->embedding, in->step->tokens[in->first + i].id);
        float *x = in->x + i * in->stride;

        if (!row)
            continue;
        sl_table_row(table, row, x);
        for (size_t copy = 1; copy < in->n_copies; copy++)
            memcpy(x + copy * cols, x, cols * sizeof(float));
    }
}

int sl_embedding_run(struct sl_embedding *embedding, const struct sl_step *step, uint32_t first,
                     uint32_t end, float *x, size_t stride, uint32_t n_copies, struct sl_err *err)
{
    struct writing writing = {embedding, step, first, x, stride, n_copies};
    struct sl_pool *pool = step->compute->pool;
    int32_t above = -1;
    int rc;

    if (embedding->table.tiles) {
        sl_pool_run(pool, SL_PHASE_REST, end - first, 4, write_rows, &writing);
        return 0;
    }
    while ((rc = read_rows(embedding, step, first, end, above, err)) > 0) {
        above = embedding->ids[embedding->n_rows - 1];
        sl_pool_run(pool, SL_PHASE_REST, end - first, 4, write_rows, &writing);
    }
    return rc;
}
