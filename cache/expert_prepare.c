#include "cache/expert_prepare.h"

#include <stdatomic.h>

#include "core/base/assert.h"
#include "core/base/clock.h"
#include "core/base/size.h"
#include "core/kernels/r16.h"
#include "core/model/expert_pack.h"
#include "core/model/phase.h"
#include "storage/io/checksum.h"

/* w1 and w3, the first matrices of a record. */
#define UP_MATRICES 2

/* Tiles worth waking a thread for: about 280 KB of Flash, some 50 microseconds. */
#define REPACK_GRAIN 8u

/* A job over what a load has brought. */
struct landed {
    const struct sl_landing *landing;
    const struct sl_expert_shape *shape;
    const struct sl_packed_expert *packed; /* NULL: to be repacked */
    const struct sl_expert_preparer *preparer;
    int first; /* matrix of the record to be verified */
    /* Any thread sets its matrix's; the driver reads after the pool has joined them. */
    atomic_bool corrupt[SL_EXPERT_MATRICES];
};

void sl_expert_preparer_init(struct sl_expert_preparer *preparer, const struct sl_expert_map *store,
                             struct sl_pool *pool, enum sl_verify verify)
{
    *preparer = (struct sl_expert_preparer){
        .store = store,
        .pool = pool,
        .verify = verify,
        .n_threads = pool ? sl_pool_thread_count(pool) : 0,
    };
}

void sl_expert_preparer_carve(struct sl_expert_preparer *preparer, struct sl_arena *arena)
{
    const struct sl_expert_shape *shape = sl_expert_map_shape(preparer->store);
    uint64_t n_layers = shape->num_hidden_layers + shape->n_mtp_layers;

    preparer->verified =
        sl_arena_take(arena, n_layers * shape->n_routed_experts, sizeof(*preparer->verified));
    if (!sl_expert_map_is_compressed(preparer->store))
        return;
    preparer->decoders =
        sl_arena_take(arena, preparer->n_threads, sizeof(struct sl_record_decoder *));
    for (uint32_t i = 0; i < preparer->n_threads; i++) {
        uint8_t *memory = sl_arena_take(arena, 1, sl_record_decoder_bytes(shape));

        if (memory) /* else it is being measured */
            preparer->decoders[i] = sl_record_decoder_init(memory);
    }
}

static struct landed landed_at(const struct sl_expert_preparer *preparer,
                               const struct sl_landing *landing)
{
    return (struct landed){.landing = landing,
                           .shape = sl_expert_map_shape(preparer->store),
                           .packed = sl_expert_map_find_packed(preparer->store, landing->key),
                           .preparer = preparer};
}

/* ---- jobs --------------------------------------------------------------------------------------
 */

/* Items are the tiles of the three matrices, one after the other. */
static void repack_tiles(void *context, size_t first, size_t end, uint32_t thread_index)
{
    struct landed *landed = context;
    const struct sl_landing *landing = landed->landing;

    (void)thread_index;
    for (int matrix = 0; matrix < SL_EXPERT_MATRICES && end > 0; matrix++) {
        const struct sl_expert_rows rows = {landing->codes[matrix], landing->scales[matrix],
                                            sl_expert_map_scale_dtype(landed->preparer->store)};
        size_t n_tiles = sl_r16_tile_count(sl_expert_matrix_rows(landed->shape, matrix));
        size_t stop = end < n_tiles ? end : n_tiles;

        if (first < stop && sl_expert_pack(landed->shape, matrix, &rows, first, stop,
                                           landing->tiles + sl_expert_matrix_offset_bytes(
                                                                landed->shape, matrix)) < 0)
            atomic_store_explicit(&landed->corrupt[matrix], true, memory_order_relaxed);
        first = first > n_tiles ? first - n_tiles : 0;
        end = end > n_tiles ? end - n_tiles : 0;
    }
}

/* Items are the chunks of a compressed record. */
static void unpack_chunks(void *context, size_t first, size_t end, uint32_t thread_index)
{
    struct landed *landed = context;
    const struct sl_expert_preparer *preparer = landed->preparer;

    for (size_t i = first; i < end; i++) {
        const struct sl_record_chunk *chunk = &preparer->index.chunks[i];

        if (!sl_record_unpack(preparer->decoders[thread_index], chunk, landed->landing->tiles))
            atomic_store_explicit(&landed->corrupt[chunk->matrix], true, memory_order_relaxed);
    }
}

static void unpack(struct sl_expert_preparer *preparer, struct landed *landed)
{
    uint64_t start_ns = sl_clock_ns();

    if (sl_record_index_read(&preparer->index, landed->shape, landed->landing->staging,
                             sl_packed_expert_stored_bytes(landed->packed)))
        sl_pool_run(preparer->pool, SL_PHASE_REPACK, preparer->index.n_chunks, 1, unpack_chunks,
                    landed);
    else
        atomic_store_explicit(&landed->corrupt[sl_expert_matrix_order[0]], true,
                              memory_order_relaxed);
    preparer->unpack_ns += sl_clock_ns() - start_ns;
}

/* Items are matrices, as they lie in the record. */
static void verify_matrices(void *context, size_t first, size_t end, uint32_t thread_index)
{
    struct landed *landed = context;

    (void)thread_index;
    for (size_t i = first; i < end; i++) {
        const int matrix = sl_expert_matrix_order[(size_t)landed->first + i];
        const uint8_t *tiles =
            landed->landing->tiles + sl_expert_matrix_offset_bytes(landed->shape, matrix);

        if (sl_checksum(tiles, sl_expert_matrix_bytes(landed->shape, matrix)) !=
            landed->packed->checksums[matrix])
            atomic_store_explicit(&landed->corrupt[matrix], true, memory_order_relaxed);
    }
}

static bool *verified_of(const struct sl_expert_preparer *preparer, struct sl_expert_key key)
{
    return &preparer->verified[(size_t)key.layer_index *
                                   sl_expert_map_shape(preparer->store)->n_routed_experts +
                               key.expert_index];
}

/* Matrices first .. end - 1 of the record. */
static void verify(struct sl_expert_preparer *preparer, struct landed *landed, int first, int end)
{
    uint64_t start_ns = sl_clock_ns();

    if (preparer->verify == SL_VERIFY_NEVER ||
        (preparer->verify == SL_VERIFY_FIRST && *verified_of(preparer, landed->landing->key)))
        return;
    landed->first = first;
    sl_pool_run(preparer->pool, SL_PHASE_REPACK, end - first, 1, verify_matrices, landed);
    preparer->verify_ns += sl_clock_ns() - start_ns;
}

static void repack(struct sl_expert_preparer *preparer, struct landed *landed)
{
    uint64_t start_ns = sl_clock_ns();
    size_t n_tiles = 0;

    for (int matrix = 0; matrix < SL_EXPERT_MATRICES; matrix++)
        n_tiles += sl_r16_tile_count(sl_expert_matrix_rows(landed->shape, matrix));
    sl_pool_run(preparer->pool, SL_PHASE_REPACK, n_tiles, REPACK_GRAIN, repack_tiles, landed);
    preparer->repack_ns += sl_clock_ns() - start_ns;
}

/* The first matrix that is corrupt, or -1. */
static int corrupt_matrix(const struct landed *landed)
{
    for (int matrix = 0; matrix < SL_EXPERT_MATRICES; matrix++)
        if (atomic_load_explicit(&landed->corrupt[matrix], memory_order_relaxed))
            return matrix;
    return -1;
}

int sl_expert_prepare(struct sl_expert_preparer *preparer, const struct sl_landing *landing,
                      int *ret_matrix)
{
    struct landed landed = landed_at(preparer, landing);
    enum sl_phase phase = sl_pool_phase(preparer->pool, SL_PHASE_REPACK);

    if (landed.packed && landed.packed->compressed)
        unpack(preparer, &landed);
    if (landed.packed)
        verify(preparer, &landed, landing->up_ready ? UP_MATRICES : 0, SL_EXPERT_MATRICES);
    else
        repack(preparer, &landed);
    sl_pool_phase(preparer->pool, phase);
    *ret_matrix = corrupt_matrix(&landed);
    *verified_of(preparer, landing->key) = *ret_matrix < 0;
    return *ret_matrix < 0 ? 0 : -SL_ECORRUPT;
}

bool sl_expert_prepare_up(struct sl_expert_preparer *preparer, struct sl_landing *landing)
{
    struct landed landed = landed_at(preparer, landing);
    enum sl_phase phase = sl_pool_phase(preparer->pool, SL_PHASE_REPACK);

    verify(preparer, &landed, 0, UP_MATRICES);
    sl_pool_phase(preparer->pool, phase);
    landing->up_ready = corrupt_matrix(&landed) < 0;
    return landing->up_ready;
}

/* ---- errors ------------------------------------------------------------------------------------
 */

static int explain_packed(const struct sl_expert_preparer *preparer,
                          const struct sl_packed_expert *packed, int matrix, struct sl_err *err)
{
    struct sl_extent at[SL_EXPERT_PARTS_MAX];

    if (packed->compressed)
        return sl_err_set(err, -SL_ECORRUPT,
                          "%s: the compressed record at offset %llu does not give the %s that the "
                          "catalog names, read twice; sluice verify --repair can repair it",
                          sl_expert_map_file_path(preparer->store, packed->parts[0].file_index),
                          (unsigned long long)packed->parts[0].offset_bytes,
                          sl_expert_matrix_name(matrix));
    sl_packed_expert_matrix(packed, sl_expert_map_shape(preparer->store), matrix, at);
    return sl_err_set(err, -SL_ECORRUPT,
                      "%s: %s at offset %llu does not have the checksum that the catalog names, "
                      "read twice; sluice verify --repair can repair it",
                      sl_expert_map_file_path(preparer->store, at[0].file_index),
                      sl_expert_matrix_name(matrix), (unsigned long long)at[0].offset_bytes);
}

int sl_expert_explain_corrupt(const struct sl_expert_preparer *preparer, struct sl_expert_key key,
                              int matrix, struct sl_err *err)
{
    const struct sl_packed_expert *packed = sl_expert_map_find_packed(preparer->store, key);
    const struct sl_extent *scales;

    if (packed)
        return explain_packed(preparer, packed, matrix, err);
    scales = &sl_expert_map_find(preparer->store, key)->scales[matrix];
    return sl_err_set(
        err, -SL_ECORRUPT, "%s: %s has %s; its %llu bytes of scales are at offset %llu",
        sl_expert_map_file_path(preparer->store, scales->file_index), sl_expert_matrix_name(matrix),
        sl_expert_unsound_text(sl_expert_map_shape(preparer->store)->expert_dtype),
        (unsigned long long)scales->size_bytes, (unsigned long long)scales->offset_bytes);
}
