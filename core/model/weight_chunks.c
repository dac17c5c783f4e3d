#include "core/model/weight_chunks.h"

#include <string.h>

#include "core/base/assert.h"
#include "core/base/size.h"
#include "core/model/phase.h"

/* A chunk that is smaller is one thread's work: to wake others takes as long. */
#define SHARED_BYTES_MIN 65536u

/* Reads of whole blocks begin and end beside what is wanted. */
uint64_t sl_weight_chunk_memory_bytes(uint64_t chunk_bytes)
{
    return sl_round_up(chunk_bytes, SL_BLOCK_BYTES) + 2 * SL_BLOCK_BYTES;
}

void sl_weight_chunks_carve(struct sl_weight_chunks *chunks, struct sl_arena *arena,
                            uint32_t n_chunks, uint64_t chunk_bytes)
{
    chunks->n_chunks = n_chunks;
    chunks->chunk_bytes = chunk_bytes;
    chunks->slot_bytes = sl_weight_chunk_memory_bytes(chunk_bytes);
    chunks->memory = sl_arena_take_aligned(arena, n_chunks, chunks->slot_bytes, SL_BLOCK_BYTES);
    chunks->list = sl_arena_take(arena, n_chunks, sizeof(*chunks->list));
    chunks->out = sl_arena_take(arena, n_chunks, sizeof(*chunks->out));
    chunks->fifo = sl_arena_take(arena, n_chunks, sizeof(*chunks->fifo));
}

static uint8_t *memory_of(const struct sl_weight_chunks *chunks, uint32_t index)
{
    return chunks->memory + index * chunks->slot_bytes;
}

/* Returns n_chunks if none is free. */
static uint32_t find_free(const struct sl_weight_chunks *chunks)
{
    struct sl_weight_reader *reader = chunks->reader;
    uint32_t i = 0;

    while (i < chunks->n_chunks && (chunks->out[i] || !reader->ops->is_free(reader, i)))
        i++;
    return i;
}

bool sl_weight_chunks_begin(struct sl_weight_chunks *chunks, struct sl_weight_chunk *chunk,
                            bool urgent)
{
    const struct sl_tensor_load *tensor = chunk->tensor;
    const uint64_t left_bytes = tensor->info.size_bytes - chunk->offset_bytes;
    const uint64_t at_once = sl_tensor_load_chunk_bytes(tensor, chunks->chunk_bytes);
    const uint32_t i = find_free(chunks);

    if (i == chunks->n_chunks)
        return false;
    chunk->size_bytes = left_bytes < at_once ? left_bytes : at_once;
    sl_assert(chunk->size_bytes <= chunks->chunk_bytes);
    chunks->list[i] = *chunk;
    chunks->out[i] = true;
    chunks->fifo[(chunks->first_out + chunks->n_out++) % chunks->n_chunks] = i;
    chunks->reader->ops->begin(chunks->reader, i, tensor->name, chunk->offset_bytes,
                               chunk->size_bytes, memory_of(chunks, i), urgent);
    return true;
}

void sl_weight_chunks_hurry(struct sl_weight_chunks *chunks, const void *owner)
{
    for (uint32_t i = 0; i < chunks->n_chunks; i++)
        if (chunks->out[i] && chunks->list[i].owner == owner)
            chunks->reader->ops->hurry(chunks->reader, i);
}

void sl_weight_chunks_drop(struct sl_weight_chunks *chunks, const void *owner)
{
    for (uint32_t i = 0; i < chunks->n_chunks; i++)
        if (chunks->out[i] && chunks->list[i].owner == owner)
            chunks->reader->ops->cancel(chunks->reader, i);
}

int sl_weight_chunks_take(struct sl_weight_chunks *chunks, bool wait,
                          struct sl_weight_chunk *ret_chunk, struct sl_err *err)
{
    const uint32_t i = chunks->fifo[chunks->first_out];
    int rc;

    if (chunks->n_out == 0)
        return 0;
    rc = chunks->reader->ops->end(chunks->reader, i, wait, &chunks->bytes, err);
    if (rc == 0)
        return 0;
    chunks->first_out = (chunks->first_out + 1) % chunks->n_chunks;
    chunks->n_out--;
    chunks->out[i] = false;
    chunks->taken = i;
    *ret_chunk = chunks->list[i];
    return rc;
}

/* Elements must be aligned; where their file did not align them they are moved within the chunk's
 * memory. */
static const uint8_t *align(const struct sl_weight_chunks *chunks)
{
    const struct sl_weight_chunk *chunk = &chunks->list[chunks->taken];

    if ((uintptr_t)chunks->bytes % sl_dtype_size_bytes(chunk->tensor->info.dtype) == 0)
        return chunks->bytes;
    return memmove(memory_of(chunks, chunks->taken), chunks->bytes, chunk->size_bytes);
}

/* A chunk's checksum, and what it is converted to. */
struct conversion {
    struct sl_weight_reader *reader;
    struct sl_tensor_part part;
    int check_rc; /* written by the thread that has the first item */
    struct sl_err check_err;
};

/* Item 0 is the checksum, which goes on from chunk to chunk and so is one thread's; the others
 * convert meanwhile. */
static void convert(void *context, size_t first, size_t end, uint32_t thread_index)
{
    struct conversion *in = context;
    struct sl_tensor_part *part = &in->part;

    (void)thread_index;
    if (first == 0) {
        in->check_rc = in->reader->ops->check(in->reader, part->load->name, part->offset_bytes,
                                              part->size_bytes, part->bytes, &in->check_err);
        first++;
    }
    if (first < end)
        sl_tensor_part_convert(part, first - 1, end - 1);
}

int sl_weight_chunks_convert(struct sl_weight_chunks *chunks, struct sl_err *err)
{
    const struct sl_weight_chunk *chunk = &chunks->list[chunks->taken];
    struct conversion in = {
        .reader = chunks->reader,
        .part = {.load = chunk->tensor,
                 .offset_bytes = chunk->offset_bytes,
                 .size_bytes = chunk->size_bytes,
                 .bytes = align(chunks),
                 .where = chunks->source->ops->where(chunks->source, chunk->tensor->name)}};
    const size_t n_items = 1 + sl_tensor_part_item_count(&in.part);

    sl_pool_run(chunks->pool, SL_PHASE_REPACK, n_items,
                chunk->size_bytes < SHARED_BYTES_MIN ? n_items : 1, convert, &in);
    if (in.check_rc < 0 && err)
        *err = in.check_err;
    return in.check_rc < 0 ? in.check_rc : sl_tensor_part_end(&in.part, err);
}
