/* Owns loads and staging buffers; how an expert's bytes become tiles. */
#include "cache/expert_load.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/clock.h"
#include "core/base/size.h"
#include "core/kernels/r16.h"

_Static_assert(SL_READ_ALIGN_BYTES == SL_IO_ALIGN_BYTES,
               "the store and the reader agree on blocks");

/* Tiles worth waking a thread for: about 280 KB of Flash, some 50 microseconds. */
#define REPACK_GRAIN 8u

struct repack {
    const struct sl_expert_load *load;
    const struct sl_expert_shape *shape;
    /* Any thread sets its matrix's; the driver reads after the pool has joined them. */
    atomic_bool corrupt[SL_EXPERT_MATRICES];
};

static size_t matrix_rows(const struct sl_expert_shape *shape, int matrix)
{
    return matrix == SL_EXPERT_W2 ? shape->hidden_size : shape->moe_intermediate_size;
}

static size_t matrix_cols(const struct sl_expert_shape *shape, int matrix)
{
    return matrix == SL_EXPERT_W2 ? shape->moe_intermediate_size : shape->hidden_size;
}

uint64_t sl_expert_tiles_offset_bytes(const struct sl_expert_shape *shape, int matrix)
{
    uint64_t bytes = 0;

    for (int i = 0; i < matrix; i++)
        bytes += sl_round_up(sl_r16_tile_count(matrix_rows(shape, i)) *
                                 sl_r16_fp4_tile_bytes(matrix_cols(shape, i)),
                             SL_IO_ALIGN_BYTES);
    return bytes;
}

void sl_expert_slab_place(const struct sl_expert_shape *shape, struct sl_pool *pool, uint8_t *slab,
                          uint32_t n_slots)
{
    for (int i = 0; i < SL_EXPERT_MATRICES; i++)
        sl_pool_place(pool, slab + sl_expert_tiles_offset_bytes(shape, i),
                      sl_r16_tile_count(matrix_rows(shape, i)),
                      sl_r16_fp4_tile_bytes(matrix_cols(shape, i)), n_slots,
                      sl_expert_tiles_offset_bytes(shape, SL_EXPERT_MATRICES));
}

/* An extent that begins and ends inside blocks takes up to one block more than its own size rounded
 * up; merging only makes it less. */
uint64_t sl_expert_load_staging_bytes(const struct sl_expert_shape *shape)
{
    uint64_t bytes = 0;

    for (int i = 0; i < SL_EXPERT_MATRICES; i++) {
        uint64_t elements = (uint64_t)matrix_rows(shape, i) * matrix_cols(shape, i);

        bytes += sl_round_up(elements / 2, SL_IO_ALIGN_BYTES) + SL_IO_ALIGN_BYTES;
        bytes += sl_round_up(elements / SL_FP4_BLOCK_COLS, SL_IO_ALIGN_BYTES) + SL_IO_ALIGN_BYTES;
    }
    return bytes;
}

void sl_expert_loader_init(struct sl_expert_loader *loader, const struct sl_expert_store *store,
                           struct sl_reader *reader, struct sl_pool *pool, uint32_t inflight_max)
{
    sl_assert(inflight_max >= 1);
    *loader = (struct sl_expert_loader){
        .store = store,
        .reader = reader,
        .pool = pool,
        .staging_bytes = sl_expert_load_staging_bytes(sl_expert_store_shape(store)),
        .inflight_max = inflight_max,
    };
}

void sl_expert_loader_carve(struct sl_expert_loader *loader, struct sl_arena *arena)
{
    loader->staging = sl_arena_take_aligned(arena, loader->inflight_max, loader->staging_bytes,
                                            SL_IO_ALIGN_BYTES);
    loader->loads = sl_arena_take(arena, loader->inflight_max, sizeof(*loader->loads));
}

/* Returns where an extent's first byte lands. The store widens its reads to whole blocks, and the
 * last block may reach past the end of the file: so a read asks for no more than its last extent.
 */
static const uint8_t *place_extent(struct sl_expert_load *load, const struct sl_extent *spans,
                                   const struct sl_extent *extent)
{
    uint32_t i = 0;
    uint64_t size_bytes;

    while (spans[i].file_index != extent->file_index ||
           extent->offset_bytes < spans[i].offset_bytes ||
           extent->offset_bytes >= spans[i].offset_bytes + spans[i].size_bytes) {
        i++;
        sl_assert(i < load->n_reads);
    }
    size_bytes = extent->offset_bytes + extent->size_bytes - spans[i].offset_bytes;
    if (load->reads[i].size_bytes < size_bytes)
        load->reads[i].size_bytes = size_bytes;
    return load->reads[i].dst + (extent->offset_bytes - spans[i].offset_bytes);
}

static void plan_reads(struct sl_expert_loader *loader, struct sl_expert_load *load)
{
    const struct sl_expert_record *record = sl_expert_store_find(loader->store, load->key);
    uint8_t *staging = loader->staging + (size_t)(load - loader->loads) * loader->staging_bytes;
    uint8_t *const staging_end = staging + loader->staging_bytes;
    struct sl_extent spans[SL_EXPERT_READS_MAX];

    sl_assert(record);
    load->n_reads = sl_expert_record_reads(record, spans);
    for (uint32_t i = 0; i < load->n_reads; i++) {
        sl_assert(spans[i].size_bytes <= (size_t)(staging_end - staging));
        load->reads[i] = (struct sl_read){
            .offset_bytes = spans[i].offset_bytes,
            .dst = staging,
            .owner = load,
            .file_index = spans[i].file_index,
        };
        staging += spans[i].size_bytes;
    }
    for (int matrix = 0; matrix < SL_EXPERT_MATRICES; matrix++) {
        load->codes[matrix] = place_extent(load, spans, &record->codes[matrix]);
        load->scales[matrix] = place_extent(load, spans, &record->scales[matrix]);
        loader->wanted_bytes += record->codes[matrix].size_bytes;
        loader->wanted_bytes += record->scales[matrix].size_bytes;
    }
}

static void queue_reads(struct sl_expert_loader *loader, struct sl_expert_load *load, bool urgent)
{
    load->failed = NULL;
    load->n_reads_left = load->n_reads;
    for (uint32_t i = 0; i < load->n_reads; i++) {
        load->reads[i].read_class = urgent ? SL_READ_DEMAND : SL_READ_PREFETCH;
        sl_reader_queue(loader->reader, &load->reads[i]);
    }
}

void sl_expert_loader_begin(struct sl_expert_loader *loader, struct sl_expert_key key,
                            uint32_t slot_index, uint8_t *tiles, bool urgent)
{
    struct sl_expert_load *load = loader->loads;

    sl_assert(!sl_expert_loader_is_full(loader));
    while (load->busy)
        load++;
    load->key = key;
    load->slot_index = slot_index;
    load->tiles = tiles;
    load->busy = true;
    load->reread = false;
    loader->n_busy++;
    plan_reads(loader, load);
    queue_reads(loader, load, urgent);
}

void sl_expert_loader_promote(struct sl_expert_loader *loader, uint32_t slot_index)
{
    struct sl_expert_load *load = loader->loads;

    while (!load->busy || load->held || load->slot_index != slot_index)
        load++;
    for (uint32_t i = 0; i < load->n_reads; i++)
        sl_reader_promote(loader->reader, &load->reads[i]);
}

/* Items are the tiles of the three matrices, one after the other. */
static void repack_tiles(void *context, size_t first, size_t end, uint32_t thread_index)
{
    struct repack *repack = context;
    const struct sl_expert_load *load = repack->load;

    (void)thread_index;
    for (int matrix = 0; matrix < SL_EXPERT_MATRICES && end > 0; matrix++) {
        size_t n_tiles = sl_r16_tile_count(matrix_rows(repack->shape, matrix));
        size_t stop = end < n_tiles ? end : n_tiles;

        if (first < stop &&
            sl_r16_pack_fp4(matrix_cols(repack->shape, matrix), first, stop, load->codes[matrix],
                            load->scales[matrix],
                            load->tiles + sl_expert_tiles_offset_bytes(repack->shape, matrix)) < 0)
            atomic_store_explicit(&repack->corrupt[matrix], true, memory_order_relaxed);
        first = first > n_tiles ? first - n_tiles : 0;
        end = end > n_tiles ? end - n_tiles : 0;
    }
}

/* Returns 0, or -SL_ECORRUPT with *ret_matrix set. */
static int repack(struct sl_expert_loader *loader, const struct sl_expert_load *load,
                  int *ret_matrix)
{
    struct repack repack = {.load = load, .shape = sl_expert_store_shape(loader->store)};
    enum sl_phase phase = sl_pool_phase(loader->pool, SL_PHASE_REPACK);
    uint64_t start_ns = sl_clock_ns();
    size_t n_tiles = 0;

    for (int matrix = 0; matrix < SL_EXPERT_MATRICES; matrix++)
        n_tiles += sl_r16_tile_count(matrix_rows(repack.shape, matrix));
    sl_pool_run(loader->pool, n_tiles, REPACK_GRAIN, repack_tiles, &repack);
    loader->repack_ns += sl_clock_ns() - start_ns;
    sl_pool_phase(loader->pool, phase);
    for (int matrix = 0; matrix < SL_EXPERT_MATRICES; matrix++) {
        if (atomic_load_explicit(&repack.corrupt[matrix], memory_order_relaxed)) {
            *ret_matrix = matrix;
            return -SL_ECORRUPT;
        }
    }
    return 0;
}

static int explain_corrupt(const struct sl_expert_loader *loader, const struct sl_expert_load *load,
                           int matrix, struct sl_err *err)
{
    static const char *const names[SL_EXPERT_MATRICES] = {
        [SL_EXPERT_W1] = "w1", [SL_EXPERT_W2] = "w2", [SL_EXPERT_W3] = "w3"};
    const struct sl_extent *scales =
        &sl_expert_store_find(loader->store, load->key)->scales[matrix];

    return sl_err_set(err, -SL_ECORRUPT,
                      "%s: %s has a scale that is NaN or above 2^%d in its %llu at offset %llu",
                      sl_expert_store_file_path(loader->store, scales->file_index), names[matrix],
                      SL_SCALE_EXPONENT_MAX, (unsigned long long)scales->size_bytes,
                      (unsigned long long)scales->offset_bytes);
}

/* All reads of a load are back. Returns false if it has been sent off again. */
static bool finish(struct sl_expert_loader *loader, struct sl_expert_load *load,
                   struct sl_expert_load_end *end)
{
    const struct sl_expert_shape *shape = sl_expert_store_shape(loader->store);
    bool is_mtp = load->key.layer_index >= shape->num_hidden_layers;
    int matrix = 0;

    end->slot_index = load->slot_index;
    if (load->failed) {
        end->rc = sl_reader_explain(loader->reader, load->failed, &end->err);
    } else {
        end->rc = repack(loader, load, &matrix);
        if (end->rc < 0 && !load->reread) {
            load->reread = true;
            loader->n_rereads++;
            queue_reads(loader, load, true);
            return false;
        }
        if (end->rc < 0)
            explain_corrupt(loader, load, matrix, &end->err);
    }
    if (end->rc < 0)
        sl_err_prefix(&end->err, end->rc, "%s %u, expert %u", is_mtp ? "MTP block" : "layer",
                      load->key.layer_index - (is_mtp ? shape->num_hidden_layers : 0),
                      load->key.expert_index);
    load->busy = load->held = load->late_reads != 0;
    loader->n_busy -= !load->busy;
    loader->n_held += load->held;
    return true;
}

/* A read is back, or back again. Returns true if that ends its load. */
static bool take_read(struct sl_expert_loader *loader, struct sl_read *read,
                      struct sl_expert_load_end *end)
{
    struct sl_expert_load *load = read->owner;
    const uint32_t bit = UINT32_C(1) << (read - load->reads);

    if (load->late_reads & bit) {
        load->late_reads &= ~bit;
        if (load->held && load->late_reads == 0) {
            load->busy = load->held = false;
            loader->n_busy--;
            loader->n_held--;
        }
        return false;
    }
    if (read->rc < 0 && !load->failed)
        load->failed = read;
    if (read->late)
        load->late_reads |= bit;
    load->n_reads_left--;
    return load->n_reads_left == 0 && finish(loader, load, end);
}

static struct sl_read *reap_read(struct sl_expert_loader *loader, bool wait)
{
    struct sl_read *read;
    enum sl_phase phase;

    if (!wait)
        return sl_reader_reap(loader->reader, false);
    phase = sl_pool_phase(loader->pool, SL_PHASE_DRIVE);
    read = sl_reader_reap(loader->reader, true);
    sl_pool_phase(loader->pool, phase);
    return read;
}

bool sl_expert_loader_reap(struct sl_expert_loader *loader, bool wait,
                           struct sl_expert_load_end *ret_end)
{
    struct sl_read *read;

    while ((read = reap_read(loader, wait))) {
        if (take_read(loader, read, ret_end))
            return true;
    }
    return false;
}

int sl_expert_loader_check(const struct sl_expert_loader *loader, struct sl_err *err)
{
    if (loader->n_held < loader->inflight_max)
        return 0;
    sl_reader_explain(loader->reader, loader->loads[0].failed, err);
    return sl_err_prefix(err, -ETIMEDOUT, "no buffer is left to read into: the drives hold all %u",
                         loader->inflight_max);
}
