#include "tools/bench/bench_past.h"

#include <string.h>

#include "core/model/indexer.h"
#include "core/model/step.h"

#define VALUES_MAX 4096u /* config.c bounds head_dim */

struct fill {
    struct sl_kv_cache *kv;
    const struct sl_step *step;
    uint32_t layer_index;
    uint64_t seed;
};

/* Numbers from -1 to 1 that depend on place and seed alone, whichever thread makes them. */
static void make_values(const struct fill *fill, uint64_t kind, uint64_t place, uint32_t count,
                        float *values)
{
    uint64_t state = ((fill->seed * 64 + kind) * 512 + fill->layer_index) << 32 | place;

    for (uint32_t i = 0; i < count; i++) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        values[i] = (float)(int32_t)(state >> 32) * 0x1p-31f;
    }
}

static void store_entry(const struct fill *fill, const float *values, uint8_t *entry)
{
    const struct sl_config *c = fill->step->config;

    if (fill->step->compute->numerics == SL_NUMERICS_EXACT)
        memcpy(entry, values, c->head_dim * sizeof(*values));
    else
        fill->step->compute->kernels->kv_encode(c->head_dim - c->qk_rope_head_dim,
                                                c->qk_rope_head_dim, values, entry);
}

/* Items are entries of a layer. */
static void fill_entries(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct fill *fill = context;
    const struct sl_config *c = fill->step->config;
    float values[VALUES_MAX];

    (void)thread_index;
    for (size_t n = first; n < end; n++) {
        make_values(fill, SL_KV_RINGS, n, c->head_dim, values);
        store_entry(fill, values, sl_kv_entry(fill->kv, fill->layer_index, (uint32_t)n));
        if (c->compress_ratios[fill->layer_index] != SL_CSA_RATIO)
            continue;
        make_values(fill, SL_KV_RINGS + 1, n, c->index_head_dim, values);
        sl_indexer_store_key(fill->step, fill->kv, fill->layer_index, (uint32_t)n, values);
    }
}

/* A compressor's row, head_dim or twice as much, is made in pieces of at most VALUES_MAX. */
static void fill_ring(const struct fill *fill, enum sl_kv_part ring, uint32_t n_tokens)
{
    const struct sl_kv_ring_shape shape = sl_kv_shape(fill->kv, fill->layer_index, ring);
    const uint32_t count = shape.row_bytes / (uint32_t)sizeof(float);
    const uint32_t n_pieces = (count + VALUES_MAX - 1) / VALUES_MAX;
    const uint32_t piece_bytes = shape.row_bytes / (n_pieces ? n_pieces : 1);
    float values[VALUES_MAX];

    for (uint32_t n = 0; n < shape.n_rows && n < n_tokens; n++) {
        uint8_t *row = sl_kv_row(fill->kv, fill->layer_index, ring, n);

        if (ring == SL_KV_WINDOW) {
            make_values(fill, ring, n, fill->step->config->head_dim, values);
            store_entry(fill, values, row);
            continue;
        }
        for (uint32_t i = 0; i < n_pieces; i++, row += piece_bytes) {
            make_values(fill, ring, (uint64_t)n * n_pieces + i,
                        piece_bytes / (uint32_t)sizeof(*values), values);
            memcpy(row, values, piece_bytes);
        }
    }
}

int sl_bench_past_fill(struct sl_kv_cache *kv, const struct sl_config *config,
                       const struct sl_compute *compute, uint32_t n_tokens, uint64_t seed,
                       struct sl_err *err)
{
    const uint32_t n_layers = kv->pool->layout.n_layers;
    const struct sl_step step = {.config = config, .compute = compute};
    struct fill fill = {.kv = kv, .step = &step, .seed = seed};
    int rc = sl_kv_cache_grow(kv, n_tokens, err);

    if (rc < 0)
        return rc;
    for (uint32_t i = 0; i < n_layers; i++) {
        const uint32_t ratio = config->compress_ratios[i];

        fill.layer_index = i;
        for (int ring = 0; ring < SL_KV_RINGS; ring++)
            fill_ring(&fill, (enum sl_kv_part)ring, n_tokens);
        if (ratio)
            sl_pool_run(compute->pool, SL_PHASE_OUTSIDE, n_tokens / ratio, 64, fill_entries, &fill);
    }
    for (uint32_t position = 0; position < n_tokens; position++)
        *sl_kv_id(kv, position) = (int32_t)(position % config->vocab_size);
    kv->n_tokens = n_tokens;
    kv->n_mtp_tokens = n_layers > config->num_hidden_layers ? n_tokens : 0;
    return 0;
}
