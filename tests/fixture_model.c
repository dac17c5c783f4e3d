#include "tests/fixture_model.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/list.h"
#include "core/base/size.h"
#include "core/kernels/r16.h"

#define WEIGHTS_MAX 512u

uint64_t fixture_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

uint32_t fixture_below(uint64_t *state, uint32_t limit)
{
    return (uint32_t)(fixture_random(state) >> 32) % limit;
}

static float between(uint64_t *state, float low, float high)
{
    return low + (high - low) * (float)fixture_below(state, 1u << 24) * 0x1p-24f;
}

static void *allocate(uint64_t count, uint64_t item_bytes)
{
    void *block = calloc(count, item_bytes);

    sl_assert(block);
    return block;
}

void fixture_config(struct sl_config *config)
{
    *config = (struct sl_config){
        .vocab_size = 75,
        .eos_token_id = 1,
        .hidden_size = 128,
        .num_hidden_layers = 4,
        .num_hash_layers = 2,
        .num_nextn_predict_layers = 1,
        .num_attention_heads = 3,
        .head_dim = 128,
        .qk_rope_head_dim = 64,
        .q_lora_rank = 128,
        .o_groups = 3,
        .o_lora_rank = 128,
        .index_n_heads = 4,
        .index_head_dim = 64,
        .index_topk = 3,
        .sliding_window = 8,
        .n_routed_experts = 8,
        .num_experts_per_tok = 3,
        .moe_intermediate_size = 128,
        .hc_mult = 3,
        .hc_sinkhorn_iters = 4,
        .max_position_embeddings = 4096,
        .routed_scaling_factor = 1.5f,
        .swiglu_limit = 1.5f,
        .hc_eps = 1e-6f,
        .rms_norm_eps = 1e-6f,
        .rope_theta = 10000,
        .compress_rope_theta = 160000,
        .rope_scaling = {.factor = 16,
                         .beta_fast = 32,
                         .beta_slow = 1,
                         .original_max_position_embeddings = 65536},
        .compress_ratios = {0, 4, 8, 128, 0},
    };
}

/* ---- weights -----------------------------------------------------------------------------------
 */

static struct fixture_weight *lookup(struct fixture_weights *weights, const char *name)
{
    for (uint32_t i = 0; i < weights->count; i++)
        if (strcmp(weights->list[i].name, name) == 0)
            return &weights->list[i];
    return NULL;
}

static int source_find(struct sl_weight_source *source, const char *name,
                       struct sl_tensor_info *ret_info)
{
    struct fixture_weight *weight = lookup((struct fixture_weights *)source, name);

    if (!weight || weight->missing)
        return -ENOENT;
    *ret_info = weight->info;
    return 0;
}

static int source_read(struct sl_weight_source *source, const char *name, uint64_t offset_bytes,
                       uint64_t size_bytes, void *dst, struct sl_err *err)
{
    struct fixture_weights *weights = (struct fixture_weights *)source;
    struct fixture_weight *weight = fixture_weights_find(weights, name);

    sl_assert(offset_bytes <= weight->info.size_bytes);
    sl_assert(size_bytes <= weight->info.size_bytes - offset_bytes);
    weights->n_reads++;
    if (weights->fail_nth > 0 && --weights->fail_nth == 0)
        return sl_err_set(err, -EIO, "fixture: tensor %s could not be read", name);
    memcpy(dst, weight->data + offset_bytes, size_bytes);
    return 0;
}

static const char *source_where(struct sl_weight_source *source, const char *name)
{
    (void)source;
    (void)name;
    return "fixture";
}

static struct fixture_weights *weights_of(struct sl_weight_reader *reader)
{
    return sl_list_item(reader, struct fixture_weights, reader);
}

static void reader_begin(struct sl_weight_reader *reader, uint32_t slot, const char *name,
                         uint64_t offset_bytes, uint64_t size_bytes, uint8_t *dst, bool urgent)
{
    struct fixture_weights_read *read = &weights_of(reader)->reads[slot];

    (void)urgent;
    sl_assert(slot < SL_WEIGHT_LOADING_SLOTS && !read->name);
    *read = (struct fixture_weights_read){name, offset_bytes, size_bytes, dst, false};
}

static void reader_start(struct sl_weight_reader *reader)
{
    (void)reader;
}

static void reader_cancel(struct sl_weight_reader *reader, uint32_t slot)
{
    (void)reader;
    (void)slot;
}

static int reader_end(struct sl_weight_reader *reader, uint32_t slot, bool wait,
                      const uint8_t **ret_bytes, struct sl_err *err)
{
    struct fixture_weights *weights = weights_of(reader);
    struct fixture_weights_read *read = &weights->reads[slot];
    uint8_t *dst = read->dst + weights->n_reads % SL_BLOCK_BYTES;
    int rc;

    sl_assert(read->name);
    if (!wait && !read->asked) {
        read->asked = true;
        return 0;
    }
    rc = source_read(&weights->source, read->name, read->offset_bytes, read->size_bytes, dst, err);
    read->name = NULL;
    *ret_bytes = dst;
    return rc < 0 ? rc : 1;
}

static bool reader_is_free(struct sl_weight_reader *reader, uint32_t slot)
{
    return !weights_of(reader)->reads[slot].name;
}

static int reader_check(struct sl_weight_reader *reader, const char *name, uint64_t offset_bytes,
                        uint64_t size_bytes, const uint8_t *bytes, struct sl_err *err)
{
    const struct fixture_weight *weight = fixture_weights_find(weights_of(reader), name);

    (void)err;
    sl_assert(memcmp(bytes, weight->data + offset_bytes, size_bytes) == 0);
    return 0;
}

static bool work_while_waiting(void *context)
{
    struct fixture_weights *weights = context;

    return ++weights->n_waits % 3 != 0;
}

int fixture_weights_load(struct fixture_weights *weights, struct sl_weights *loaded,
                         const struct sl_config *config, const struct sl_draft *draft,
                         const struct sl_weight_residency *residency, struct sl_pool *pool,
                         struct sl_err *err)
{
    static const struct sl_weight_reader_ops ops = {.begin = reader_begin,
                                                    .start = reader_start,
                                                    .cancel = reader_cancel,
                                                    .end = reader_end,
                                                    .is_free = reader_is_free,
                                                    .check = reader_check};
    const struct sl_weight_loading loading = {.source = &weights->source,
                                              .reader = &weights->reader,
                                              .pool = pool,
                                              .on_wait = work_while_waiting,
                                              .on_wait_context = weights};
    int rc;

    weights->reader.ops = &ops;
    rc = sl_weights_load(loaded, config, &loading, draft, residency, err);
    for (uint32_t i = 0; i < SL_WEIGHT_LOADING_SLOTS; i++)
        sl_assert(!weights->reads[i].name);
    return rc;
}

/* What a tensor's values look like. */
struct range {
    enum sl_dtype dtype;
    float low, high;
};

static void fill(struct fixture_weights *weights, struct fixture_weight *weight,
                 const struct range *range)
{
    uint64_t count = weight->info.size_bytes / sl_dtype_size_bytes(range->dtype);

    for (uint64_t i = 0; i < count; i++) {
        float value = between(&weights->random, range->low, range->high);
        uint16_t bf16 = sl_f32_to_bf16(value);

        if (range->dtype == SL_DTYPE_F32)
            memcpy(weight->data + 4 * i, &value, 4);
        else if (range->dtype == SL_DTYPE_BF16)
            memcpy(weight->data + 2 * i, &bf16, 2);
        else if (range->dtype == SL_DTYPE_F8_E4M3)
            weight->data[i] = sl_f32_to_e4m3(value);
        else /* a power of two by its exponent */
            weight->data[i] = (uint8_t)(SL_E8M0_BIAS + (int)value);
    }
}

/* rows 0 makes a vector. */
static __attribute__((format(printf, 5, 6))) struct fixture_weight *
add(struct fixture_weights *weights, struct range range, uint64_t rows, uint64_t cols,
    const char *name_format, ...)
{
    struct fixture_weight *weight = &weights->list[weights->count++];
    va_list args;

    sl_assert(weights->count <= WEIGHTS_MAX);
    va_start(args, name_format);
    sl_assert((size_t)vsnprintf(weight->name, sizeof(weight->name), name_format, args) <
              sizeof(weight->name));
    va_end(args);
    weight->info = (struct sl_tensor_info){
        .dtype = range.dtype,
        .n_dims = rows ? 2 : 1,
        .shape = {rows ? rows : cols, rows ? cols : 1, 1, 1},
        .size_bytes = (rows ? rows : 1) * cols * sl_dtype_size_bytes(range.dtype),
    };
    weight->data = allocate(weight->info.size_bytes, 1);
    if (range.dtype != SL_DTYPE_I64)
        fill(weights, weight, &range);
    return weight;
}

static const struct range norm = {SL_DTYPE_BF16, 0.5f, 1.5f};
static const struct range small_table = {SL_DTYPE_F32, -1, 1};
static const struct range plain = {SL_DTYPE_BF16, -0.3f, 0.3f};

/* An FP8 pair. Codes up to 2 and scales of 2^-4 to 2^-2 keep sums over some hundred columns near
 * one. */
static void add_fp8(struct fixture_weights *weights, uint64_t rows, uint64_t cols,
                    const char *prefix, const char *name)
{
    add(weights, (struct range){SL_DTYPE_F8_E4M3, -2, 2}, rows, cols, "%s%s.weight", prefix, name);
    add(weights,
        weights->f32_scales ? (struct range){SL_DTYPE_F32, 0x1p-4f, 0x1p-2f}
                            : (struct range){SL_DTYPE_F8_E8M0, -4.9f, -2},
        (rows + 127) / 128, cols / 128, "%s%s.scale", prefix, name);
}

static void add_hc(struct fixture_weights *weights, const struct sl_config *c, uint64_t rows,
                   uint64_t n_scales, const char *prefix, const char *name)
{
    add(weights, (struct range){SL_DTYPE_F32, -0.1f, 0.1f}, rows, c->hc_mult * c->hidden_size,
        "%s%s_fn", prefix, name);
    add(weights, small_table, 0, rows, "%s%s_base", prefix, name);
    add(weights, (struct range){SL_DTYPE_F32, 0.2f, 1}, 0, n_scales, "%s%s_scale", prefix, name);
}

static void add_compressor(struct fixture_weights *weights, const struct sl_config *c,
                           uint32_t ratio, uint64_t dim, const char *prefix, const char *name)
{
    uint64_t width = ratio == SL_CSA_RATIO ? 2 * dim : dim;

    add(weights, small_table, ratio, width, "%s%s.ape", prefix, name);
    add(weights, plain, width, c->hidden_size, "%s%s.wkv.weight", prefix, name);
    add(weights, plain, width, c->hidden_size, "%s%s.wgate.weight", prefix, name);
    add(weights, norm, 0, dim, "%s%s.norm.weight", prefix, name);
}

/* Distinct experts for each token, and expert 0 for most, so that one expert has more rows than a
 * batch holds. */
static void add_tid2eid(struct fixture_weights *weights, const struct sl_config *c,
                        const char *prefix)
{
    const uint32_t k = c->num_experts_per_tok;
    struct fixture_weight *weight = add(weights, (struct range){.dtype = SL_DTYPE_I64},
                                        c->vocab_size, k, "%sffn.gate.tid2eid", prefix);
    int64_t *table = (int64_t *)(void *)weight->data;

    for (uint32_t t = 0; t < c->vocab_size; t++) {
        uint32_t first = fixture_below(&weights->random, 4) ? 0 : c->n_routed_experts / 2;

        for (uint32_t s = 0; s < k; s++)
            table[t * k + s] = (first + s * (1 + t % 2)) % c->n_routed_experts;
    }
}

const struct sl_draft fixture_mtp = {.kind = SL_DRAFT_MTP, .n_blocks = 1};
const struct sl_draft fixture_dspark = {
    .kind = SL_DRAFT_DSPARK, .n_blocks = 3, .n_targets = 3, .markov_rank = 48};

void fixture_config_dspark(struct sl_config *config)
{
    config->dspark = (struct sl_dspark_config){
        .block_size = 5,
        .has_noise_token = true,
        .noise_token_id = config->vocab_size - 1,
        .markov_rank = fixture_dspark.markov_rank,
        .n_targets = fixture_dspark.n_targets,
        .target_layer_ids = {1, 2, 3},
    };
}

static void add_block(struct fixture_weights *weights, const struct sl_config *c,
                      const char *prefix, uint32_t layer_index)
{
    const uint32_t ratio = c->compress_ratios[layer_index];
    const uint64_t hc_rows = (2 + c->hc_mult) * c->hc_mult, hidden = c->hidden_size;
    const uint64_t inter = c->moe_intermediate_size, out_rank = c->o_groups * c->o_lora_rank;

    add_hc(weights, c, hc_rows, 3, prefix, "hc_attn");
    add_hc(weights, c, hc_rows, 3, prefix, "hc_ffn");
    add(weights, norm, 0, hidden, "%sattn_norm.weight", prefix);
    add(weights, norm, 0, hidden, "%sffn_norm.weight", prefix);
    add(weights, small_table, 0, c->num_attention_heads, "%sattn.attn_sink", prefix);
    add_fp8(weights, c->q_lora_rank, hidden, prefix, "attn.wq_a");
    add_fp8(weights, (uint64_t)c->num_attention_heads * c->head_dim, c->q_lora_rank, prefix,
            "attn.wq_b");
    add_fp8(weights, c->head_dim, hidden, prefix, "attn.wkv");
    add_fp8(weights, out_rank, sl_config_group_cols(c), prefix, "attn.wo_a");
    add_fp8(weights, hidden, out_rank, prefix, "attn.wo_b");
    add(weights, norm, 0, c->q_lora_rank, "%sattn.q_norm.weight", prefix);
    add(weights, norm, 0, c->head_dim, "%sattn.kv_norm.weight", prefix);
    if (ratio)
        add_compressor(weights, c, ratio, c->head_dim, prefix, "attn.compressor");
    if (ratio == SL_CSA_RATIO) {
        add_fp8(weights, (uint64_t)c->index_n_heads * c->index_head_dim, c->q_lora_rank, prefix,
                "attn.indexer.wq_b");
        add(weights, plain, c->index_n_heads, hidden, "%sattn.indexer.weights_proj.weight", prefix);
        add_compressor(weights, c, ratio, c->index_head_dim, prefix, "attn.indexer.compressor");
    }
    add(weights, plain, c->n_routed_experts, hidden, "%sffn.gate.weight", prefix);
    if (layer_index < c->num_hash_layers)
        add_tid2eid(weights, c, prefix);
    else
        add(weights, small_table, 0, c->n_routed_experts, "%sffn.gate.bias", prefix);
    add_fp8(weights, inter, hidden, prefix, "ffn.shared_experts.w1");
    add_fp8(weights, hidden, inter, prefix, "ffn.shared_experts.w2");
    add_fp8(weights, inter, hidden, prefix, "ffn.shared_experts.w3");
}

/* Stages are blocks like the MTP block, with what else they have in the first and the last. */
static void add_dspark(struct fixture_weights *weights, const struct sl_config *c)
{
    const uint64_t hidden = c->hidden_size, rank = fixture_dspark.markov_rank;
    const uint32_t n_stages = fixture_dspark.n_blocks;
    char prefix[32];

    for (uint32_t i = 0; i < n_stages; i++) {
        snprintf(prefix, sizeof(prefix), "mtp.%u.", i);
        add_block(weights, c, prefix, c->num_hidden_layers);
    }
    add_fp8(weights, hidden, fixture_dspark.n_targets * hidden, "mtp.0.", "main_proj");
    add(weights, norm, 0, hidden, "mtp.0.main_norm.weight");
    add(weights, norm, 0, hidden, "%snorm.weight", prefix);
    add_hc(weights, c, c->hc_mult, 1, prefix, "hc_head");
    add(weights, plain, c->vocab_size, rank, "%smarkov_head.markov_w1.weight", prefix);
    add(weights, plain, c->vocab_size, rank, "%smarkov_head.markov_w2.weight", prefix);
    add(weights, plain, 1, hidden + rank, "%sconfidence_head.proj.weight", prefix);
}

void fixture_weights_init(struct fixture_weights *weights, const struct sl_config *config,
                          uint64_t seed)
{
    static const struct sl_weight_source_ops ops = {source_find, source_read, source_where};
    const uint64_t hidden = config->hidden_size;
    char prefix[32];

    *weights = (struct fixture_weights){
        .source = {&ops}, .random = seed, .f32_scales = config->expert_dtype == SL_EXPERT_FP8};
    weights->list = allocate(WEIGHTS_MAX, sizeof(*weights->list));
    add(weights, (struct range){SL_DTYPE_BF16, -1, 1}, config->vocab_size, hidden, "embed.weight");
    add(weights, plain, config->vocab_size, hidden, "head.weight");
    add(weights, norm, 0, hidden, "norm.weight");
    add_hc(weights, config, config->hc_mult, 1, "", "hc_head");
    for (uint32_t i = 0; i < config->num_hidden_layers; i++) {
        snprintf(prefix, sizeof(prefix), "layers.%u.", i);
        add_block(weights, config, prefix, i);
    }
    if (config->num_nextn_predict_layers == 0)
        return;
    if (config->dspark.block_size > 0) {
        add_dspark(weights, config);
        return;
    }
    add_block(weights, config, "mtp.0.", config->num_hidden_layers);
    add_fp8(weights, hidden, hidden, "mtp.0.", "e_proj");
    add_fp8(weights, hidden, hidden, "mtp.0.", "h_proj");
    add(weights, norm, 0, hidden, "mtp.0.enorm.weight");
    add(weights, norm, 0, hidden, "mtp.0.hnorm.weight");
    add(weights, norm, 0, hidden, "mtp.0.norm.weight");
    add_hc(weights, config, config->hc_mult, 1, "mtp.0.", "hc_head");
}

void fixture_weights_fini(struct fixture_weights *weights)
{
    for (uint32_t i = 0; i < weights->count; i++)
        free(weights->list[i].data);
    free(weights->list);
    *weights = (struct fixture_weights){0};
}

struct fixture_weight *fixture_weights_find(struct fixture_weights *weights, const char *name)
{
    struct fixture_weight *weight = lookup(weights, name);

    sl_assert(weight);
    return weight;
}

/* The scales of an FP8 weight. */
static struct fixture_weight *scales_of(struct fixture_weights *weights,
                                        const struct fixture_weight *weight)
{
    char name[sizeof(weight->name)];

    snprintf(name, sizeof(name), "%.*s.scale", (int)(strlen(weight->name) - strlen(".weight")),
             weight->name);
    return fixture_weights_find(weights, name);
}

static float scale_value(const struct fixture_weight *scales, uint64_t i)
{
    float value;

    if (scales->info.dtype == SL_DTYPE_F8_E8M0)
        return sl_exp2i(scales->data[i] - (int)SL_E8M0_BIAS);
    memcpy(&value, scales->data + 4 * i, 4);
    return value;
}

float fixture_weights_value(struct fixture_weights *weights, const struct fixture_weight *weight,
                            uint64_t i)
{
    uint64_t cols = weight->info.shape[1];
    uint16_t code;
    float value;

    switch (weight->info.dtype) {
    case SL_DTYPE_F32:
        memcpy(&value, weight->data + 4 * i, 4);
        return value;
    case SL_DTYPE_BF16:
        memcpy(&code, weight->data + 2 * i, 2);
        return sl_bf16_to_f32(code);
    default:
        sl_assert(weight->info.dtype == SL_DTYPE_F8_E4M3);
        return sl_e4m3_to_f32(weight->data[i]) *
               scale_value(scales_of(weights, weight),
                           i / cols / 128 * (cols / 128) + i % cols / 128);
    }
}

void fixture_weights_convert(struct fixture_weights *weights, struct fixture_weight *weight,
                             enum sl_dtype dtype)
{
    uint64_t count = weight->info.size_bytes / sl_dtype_size_bytes(weight->info.dtype);
    uint32_t size_bytes = sl_dtype_size_bytes(dtype);
    uint8_t *data = allocate(count, size_bytes);

    sl_assert(dtype == SL_DTYPE_F32 || dtype == SL_DTYPE_BF16);
    for (uint64_t i = 0; i < count; i++) {
        float value = fixture_weights_value(weights, weight, i);
        uint16_t code = sl_f32_to_bf16(value);

        memcpy(data + i * size_bytes, size_bytes == 2 ? (void *)&code : (void *)&value, size_bytes);
    }
    if (weight->info.dtype == SL_DTYPE_F8_E4M3)
        scales_of(weights, weight)->missing = true;
    free(weight->data);
    weight->data = data;
    weight->info.dtype = dtype;
    weight->info.size_bytes = count * size_bytes;
}

/* ---- experts -----------------------------------------------------------------------------------
 */

/* True if the request that is being made is the one to fail. */
static bool request_fails(struct fixture_experts *e, struct sl_err *err)
{
    e->n_requests++;
    if (e->stop_nth > 0 && --e->stop_nth == 0)
        atomic_store(e->stop, true);
    if (e->fail_nth == 0 || --e->fail_nth > 0)
        return false;
    sl_err_set(err, e->fail_code, FIXTURE_EXPERT_FAILURE);
    return true;
}

/* One call is one layer's experts. No step has left any behind. */
static void prefetch_certain(struct fixture_experts *e, const struct sl_expert_key *keys,
                             uint32_t n_keys)
{
    const uint32_t layer_index = n_keys ? keys[0].layer_index : 0;
    bool *certain = e->certain + layer_index * e->n_experts;

    sl_assert(layer_index < e->n_hash_layers);
    for (uint32_t i = 0; i < e->n_experts; i++)
        sl_assert(!certain[i] || e->passes_take_turns);
    for (uint32_t i = 0; i < n_keys; i++) {
        sl_assert(keys[i].layer_index == layer_index && keys[i].expert_index < e->n_experts);
        sl_assert(i == 0 || keys[i - 1].expert_index < keys[i].expert_index);
        certain[keys[i].expert_index] = true;
    }
}

/* A prediction is of the layer after that of the open demand, which goes by its router. */
static void predict(struct fixture_experts *e, const struct sl_expert_key *keys, uint32_t n_keys)
{
    sl_assert(n_keys >= 1 && n_keys <= SL_PREDICTED_MAX && e->n_in_prediction == 0);
    sl_assert(e->n_left > 0);
    e->predicted_layer = e->open_layer + 1;
    sl_assert(e->predicted_layer >= e->n_hash_layers);
    e->n_in_prediction = n_keys;
    e->n_predicted += n_keys;
    for (uint32_t i = 0; i < n_keys; i++) {
        sl_assert(keys[i].layer_index == e->predicted_layer && keys[i].expert_index < e->n_experts);
        e->predicted[i] = keys[i].expert_index;
        for (uint32_t j = 0; j < i; j++)
            sl_assert(e->predicted[i] != e->predicted[j]);
    }
}

static void source_prefetch(struct sl_expert_source *source, enum sl_prefetch_kind kind,
                            const struct sl_expert_key *keys, uint32_t n_keys)
{
    if (kind == SL_PREFETCH_CERTAIN)
        prefetch_certain((struct fixture_experts *)source, keys, n_keys);
    else
        predict((struct fixture_experts *)source, keys, n_keys);
}

static int source_demand(struct sl_expert_source *source, uint16_t layer_index,
                         const uint16_t *experts, uint32_t n_experts, struct sl_err *err)
{
    struct fixture_experts *e = (struct fixture_experts *)source;
    bool *certain = e->certain + layer_index * e->n_experts;
    uint16_t *demanded = e->demanded + layer_index * e->n_experts;
    uint32_t n_certain = 0;

    sl_assert(e->n_left == 0 && e->n_held == 0);
    sl_assert(layer_index < e->n_layers && n_experts >= 1 && n_experts <= e->n_experts);
    e->n_demands++;
    for (uint32_t i = 0; i < n_experts; i++) {
        sl_assert(experts[i] < e->n_experts && (i == 0 || experts[i - 1] < experts[i]));
        n_certain += certain[experts[i]];
        demanded[i] = experts[i];
        for (uint32_t j = 0; j < e->n_in_prediction; j++)
            e->n_predicted_right +=
                e->predicted[j] == experts[i] && e->predicted_layer == layer_index;
    }
    e->n_in_prediction = 0;
    /* A certain prefetch is right and complete. */
    sl_assert(layer_index >= e->n_hash_layers || n_certain == n_experts || e->passes_take_turns);
    for (uint32_t i = 0; i < e->n_experts; i++)
        n_certain -= certain[i];
    sl_assert(n_certain == 0 || e->passes_take_turns);
    memset(certain, 0, e->n_experts * sizeof(*certain));
    e->n_demanded[layer_index] = n_experts;
    if (request_fails(e, err))
        return e->fail_code;
    for (uint32_t i = 0; i < n_experts; i++) /* taken from the end */
        e->left[i] = experts[n_experts - 1 - i];
    for (uint32_t i = n_experts; e->shuffle && i > 1; i--) {
        uint32_t other = fixture_below(&e->random, i);
        uint16_t expert = e->left[i - 1];

        e->left[i - 1] = e->left[other];
        e->left[other] = expert;
    }
    e->n_left = n_experts;
    e->open_layer = layer_index;
    return 0;
}

static uint64_t w2_bytes(const struct fixture_experts *e)
{
    return e->offset_bytes[SL_EXPERT_W2 + 1] - e->offset_bytes[SL_EXPERT_W2];
}

static int source_acquire(struct sl_expert_source *source, bool wait, struct sl_expert_pin *ret_pin,
                          struct sl_err *err)
{
    struct fixture_experts *e = (struct fixture_experts *)source;
    uint32_t slot = 0;
    uint16_t expert;

    if (e->n_left == 0)
        return 0;
    sl_assert(e->n_held < e->source.pins_max);
    if (!wait && fixture_below(&e->random, 1000) < e->delay_permille)
        return -EAGAIN;
    if (request_fails(e, err)) {
        e->n_left = 0;
        return e->fail_code;
    }
    while (e->slot_held[slot])
        slot++;
    expert = e->left[--e->n_left];
    e->slot_held[slot] = true;
    e->n_pins++;
    e->n_held_max = ++e->n_held > e->n_held_max ? e->n_held : e->n_held_max;
    memcpy(e->slots[slot], e->tiles + (e->open_layer * e->n_experts + expert) * e->offset_bytes[3],
           e->offset_bytes[3]);
    *ret_pin = (struct sl_expert_pin){.key = {(uint16_t)e->open_layer, expert}, .slot_index = slot};
    for (int m = 0; m < SL_EXPERT_MATRICES; m++)
        ret_pin->w[m] = e->slots[slot] + e->offset_bytes[m];
    if (wait && fixture_below(&e->random, 1000) < e->partial_permille) {
        ret_pin->partial = true;
        memset(e->slots[slot] + e->offset_bytes[SL_EXPERT_W2], 0xff, w2_bytes(e));
    }
    return 1;
}

static int source_complete(struct sl_expert_source *source, const struct sl_expert_pin *pin,
                           struct sl_err *err)
{
    struct fixture_experts *e = (struct fixture_experts *)source;
    const uint64_t at = e->offset_bytes[SL_EXPERT_W2];

    sl_assert(e->slot_held[pin->slot_index]);
    if (request_fails(e, err)) {
        e->n_left = 0;
        return e->fail_code;
    }
    memcpy(e->slots[pin->slot_index] + at,
           e->tiles + (e->open_layer * e->n_experts + pin->key.expert_index) * e->offset_bytes[3] +
               at,
           w2_bytes(e));
    return 0;
}

/* What is released is spoilt at once: scales of 0xff make NaN of everything. */
static void source_release(struct sl_expert_source *source, const struct sl_expert_pin *pin)
{
    struct fixture_experts *e = (struct fixture_experts *)source;

    sl_assert(e->slot_held[pin->slot_index]);
    e->slot_held[pin->slot_index] = false;
    e->n_held--;
    memset(e->slots[pin->slot_index], 0xff, e->offset_bytes[3]);
}

static void source_abandon(struct sl_expert_source *source)
{
    struct fixture_experts *e = (struct fixture_experts *)source;

    e->n_left = 0;
    e->n_abandoned++;
}

static void source_forget(struct sl_expert_source *source)
{
    struct fixture_experts *e = (struct fixture_experts *)source;

    sl_assert(e->n_left == 0 && e->n_held == 0);
    memset(e->certain, 0, (size_t)e->n_layers * e->n_experts * sizeof(*e->certain));
    e->n_in_prediction = 0;
    e->n_forgotten++;
}

struct sl_expert_rows fixture_experts_raw(const struct fixture_experts *experts,
                                          struct sl_expert_key key, int matrix, uint8_t *codes,
                                          uint8_t *scales)
{
    const bool fp8 = experts->shape.expert_dtype == SL_EXPERT_FP8;
    const struct sl_expert_rows rows = {codes, scales, fp8 ? SL_DTYPE_F32 : SL_DTYPE_F8_E8M0};
    const size_t n_codes = sl_expert_codes_bytes(&experts->shape, matrix);
    const size_t n_scales = sl_expert_scales_bytes(&experts->shape, matrix, rows.scale_dtype);
    uint64_t random =
        experts->seed +
        (key.layer_index * experts->n_experts + key.expert_index) * SL_EXPERT_MATRICES +
        (uint64_t)matrix;

    random = fixture_random(&random);
    for (size_t i = 0; i < n_codes; i++) /* e4m3 below 2 */
        codes[i] = (uint8_t)(fixture_random(&random) >> 32) & (fp8 ? 0xbf : 0xff);
    for (size_t i = 0; i < n_scales && !fp8; i++)
        scales[i] = (uint8_t)(SL_E8M0_BIAS - 6 + fixture_below(&random, 3));
    for (size_t i = 0; i < n_scales && fp8; i += sizeof(float)) {
        const float scale = between(&random, 0x1p-6f, 0x1p-4f);

        memcpy(scales + i, &scale, sizeof(scale));
    }
    return rows;
}

static void pack_expert(struct fixture_experts *e, uint32_t index, uint8_t *codes, uint8_t *scales)
{
    const struct sl_expert_key key = {(uint16_t)(index / e->n_experts),
                                      (uint16_t)(index % e->n_experts)};

    for (int m = 0; m < SL_EXPERT_MATRICES; m++) {
        const struct sl_expert_rows rows = fixture_experts_raw(e, key, m, codes, scales);
        int rc = sl_expert_pack(&e->shape, m, &rows, 0,
                                sl_expert_matrix_rows(&e->shape, m) / SL_R16_ROWS,
                                e->tiles + index * e->offset_bytes[3] + e->offset_bytes[m]);

        sl_assert(rc == 0);
    }
}

void fixture_experts_init(struct fixture_experts *experts, const struct sl_config *config,
                          uint32_t pins_limit, uint64_t seed)
{
    static const struct sl_expert_source_ops ops = {.prefetch = source_prefetch,
                                                    .demand = source_demand,
                                                    .acquire = source_acquire,
                                                    .release = source_release,
                                                    .complete = source_complete,
                                                    .abandon = source_abandon,
                                                    .forget = source_forget};
    const uint32_t n_blocks =
        config->dspark.block_size > 0 ? fixture_dspark.n_blocks : config->num_nextn_predict_layers;
    const size_t hidden = config->hidden_size, inter = config->moe_intermediate_size;
    struct fixture_experts *e = experts;
    uint8_t *codes, *scales;
    size_t total;

    *e = (struct fixture_experts){
        .source = {&ops, pins_limit},
        .pins_limit = pins_limit,
        .seed = seed,
        .random = seed,
        .shape = sl_expert_shape_of(config, n_blocks),
        .n_layers = config->num_hidden_layers + n_blocks,
        .n_experts = config->n_routed_experts,
        .n_hash_layers = config->num_hash_layers,
    };
    for (int m = 0; m < SL_EXPERT_MATRICES; m++) /* each aligned to 64 bytes */
        e->offset_bytes[m + 1] =
            sl_round_up(e->offset_bytes[m] + sl_expert_matrix_bytes(&e->shape, m), 64);
    total = (size_t)e->n_layers * e->n_experts;
    e->tiles = allocate(total, e->offset_bytes[3]);
    codes = allocate(hidden * inter, 1);
    scales = allocate(hidden * inter, 1);
    for (uint32_t i = 0; i < total; i++)
        pack_expert(e, i, codes, scales);
    free(codes);
    free(scales);
    e->slots = allocate(pins_limit, sizeof(*e->slots));
    for (uint32_t i = 0; i < pins_limit; i++) /* of their exact size, for sanitizers */
        sl_assert(posix_memalign((void **)&e->slots[i], 64, e->offset_bytes[3]) == 0);
    e->slot_held = allocate(pins_limit, sizeof(*e->slot_held));
    e->certain = allocate(total, sizeof(*e->certain));
    e->demanded = allocate(total, sizeof(*e->demanded));
    e->n_demanded = allocate(e->n_layers, sizeof(*e->n_demanded));
    e->left = allocate(e->n_experts, sizeof(*e->left));
}

void fixture_experts_fini(struct fixture_experts *experts)
{
    for (uint32_t i = 0; i < experts->pins_limit; i++)
        free(experts->slots[i]);
    free(experts->slots);
    free(experts->slot_held);
    free(experts->certain);
    free(experts->demanded);
    free(experts->n_demanded);
    free(experts->left);
    free(experts->tiles);
    *experts = (struct fixture_experts){0};
}
