/* The dense weights' sizes, loading those that stay, and the way to those that stream. A layer that
 * streams is walked over each time that it is read: that is much less work than reading. */
#include "core/model/weights.h"

#include "core/base/assert.h"
#include "core/base/size.h"
#include "core/model/weight_walk.h"

/* Chunks in which what streams is read: small beside a layer, so that packing and reading overlap,
 * and large enough for drives, which read it in pieces, and for a job of the pool. */
#define STREAM_CHUNK_BYTES (UINT64_C(4) << 20)

const struct sl_weight_residency sl_weights_all_resident = {.embed_stays = true};

/* ---- sizes -------------------------------------------------------------------------------------
 */

/* The figures of the part of the model that is being measured. */
struct measure {
    struct sl_arena arena, own_arena;
    uint64_t disk_bytes, chunk_bytes_max;
    uint32_t n_chunks, n_tensors;
    struct sl_weight_loading_sizes loading; /* of all parts so far */
};

static int measure_tensor(void *context, const struct sl_tensor_load *load, struct sl_err *err)
{
    struct measure *measure = context;
    const uint64_t chunk_bytes = sl_tensor_load_chunk_bytes(load, STREAM_CHUNK_BYTES);

    (void)err;
    measure->disk_bytes += load->info.size_bytes;
    measure->n_tensors++;
    measure->n_chunks += (uint32_t)((load->info.size_bytes + chunk_bytes - 1) / chunk_bytes);
    if (chunk_bytes > measure->chunk_bytes_max)
        measure->chunk_bytes_max = chunk_bytes;
    sl_weight_loading_measure(&measure->loading, load);
    return 0;
}

/* Begins to measure the next part. */
static void begin_part(struct sl_weight_walk *in, struct measure *measure)
{
    *measure = (struct measure){.loading = measure->loading};
    in->arena = &measure->arena;
    in->own_arena = &measure->own_arena;
    in->take_context = measure;
}

static uint64_t part_bytes(const struct measure *measure)
{
    return sl_round_up(measure->arena.used_bytes, SL_CACHE_LINE_BYTES) +
           sl_round_up(measure->own_arena.used_bytes, SL_CACHE_LINE_BYTES);
}

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static void measure_layer(struct sl_weight_walk *in, struct measure *measure, uint32_t layer_index,
                          struct sl_weight_sizes *sizes)
{
    struct sl_layer_size *size = &sizes->layers[layer_index];
    struct sl_layer_weights layer = {0};

    begin_part(in, measure);
    sl_weight_walk_layer(in, &layer, layer_index, NULL);
    *size = (struct sl_layer_size){.memory_bytes = part_bytes(measure),
                                   .common_bytes = measure->arena.used_bytes,
                                   .own_bytes = measure->own_arena.used_bytes,
                                   .disk_bytes = measure->disk_bytes};
    if (layer_index < in->config->num_hash_layers)
        size->table_bytes = sl_round_up((uint64_t)in->config->vocab_size *
                                            in->config->num_experts_per_tok * sizeof(uint16_t),
                                        SL_CACHE_LINE_BYTES);
    sl_assert(measure->n_tensors <= SL_LAYER_TENSORS_MAX);
    sizes->stream.chunk_bytes = larger(sizes->stream.chunk_bytes, measure->chunk_bytes_max);
    if (measure->n_chunks > sizes->stream.n_chunks)
        sizes->stream.n_chunks = measure->n_chunks;
}

int sl_weights_measure(const struct sl_config *config, struct sl_weight_source *source,
                       const struct sl_draft *draft, struct sl_weight_sizes *ret_sizes,
                       struct sl_err *err)
{
    struct sl_weight_sizes sizes = {.n_layers =
                                        config->num_hidden_layers + (draft ? draft->n_blocks : 0),
                                    .n_hidden_layers = config->num_hidden_layers};
    struct sl_weight_walk in = {.config = config,
                                .source = source,
                                .draft = draft ? draft->kind : SL_DRAFT_NONE,
                                .take = measure_tensor,
                                .err = err};
    struct sl_weights weights = {0};
    struct measure measure = {0};

    begin_part(&in, &measure);
    sl_weight_walk_embed(&in, &weights.embedding.table, true);
    sizes.embed_bytes = part_bytes(&measure);
    sizes.embed_row_bytes = measure.disk_bytes / config->vocab_size;
    begin_part(&in, &measure);
    sl_weight_walk_head(&in, &weights.head);
    sizes.fixed_bytes = part_bytes(&measure);
    for (uint32_t i = 0; i < sizes.n_layers && in.rc == 0; i++)
        measure_layer(&in, &measure, i, &sizes);
    if (draft) {
        begin_part(&in, &measure);
        sl_weight_walk_draft(&in, draft, &weights.mtp, &weights.dspark);
        sizes.draft_bytes = part_bytes(&measure);
        sizes.fixed_bytes += sizes.draft_bytes;
    }
    if (in.rc < 0)
        return in.rc;
    sizes.loading = measure.loading;
    *ret_sizes = sizes;
    return 0;
}

bool sl_weights_streams(const struct sl_weight_residency *residency, uint32_t n_layers,
                        uint32_t layer_index)
{
    const uint64_t n = residency->n_streamed;

    return (layer_index + 1) * n / n_layers != layer_index * n / n_layers;
}

/* The sizes of the memory that layers stream through. */
static struct sl_weight_stream_sizes stream_sizes(const struct sl_weight_sizes *sizes,
                                                  const struct sl_weight_residency *residency)
{
    struct sl_weight_stream_sizes stream = sizes->stream;

    stream.n_windows = residency->n_windows;
    for (uint32_t i = 0; i < sizes->n_layers; i++) {
        if (!sl_weights_streams(residency, sizes->n_layers, i))
            continue;
        stream.common_bytes = larger(stream.common_bytes, sizes->layers[i].common_bytes);
        stream.own_bytes = larger(stream.own_bytes, sizes->layers[i].own_bytes);
    }
    return stream;
}

/* Takes the memory for what streams. */
static void carve_streams(struct sl_weights *weights, struct sl_arena *arena,
                          const struct sl_weight_sizes *sizes,
                          const struct sl_weight_residency *residency)
{
    const struct sl_weight_stream_sizes stream = stream_sizes(sizes, residency);
    const uint32_t n_slots = residency->n_streamed > 0 ? sl_weight_stream_chunk_count(&stream) : 0;

    if (residency->n_streamed > 0)
        weights->stream = sl_weight_stream_carve(arena, &stream);
    if (!residency->embed_stays)
        sl_embedding_carve(&weights->embedding, arena, sizes->embed_row_bytes, n_slots);
}

/* Returns what a layer takes beside the windows. */
static uint64_t layer_bytes(const struct sl_weight_sizes *sizes,
                            const struct sl_weight_residency *residency, uint32_t layer_index)
{
    return sl_weights_streams(residency, sizes->n_layers, layer_index)
               ? sizes->layers[layer_index].table_bytes
               : sizes->layers[layer_index].memory_bytes;
}

uint64_t sl_weights_bytes(const struct sl_weight_sizes *sizes,
                          const struct sl_weight_residency *residency)
{
    struct sl_weights weights = {0};
    struct sl_arena arena;

    sl_arena_init_measure(&arena);
    sl_arena_take(&arena, sizes->n_layers, sizeof(*weights.layers));
    sl_arena_take(&arena, 1, sizes->fixed_bytes);
    if (residency->embed_stays)
        sl_arena_take(&arena, 1, sizes->embed_bytes);
    for (uint32_t i = 0; i < sizes->n_layers; i++)
        sl_arena_take(&arena, 1, layer_bytes(sizes, residency, i));
    carve_streams(&weights, &arena, sizes, residency);
    return arena.used_bytes;
}

uint64_t sl_weights_draft_bytes(const struct sl_weight_sizes *sizes,
                                const struct sl_weight_residency *residency)
{
    uint64_t bytes = sizes->draft_bytes;

    for (uint32_t i = sizes->n_hidden_layers; i < sizes->n_layers; i++)
        bytes += layer_bytes(sizes, residency, i);
    return bytes;
}

uint64_t sl_weights_streamed_bytes(const struct sl_weight_sizes *sizes,
                                   const struct sl_weight_residency *residency)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < sizes->n_layers; i++)
        if (sl_weights_streams(residency, sizes->n_layers, i))
            bytes += sizes->layers[i].disk_bytes;
    return bytes;
}

uint32_t sl_weights_slot_count(const struct sl_weight_sizes *sizes,
                               const struct sl_weight_residency *residency)
{
    const struct sl_weight_stream_sizes stream = stream_sizes(sizes, residency);
    const uint32_t n = (residency->n_streamed > 0 ? sl_weight_stream_chunk_count(&stream) : 0) +
                       (residency->embed_stays ? 0 : SL_EMBEDDING_ROWS);

    return n > SL_WEIGHT_LOADING_SLOTS ? n : SL_WEIGHT_LOADING_SLOTS;
}

/* ---- loading what stays ------------------------------------------------------------------------
 */

/* Lists the little of a layer that streams which is needed while it is not there. */
static void list_streamed(struct sl_weight_walk *in, struct sl_layer_weights *layer,
                          uint32_t layer_index)
{
    layer->ratio = sl_weight_walk_ratio(in, layer_index);
    if (layer_index < in->config->num_hash_layers)
        layer->tid2eid = sl_weight_walk_table(in, layer_index);
}

/* Gives all tensors that stay their memory, and tells of them in the order in which they are
 * loaded. */
static int list_resident(struct sl_weight_walk *in, struct sl_weights *weights,
                         const struct sl_draft *draft)
{
    const uint32_t n_layers = weights->n_layers;

    weights->layers = sl_arena_take(in->arena, n_layers, sizeof(*weights->layers));
    sl_weight_walk_embed(in, &weights->embedding.table, weights->residency.embed_stays);
    sl_weight_walk_head(in, &weights->head);
    for (uint32_t i = 0; i < n_layers && in->rc == 0; i++) {
        struct sl_layer_weights *layer = &weights->layers[i];

        if (sl_weights_streams(&weights->residency, n_layers, i))
            list_streamed(in, layer, i);
        else
            sl_weight_walk_layer(in, layer, i, NULL);
    }
    if (draft && in->rc == 0)
        sl_weight_walk_draft(in, draft, &weights->mtp, &weights->dspark);
    return in->rc;
}

/* Reads what the walk lists. The memory for that is given back once all is loaded; else a drive may
 * still write to it, and it goes with the weights. */
static int load_resident(struct sl_weights *weights, const struct sl_draft *draft,
                         const struct sl_weight_sizes *sizes,
                         const struct sl_weight_loading *loading, struct sl_err *err)
{
    struct sl_weight_walk in = {.config = weights->config,
                                .source = loading->source,
                                .draft = weights->draft.kind,
                                .arena = &weights->arena,
                                .own_arena = &weights->arena,
                                .take = sl_weight_list_add,
                                .err = err};
    struct sl_weight_list *list;
    int rc = sl_arena_map(&weights->loading, sl_weight_loading_bytes(&sizes->loading),
                          "loading dense weights", err);

    if (rc < 0)
        return rc;
    in.take_context = list = sl_weight_list_carve(&weights->loading, &sizes->loading);
    rc = list_resident(&in, weights, draft);
    if (rc == 0)
        rc = sl_weight_list_load(list, loading, err);
    if (rc == 0)
        sl_arena_fini(&weights->loading);
    return rc;
}

int sl_weights_load(struct sl_weights *weights, const struct sl_config *config,
                    const struct sl_weight_loading *loading, const struct sl_draft *draft,
                    const struct sl_weight_residency *residency, struct sl_err *err)
{
    struct sl_weight_sizes sizes;
    int rc;

    *weights = (struct sl_weights){.config = config, .residency = *residency};
    if (draft)
        weights->draft = *draft;
    if ((rc = sl_weights_measure(config, loading->source, draft, &sizes, err)) < 0)
        return rc;
    weights->n_layers = sizes.n_layers;
    if ((rc = sl_arena_map(&weights->arena, sl_weights_bytes(&sizes, residency), "dense weights",
                           err)) < 0 ||
        (rc = load_resident(weights, draft, &sizes, loading, err)) < 0)
        return rc;
    carve_streams(weights, &weights->arena, &sizes, residency);
    sl_arena_lock(&weights->arena);
    return 0;
}

void sl_weights_fini(struct sl_weights *weights)
{
    sl_arena_fini(&weights->arena);
    sl_arena_fini(&weights->loading);
    *weights = (struct sl_weights){0};
}

/* ---- what streams ------------------------------------------------------------------------------
 */

/* An sl_list_layer_fn. */
static int list_layer(void *context, uint32_t layer_index, const struct sl_layer_memory *memory,
                      sl_take_tensor_fn *take_tensor, void *take_context, struct sl_err *err)
{
    struct sl_weights *weights = context;
    struct sl_layer_weights *layer = &weights->layers[layer_index];
    struct sl_weight_walk in = {.config = weights->config,
                                .source = weights->source,
                                .draft = weights->draft.kind,
                                .arena = memory->common,
                                .own_arena = memory->own,
                                .touching = memory->touching,
                                .take = take_tensor,
                                .take_context = take_context,
                                .err = err};

    sl_weight_walk_layer(&in, layer, layer_index, layer->tid2eid);
    return in.rc;
}

void sl_weights_start(struct sl_weights *weights, struct sl_weight_source *source,
                      struct sl_weight_reader *reader, struct sl_pool *pool)
{
    const uint32_t n_layers = weights->n_layers;
    const struct sl_weight_stream_params params = {.source = source,
                                                   .reader = reader,
                                                   .pool = pool,
                                                   .list = list_layer,
                                                   .list_context = weights,
                                                   .n_layers = n_layers};

    weights->source = source;
    sl_embedding_start(&weights->embedding, source, reader);
    if (!weights->stream)
        return;
    sl_weight_stream_start(weights->stream, &params);
    for (uint32_t i = 0; i < n_layers; i++)
        if (sl_weights_streams(&weights->residency, n_layers, i))
            sl_weight_stream_add(weights->stream, i);
}

void sl_weights_stop(struct sl_weights *weights)
{
    if (weights->stream)
        sl_weight_stream_stop(weights->stream);
}

int sl_weights_acquire(struct sl_weights *weights, uint32_t layer_index,
                       const struct sl_layer_weights **ret_layer, struct sl_err *err)
{
    int rc = 0;

    if (!sl_weights_resident(weights, layer_index))
        rc = sl_weight_stream_acquire(weights->stream, layer_index, err);
    if (rc == 0)
        *ret_layer = &weights->layers[layer_index];
    return rc;
}

void sl_weights_release(struct sl_weights *weights, uint32_t layer_index)
{
    if (!sl_weights_resident(weights, layer_index))
        sl_weight_stream_release(weights->stream, layer_index);
}

const struct sl_layer_weights *sl_weights_resident(const struct sl_weights *weights,
                                                   uint32_t layer_index)
{
    return sl_weights_streams(&weights->residency, weights->n_layers, layer_index)
               ? NULL
               : &weights->layers[layer_index];
}

void sl_weights_background(void *context)
{
    struct sl_weights *weights = context;

    if (weights->stream)
        sl_weight_stream_background(weights->stream);
}
