/* One walk over the model's tensors, done twice: first on a measuring arena, which checks every
 * header and adds up sizes, then on a mapped one, which also reads. */
#include "core/model/weights.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/kernels/formats.h"

#define NAME_BYTES 160
#define STAGING_BYTES SL_WEIGHTS_LOADING_BYTES

/* Sizes that the tensors of a DSpark draft give, and no config has bounded (config.c). */
#define DSPARK_COLS_MAX 65536u
#define MARKOV_RANK_UNIT 16u

struct loader {
    const struct sl_config *config;
    struct sl_weight_source *source;
    struct sl_arena *arena;
    struct sl_pool *pool;        /* NULL while measuring */
    uint8_t *staging;            /* STAGING_BYTES; NULL while measuring */
    char prefix[NAME_BYTES / 2]; /* of the layer being loaded, with its dot */
    struct sl_err *err;
    int rc; /* the first failure; later calls do nothing */
};

static bool measuring(const struct loader *in)
{
    return in->arena->base == NULL;
}

static __attribute__((format(printf, 3, 4))) void fail(struct loader *in, int rc,
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
static const char *full_name(const struct loader *in, const char *name, const char *suffix,
                             char buffer[NAME_BYTES])
{
    snprintf(buffer, NAME_BYTES, "%s%s%s", in->prefix, name, suffix);
    return buffer;
}

/* Finds a tensor and checks its shape; rows 0 means one dimension. */
static bool find(struct loader *in, const char *name, uint64_t rows, uint64_t cols,
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

static void bad_dtype(struct loader *in, const char *name, const struct sl_tensor_info *info,
                      const char *expected)
{
    fail(in, -SL_EFORMAT, "%s: tensor %s is %s, expected %s",
         in->source->ops->where(in->source, name), name, sl_tensor_dtype_name(info), expected);
}

static void bad_value(struct loader *in, const char *name, const char *what)
{
    fail(in, -SL_ECORRUPT, "%s: tensor %s holds %s", in->source->ops->where(in->source, name), name,
         what);
}

static bool read_bytes(struct loader *in, const char *name, uint64_t offset, uint64_t size,
                       void *dst)
{
    int rc;

    if (in->rc < 0)
        return false;
    rc = in->source->ops->read(in->source, name, offset, size, dst, in->err);
    if (rc < 0)
        in->rc = rc;
    return rc >= 0;
}

/* A vector or small table kept as float32; stored as F32 or BF16. `padded` >= count values are
 * reserved, the rest zero. */
static const float *load_floats(struct loader *in, const char *short_name, uint64_t rows,
                                uint64_t cols, uint64_t padded)
{
    uint64_t count = (rows ? rows : 1) * cols;
    struct sl_tensor_info info;
    char name[NAME_BYTES];
    float *values;

    full_name(in, short_name, "", name);
    if (!find(in, name, rows, cols, &info))
        return NULL;
    if (info.dtype != SL_DTYPE_F32 && info.dtype != SL_DTYPE_BF16) {
        bad_dtype(in, name, &info, "F32 or BF16");
        return NULL;
    }
    values = sl_arena_take(in->arena, padded > count ? padded : count, sizeof(float));
    if (measuring(in) || !read_bytes(in, name, 0, info.size_bytes, values))
        return values;
    if (info.dtype == SL_DTYPE_BF16) /* in place, from the end: 16 bits widen to 32 */
        for (uint64_t i = count; i-- > 0;) {
            uint16_t code;

            memcpy(&code, (const uint8_t *)values + 2 * i, 2);
            values[i] = sl_bf16_to_f32(code);
        }
    for (uint64_t i = 0; i < count; i++)
        if (!isfinite(values[i]))
            bad_value(in, name, "a value that is not finite");
    for (uint64_t i = count; i < padded; i++)
        values[i] = 0;
    return values;
}

static const float *load_vector(struct loader *in, const char *name, uint64_t count)
{
    return load_floats(in, name, 0, count, count);
}

/* Packing of one chunk of rows that lies in the staging buffer. */
struct chunk {
    const struct sl_matrix *matrix;
    const uint8_t *staging;
    const uint8_t *scale_bytes; /* FP8: of the chunk's first block of rows */
    uint8_t *tiles;             /* of the chunk's first row */
    uint32_t rows;
    int rc; /* written by any thread, the same value; read after the job */
};

static void pack_blocks(void *context, size_t first, size_t end, uint32_t thread_index)
{
    struct chunk *chunk = context;
    uint32_t cols = chunk->matrix->cols;
    int rc = 0;

    (void)thread_index;
    for (size_t block = first; block < end; block++) { /* 128 rows each */
        size_t row = block * SL_FP8_BLOCK;
        size_t n = chunk->rows - row < SL_FP8_BLOCK ? chunk->rows - row : SL_FP8_BLOCK;
        uint8_t *tiles = chunk->tiles + row / SL_R16_ROWS * sl_matrix_tile_bytes(chunk->matrix);

        if (chunk->matrix->kind == SL_MATRIX_FP8)
            rc |= sl_r16_pack_fp8(n, cols, chunk->staging + row * cols,
                                  chunk->scale_bytes + block * (cols / SL_FP8_BLOCK), tiles);
        else if (chunk->matrix->kind == SL_MATRIX_FP8_BLOCK)
            rc |= sl_r16_pack_fp8_codes(n, cols, chunk->staging + row * cols, tiles);
        else if (chunk->matrix->kind == SL_MATRIX_BF16)
            rc |= sl_r16_pack_bf16(
                n, cols, (const uint16_t *)(const void *)chunk->staging + row * cols, tiles);
        else
            rc |= sl_r16_pack_f32(n, cols, (const float *)(const void *)chunk->staging + row * cols,
                                  tiles);
    }
    if (rc < 0)
        __atomic_store_n(&chunk->rc, -SL_ECORRUPT, __ATOMIC_RELAXED);
}

static void pack_matrix(struct loader *in, const char *name, const struct sl_matrix *matrix,
                        uint8_t *tiles, const uint8_t *scale_bytes, uint32_t element_bytes)
{
    uint64_t row_bytes = (uint64_t)matrix->cols * element_bytes;
    uint32_t rows_at_once = (uint32_t)(STAGING_BYTES / row_bytes) / SL_FP8_BLOCK * SL_FP8_BLOCK;

    sl_assert(rows_at_once > 0); /* sl_config_parse() bounds every linear's columns by 65,536 */
    for (uint32_t row = 0; row < matrix->rows; row += rows_at_once) {
        uint32_t n = matrix->rows - row < rows_at_once ? matrix->rows - row : rows_at_once;
        struct chunk chunk = {
            .matrix = matrix,
            .staging = in->staging,
            .scale_bytes = scale_bytes ? scale_bytes + (size_t)(row / SL_FP8_BLOCK) *
                                                           (matrix->cols / SL_FP8_BLOCK)
                                       : NULL,
            .tiles = tiles + row / SL_R16_ROWS * sl_matrix_tile_bytes(matrix),
            .rows = n,
        };

        if (!read_bytes(in, name, row * row_bytes, n * row_bytes, in->staging))
            return;
        sl_pool_run(in->pool, SL_PHASE_OUTSIDE, (n + SL_FP8_BLOCK - 1) / SL_FP8_BLOCK, 1,
                    pack_blocks, &chunk);
        if (chunk.rc < 0) {
            bad_value(in, name, "a NaN or infinity");
            return;
        }
    }
}

static void load_e8m0(struct loader *in, const char *name, uint64_t count, uint8_t *bytes,
                      float *scales)
{
    read_bytes(in, name, 0, count, bytes);
    for (uint64_t i = 0; i < count && in->rc == 0; i++) {
        if (bytes[i] > SL_E8M0_BIAS + SL_SCALE_EXPONENT_MAX) /* 255 is NaN */
            bad_value(in, name, "a scale that is NaN or above 2^60");
        scales[i] = sl_exp2i((int)bytes[i] - (int)SL_E8M0_BIAS);
    }
}

static void load_f32_scales(struct loader *in, const char *name, uint64_t count, float *scales)
{
    if (read_bytes(in, name, 0, count * sizeof(*scales), scales) &&
        sl_f32_scales_read(count, scales, scales) < 0)
        bad_value(in, name, "a scale that is negative, NaN or above 2^60");
}

/* Scales of an FP8 matrix, whose type settles its kind: E8M0 ones as bytes for packing (freed by
 * the caller) and as floats, float32 ones as they are. */
static uint8_t *load_scales(struct loader *in, const char *short_name, struct sl_matrix *matrix)
{
    uint64_t rows = (matrix->rows + SL_FP8_BLOCK - 1) / SL_FP8_BLOCK;
    uint64_t cols = matrix->cols / SL_FP8_BLOCK;
    struct sl_tensor_info info;
    char name[NAME_BYTES];
    uint8_t *bytes;
    float *scales;

    full_name(in, short_name, ".scale", name);
    if (!find(in, name, rows, cols, &info))
        return NULL;
    if (info.dtype != SL_DTYPE_F8_E8M0 && info.dtype != SL_DTYPE_F32) {
        bad_dtype(in, name, &info, "F8_E8M0 or F32");
        return NULL;
    }
    scales = sl_arena_take(in->arena, rows * cols, sizeof(float));
    matrix->scales = scales;
    matrix->kind = info.dtype == SL_DTYPE_F32 ? SL_MATRIX_FP8_BLOCK : SL_MATRIX_FP8;
    if (measuring(in))
        return NULL;
    if (info.dtype == SL_DTYPE_F32) {
        load_f32_scales(in, name, rows * cols, scales);
        return NULL;
    }
    bytes = malloc(rows * cols);
    if (!bytes) {
        fail(in, -ENOMEM, "%s: out of memory", name);
        return NULL;
    }
    load_e8m0(in, name, rows * cols, bytes, scales);
    if (in->rc < 0) {
        free(bytes);
        return NULL;
    }
    return bytes;
}

/* A linear [rows, cols] named NAME.weight: FP8 with NAME.scale, BF16, or F32. */
static struct sl_matrix load_matrix(struct loader *in, const char *short_name, uint64_t rows,
                                    uint64_t cols)
{
    struct sl_matrix matrix = {.rows = (uint32_t)rows, .cols = (uint32_t)cols};
    uint8_t *scale_bytes = NULL, *tiles;
    struct sl_tensor_info info;
    char name[NAME_BYTES];

    full_name(in, short_name, ".weight", name);
    if (!find(in, name, rows, cols, &info))
        return matrix;
    switch (info.dtype) {
    case SL_DTYPE_F8_E4M3:
        scale_bytes = load_scales(in, short_name, &matrix);
        break;
    case SL_DTYPE_BF16:
        matrix.kind = SL_MATRIX_BF16;
        break;
    case SL_DTYPE_F32:
        matrix.kind = SL_MATRIX_F32;
        break;
    default:
        bad_dtype(in, name, &info, "F8_E4M3, BF16 or F32");
        return matrix;
    }
    if (in->rc < 0)
        return matrix;
    tiles = sl_arena_take(in->arena, sl_r16_tile_count(rows), sl_matrix_tile_bytes(&matrix));
    matrix.tiles = tiles;
    if (!measuring(in)) {
        sl_pool_first_touch(in->pool, tiles, sl_r16_tile_count(rows), sl_matrix_tile_bytes(&matrix),
                            1, 0);
        pack_matrix(in, name, &matrix, tiles, scale_bytes, sl_dtype_size_bytes(info.dtype));
    }
    free(scale_bytes);
    return matrix;
}

static struct sl_hc_weights load_hc(struct loader *in, const char *name, uint64_t rows,
                                    uint64_t n_scales)
{
    uint64_t cols = (uint64_t)in->config->hc_mult * in->config->hidden_size;
    struct sl_hc_weights hc = {0};
    struct sl_tensor_info info;
    char part[NAME_BYTES / 2], full[NAME_BYTES];
    float *values;
    uint8_t *tiles;

    snprintf(part, sizeof(part), "%s_base", name);
    hc.base = load_vector(in, part, rows);
    snprintf(part, sizeof(part), "%s_scale", name);
    hc.scale = load_vector(in, part, n_scales);
    snprintf(part, sizeof(part), "%s_fn", name);
    full_name(in, part, "", full);
    if (!find(in, full, rows, cols, &info))
        return hc;
    if (info.dtype != SL_DTYPE_F32) {
        bad_dtype(in, full, &info, "F32");
        return hc;
    }
    hc.fn =
        (struct sl_matrix){.kind = SL_MATRIX_F32, .rows = (uint32_t)rows, .cols = (uint32_t)cols};
    tiles = sl_arena_take(in->arena, sl_r16_tile_count(rows), sl_matrix_tile_bytes(&hc.fn));
    hc.fn.tiles = tiles;
    if (measuring(in))
        return hc;
    values = malloc(info.size_bytes);
    if (!values) {
        fail(in, -ENOMEM, "%s: out of memory", full);
        return hc;
    }
    if (read_bytes(in, full, 0, info.size_bytes, values) &&
        sl_r16_pack_f32(rows, cols, values, tiles) < 0)
        bad_value(in, full, "a value that is not finite");
    free(values);
    return hc;
}

static struct sl_compressor_weights load_compressor(struct loader *in, const char *name,
                                                    uint32_t ratio, uint32_t dim)
{
    uint64_t width = ratio == SL_CSA_RATIO ? 2 * (uint64_t)dim : dim;
    uint64_t hidden = in->config->hidden_size;
    struct sl_compressor_weights compressor;
    char part[NAME_BYTES / 2];

    snprintf(part, sizeof(part), "%s.ape", name);
    compressor.ape = load_floats(in, part, ratio, width, ratio * width);
    snprintf(part, sizeof(part), "%s.wkv", name);
    compressor.wkv = load_matrix(in, part, width, hidden);
    snprintf(part, sizeof(part), "%s.wgate", name);
    compressor.wgate = load_matrix(in, part, width, hidden);
    snprintf(part, sizeof(part), "%s.norm.weight", name);
    compressor.norm = load_vector(in, part, dim);
    return compressor;
}

static void load_attention(struct loader *in, struct sl_layer_weights *layer)
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
    layer->attn_sink = load_floats(in, "attn.attn_sink", 0, c->num_attention_heads,
                                   sl_r16_padded_rows(c->num_attention_heads));
    if (layer->ratio)
        layer->compressor = load_compressor(in, "attn.compressor", layer->ratio, c->head_dim);
    if (layer->ratio == SL_CSA_RATIO) {
        layer->index_wq_b =
            load_matrix(in, "attn.indexer.wq_b", (uint64_t)c->index_n_heads * c->index_head_dim,
                        c->q_lora_rank);
        layer->index_weights =
            load_matrix(in, "attn.indexer.weights_proj", c->index_n_heads, c->hidden_size);
        layer->index_compressor =
            load_compressor(in, "attn.indexer.compressor", layer->ratio, c->index_head_dim);
    }
}

/* Experts by token id, for the hash-routed layers: I64 or I32 on disk, 16 bits here. */
static const uint16_t *load_tid2eid(struct loader *in)
{
    const struct sl_config *c = in->config;
    uint64_t count = (uint64_t)c->vocab_size * c->num_experts_per_tok;
    struct sl_tensor_info info;
    char name[NAME_BYTES];
    uint16_t *table;
    uint64_t at_once = STAGING_BYTES / sizeof(int64_t);

    full_name(in, "ffn.gate.tid2eid", "", name);
    if (!find(in, name, c->vocab_size, c->num_experts_per_tok, &info))
        return NULL;
    if (info.dtype != SL_DTYPE_I64 && info.dtype != SL_DTYPE_I32) {
        bad_dtype(in, name, &info, "I64 or I32");
        return NULL;
    }
    table = sl_arena_take(in->arena, count, sizeof(*table));
    for (uint64_t first = 0; !measuring(in) && first < count; first += at_once) {
        uint64_t n = count - first < at_once ? count - first : at_once;
        uint32_t size = sl_dtype_size_bytes(info.dtype);

        if (!read_bytes(in, name, first * size, n * size, in->staging))
            break;
        for (uint64_t i = 0; i < n; i++) {
            int64_t expert = size == 8 ? ((const int64_t *)(const void *)in->staging)[i]
                                       : ((const int32_t *)(const void *)in->staging)[i];

            if (expert < 0 || expert >= c->n_routed_experts) {
                fail(in, -SL_ECORRUPT,
                     "%s: tensor %s names expert %lld for token %llu, expected 0 to %u",
                     in->source->ops->where(in->source, name), name, (long long)expert,
                     (unsigned long long)((first + i) / c->num_experts_per_tok),
                     c->n_routed_experts - 1);
                return NULL;
            }
            table[first + i] = (uint16_t)expert;
        }
    }
    return table;
}

static void load_layer(struct loader *in, struct sl_layer_weights *layer, uint32_t ratio,
                       bool is_hash_routed)
{
    const struct sl_config *c = in->config;
    uint64_t hc_rows = (uint64_t)(2 + c->hc_mult) * c->hc_mult;

    layer->ratio = ratio;
    layer->hc_attn = load_hc(in, "hc_attn", hc_rows, 3);
    layer->hc_ffn = load_hc(in, "hc_ffn", hc_rows, 3);
    layer->attn_norm = load_vector(in, "attn_norm.weight", c->hidden_size);
    layer->ffn_norm = load_vector(in, "ffn_norm.weight", c->hidden_size);
    load_attention(in, layer);
    layer->gate = load_matrix(in, "ffn.gate", c->n_routed_experts, c->hidden_size);
    if (is_hash_routed) {
        layer->tid2eid = load_tid2eid(in);
        layer->gate_bias = NULL;
    } else {
        layer->tid2eid = NULL;
        layer->gate_bias = load_vector(in, "ffn.gate.bias", c->n_routed_experts);
    }
    layer->shared_w1 =
        load_matrix(in, "ffn.shared_experts.w1", c->moe_intermediate_size, c->hidden_size);
    layer->shared_w2 =
        load_matrix(in, "ffn.shared_experts.w2", c->hidden_size, c->moe_intermediate_size);
    layer->shared_w3 =
        load_matrix(in, "ffn.shared_experts.w3", c->moe_intermediate_size, c->hidden_size);
}

struct table_check {
    const struct sl_matrix *table;
    int rc; /* written by any thread, the same value; read after the job */
};

static void check_table_rows(void *context, size_t first, size_t end, uint32_t thread_index)
{
    struct table_check *check = context;
    const size_t from = first * check->table->cols, to = end * check->table->cols;
    bool finite = true;

    (void)thread_index;
    if (check->table->kind == SL_MATRIX_BF16)
        for (size_t i = from; i < to; i++)
            finite &= (((const uint16_t *)(const void *)check->table->tiles)[i] & 0x7f80) != 0x7f80;
    else
        for (size_t i = from; i < to; i++)
            finite &= isfinite(((const float *)(const void *)check->table->tiles)[i]) != 0;
    if (!finite)
        __atomic_store_n(&check->rc, -SL_ECORRUPT, __ATOMIC_RELAXED);
}

/* A table whose rows are looked up, kept as it is stored. */
static struct sl_matrix load_table(struct loader *in, const char *short_name, uint64_t rows,
                                   uint64_t cols)
{
    struct sl_matrix matrix = {.rows = (uint32_t)rows, .cols = (uint32_t)cols};
    struct table_check check = {.table = &matrix};
    struct sl_tensor_info info;
    char name[NAME_BYTES];
    uint8_t *table;

    full_name(in, short_name, ".weight", name);
    if (!find(in, name, rows, cols, &info))
        return matrix;
    if (info.dtype != SL_DTYPE_BF16 && info.dtype != SL_DTYPE_F32) {
        bad_dtype(in, name, &info, "BF16 or F32");
        return matrix;
    }
    table = sl_arena_take(in->arena, info.size_bytes, 1);
    matrix.kind = info.dtype == SL_DTYPE_BF16 ? SL_MATRIX_BF16 : SL_MATRIX_F32;
    matrix.tiles = table;
    if (measuring(in) || !read_bytes(in, name, 0, info.size_bytes, table))
        return matrix;
    sl_pool_run(in->pool, SL_PHASE_OUTSIDE, rows, 64, check_table_rows, &check);
    if (check.rc < 0)
        bad_value(in, name, "a value that is not finite");
    return matrix;
}

static void load_mtp(struct loader *in, struct sl_mtp_weights *mtp)
{
    const struct sl_config *c = in->config;

    mtp->e_proj = load_matrix(in, "e_proj", c->hidden_size, c->hidden_size);
    mtp->h_proj = load_matrix(in, "h_proj", c->hidden_size, c->hidden_size);
    mtp->enorm = load_vector(in, "enorm.weight", c->hidden_size);
    mtp->hnorm = load_vector(in, "hnorm.weight", c->hidden_size);
    mtp->norm = load_vector(in, "norm.weight", c->hidden_size);
    mtp->hc_head = load_hc(in, "hc_head", c->hc_mult, 1);
}

/* The stages have been loaded as layers; `in->prefix` is the last one's. */
static void load_dspark(struct loader *in, struct sl_dspark_weights *dspark,
                        const struct sl_draft *draft)
{
    const struct sl_config *c = in->config;
    const struct sl_dspark_config *told = &c->dspark;
    char last[sizeof(in->prefix)];

    if (draft->markov_rank % MARKOV_RANK_UNIT != 0 || draft->markov_rank > DSPARK_COLS_MAX ||
        (uint64_t)draft->n_targets * c->hidden_size > DSPARK_COLS_MAX)
        fail(in, -SL_EFORMAT,
             "%s: a DSpark draft of rank %u that reads %u layers, expected a rank that is a "
             "multiple of %u, and linears of at most %u columns",
             in->source->ops->where(in->source, "mtp.0.main_proj.weight"), draft->markov_rank,
             draft->n_targets, MARKOV_RANK_UNIT, DSPARK_COLS_MAX);
    if (told->n_targets > 0 && told->n_targets != draft->n_targets)
        fail(in, -SL_EFORMAT,
             "%s: tensor mtp.0.main_proj.weight is for %u layers, but config.json's "
             "dspark_target_layer_ids names %u",
             in->source->ops->where(in->source, "mtp.0.main_proj.weight"), draft->n_targets,
             told->n_targets);
    if (told->markov_rank > 0 && draft->markov_rank > 0 && told->markov_rank != draft->markov_rank)
        fail(in, -SL_EFORMAT,
             "%s: tensor %smarkov_head.markov_w1.weight has rank %u, but config.json's "
             "dspark_markov_rank is %u",
             in->source->ops->where(in->source, "mtp.0.main_proj.weight"), in->prefix,
             draft->markov_rank, told->markov_rank);
    dspark->norm = load_vector(in, "norm.weight", c->hidden_size);
    dspark->hc_head = load_hc(in, "hc_head", c->hc_mult, 1);
    dspark->markov_w1 = load_table(in, "markov_head.markov_w1", c->vocab_size, draft->markov_rank);
    dspark->markov_w2 = load_matrix(in, "markov_head.markov_w2", c->vocab_size, draft->markov_rank);
    dspark->confidence = load_floats(in, "confidence_head.proj.weight", 1,
                                     (uint64_t)c->hidden_size + draft->markov_rank, 0);
    memcpy(last, in->prefix, sizeof(last));
    snprintf(in->prefix, sizeof(in->prefix), "mtp.0.");
    dspark->main_proj =
        load_matrix(in, "main_proj", c->hidden_size, (uint64_t)draft->n_targets * c->hidden_size);
    dspark->main_norm = load_vector(in, "main_norm.weight", c->hidden_size);
    memcpy(in->prefix, last, sizeof(last));
}

/* Stages of DSpark have no compression, and no block of a draft routes by hashes. */
static int load_all(struct loader *in, struct sl_weights *weights, const struct sl_draft *draft)
{
    const struct sl_config *c = in->config;
    const uint32_t n_hidden = c->num_hidden_layers;
    const uint32_t n_layers = n_hidden + (draft ? draft->n_blocks : 0);
    struct sl_layer_weights *layers = sl_arena_take(in->arena, n_layers, sizeof(*layers));

    weights->layers = layers;
    weights->draft = draft ? draft->kind : SL_DRAFT_NONE;
    weights->embed = load_table(in, "embed", c->vocab_size, c->hidden_size);
    weights->head = load_matrix(in, "head", c->vocab_size, c->hidden_size);
    weights->norm = load_vector(in, "norm.weight", c->hidden_size);
    weights->hc_head = load_hc(in, "hc_head", c->hc_mult, 1);
    for (uint32_t i = 0; i < n_layers && in->rc == 0; i++) {
        const bool has_ratio = i < n_hidden || weights->draft == SL_DRAFT_MTP;
        struct sl_layer_weights layer = {0};

        if (i < n_hidden)
            snprintf(in->prefix, sizeof(in->prefix), "layers.%u.", i);
        else
            snprintf(in->prefix, sizeof(in->prefix), "mtp.%u.", i - n_hidden);
        load_layer(in, &layer, has_ratio ? c->compress_ratios[i] : 0, i < c->num_hash_layers);
        if (layers)
            layers[i] = layer;
    }
    if (weights->draft == SL_DRAFT_MTP)
        load_mtp(in, &weights->mtp);
    else if (weights->draft == SL_DRAFT_DSPARK)
        load_dspark(in, &weights->dspark, draft);
    return in->rc;
}

int sl_weights_measure(const struct sl_config *config, struct sl_weight_source *source,
                       const struct sl_draft *draft, uint64_t *ret_bytes, struct sl_err *err)
{
    struct sl_weights weights = {0};
    struct sl_arena arena;
    struct loader in = {.config = config, .source = source, .arena = &arena, .err = err};
    int rc;

    sl_arena_init_measure(&arena);
    rc = load_all(&in, &weights, draft);
    if (rc < 0)
        return rc;
    *ret_bytes = arena.used_bytes;
    return 0;
}

int sl_weights_load(struct sl_weights *weights, const struct sl_config *config,
                    struct sl_weight_source *source, const struct sl_draft *draft,
                    struct sl_pool *pool, struct sl_err *err)
{
    struct loader in = {
        .config = config, .source = source, .arena = &weights->arena, .pool = pool, .err = err};
    uint64_t size_bytes;
    int rc;

    *weights = (struct sl_weights){0};
    rc = sl_weights_measure(config, source, draft, &size_bytes, err);
    if (rc < 0)
        return rc;
    rc = sl_arena_map(&weights->arena, size_bytes, "dense weights", err);
    if (rc < 0)
        return rc;
    in.staging = malloc(STAGING_BYTES);
    if (!in.staging)
        rc = sl_err_set(err, -ENOMEM, "dense weights: out of memory");
    else
        rc = load_all(&in, weights, draft);
    free(in.staging);
    if (rc < 0)
        sl_weights_fini(weights);
    else
        sl_arena_lock(&weights->arena);
    return rc;
}

void sl_weights_fini(struct sl_weights *weights)
{
    sl_arena_fini(&weights->arena);
    *weights = (struct sl_weights){0};
}
