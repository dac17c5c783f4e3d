#include "core/model/weight_walk.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core/kernels/formats.h"
#include "core/kernels/r16.h"
#include "core/model/embedding.h"

/* Sizes that the tensors of a DSpark draft give, and no config has bounded (config.c). */
#define MARKOV_RANK_UNIT 16u

static __attribute__((format(printf, 3, 4))) void fail(struct sl_weight_walk *in, int rc,
                                                       const char *format, ...)
{
    char text[SL_ERR_MESSAGE_BYTES];
    va_list args;

    if (in->rc < 0)
        return;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    in->rc = sl_err_set(in->err, rc, "%s", text);
}

/* Full name of a tensor: the layer's prefix, `name`, and a suffix that may be "". */
static const char *full_name(const struct sl_weight_walk *in, const char *name, const char *suffix,
                             char buffer[SL_TENSOR_NAME_BYTES])
{
    snprintf(buffer, SL_TENSOR_NAME_BYTES, "%s%s%s", in->prefix, name, suffix);
    return buffer;
}

/* Finds a tensor and checks its shape; rows 0 means one dimension. */
static bool find(struct sl_weight_walk *in, const char *name, uint64_t rows, uint64_t cols,
                 struct sl_tensor_info *info)
{
    uint32_t n_dims = rows ? 2 : 1;
    const uint64_t want[2] = {rows ? rows : cols, cols};

    if (in->rc < 0)
        return false;
    if (in->source->ops->find(in->source, name, info) < 0) {
        fail(in, -SL_EFORMAT, "%s: tensor %s is missing", in->source->ops->where(in->source, name),
             name);
        return false;
    }
    if (info->n_dims == n_dims && info->shape[0] == want[0] && (!rows || info->shape[1] == cols))
        return true;
    if (rows)
        fail(in, -SL_EFORMAT,
             "%s: tensor %s has shape [%llu, %llu] of %u dimensions, expected [%llu, %llu]",
             in->source->ops->where(in->source, name), name, (unsigned long long)info->shape[0],
             (unsigned long long)info->shape[1], info->n_dims, (unsigned long long)rows,
             (unsigned long long)cols);
    else
        fail(in, -SL_EFORMAT, "%s: tensor %s has shape [%llu] of %u dimensions, expected [%llu]",
             in->source->ops->where(in->source, name), name, (unsigned long long)info->shape[0],
             info->n_dims, (unsigned long long)cols);
    return false;
}

static void bad_dtype(struct sl_weight_walk *in, const char *name,
                      const struct sl_tensor_info *info, const char *expected)
{
    fail(in, -SL_EFORMAT, "%s: tensor %s is %s, expected %s",
         in->source->ops->where(in->source, name), name, sl_tensor_dtype_name(info), expected);
}

/* Tells of a tensor that has its memory. */
static void take(struct sl_weight_walk *in, const struct sl_tensor_load *load)
{
    int rc;

    if (in->rc < 0)
        return;
    rc = in->take(in->take_context, load, in->err);
    if (rc < 0)
        in->rc = rc;
}

static bool is_float(const struct sl_tensor_info *info)
{
    return info->dtype == SL_DTYPE_F32 || info->dtype == SL_DTYPE_BF16;
}

/* A vector or small table kept as float32; stored as F32 or BF16. `padded` >= count values are
 * reserved, the rest zero. */
static const float *load_floats(struct sl_weight_walk *in, struct sl_arena *arena,
                                const char *short_name, uint64_t rows, uint64_t cols,
                                uint64_t padded)
{
    uint64_t count = (rows ? rows : 1) * cols;
    struct sl_tensor_load load = {.form = SL_TENSOR_FLOATS};

    load.n_padded = padded > count ? padded : count;
    full_name(in, short_name, "", load.name);
    if (!find(in, load.name, rows, cols, &load.info))
        return NULL;
    if (!is_float(&load.info)) {
        bad_dtype(in, load.name, &load.info, "F32 or BF16");
        return NULL;
    }
    load.dst = sl_arena_take(arena, load.n_padded, sizeof(float));
    take(in, &load);
    return load.dst;
}

static const float *load_vector(struct sl_weight_walk *in, const char *name, uint64_t count)
{
    return load_floats(in, in->arena, name, 0, count, count);
}

/* Scales of an FP8 matrix, whose type settles its kind. */
static void load_scales(struct sl_weight_walk *in, struct sl_arena *arena, const char *short_name,
                        struct sl_matrix *matrix)
{
    const uint64_t rows = (matrix->rows + SL_FP8_BLOCK - 1) / SL_FP8_BLOCK;
    const uint64_t cols = matrix->cols / SL_FP8_BLOCK;
    struct sl_tensor_load load = {.form = SL_TENSOR_SCALES, .matrix = *matrix};

    full_name(in, short_name, ".scale", load.name);
    if (!find(in, load.name, rows, cols, &load.info))
        return;
    if (load.info.dtype != SL_DTYPE_F8_E8M0 && load.info.dtype != SL_DTYPE_F32) {
        bad_dtype(in, load.name, &load.info, "F8_E8M0 or F32");
        return;
    }
    matrix->kind = load.info.dtype == SL_DTYPE_F32 ? SL_MATRIX_FP8_BLOCK : SL_MATRIX_FP8;
    load.dst = sl_arena_take(arena, rows * cols, sizeof(float));
    matrix->scales = load.dst;
    take(in, &load);
}

static void load_tiles(struct sl_weight_walk *in, struct sl_arena *arena,
                       struct sl_tensor_load *load)
{
    struct sl_matrix *matrix = &load->matrix;
    const size_t n_tiles = sl_r16_tile_count(matrix->rows);
    const size_t tile_bytes = sl_matrix_tile_bytes(matrix);

    load->form = SL_TENSOR_TILES;
    load->dst = sl_arena_take(arena, n_tiles, tile_bytes);
    matrix->tiles = load->dst;
    if (in->touching)
        sl_pool_first_touch(in->touching, load->dst, n_tiles, tile_bytes, 1, 0);
    take(in, load);
}

/* A linear [rows, cols] named NAME.weight: FP8 with NAME.scale, BF16, or F32. */
static struct sl_matrix load_matrix_to(struct sl_weight_walk *in, struct sl_arena *arena,
                                       const char *short_name, uint64_t rows, uint64_t cols)
{
    struct sl_tensor_load load = {.matrix = {.rows = (uint32_t)rows, .cols = (uint32_t)cols}};

    full_name(in, short_name, ".weight", load.name);
    if (!find(in, load.name, rows, cols, &load.info))
        return load.matrix;
    switch (load.info.dtype) {
    case SL_DTYPE_F8_E4M3:
        load_scales(in, arena, short_name, &load.matrix);
        break;
    case SL_DTYPE_BF16:
        load.matrix.kind = SL_MATRIX_BF16;
        break;
    case SL_DTYPE_F32:
        load.matrix.kind = SL_MATRIX_F32;
        break;
    default:
        bad_dtype(in, load.name, &load.info, "F8_E4M3, BF16 or F32");
        return load.matrix;
    }
    if (in->rc == 0)
        load_tiles(in, arena, &load);
    return load.matrix;
}

static struct sl_matrix load_matrix(struct sl_weight_walk *in, const char *short_name,
                                    uint64_t rows, uint64_t cols)
{
    return load_matrix_to(in, in->arena, short_name, rows, cols);
}

static struct sl_hc_weights load_hc(struct sl_weight_walk *in, const char *name, uint64_t rows,
                                    uint64_t n_scales)
{
    uint64_t cols = (uint64_t)in->config->hc_mult * in->config->hidden_size;
    struct sl_tensor_load fn = {
        .matrix = {.kind = SL_MATRIX_F32, .rows = (uint32_t)rows, .cols = (uint32_t)cols}};
    struct sl_hc_weights hc = {0};
    char part[SL_TENSOR_NAME_BYTES / 2];

    snprintf(part, sizeof(part), "%s_base", name);
    hc.base = load_vector(in, part, rows);
    snprintf(part, sizeof(part), "%s_scale", name);
    hc.scale = load_vector(in, part, n_scales);
    snprintf(part, sizeof(part), "%s_fn", name);
    full_name(in, part, "", fn.name);
    if (!find(in, fn.name, rows, cols, &fn.info))
        return hc;
    if (fn.info.dtype != SL_DTYPE_F32) {
        bad_dtype(in, fn.name, &fn.info, "F32");
        return hc;
    }
    load_tiles(in, in->arena, &fn);
    hc.fn = fn.matrix;
    return hc;
}

static struct sl_compressor_weights load_compressor(struct sl_weight_walk *in, const char *name,
                                                    uint32_t ratio, uint32_t dim)
{
    uint64_t width = ratio == SL_CSA_RATIO ? 2 * (uint64_t)dim : dim;
    uint64_t hidden = in->config->hidden_size;
    struct sl_compressor_weights compressor;
    char part[SL_TENSOR_NAME_BYTES / 2];

    snprintf(part, sizeof(part), "%s.ape", name);
    compressor.ape = load_floats(in, in->own_arena, part, ratio, width, ratio * width);
    snprintf(part, sizeof(part), "%s.wkv", name);
    compressor.wkv = load_matrix_to(in, in->own_arena, part, width, hidden);
    snprintf(part, sizeof(part), "%s.wgate", name);
    compressor.wgate = load_matrix_to(in, in->own_arena, part, width, hidden);
    snprintf(part, sizeof(part), "%s.norm.weight", name);
    compressor.norm = load_floats(in, in->own_arena, part, 0, dim, dim);
    return compressor;
}

static void load_attention(struct sl_weight_walk *in, struct sl_layer_weights *layer)
{
    const struct sl_config *c = in->config;
    uint64_t heads_dim = (uint64_t)c->num_attention_heads * c->head_dim;
    uint64_t out_rank = (uint64_t)c->o_groups * c->o_lora_rank;

    layer->wq_a = load_matrix(in, "attn.wq_a", c->q_lora_rank, c->hidden_size);
    layer->wq_b = load_matrix(in, "attn.wq_b", heads_dim, c->q_lora_rank);
    layer->wkv = load_matrix(in, "attn.wkv", c->head_dim, c->hidden_size);
    layer->wo_a = load_matrix(in, "attn.wo_a", out_rank, sl_config_group_cols(c));
    layer->wo_b = load_matrix(in, "attn.wo_b", c->hidden_size, out_rank);
    layer->q_norm = load_vector(in, "attn.q_norm.weight", c->q_lora_rank);
    layer->kv_norm = load_vector(in, "attn.kv_norm.weight", c->head_dim);
    layer->attn_sink = load_floats(in, in->arena, "attn.attn_sink", 0, c->num_attention_heads,
                                   sl_r16_padded_rows(c->num_attention_heads));
    if (layer->ratio)
        layer->compressor = load_compressor(in, "attn.compressor", layer->ratio, c->head_dim);
    if (layer->ratio == SL_CSA_RATIO) {
        layer->index_wq_b =
            load_matrix_to(in, in->own_arena, "attn.indexer.wq_b",
                           (uint64_t)c->index_n_heads * c->index_head_dim, c->q_lora_rank);
        layer->index_weights = load_matrix_to(in, in->own_arena, "attn.indexer.weights_proj",
                                              c->index_n_heads, c->hidden_size);
        layer->index_compressor =
            load_compressor(in, "attn.indexer.compressor", layer->ratio, c->index_head_dim);
    }
}

/* Stages of DSpark have no compression. */
uint32_t sl_weight_walk_ratio(const struct sl_weight_walk *in, uint32_t layer_index)
{
    const bool has_ratio = layer_index < in->config->num_hidden_layers || in->draft == SL_DRAFT_MTP;

    return has_ratio ? in->config->compress_ratios[layer_index] : 0;
}

/* Experts by token id, for the hash-routed layers: I64 or I32 on disk, 16 bits here. */
static const uint16_t *load_tid2eid(struct sl_weight_walk *in)
{
    const struct sl_config *c = in->config;
    struct sl_tensor_load load = {.form = SL_TENSOR_TABLE,
                                  .n_experts = c->n_routed_experts,
                                  .n_in_row = c->num_experts_per_tok};

    full_name(in, "ffn.gate.tid2eid", "", load.name);
    if (!find(in, load.name, c->vocab_size, c->num_experts_per_tok, &load.info))
        return NULL;
    if (load.info.dtype != SL_DTYPE_I64 && load.info.dtype != SL_DTYPE_I32) {
        bad_dtype(in, load.name, &load.info, "I64 or I32");
        return NULL;
    }
    load.dst = sl_arena_take(in->own_arena, (uint64_t)c->vocab_size * c->num_experts_per_tok,
                             sizeof(uint16_t));
    take(in, &load);
    return load.dst;
}

static void set_prefix(struct sl_weight_walk *in, uint32_t layer_index)
{
    if (layer_index < in->config->num_hidden_layers)
        snprintf(in->prefix, sizeof(in->prefix), "layers.%u.", layer_index);
    else
        snprintf(in->prefix, sizeof(in->prefix), "mtp.%u.",
                 layer_index - in->config->num_hidden_layers);
}

void sl_weight_walk_layer(struct sl_weight_walk *in, struct sl_layer_weights *layer,
                          uint32_t layer_index, const uint16_t *tid2eid)
{
    const struct sl_config *c = in->config;
    uint64_t hc_rows = (uint64_t)(2 + c->hc_mult) * c->hc_mult;

    set_prefix(in, layer_index);
    layer->ratio = sl_weight_walk_ratio(in, layer_index);
    layer->hc_attn = load_hc(in, "hc_attn", hc_rows, 3);
    layer->hc_ffn = load_hc(in, "hc_ffn", hc_rows, 3);
    layer->attn_norm = load_vector(in, "attn_norm.weight", c->hidden_size);
    layer->ffn_norm = load_vector(in, "ffn_norm.weight", c->hidden_size);
    load_attention(in, layer);
    layer->gate = load_matrix(in, "ffn.gate", c->n_routed_experts, c->hidden_size);
    if (layer_index < c->num_hash_layers) {
        layer->tid2eid = tid2eid ? tid2eid : load_tid2eid(in);
        layer->gate_bias = NULL;
    } else {
        layer->tid2eid = NULL;
        layer->gate_bias = load_floats(in, in->own_arena, "ffn.gate.bias", 0, c->n_routed_experts,
                                       c->n_routed_experts);
    }
    layer->shared_w1 =
        load_matrix(in, "ffn.shared_experts.w1", c->moe_intermediate_size, c->hidden_size);
    layer->shared_w2 =
        load_matrix(in, "ffn.shared_experts.w2", c->hidden_size, c->moe_intermediate_size);
    layer->shared_w3 =
        load_matrix(in, "ffn.shared_experts.w3", c->moe_intermediate_size, c->hidden_size);
}

/* A table whose rows are looked up, kept as it is stored; its header alone is checked unless it
 * stays. */
static struct sl_matrix load_table(struct sl_weight_walk *in, const char *short_name, uint64_t rows,
                                   uint64_t cols, bool stays)
{
    struct sl_matrix matrix = {.rows = (uint32_t)rows, .cols = (uint32_t)cols};
    struct sl_tensor_load load = {.form = SL_TENSOR_BYTES};

    full_name(in, short_name, ".weight", load.name);
    if (!find(in, load.name, rows, cols, &load.info))
        return matrix;
    if (!is_float(&load.info)) {
        bad_dtype(in, load.name, &load.info, "BF16 or F32");
        return matrix;
    }
    matrix.kind = load.info.dtype == SL_DTYPE_BF16 ? SL_MATRIX_BF16 : SL_MATRIX_F32;
    if (!stays)
        return matrix;
    load.dst = sl_arena_take(in->arena, load.info.size_bytes, 1);
    matrix.tiles = load.dst;
    take(in, &load);
    return matrix;
}

void sl_weight_walk_embed(struct sl_weight_walk *in, struct sl_matrix *embed, bool stays)
{
    in->prefix[0] = '\0';
    *embed = load_table(in, "embed", in->config->vocab_size, in->config->hidden_size, stays);
}

static void load_mtp(struct sl_weight_walk *in, struct sl_mtp_weights *mtp)
{
    const struct sl_config *c = in->config;

    set_prefix(in, c->num_hidden_layers);
    mtp->e_proj = load_matrix(in, "e_proj", c->hidden_size, c->hidden_size);
    mtp->h_proj = load_matrix(in, "h_proj", c->hidden_size, c->hidden_size);
    mtp->enorm = load_vector(in, "enorm.weight", c->hidden_size);
    mtp->hnorm = load_vector(in, "hnorm.weight", c->hidden_size);
    mtp->norm = load_vector(in, "norm.weight", c->hidden_size);
    mtp->hc_head = load_hc(in, "hc_head", c->hc_mult, 1);
}

static void check_dspark(struct sl_weight_walk *in, const struct sl_draft *draft)
{
    const struct sl_config *c = in->config;
    const struct sl_dspark_config *told = &c->dspark;
    const char *where = in->source->ops->where(in->source, "mtp.0.main_proj.weight");

    if (draft->markov_rank % MARKOV_RANK_UNIT != 0 || draft->markov_rank > SL_LINEAR_COLS_MAX ||
        (uint64_t)draft->n_targets * c->hidden_size > SL_LINEAR_COLS_MAX)
        fail(in, -SL_EFORMAT,
             "%s: a DSpark draft of rank %u that reads %u layers, expected a rank that is a "
             "multiple of %u, and linears of at most %u columns",
             where, draft->markov_rank, draft->n_targets, MARKOV_RANK_UNIT, SL_LINEAR_COLS_MAX);
    if (told->n_targets > 0 && told->n_targets != draft->n_targets)
        fail(in, -SL_EFORMAT,
             "%s: tensor mtp.0.main_proj.weight is for %u layers, but config.json's "
             "dspark_target_layer_ids names %u",
             where, draft->n_targets, told->n_targets);
    if (told->markov_rank > 0 && draft->markov_rank > 0 && told->markov_rank != draft->markov_rank)
        fail(in, -SL_EFORMAT,
             "%s: tensor %smarkov_head.markov_w1.weight has rank %u, but config.json's "
             "dspark_markov_rank is %u",
             where, in->prefix, draft->markov_rank, told->markov_rank);
}

static void load_dspark(struct sl_weight_walk *in, struct sl_dspark_weights *dspark,
                        const struct sl_draft *draft)
{
    const struct sl_config *c = in->config;

    set_prefix(in, c->num_hidden_layers + draft->n_blocks - 1);
    check_dspark(in, draft);
    dspark->norm = load_vector(in, "norm.weight", c->hidden_size);
    dspark->hc_head = load_hc(in, "hc_head", c->hc_mult, 1);
    dspark->markov_w1 =
        load_table(in, "markov_head.markov_w1", c->vocab_size, draft->markov_rank, true);
    dspark->markov_w2 = load_matrix(in, "markov_head.markov_w2", c->vocab_size, draft->markov_rank);
    dspark->confidence = load_floats(in, in->arena, "confidence_head.proj.weight", 1,
                                     (uint64_t)c->hidden_size + draft->markov_rank, 0);
    set_prefix(in, c->num_hidden_layers);
    dspark->main_proj =
        load_matrix(in, "main_proj", c->hidden_size, (uint64_t)draft->n_targets * c->hidden_size);
    if (in->rc == 0 && dspark->main_proj.kind == SL_MATRIX_F32) /* its input is kept as BF16 */
        fail(in, -SL_EFORMAT, "%s: tensor %smain_proj.weight is F32, expected F8_E4M3 or BF16",
             in->source->ops->where(in->source, "mtp.0.main_proj.weight"), in->prefix);
    dspark->main_norm = load_vector(in, "main_norm.weight", c->hidden_size);
}

void sl_weight_walk_draft(struct sl_weight_walk *in, const struct sl_draft *draft,
                          struct sl_mtp_weights *mtp, struct sl_dspark_weights *dspark)
{
    if (draft->kind == SL_DRAFT_MTP)
        load_mtp(in, mtp);
    else if (draft->kind == SL_DRAFT_DSPARK)
        load_dspark(in, dspark, draft);
}

void sl_weight_walk_head(struct sl_weight_walk *in, struct sl_head_weights *head)
{
    const struct sl_config *c = in->config;

    in->prefix[0] = '\0';
    head->linear = load_matrix(in, "head", c->vocab_size, c->hidden_size);
    head->norm = load_vector(in, "norm.weight", c->hidden_size);
    head->hc = load_hc(in, "hc_head", c->hc_mult, 1);
}

const uint16_t *sl_weight_walk_table(struct sl_weight_walk *in, uint32_t layer_index)
{
    set_prefix(in, layer_index);
    return load_tid2eid(in);
}
