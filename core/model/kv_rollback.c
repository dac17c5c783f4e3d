#include "core/model/kv_rollback.h"

#include <string.h>

#include "core/base/assert.h"

static uint64_t layer_bytes(const struct sl_config *config, enum sl_numerics numerics,
                            uint32_t layer_index, uint64_t tokens_max, uint64_t spans_max)
{
    struct sl_kv_ring_shape shapes[SL_KV_RINGS];
    uint64_t bytes = 0;

    sl_kv_ring_shapes(config, numerics, layer_index, shapes);
    for (int ring = 0; ring < SL_KV_RINGS; ring++) {
        uint64_t most = spans_max * shapes[ring].n_rows;

        bytes += (most < tokens_max ? most : tokens_max) * shapes[ring].row_bytes;
    }
    return bytes;
}

struct sl_kv_rollback sl_kv_rollback_carve(struct sl_arena *arena, const struct sl_config *config,
                                           enum sl_numerics numerics, uint32_t first_layer,
                                           uint32_t n_layers, uint32_t tokens_max,
                                           uint32_t spans_max)
{
    struct sl_kv_rollback rollback = {.first_layer = first_layer, .n_layers = n_layers};

    rollback.spans = sl_arena_take(arena, spans_max, sizeof(*rollback.spans));
    rollback.rows = sl_arena_take(arena, n_layers, sizeof(*rollback.rows));
    for (uint32_t i = 0; i < n_layers; i++) {
        uint8_t *rows = sl_arena_take(
            arena, layer_bytes(config, numerics, first_layer + i, tokens_max, spans_max), 1);

        if (rollback.rows)
            rollback.rows[i] = rows;
    }
    return rollback;
}

void sl_kv_rollback_clear(struct sl_kv_rollback *rollback)
{
    rollback->n_spans = 0;
    rollback->n_saved = 0;
}

void sl_kv_rollback_add(struct sl_kv_rollback *rollback, struct sl_kv_cache *kv, uint32_t first,
                        uint32_t n_tokens)
{
    rollback->spans[rollback->n_spans++] =
        (struct sl_kv_rollback_span){.kv = kv, .first = first, .n_tokens = n_tokens};
}

/* Copies the rows of a ring that a span overwrites to `saved`, or those of the tokens that are not
 * kept from there back. Returns the end of what is saved. */
static uint8_t *copy_rows(const struct sl_kv_rollback_span *span, uint32_t layer_index,
                          enum sl_kv_part ring, uint8_t *saved, bool back)
{
    const struct sl_kv_ring_shape shape = sl_kv_shape(span->kv, layer_index, ring);
    const uint32_t n = span->n_tokens < shape.n_rows ? span->n_tokens : shape.n_rows;

    for (uint32_t i = span->n_tokens - n; i < span->n_tokens; i++, saved += shape.row_bytes) {
        uint8_t *row = sl_kv_row(span->kv, layer_index, ring, span->first + i);

        if (!back)
            memcpy(saved, row, shape.row_bytes);
        else if (i >= span->n_kept) {
            sl_assert(!sl_kv_pool_is_shared(span->kv->pool, row)); /* a mark was taken since */
            memcpy(row, saved, shape.row_bytes);
        }
    }
    return saved;
}

/* Bytes that are saved of a span in a layer. */
static size_t saved_bytes(const struct sl_kv_rollback_span *span, uint32_t layer_index)
{
    size_t bytes = 0;

    for (int ring = 0; ring < SL_KV_RINGS; ring++) {
        const struct sl_kv_ring_shape shape =
            sl_kv_shape(span->kv, layer_index, (enum sl_kv_part)ring);

        bytes += (size_t)(span->n_tokens < shape.n_rows ? span->n_tokens : shape.n_rows) *
                 shape.row_bytes;
    }
    return bytes;
}

/* Where what is saved of a span in the rollback's layer i begins; of n_spans: where all ends. */
static uint8_t *saved_of(const struct sl_kv_rollback *rollback, uint32_t i, uint32_t span_index)
{
    uint8_t *saved = rollback->rows[i];

    for (uint32_t s = 0; s < span_index; s++)
        saved += saved_bytes(&rollback->spans[s], rollback->first_layer + i);
    return saved;
}

static uint8_t *copy_span(const struct sl_kv_rollback *rollback, uint32_t i, uint32_t span_index,
                          uint8_t *saved, bool back)
{
    for (int ring = 0; ring < SL_KV_RINGS; ring++)
        saved = copy_rows(&rollback->spans[span_index], rollback->first_layer + i,
                          (enum sl_kv_part)ring, saved, back);
    return saved;
}

static void copy_layer(const struct sl_kv_rollback *rollback, uint32_t i, bool back)
{
    uint8_t *saved = rollback->rows[i];

    for (uint32_t s = 0; s < rollback->n_spans; s++)
        saved = copy_span(rollback, i, s, saved, back);
}

void sl_kv_rollback_save(struct sl_kv_rollback *rollback)
{
    sl_assert(rollback->n_saved < rollback->n_layers);
    copy_layer(rollback, rollback->n_saved++, false);
}

void sl_kv_rollback_restore(const struct sl_kv_rollback *rollback)
{
    for (uint32_t i = 0; i < rollback->n_saved; i++)
        copy_layer(rollback, i, true);
}

void sl_kv_rollback_restore_span(const struct sl_kv_rollback *rollback, uint32_t span_index)
{
    rollback->spans[span_index].n_kept = 0;
    for (uint32_t i = 0; i < rollback->n_saved; i++)
        copy_span(rollback, i, span_index, saved_of(rollback, i, span_index), true);
}

void sl_kv_rollback_remove(struct sl_kv_rollback *rollback, uint32_t span_index)
{
    struct sl_kv_rollback_span *span = &rollback->spans[span_index];

    for (uint32_t i = 0; i < rollback->n_saved; i++) {
        uint8_t *saved = saved_of(rollback, i, span_index);
        const uint8_t *behind = saved_of(rollback, i, span_index + 1);

        memmove(saved, behind, (size_t)(saved_of(rollback, i, rollback->n_spans) - behind));
    }
    rollback->n_spans--;
    memmove(span, span + 1, (rollback->n_spans - span_index) * sizeof(*span));
}

uint32_t sl_kv_rollback_tokens_max(const struct sl_config *config)
{
    const uint32_t n_layers = config->num_hidden_layers + config->num_nextn_predict_layers;
    struct sl_kv_ring_shape shapes[SL_KV_RINGS];
    uint32_t least = UINT32_MAX;

    for (uint32_t i = 0; i < n_layers; i++) {
        sl_kv_ring_shapes(config, SL_NUMERICS_NATIVE, i, shapes);
        for (int ring = 0; ring < SL_KV_RINGS; ring++)
            if (shapes[ring].n_rows && shapes[ring].n_rows < least)
                least = shapes[ring].n_rows;
    }
    return least;
}
