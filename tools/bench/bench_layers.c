/* Measures work that takes several kernels (attention, indexer, router and mHC) as the forward pass
 * runs it, on a layer of real size with a long past. The figures are the times and counts of the
 * phases in whole steps, so that between two runs of a phase all other weights of the layer pass
 * through the caches. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/list.h"
#include "core/base/size.h"
#include "core/model/forward.h"
#include "tools/bench/bench.h"
#include "tools/bench/bench_past.h"

#define TOKENS_MAX 64u
#define VOCABULARY 1024u

struct layer {
    const struct sl_compute *compute;
    struct sl_config config;
    struct sl_arena arena; /* weights */
    struct sl_layer_weights weights;
    struct sl_weights all;
    struct sl_kv_pool kv_pool;
    struct sl_kv_cache kv;
    uint32_t past_tokens; /* in the KV cache */
    struct sl_forward *forward;

    /* A source of experts in which all experts are the same one. */
    struct sl_expert_source source;
    struct sl_expert_pin pin;
    const uint16_t *demanded;
    uint32_t n_demanded, n_pinned;

    uint32_t n_tokens; /* of a step */
    enum sl_phase phase;
    int rc;
    struct sl_err *err;
};

/* ---- experts -----------------------------------------------------------------------------------
 */

static struct layer *layer_of(struct sl_expert_source *source)
{
    return sl_list_item(source, struct layer, source);
}

static void source_prefetch(struct sl_expert_source *source, enum sl_prefetch_kind kind,
                            const struct sl_expert_key *keys, uint32_t n_keys)
{
    (void)source;
    (void)kind;
    (void)keys;
    (void)n_keys;
}

static int source_demand(struct sl_expert_source *source, uint16_t layer_index,
                         const uint16_t *experts, uint32_t n_experts, struct sl_err *err)
{
    struct layer *in = layer_of(source);

    (void)layer_index;
    (void)err;
    in->demanded = experts;
    in->n_demanded = n_experts;
    in->n_pinned = 0;
    return 0;
}

static int source_acquire(struct sl_expert_source *source, bool wait, struct sl_expert_pin *ret_pin,
                          struct sl_err *err)
{
    struct layer *in = layer_of(source);

    (void)wait;
    (void)err;
    if (in->n_pinned == in->n_demanded)
        return 0;
    *ret_pin = in->pin;
    ret_pin->key.expert_index = in->demanded[in->n_pinned++];
    return 1;
}

static void source_release(struct sl_expert_source *source, const struct sl_expert_pin *pin)
{
    (void)source;
    (void)pin;
}

/* ---- weights -----------------------------------------------------------------------------------
 */

static struct sl_matrix take_matrix(struct layer *in, enum sl_matrix_kind kind, uint32_t rows,
                                    uint32_t cols)
{
    struct sl_matrix matrix = {.kind = kind, .rows = rows, .cols = cols};
    uint8_t *tiles =
        sl_arena_take(&in->arena, sl_r16_tile_count(rows), sl_matrix_tile_bytes(&matrix));
    size_t n_scales = (size_t)(rows + SL_FP8_BLOCK - 1) / SL_FP8_BLOCK * (cols / SL_FP8_BLOCK);
    float *scales = sl_arena_take(&in->arena, n_scales, sizeof(*scales));

    if (!tiles)
        return matrix;
    matrix.tiles = tiles;
    matrix.scales = scales;
    sl_bench_fill(in->compute->pool, &matrix, tiles);
    for (size_t i = 0; i < n_scales; i++)
        scales[i] = 0x1p-6f;
    return matrix;
}

static float *take_vector(struct layer *in, size_t count, float value)
{
    float *values = sl_arena_take(&in->arena, sl_r16_padded_rows(count), sizeof(*values));

    for (size_t i = 0; values && i < count; i++)
        values[i] = value;
    return values;
}

static struct sl_hc_weights take_hc(struct layer *in)
{
    const uint32_t n = in->config.hc_mult, rows = (2 + n) * n;

    return (struct sl_hc_weights){
        .fn = take_matrix(in, SL_MATRIX_F32, rows, n * in->config.hidden_size),
        .base = take_vector(in, rows, 0),
        .scale = take_vector(in, 3, 0.1f),
    };
}

static struct sl_compressor_weights take_compressor(struct layer *in, uint32_t ratio, uint32_t dim)
{
    const uint32_t width = ratio == SL_CSA_RATIO ? 2 * dim : dim;

    return (struct sl_compressor_weights){
        .wkv = take_matrix(in, SL_MATRIX_BF16, width, in->config.hidden_size),
        .wgate = take_matrix(in, SL_MATRIX_BF16, width, in->config.hidden_size),
        .ape = take_vector(in, (size_t)ratio * width, 0),
        .norm = take_vector(in, dim, 1),
    };
}

static void carve(struct layer *in)
{
    const struct sl_config *c = &in->config;
    const uint32_t hidden = c->hidden_size, inner = c->moe_intermediate_size;
    const uint32_t heads_dim = c->num_attention_heads * c->head_dim;
    struct sl_layer_weights *w = &in->weights;

    w->ratio = c->compress_ratios[0];
    w->hc_attn = take_hc(in);
    w->hc_ffn = take_hc(in);
    w->attn_norm = w->ffn_norm = take_vector(in, hidden, 1);
    w->wq_a = take_matrix(in, SL_MATRIX_FP8, c->q_lora_rank, hidden);
    w->wq_b = take_matrix(in, SL_MATRIX_FP8, heads_dim, c->q_lora_rank);
    w->wkv = take_matrix(in, SL_MATRIX_FP8, c->head_dim, hidden);
    w->wo_a = take_matrix(in, SL_MATRIX_FP8, c->o_groups * c->o_lora_rank, sl_config_group_cols(c));
    w->wo_b = take_matrix(in, SL_MATRIX_FP8, hidden, c->o_groups * c->o_lora_rank);
    w->q_norm = take_vector(in, c->q_lora_rank, 1);
    w->kv_norm = take_vector(in, c->head_dim, 1);
    w->attn_sink = take_vector(in, c->num_attention_heads, 0);
    w->compressor = take_compressor(in, w->ratio, c->head_dim);
    if (w->ratio == SL_CSA_RATIO) {
        w->index_wq_b =
            take_matrix(in, SL_MATRIX_FP8, c->index_n_heads * c->index_head_dim, c->q_lora_rank);
        w->index_weights = take_matrix(in, SL_MATRIX_BF16, c->index_n_heads, hidden);
        w->index_compressor = take_compressor(in, w->ratio, c->index_head_dim);
    }
    w->gate = take_matrix(in, SL_MATRIX_BF16, c->n_routed_experts, hidden);
    w->gate_bias = take_vector(in, c->n_routed_experts, 0);
    w->shared_w1 = take_matrix(in, SL_MATRIX_FP8, inner, hidden);
    w->shared_w2 = take_matrix(in, SL_MATRIX_FP8, hidden, inner);
    w->shared_w3 = take_matrix(in, SL_MATRIX_FP8, inner, hidden);
    in->pin.w[SL_EXPERT_W1] = take_matrix(in, SL_MATRIX_FP4, inner, hidden).tiles;
    in->pin.w[SL_EXPERT_W2] = take_matrix(in, SL_MATRIX_FP4, hidden, inner).tiles;
    in->pin.w[SL_EXPERT_W3] = take_matrix(in, SL_MATRIX_FP4, inner, hidden).tiles;
    in->all.layers = w;
    in->all.n_layers = 1;
    in->all.embedding.table = take_matrix(in, SL_MATRIX_BF16, c->vocab_size, hidden);
}

static int make_weights(struct layer *in, struct sl_err *err)
{
    uint64_t size_bytes;
    int rc;

    sl_arena_init_measure(&in->arena);
    carve(in);
    size_bytes = in->arena.used_bytes;
    rc = sl_arena_map(&in->arena, size_bytes, "bench", err);
    if (rc == 0)
        carve(in);
    return rc;
}

/* ---- the past ----------------------------------------------------------------------------------
 */

static int make_past(struct layer *in, struct sl_err *err)
{
    const uint32_t n_tokens = in->past_tokens + TOKENS_MAX;
    struct sl_kv_layout layout;
    uint64_t bytes;
    int rc = sl_kv_layout_init(&layout, &in->config, 1, SL_NUMERICS_NATIVE, err);

    if (rc < 0)
        return rc;
    bytes = sl_kv_cache_measure(&layout, n_tokens);
    sl_kv_layout_fini(&layout);
    if ((rc = sl_kv_pool_init(&in->kv_pool, &in->config, 1, SL_NUMERICS_NATIVE, bytes, err)) < 0 ||
        (rc = sl_kv_cache_init(&in->kv, &in->kv_pool, n_tokens, err)) < 0)
        return rc;
    return sl_bench_past_fill(&in->kv, &in->config, in->compute, in->past_tokens, 1, err);
}

/* ---- steps -------------------------------------------------------------------------------------
 */

static struct sl_account step(struct layer *in)
{
    int32_t tokens[TOKENS_MAX];
    const struct sl_span span = {&in->kv, tokens, in->n_tokens, SL_LOGITS_NONE};
    const struct sl_step_request request = {.spans = &span, .n_spans = 1};
    struct sl_account begin = sl_pool_account(in->compute->pool), end;
    int rc;

    for (uint32_t i = 0; i < TOKENS_MAX; i++)
        tokens[i] = (int32_t)(i * 7 % VOCABULARY);
    in->kv.n_tokens = in->past_tokens;
    rc = sl_forward_step(in->forward, &request, in->err);
    if (in->rc == 0)
        in->rc = rc;
    end = sl_pool_account(in->compute->pool);
    return sl_account_difference(&begin, &end);
}

static uint64_t run_phase(void *context)
{
    struct layer *in = context;
    struct sl_account spent = step(in);

    return spent.of[in->phase].work_ns + spent.of[in->phase].wait_ns;
}

static void bench_phase(struct sl_bench *bench, struct layer *in, enum sl_phase phase,
                        uint32_t n_tokens, enum sl_bench_peak peak, const char *shape)
{
    struct sl_bench_work work = {.what = sl_phase_name(phase),
                                 .shape = shape,
                                 .run = run_phase,
                                 .context = in,
                                 .peak = peak,
                                 .in_bytes = peak == SL_BENCH_PEAKS};
    struct sl_account once;

    in->n_tokens = n_tokens;
    in->phase = phase;
    once = step(in);
    work.bytes = once.of[phase].read_bytes;
    work.multiplications = work.in_bytes ? 0 : once.of[phase].multiplications;
    if (in->rc == 0)
        sl_bench_measure(bench, &work);
}

/* One query, and as many as a step has where these share their entries. */
static void bench_attention(struct sl_bench *bench, struct layer *in, const char *model)
{
    const struct sl_config *c = &in->config;
    const uint32_t n_compressed = in->past_tokens / c->compress_ratios[0];
    const bool chosen = c->compress_ratios[0] == SL_CSA_RATIO;
    char shape[64];

    for (uint32_t n_tokens = 1; n_tokens <= (chosen ? 1 : TOKENS_MAX); n_tokens += TOKENS_MAX - 1) {
        snprintf(shape, sizeof(shape), "%s, %u x %u%s, %u token%s", model, c->num_attention_heads,
                 (chosen ? c->index_topk : n_compressed) + c->sliding_window,
                 chosen ? " chosen" : "", n_tokens, n_tokens == 1 ? "" : "s");
        bench_phase(bench, in, SL_PHASE_ATTENTION, n_tokens, SL_BENCH_BF16, shape);
    }
}

static void bench_phases(struct sl_bench *bench, struct layer *in, const char *model)
{
    const struct sl_config *c = &in->config;
    char shape[64];

    if (sl_bench_wants(bench, sl_phase_name(SL_PHASE_ATTENTION)))
        bench_attention(bench, in, model);
    if (c->compress_ratios[0] == SL_CSA_RATIO) {
        snprintf(shape, sizeof(shape), "%s, %u keys, top %u", model, in->past_tokens / SL_CSA_RATIO,
                 c->index_topk);
        bench_phase(bench, in, SL_PHASE_INDEXER, 1, SL_BENCH_INT8, shape);
        snprintf(shape, sizeof(shape), "%s, 1 token, %u x %u", model, c->n_routed_experts,
                 c->hidden_size);
        bench_phase(bench, in, SL_PHASE_ROUTER, 1, SL_BENCH_PEAKS, shape);
        snprintf(shape, sizeof(shape), "%s, 1 token, 2 of 24 x %u", model,
                 c->hc_mult * c->hidden_size);
        bench_phase(bench, in, SL_PHASE_HYPER_CONNECTION, 1, SL_BENCH_PEAKS, shape);
    }
}

static int bench_layer(struct sl_bench *bench, const struct sl_config *config, const char *model,
                       uint32_t past_tokens, struct sl_err *err)
{
    static const struct sl_expert_source_ops ops = {.prefetch = source_prefetch,
                                                    .demand = source_demand,
                                                    .acquire = source_acquire,
                                                    .release = source_release};
    struct layer in = {
        .compute = &bench->compute,
        .config = *config,
        .past_tokens = past_tokens,
        .source = {.ops = &ops, .pins_max = config->num_experts_per_tok},
        .err = err,
    };
    struct sl_forward_params params = {
        .config = &in.config,
        .weights = &in.all,
        .compute = in.compute,
        .source = &in.source,
        .tokens_max = TOKENS_MAX,
        .context_max = past_tokens + TOKENS_MAX,
        .spans_max = 1,
    };

    if ((in.rc = make_weights(&in, err)) == 0 && (in.rc = make_past(&in, err)) == 0 &&
        (in.rc = sl_forward_create(&in.forward, &params, err)) == 0)
        bench_phases(bench, &in, model);
    sl_forward_destroy(in.forward);
    sl_kv_cache_fini(&in.kv);
    sl_kv_pool_fini(&in.kv_pool);
    sl_arena_fini(&in.arena);
    return in.rc;
}

/* Returns whether any of the phases that bench_phases() measures on such a layer is wanted. */
static bool wants_layer(struct sl_bench *bench, uint32_t ratio)
{
    static const enum sl_phase of_csa[] = {SL_PHASE_INDEXER, SL_PHASE_ROUTER,
                                           SL_PHASE_HYPER_CONNECTION};

    if (sl_bench_wants(bench, sl_phase_name(SL_PHASE_ATTENTION)))
        return true;
    for (size_t i = 0; ratio == SL_CSA_RATIO && i < SL_ARRAY_LEN(of_csa); i++)
        if (sl_bench_wants(bench, sl_phase_name(of_csa[i])))
            return true;
    return false;
}

int sl_bench_layers(struct sl_bench *bench, struct sl_err *err)
{
    /* The values of config.json that Flash and Pro share, and then those in which they differ. */
    struct sl_config config = {
        .vocab_size = VOCABULARY,
        .num_hidden_layers = 1,
        .head_dim = 512,
        .qk_rope_head_dim = 64,
        .o_lora_rank = 1024,
        .index_n_heads = 64,
        .index_head_dim = 128,
        .sliding_window = 128,
        .num_experts_per_tok = 6,
        .hc_mult = 4,
        .hc_sinkhorn_iters = 20,
        .max_position_embeddings = 1048576,
        .swiglu_limit = 10,
        .hc_eps = 1e-6f,
        .rms_norm_eps = 1e-6f,
        .rope_theta = 10000,
        .compress_rope_theta = 160000,
        .rope_scaling = {16, 32, 1, 65536},
    };
    static const struct {
        const char *model;
        uint32_t hidden, heads, q_lora, o_groups, topk, experts, inner;
        float scaling;
    } models[] = {{"Flash", 4096, 64, 1024, 8, 512, 256, 2048, 1.5f},
                  {"Pro", 7168, 128, 1536, 16, 1024, 384, 3072, 2.5f}};
    /* The past of each case: 1,024 compressed entries behind the window, and 250,000 keys. */
    static const struct {
        uint32_t ratio, past_tokens;
    } pasts[] = {{128, 131072}, {SL_CSA_RATIO, 1000000}};
    int rc = 0;

    for (size_t m = 0; m < 2; m++) {
        config.hidden_size = models[m].hidden;
        config.num_attention_heads = models[m].heads;
        config.q_lora_rank = models[m].q_lora;
        config.o_groups = models[m].o_groups;
        config.index_topk = models[m].topk;
        config.n_routed_experts = models[m].experts;
        config.moe_intermediate_size = models[m].inner;
        config.routed_scaling_factor = models[m].scaling;
        for (size_t p = 0; rc == 0 && p < 2; p++) {
            if (!wants_layer(bench, pasts[p].ratio))
                continue;
            config.compress_ratios[0] = pasts[p].ratio;
            rc = bench_layer(bench, &config, models[m].model, pasts[p].past_tokens, err);
        }
    }
    return rc;
}
