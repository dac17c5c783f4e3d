/* Owns loads and staging buffers; how an expert's bytes become tiles, and proved ones. */
#include "cache/expert_load.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/clock.h"
#include "core/base/size.h"
#include "core/kernels/r16.h"
#include "storage/io/checksum.h"

/* A record's first matrices: w1 and w3. */
#define HEAD_MATRICES 2

/* Tiles worth waking a thread for: about 280 KB of Flash, some 50 microseconds. */
#define REPACK_GRAIN 8u

/* A job over what a load has brought. */
struct landed {
    const struct sl_expert_load *load;
    const struct sl_expert_shape *shape;
    const struct sl_packed_expert *packed; /* NULL: to be repacked */
    const struct sl_expert_loader *loader;
    int first; /* matrix of the record to be verified */
    /* Any thread sets its matrix's; the driver reads after the pool has joined them. */
    atomic_bool corrupt[SL_EXPERT_MATRICES];
};

/* An extent that begins and ends inside blocks takes up to one block more than its own size rounded
 * up; merging only makes it less. */
uint64_t sl_expert_load_staging_bytes(const struct sl_expert_map *store)
{
    const struct sl_expert_shape *shape = sl_expert_map_shape(store);
    uint64_t bytes = 0;

    if (sl_expert_map_is_packed(store))
        return sl_expert_map_is_compressed(store) ? sl_packed_expert_bytes(shape) : 0;
    for (int i = 0; i < SL_EXPERT_MATRICES; i++) {
        uint64_t elements =
            (uint64_t)sl_expert_matrix_rows(shape, i) * sl_expert_matrix_cols(shape, i);

        bytes += sl_round_up(elements / 2, SL_BLOCK_BYTES) + SL_BLOCK_BYTES;
        bytes += sl_round_up(elements / SL_FP4_BLOCK_COLS, SL_BLOCK_BYTES) + SL_BLOCK_BYTES;
    }
    return bytes;
}

void sl_expert_loader_init(struct sl_expert_loader *loader, const struct sl_expert_map *store,
                           struct sl_reader *reader, struct sl_pool *pool, uint32_t inflight_max,
                           enum sl_verify verify)
{
    sl_assert(inflight_max >= 1);
    *loader = (struct sl_expert_loader){
        .store = store,
        .reader = reader,
        .pool = pool,
        .staging_bytes = sl_expert_load_staging_bytes(store),
        .verify = verify,
        .n_threads = pool ? sl_pool_thread_count(pool) : 0,
        .inflight_max = inflight_max,
    };
}

void sl_expert_loader_carve(struct sl_expert_loader *loader, struct sl_arena *arena)
{
    const struct sl_expert_shape *shape = sl_expert_map_shape(loader->store);
    uint64_t n_layers = shape->num_hidden_layers + shape->n_mtp_layers;

    loader->verified =
        sl_arena_take(arena, n_layers * shape->n_routed_experts, sizeof(*loader->verified));
    loader->staging =
        sl_arena_take_aligned(arena, loader->inflight_max, loader->staging_bytes, SL_BLOCK_BYTES);
    loader->loads = sl_arena_take(arena, loader->inflight_max, sizeof(*loader->loads));
    if (!sl_expert_map_is_compressed(loader->store))
        return;
    loader->decoders = sl_arena_take(arena, loader->n_threads, sizeof(struct sl_record_decoder *));
    for (uint32_t i = 0; i < loader->n_threads; i++) {
        uint8_t *memory = sl_arena_take(arena, 1, sl_record_decoder_bytes(shape));

        if (memory) /* else it is being measured */
            loader->decoders[i] = sl_record_decoder_init(memory);
    }
}

static void hold_staging(struct sl_expert_loader *loader, struct sl_expert_load *load)
{
    if (!loader->holds_staging || load->staging_held)
        return;
    loader->holds_staging =
        sl_reader_hold(loader->reader, (uint32_t)(load - loader->loads), true) == 0;
    load->staging_held = loader->holds_staging;
}

int sl_expert_loader_attach(struct sl_expert_loader *loader)
{
    int rc = sl_reader_attach(loader->reader, loader->staging,
                              loader->inflight_max * loader->staging_bytes, loader->staging_bytes);

    if (rc < 0)
        return rc;
    loader->holds_staging = true;
    hold_staging(loader, loader->loads);
    return loader->holds_staging ? 0 : -ENOMEM;
}

/* Returns where an extent's first byte lands. The store widens its reads to whole blocks, and the
 * last block may reach past the end of the file: so a read asks for no more than its last extent.
 */
static const uint8_t *place_extent(struct sl_expert_load *load,
                                   const struct sl_extent *aligned_runs,
                                   const struct sl_extent *extent)
{
    uint32_t i = 0;
    uint64_t size_bytes;

    while (aligned_runs[i].file_index != extent->file_index ||
           extent->offset_bytes < aligned_runs[i].offset_bytes ||
           extent->offset_bytes >= aligned_runs[i].offset_bytes + aligned_runs[i].size_bytes) {
        i++;
        sl_assert(i < load->n_reads);
    }
    size_bytes = extent->offset_bytes + extent->size_bytes - aligned_runs[i].offset_bytes;
    if (load->reads[i].size_bytes < size_bytes)
        load->reads[i].size_bytes = size_bytes;
    return load->reads[i].dst + (extent->offset_bytes - aligned_runs[i].offset_bytes);
}

static uint8_t *staging_of(const struct sl_expert_loader *loader, const struct sl_expert_load *load)
{
    return loader->staging + (size_t)(load - loader->loads) * loader->staging_bytes;
}

static void plan_reads(struct sl_expert_loader *loader, struct sl_expert_load *load)
{
    const struct sl_checkpoint_expert *record = sl_expert_map_find(loader->store, load->key);
    uint8_t *staging = staging_of(loader, load);
    uint8_t *const staging_end = staging + loader->staging_bytes;
    struct sl_extent aligned_runs[SL_EXPERT_READS_MAX];

    sl_assert(record);
    load->n_reads = sl_checkpoint_expert_reads(record, aligned_runs);
    load->n_head_reads = 0; /* a checkpoint has the scales of all three first */
    for (uint32_t i = 0; i < load->n_reads; i++) {
        sl_assert(aligned_runs[i].size_bytes <= (size_t)(staging_end - staging));
        load->reads[i] = (struct sl_read){
            .offset_bytes = aligned_runs[i].offset_bytes,
            .dst = staging,
            .owner = load,
            .file_index = aligned_runs[i].file_index,
        };
        staging += aligned_runs[i].size_bytes;
    }
    for (int matrix = 0; matrix < SL_EXPERT_MATRICES; matrix++) {
        load->codes[matrix] = place_extent(load, aligned_runs, &record->codes[matrix]);
        load->scales[matrix] = place_extent(load, aligned_runs, &record->scales[matrix]);
        loader->wanted_bytes += record->codes[matrix].size_bytes;
        loader->wanted_bytes += record->scales[matrix].size_bytes;
    }
}

static void add_packed_read(struct sl_expert_load *load, const struct sl_extent *extent,
                            uint8_t *dst)
{
    load->reads[load->n_reads++] = (struct sl_read){
        .offset_bytes = extent->offset_bytes,
        .size_bytes = extent->size_bytes,
        .dst = dst,
        .owner = load,
        .file_index = extent->file_index,
    };
}

/* The parts of a record, one after the other: into the slot, or to where it is unpacked from. In
 * the slot w1 and w3 can be used before w2 is there, so the part that reaches into w2 is read in
 * two. */
static void plan_packed(struct sl_expert_loader *loader, struct sl_expert_load *load)
{
    const struct sl_packed_expert *packed = sl_expert_map_find_packed(loader->store, load->key);
    uint64_t head_bytes =
        sl_expert_matrix_offset_bytes(sl_expert_map_shape(loader->store), SL_EXPERT_W2);
    uint64_t at_bytes = 0;
    uint8_t *dst;

    sl_assert(packed);
    if (packed->compressed)
        head_bytes = UINT64_MAX; /* it is unpacked when all of it is there */
    dst = packed->compressed ? staging_of(loader, load) : load->tiles;
    load->n_reads = load->n_head_reads = 0;
    for (uint32_t i = 0; i < packed->n_parts; i++) {
        struct sl_extent part = packed->parts[i];

        if (at_bytes < head_bytes && head_bytes < at_bytes + part.size_bytes) {
            part.size_bytes = head_bytes - at_bytes;
            add_packed_read(load, &part, dst + at_bytes);
            at_bytes = head_bytes;
            part.offset_bytes += part.size_bytes;
            part.size_bytes = packed->parts[i].size_bytes - part.size_bytes;
        }
        if (at_bytes >= head_bytes && load->n_head_reads == 0)
            load->n_head_reads = load->n_reads;
        add_packed_read(load, &part, dst + at_bytes);
        at_bytes += part.size_bytes;
    }
    loader->wanted_bytes += at_bytes;
}

static enum sl_read_class class_of(const struct sl_expert_load *load)
{
    return load->urgent ? SL_READ_DEMAND : SL_READ_PREFETCH;
}

static void queue_reads(struct sl_expert_loader *loader, struct sl_expert_load *load)
{
    const uint32_t first = load->head_landed ? load->n_head_reads : 0; /* it may be in use */

    load->failed = NULL;
    load->n_reads_left = load->n_reads - first;
    load->n_head_left = load->n_head_reads - first;
    for (uint32_t i = first; i < load->n_reads; i++) {
        load->reads[i].read_class = class_of(load);
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
    load->urgent = urgent;
    load->reread = load->cancelled = load->head_landed = false;
    loader->n_busy++;
    hold_staging(loader, load);
    if (sl_expert_map_is_packed(loader->store))
        plan_packed(loader, load);
    else
        plan_reads(loader, load);
    queue_reads(loader, load);
}

static struct sl_expert_load *load_into(struct sl_expert_loader *loader, uint32_t slot_index)
{
    struct sl_expert_load *load = loader->loads;

    while (!load->busy || load->held || load->slot_index != slot_index)
        load++;
    return load;
}

bool sl_expert_loader_has_head(struct sl_expert_loader *loader, uint32_t slot_index)
{
    return load_into(loader, slot_index)->head_landed;
}

void sl_expert_loader_set_urgent(struct sl_expert_loader *loader, uint32_t slot_index, bool urgent)
{
    struct sl_expert_load *load = load_into(loader, slot_index);

    load->urgent = urgent;
    for (uint32_t i = 0; i < load->n_reads; i++)
        sl_reader_set_class(loader->reader, &load->reads[i], class_of(load));
}

uint64_t sl_expert_loader_cancel(struct sl_expert_loader *loader, uint32_t slot_index)
{
    struct sl_expert_load *load = load_into(loader, slot_index);
    uint64_t begun_bytes = 0;

    sl_assert(!load->cancelled);
    load->cancelled = true;
    loader->n_cancelled++;
    for (uint32_t i = 0; i < load->n_reads; i++) {
        begun_bytes += sl_read_begun_bytes(&load->reads[i]);
        sl_reader_cancel(loader->reader, &load->reads[i]);
    }
    return begun_bytes;
}

/* Items are the tiles of the three matrices, one after the other. */
static void repack_tiles(void *context, size_t first, size_t end, uint32_t thread_index)
{
    struct landed *landed = context;
    const struct sl_expert_load *load = landed->load;

    (void)thread_index;
    for (int matrix = 0; matrix < SL_EXPERT_MATRICES && end > 0; matrix++) {
        size_t n_tiles = sl_r16_tile_count(sl_expert_matrix_rows(landed->shape, matrix));
        size_t stop = end < n_tiles ? end : n_tiles;

        if (first < stop &&
            sl_r16_pack_fp4(sl_expert_matrix_cols(landed->shape, matrix), first, stop,
                            load->codes[matrix], load->scales[matrix],
                            load->tiles + sl_expert_matrix_offset_bytes(landed->shape, matrix)) < 0)
            atomic_store_explicit(&landed->corrupt[matrix], true, memory_order_relaxed);
        first = first > n_tiles ? first - n_tiles : 0;
        end = end > n_tiles ? end - n_tiles : 0;
    }
}

/* Items are the chunks of a compressed record. */
static void unpack_chunks(void *context, size_t first, size_t end, uint32_t thread_index)
{
    struct landed *landed = context;
    const struct sl_expert_loader *loader = landed->loader;

    for (size_t i = first; i < end; i++) {
        const struct sl_record_chunk *chunk = &loader->index.chunks[i];

        if (!sl_record_unpack(loader->decoders[thread_index], chunk, landed->load->tiles))
            atomic_store_explicit(&landed->corrupt[chunk->matrix], true, memory_order_relaxed);
    }
}

static void unpack(struct sl_expert_loader *loader, struct landed *landed)
{
    uint64_t start_ns = sl_clock_ns();

    if (sl_record_index_read(&loader->index, landed->shape, staging_of(loader, landed->load),
                             sl_packed_expert_stored_bytes(landed->packed)))
        sl_pool_run(loader->pool, loader->index.n_chunks, 1, unpack_chunks, landed);
    else
        atomic_store_explicit(&landed->corrupt[sl_expert_matrix_order[0]], true,
                              memory_order_relaxed);
    loader->unpack_ns += sl_clock_ns() - start_ns;
}

/* Items are matrices, as they lie in the record. */
static void verify_matrices(void *context, size_t first, size_t end, uint32_t thread_index)
{
    struct landed *landed = context;

    (void)thread_index;
    for (size_t i = first; i < end; i++) {
        const int matrix = sl_expert_matrix_order[(size_t)landed->first + i];
        const uint8_t *tiles =
            landed->load->tiles + sl_expert_matrix_offset_bytes(landed->shape, matrix);

        if (sl_checksum(tiles, sl_expert_matrix_bytes(landed->shape, matrix)) !=
            landed->packed->checksums[matrix])
            atomic_store_explicit(&landed->corrupt[matrix], true, memory_order_relaxed);
    }
}

static bool *verified_of(const struct sl_expert_loader *loader, struct sl_expert_key key)
{
    return &loader->verified[(size_t)key.layer_index *
                                 sl_expert_map_shape(loader->store)->n_routed_experts +
                             key.expert_index];
}

/* Matrices first .. end - 1 of the record. */
static void verify(struct sl_expert_loader *loader, struct landed *landed, int first, int end)
{
    uint64_t start_ns = sl_clock_ns();

    if (loader->verify == SL_VERIFY_NEVER ||
        (loader->verify == SL_VERIFY_FIRST && *verified_of(loader, landed->load->key)))
        return;
    landed->first = first;
    sl_pool_run(loader->pool, end - first, 1, verify_matrices, landed);
    loader->verify_ns += sl_clock_ns() - start_ns;
}

static void repack(struct sl_expert_loader *loader, struct landed *landed)
{
    uint64_t start_ns = sl_clock_ns();
    size_t n_tiles = 0;

    for (int matrix = 0; matrix < SL_EXPERT_MATRICES; matrix++)
        n_tiles += sl_r16_tile_count(sl_expert_matrix_rows(landed->shape, matrix));
    sl_pool_run(loader->pool, n_tiles, REPACK_GRAIN, repack_tiles, landed);
    loader->repack_ns += sl_clock_ns() - start_ns;
}

/* The first matrix that is corrupt, or -1. */
static int corrupt_matrix(const struct landed *landed)
{
    for (int matrix = 0; matrix < SL_EXPERT_MATRICES; matrix++)
        if (atomic_load_explicit(&landed->corrupt[matrix], memory_order_relaxed))
            return matrix;
    return -1;
}

/* Makes what has landed an expert. Returns 0, or -SL_ECORRUPT with *ret_matrix set. */
static int take_in(struct sl_expert_loader *loader, const struct sl_expert_load *load,
                   int *ret_matrix)
{
    struct landed landed = {.load = load,
                            .shape = sl_expert_map_shape(loader->store),
                            .packed = sl_expert_map_find_packed(loader->store, load->key),
                            .loader = loader};
    enum sl_phase phase = sl_pool_phase(loader->pool, SL_PHASE_REPACK);

    if (landed.packed && landed.packed->compressed)
        unpack(loader, &landed);
    if (landed.packed)
        verify(loader, &landed, load->head_landed ? HEAD_MATRICES : 0, SL_EXPERT_MATRICES);
    else
        repack(loader, &landed);
    sl_pool_phase(loader->pool, phase);
    *ret_matrix = corrupt_matrix(&landed);
    *verified_of(loader, load->key) = *ret_matrix < 0;
    return *ret_matrix < 0 ? 0 : -SL_ECORRUPT;
}

/* True if what has landed of w1 and w3 is as it should be: else let the load's end find out. */
static bool take_in_head(struct sl_expert_loader *loader, struct sl_expert_load *load)
{
    struct landed landed = {.load = load,
                            .shape = sl_expert_map_shape(loader->store),
                            .packed = sl_expert_map_find_packed(loader->store, load->key)};
    enum sl_phase phase = sl_pool_phase(loader->pool, SL_PHASE_REPACK);

    verify(loader, &landed, 0, HEAD_MATRICES);
    sl_pool_phase(loader->pool, phase);
    load->head_landed = corrupt_matrix(&landed) < 0;
    return load->head_landed;
}

static int explain_packed(const struct sl_expert_loader *loader,
                          const struct sl_packed_expert *packed, int matrix, struct sl_err *err)
{
    struct sl_extent at[SL_EXPERT_PARTS_MAX];

    if (packed->compressed)
        return sl_err_set(err, -SL_ECORRUPT,
                          "%s: the compressed record at offset %llu does not give the %s that the "
                          "catalog names, read twice; sluice verify --repair can repair it",
                          sl_expert_map_file_path(loader->store, packed->parts[0].file_index),
                          (unsigned long long)packed->parts[0].offset_bytes,
                          sl_expert_matrix_name(matrix));
    sl_packed_expert_matrix(packed, sl_expert_map_shape(loader->store), matrix, at);
    return sl_err_set(err, -SL_ECORRUPT,
                      "%s: %s at offset %llu does not have the checksum that the catalog names, "
                      "read twice; sluice verify --repair can repair it",
                      sl_expert_map_file_path(loader->store, at[0].file_index),
                      sl_expert_matrix_name(matrix), (unsigned long long)at[0].offset_bytes);
}

static int explain_corrupt(const struct sl_expert_loader *loader, const struct sl_expert_load *load,
                           int matrix, struct sl_err *err)
{
    const struct sl_packed_expert *packed = sl_expert_map_find_packed(loader->store, load->key);
    const struct sl_extent *scales;

    if (packed)
        return explain_packed(loader, packed, matrix, err);
    scales = &sl_expert_map_find(loader->store, load->key)->scales[matrix];
    return sl_err_set(err, -SL_ECORRUPT,
                      "%s: %s has a scale that is NaN or above 2^%d in its %llu at offset %llu",
                      sl_expert_map_file_path(loader->store, scales->file_index),
                      sl_expert_matrix_name(matrix), SL_SCALE_EXPONENT_MAX,
                      (unsigned long long)scales->size_bytes,
                      (unsigned long long)scales->offset_bytes);
}

/* All reads of a load are back. Returns false if it has been sent off again. */
static bool finish(struct sl_expert_loader *loader, struct sl_expert_load *load,
                   struct sl_expert_load_end *end)
{
    char text[SL_EXPERT_TEXT_BYTES];
    int matrix = 0;

    *end = (struct sl_expert_load_end){.slot_index = load->slot_index};
    if (load->cancelled) {
        end->rc = -ECANCELED;
        loader->n_cancelled--;
    } else if (load->failed) {
        end->rc = sl_reader_explain(loader->reader, load->failed, &end->err);
    } else {
        end->rc = take_in(loader, load, &matrix);
        if (end->rc < 0 && !load->reread) {
            load->reread = true;
            loader->n_rereads++;
            queue_reads(loader, load);
            return false;
        }
        if (end->rc < 0)
            explain_corrupt(loader, load, matrix, &end->err);
    }
    if (end->rc < 0 && !load->cancelled)
        sl_err_prefix(&end->err, end->rc, "%s",
                      sl_expert_format(sl_expert_map_shape(loader->store), load->key, text));
    load->busy = load->held = end->held = load->late_reads != 0;
    loader->n_busy -= !load->busy;
    loader->n_held += load->held;
    return true;
}

/* A load that was held is free again. */
static void let_go(struct sl_expert_loader *loader, struct sl_expert_load *load,
                   struct sl_expert_load_end *end)
{
    *end = (struct sl_expert_load_end){.slot_index = load->slot_index};
    end->rc =
        load->cancelled ? -ECANCELED : sl_reader_explain(loader->reader, load->failed, &end->err);
    load->busy = load->held = false;
    loader->n_busy--;
    loader->n_held--;
}

/* A read is back, or back again. Returns true if that ends its load, or lets it go. */
static bool take_read(struct sl_expert_loader *loader, struct sl_read *read,
                      struct sl_expert_load_end *end)
{
    struct sl_expert_load *load = read->owner;
    const uint32_t bit = UINT32_C(1) << (read - load->reads);

    if (load->late_reads & bit) {
        load->late_reads &= ~bit;
        if (!load->held || load->late_reads != 0)
            return false;
        let_go(loader, load, end);
        return true;
    }
    if (read->rc < 0 && !load->failed)
        load->failed = read;
    if (read->late)
        load->late_reads |= bit;
    load->n_reads_left--;
    if (load->n_reads_left == 0)
        return finish(loader, load, end);
    if (read - load->reads >= load->n_head_reads || load->failed || load->cancelled ||
        --load->n_head_left > 0)
        return false;
    *end = (struct sl_expert_load_end){.slot_index = load->slot_index, .head = true};
    return take_in_head(loader, load);
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

int sl_expert_loader_explain_held(const struct sl_expert_loader *loader, struct sl_err *err)
{
    const struct sl_expert_load *load = loader->loads;

    sl_assert(loader->n_held > 0);
    while (!load->held)
        load++;
    if (load->cancelled)
        sl_err_set(err, -ETIMEDOUT, "%s: its drive did not answer",
                   sl_expert_map_file_path(
                       loader->store, load->reads[__builtin_ctz(load->late_reads)].file_index));
    else
        sl_reader_explain(loader->reader, load->failed, err);
    return sl_err_prefix(err, -ETIMEDOUT,
                         "no room is left to read into: the drives keep that of %u experts",
                         loader->n_held);
}
