/* Experts' linears with AVX-512: FP4 weights by int8 dot products (VNNI). The order of summation is
 * that of core/kernels/kernels.h.
 *
 * One token: weights go from memory through the decoder straight into the dot product, and speed is
 * that of memory. Several tokens: a group of 128 columns at a time, two tiles decoded once for all
 * tokens, and the sums of up to six tokens by two tiles kept in registers: each activation that is
 * loaded serves two products, each weight six. Up to eight are done without that detour. */
#include <stdbool.h>

#include "core/kernels/formats.h"
#include "core/kernels/index_scores.h"
#include "kernels-avx512/avx512.h"
#include "kernels-avx512/vectors.h"

/* VPDPBUSD multiplies unsigned by signed, so weights enter as twice their value plus 12, and each
 * block's sum starts at -12 times the sum of its activations. */
#define WEIGHT_OFFSET 12

#define COLS_MAX 65536u /* as the contract has it */

static ALWAYS_INLINE __m512i fp4_table(void)
{
    return _mm512_broadcast_i32x4(
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
}

static ALWAYS_INLINE __m512i fp4_low(__m512i codes, __m512i table)
{
    return _mm512_shuffle_epi8(table, _mm512_and_si512(codes, _mm512_set1_epi8(15)));
}

static ALWAYS_INLINE __m512i fp4_high(__m512i codes, __m512i table)
{
    return fp4_low(_mm512_srli_epi16(codes, 4), table);
}

/* 16 E8M0 bytes as floats. */
static ALWAYS_INLINE __m512 scales16(const uint8_t *bytes)
{
    __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)bytes));

    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 23));
}

static void sum_blocks(size_t n_blocks, const int8_t *x, int32_t *sums)
{
    const __m256i offset = _mm256_set1_epi8(WEIGHT_OFFSET);

    for (size_t b = 0; b < n_blocks; b++) {
        __m256i block = _mm256_loadu_si256((const __m256i *)(const void *)(x + b * 32));
        __m256i sum = _mm256_dpbusd_epi32(_mm256_setzero_si256(), offset, block);
        __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));

        half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
        half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1));
        sums[b] = -_mm_cvtsi128_si32(half);
    }
}

/* One tile, one token. */
static ALWAYS_INLINE __m512 fp4_tile_one(size_t cols, const uint8_t *w, const int8_t *x,
                                         const float *x_scale, const int32_t *sums)
{
    const __m512i table = fp4_table();
    __m512 acc = _mm512_setzero_ps();

    for (size_t c = 0; c < cols; c += SL_FP4_GROUP_COLS, w += SL_FP4_GROUP_BYTES) {
        for (size_t b = 0; b < 4; b++, x += 32, x_scale++, sums++) {
            __m512i even = _mm512_set1_epi32(*sums), odd = _mm512_setzero_si512();
            __m512 scale = _mm512_mul_ps(scales16(w + b * ROWS), _mm512_set1_ps(*x_scale * 0.5f));

            for (size_t j = 0; j < 4; j++) {
                __m512i codes = _mm512_loadu_si512(w + 64 + b * 256 + j * 64);

                even = _mm512_dpbusd_epi32(even, fp4_low(codes, table), broadcast4(x + j * 8));
                odd = _mm512_dpbusd_epi32(odd, fp4_high(codes, table), broadcast4(x + j * 8 + 4));
            }
            acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(even, odd)), scale, acc);
        }
    }
    return acc;
}

#define TILES_AT_ONCE 2u
#define TOKENS_AT_ONCE 6u
#define TOKENS_MAX 64u
#define GROUPS_MAX 32u
#define BLOCKS (SL_FP4_GROUP_COLS / SL_FP4_BLOCK_COLS)

/* Up to 64 tokens' activations of up to 32 groups of 128 columns, group after group: rows lie a
 * power of two apart and would evict each other from the cache. */
struct panel {
    int8_t x[GROUPS_MAX * TOKENS_MAX * SL_FP4_GROUP_COLS];
    float x_scale[GROUPS_MAX * TOKENS_MAX * BLOCKS];
    int32_t sums[GROUPS_MAX * TOKENS_MAX * BLOCKS];
};

/* A group of 128 columns of up to two tiles, decoded. */
struct fp4_group {
    __m512i weights[BLOCKS][8][TILES_AT_ONCE];
    __m512 half_scale[BLOCKS][TILES_AT_ONCE];
};

static ALWAYS_INLINE void decode_group(const uint8_t *group, size_t tile, struct fp4_group *to)
{
    const __m512i table = fp4_table();

    for (size_t b = 0; b < BLOCKS; b++) {
        to->half_scale[b][tile] = _mm512_mul_ps(scales16(group + b * ROWS), _mm512_set1_ps(0.5f));
        for (size_t j = 0; j < 4; j++) {
            __m512i codes = _mm512_loadu_si512(group + 64 + b * 256 + j * 64);

            to->weights[b][2 * j][tile] = fp4_low(codes, table);
            to->weights[b][2 * j + 1][tile] = fp4_high(codes, table);
        }
    }
}

/* Adds a decoded group's products of n_tiles tiles (1 or 2) and n_tokens tokens (1 to 6) to acc
 * (n_tokens, 2, 16). x (n_tokens, 128); x_scale and sums (n_tokens, 4). */
static ALWAYS_INLINE void add_group(size_t n_tiles, size_t n_tokens, const struct fp4_group *group,
                                    const int8_t *x, const float *x_scale, const int32_t *sums,
                                    float *acc)
{
    __m512 sum[TOKENS_AT_ONCE][TILES_AT_ONCE];

    for (size_t t = 0; t < n_tokens; t++)
        for (size_t tile = 0; tile < n_tiles; tile++)
            sum[t][tile] = _mm512_loadu_ps(acc + (t * TILES_AT_ONCE + tile) * ROWS);
    for (size_t b = 0; b < BLOCKS; b++) {
        __m512i dot[TOKENS_AT_ONCE][TILES_AT_ONCE];

        for (size_t t = 0; t < n_tokens; t++)
            for (size_t tile = 0; tile < n_tiles; tile++)
                dot[t][tile] = _mm512_set1_epi32(sums[t * BLOCKS + b]);
        for (size_t i = 0; i < 8; i++) {
            __m512i w[TILES_AT_ONCE];

            for (size_t tile = 0; tile < n_tiles; tile++)
                w[tile] = group->weights[b][i][tile];
            for (size_t t = 0; t < n_tokens; t++) {
                __m512i four = broadcast4(x + t * SL_FP4_GROUP_COLS + b * 32 + i * 4);

                for (size_t tile = 0; tile < n_tiles; tile++)
                    dot[t][tile] = _mm512_dpbusd_epi32(dot[t][tile], w[tile], four);
            }
        }
        for (size_t t = 0; t < n_tokens; t++) {
            __m512 scale = _mm512_set1_ps(x_scale[t * BLOCKS + b]);

            for (size_t tile = 0; tile < n_tiles; tile++)
                sum[t][tile] =
                    _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[t][tile]),
                                    _mm512_mul_ps(group->half_scale[b][tile], scale), sum[t][tile]);
        }
    }
    for (size_t t = 0; t < n_tokens; t++)
        for (size_t tile = 0; tile < n_tiles; tile++)
            _mm512_storeu_ps(acc + (t * TILES_AT_ONCE + tile) * ROWS, sum[t][tile]);
}

static ALWAYS_INLINE void add_group_tokens(size_t n_tiles, size_t n_tokens,
                                           const struct fp4_group *group, const int8_t *x,
                                           const float *x_scale, const int32_t *sums, float *acc)
{
    while (n_tokens) {
        size_t n = n_tokens >= TOKENS_AT_ONCE ? TOKENS_AT_ONCE : n_tokens >= 4 ? 4 : 1;

        if (n == TOKENS_AT_ONCE) /* a constant count keeps the sums in registers */
            add_group(n_tiles, TOKENS_AT_ONCE, group, x, x_scale, sums, acc);
        else if (n == 4)
            add_group(n_tiles, 4, group, x, x_scale, sums, acc);
        else
            add_group(n_tiles, 1, group, x, x_scale, sums, acc);
        n_tokens -= n;
        x += n * SL_FP4_GROUP_COLS;
        x_scale += n * BLOCKS;
        sums += n * BLOCKS;
        acc += n * TILES_AT_ONCE * ROWS;
    }
}

/* Does one or two tiles, as many as there are. Not inlined, or the compiler would keep the
 * decoded weights in registers that it does not have. */
static __attribute__((noinline)) void add_tiles(size_t n_tiles, size_t n_tokens,
                                                const struct fp4_group *group, const int8_t *x,
                                                const float *x_scale, const int32_t *sums,
                                                float *acc)
{
    if (n_tiles == 2)
        add_group_tokens(2, n_tokens, group, x, x_scale, sums, acc);
    else
        add_group_tokens(1, n_tokens, group, x, x_scale, sums, acc);
}

static void fill_panel(struct panel *panel, size_t n_groups, size_t cols, size_t n_tokens,
                       const int8_t *x, const float *x_scale)
{
    for (size_t t = 0; t < n_tokens; t++) {
        for (size_t g = 0; g < n_groups; g++) {
            size_t at = g * n_tokens + t;

            copy_row(panel->x + at * SL_FP4_GROUP_COLS, x + t * cols + g * SL_FP4_GROUP_COLS,
                     SL_FP4_GROUP_COLS);
            memcpy(panel->x_scale + at * BLOCKS,
                   x_scale + t * (cols / SL_FP4_BLOCK_COLS) + g * BLOCKS,
                   BLOCKS * sizeof(*x_scale));
        }
    }
    sum_blocks(n_groups * n_tokens * BLOCKS, panel->x, panel->sums);
}

/* y (n_tokens, n_tiles * 16) to acc (n_tokens, 2, 16) or back. */
static ALWAYS_INLINE void move_rows(size_t n_tokens, size_t n_tiles, const float *from,
                                    size_t from_stride, float *to, size_t to_stride)
{
    for (size_t t = 0; t < n_tokens; t++)
        for (size_t tile = 0; tile < n_tiles; tile++)
            _mm512_storeu_ps(to + t * to_stride + tile * ROWS,
                             _mm512_loadu_ps(from + t * from_stride + tile * ROWS));
}

/* Has a group on its way to the second-level cache while the one before is multiplied. */
static ALWAYS_INLINE void prefetch_group(const uint8_t *group)
{
    for (size_t i = 0; i < SL_FP4_GROUP_BYTES; i += 64)
        __builtin_prefetch(group + i, 0, 2);
}

/* y = or, after the first panel, += the products of a panel's columns; w is where they start in the
 * first tile. */
static void add_panel(bool is_first, const struct panel *panel, size_t n_groups, size_t tile_count,
                      size_t tile_bytes, size_t n_tokens, const uint8_t *w, float *y,
                      size_t y_stride)
{
    const size_t acc_stride = TILES_AT_ONCE * ROWS;
    _Alignas(64) float acc[TOKENS_MAX * TILES_AT_ONCE * ROWS];
    struct fp4_group group;

    for (size_t tile = 0; tile < tile_count; tile += TILES_AT_ONCE) {
        size_t n = tile_count - tile < TILES_AT_ONCE ? tile_count - tile : TILES_AT_ONCE;

        if (is_first)
            clear_rows(n_tokens, TILES_AT_ONCE, acc, acc_stride);
        else
            move_rows(n_tokens, n, y + tile * ROWS, y_stride, acc, acc_stride);
        for (size_t g = 0; g < n_groups; g++) {
            for (size_t i = 0; i < n; i++) {
                const uint8_t *codes = w + (tile + i) * tile_bytes + g * SL_FP4_GROUP_BYTES;

                decode_group(codes, i, &group);
                prefetch_group(codes + (g + 1 < n_groups
                                            ? SL_FP4_GROUP_BYTES
                                            : TILES_AT_ONCE * tile_bytes - g * SL_FP4_GROUP_BYTES));
            }
            add_tiles(n, n_tokens, &group, panel->x + g * n_tokens * SL_FP4_GROUP_COLS,
                      panel->x_scale + g * n_tokens * BLOCKS, panel->sums + g * n_tokens * BLOCKS,
                      acc);
        }
        move_rows(n_tokens, n, acc, acc_stride, y + tile * ROWS, y_stride);
    }
}

/* ---- few tokens --------------------------------------------------------------------------------
 * Up to eight have sums in registers for all columns, so a tile's weights go from memory through
 * the decoder into the products of all of them. */

#define FEW_TOKENS_MAX 8u

/* One tile; n_tokens is a constant, which keeps the sums in registers. y: as in add_panel(). */
static ALWAYS_INLINE void few_tile(size_t n_tokens, bool is_first, const struct panel *panel,
                                   size_t n_groups, const uint8_t *w, float *y, size_t y_stride)
{
    const __m512i table = fp4_table();
    const int8_t *x = panel->x;
    const float *x_scale = panel->x_scale;
    const int32_t *sums = panel->sums;
    __m512 acc[FEW_TOKENS_MAX];

    for (size_t t = 0; t < n_tokens; t++)
        acc[t] = is_first ? _mm512_setzero_ps() : _mm512_loadu_ps(y + t * y_stride);
    for (size_t g = 0; g < n_groups; g++, w += SL_FP4_GROUP_BYTES) {
        prefetch_group(w + 2 * SL_FP4_GROUP_BYTES);
        for (size_t b = 0; b < BLOCKS; b++) {
            const __m512 scale = _mm512_mul_ps(scales16(w + b * ROWS), _mm512_set1_ps(0.5f));
            __m512i dot[FEW_TOKENS_MAX];

            for (size_t t = 0; t < n_tokens; t++)
                dot[t] = _mm512_set1_epi32(sums[t * BLOCKS + b]);
#pragma GCC unroll 4 /* a loop would move the sums from register to register */
            for (size_t j = 0; j < 4; j++) {
                const __m512i codes = _mm512_loadu_si512(w + 64 + b * 256 + j * 64);
                const __m512i low = fp4_low(codes, table), high = fp4_high(codes, table);
                const int8_t *eight = x + b * SL_FP4_BLOCK_COLS + j * 8;

                for (size_t t = 0; t < n_tokens; t++) {
                    dot[t] =
                        _mm512_dpbusd_epi32(dot[t], low, broadcast4(eight + t * SL_FP4_GROUP_COLS));
                    dot[t] = _mm512_dpbusd_epi32(dot[t], high,
                                                 broadcast4(eight + t * SL_FP4_GROUP_COLS + 4));
                }
            }
            for (size_t t = 0; t < n_tokens; t++)
                acc[t] = _mm512_fmadd_ps(
                    _mm512_cvtepi32_ps(dot[t]),
                    _mm512_mul_ps(scale, _mm512_set1_ps(x_scale[t * BLOCKS + b])), acc[t]);
        }
        x += n_tokens * SL_FP4_GROUP_COLS;
        x_scale += n_tokens * BLOCKS;
        sums += n_tokens * BLOCKS;
    }
    for (size_t t = 0; t < n_tokens; t++)
        _mm512_storeu_ps(y + t * y_stride, acc[t]);
}

#define FEW_TILES(n)                                                                               \
    case n:                                                                                        \
        for (size_t tile = 0; tile < tile_count; tile++)                                           \
            few_tile(n, is_first, panel, n_groups, w + tile * tile_bytes, y + tile * ROWS,         \
                     y_stride);                                                                    \
        break

static void add_panel_few(bool is_first, const struct panel *panel, size_t n_groups,
                          size_t tile_count, size_t tile_bytes, size_t n_tokens, const uint8_t *w,
                          float *y, size_t y_stride)
{
    switch (n_tokens) {
        FEW_TILES(1);
        FEW_TILES(2);
        FEW_TILES(3);
        FEW_TILES(4);
        FEW_TILES(5);
        FEW_TILES(6);
        FEW_TILES(7);
        FEW_TILES(8);
    default:
        break;
    }
}

static void fp4_tokens(size_t tile_count, size_t cols, size_t n_tokens, const uint8_t *w,
                       const int8_t *x, const float *x_scale, float *y, size_t y_stride)
{
    const size_t tile_bytes = sl_r16_fp4_tile_bytes(cols), groups = cols / SL_FP4_GROUP_COLS;
    struct panel panel;

    for (size_t g = 0; g < groups; g += GROUPS_MAX) {
        size_t n = groups - g < GROUPS_MAX ? groups - g : GROUPS_MAX;

        fill_panel(&panel, n, cols, n_tokens, x + g * SL_FP4_GROUP_COLS, x_scale + g * BLOCKS);
        if (n_tokens <= FEW_TOKENS_MAX)
            add_panel_few(g == 0, &panel, n, tile_count, tile_bytes, n_tokens,
                          w + g * SL_FP4_GROUP_BYTES, y, y_stride);
        else
            add_panel(g == 0, &panel, n, tile_count, tile_bytes, n_tokens,
                      w + g * SL_FP4_GROUP_BYTES, y, y_stride);
    }
}

void sl_matmul_fp4_avx512vnni(size_t tile_count, size_t cols, size_t token_count,
                              const uint8_t *restrict w, const int8_t *restrict x,
                              const float *restrict x_scale, float *restrict y, size_t y_stride)
{
    const size_t n_blocks = cols / SL_FP4_BLOCK_COLS, tile_bytes = sl_r16_fp4_tile_bytes(cols);
    int32_t sums[COLS_MAX / SL_FP4_BLOCK_COLS];

    if (token_count == 1) {
        sum_blocks(n_blocks, x, sums);
        for (size_t tile = 0; tile < tile_count; tile++)
            _mm512_storeu_ps(y + tile * ROWS,
                             fp4_tile_one(cols, w + tile * tile_bytes, x, x_scale, sums));
        return;
    }
    for (size_t t = 0; t < token_count; t += TOKENS_MAX)
        fp4_tokens(tile_count, cols, token_count - t < TOKENS_MAX ? token_count - t : TOKENS_MAX, w,
                   x + t * cols, x_scale + t * n_blocks, y + t * y_stride, y_stride);
}

/* ---- the indexer -------------------------------------------------------------------------------
 * The same product of keys of 128 columns and a query's heads, but each head's scores are added to
 * the keys' totals while they are in registers.
 *
 * Where a head's four scales are one power of two, it need not be multiplied with each block's: the
 * head's weight takes it, exactly, as nothing gets near float32's ends. */

#define INDEX_HEADS_MAX 64u
#define SCALE_BITS_MIN 0x2b800000u /* 2^-40 */
#define SCALE_BITS_MAX 0x53800000u /* 2^40 */
#define WEIGHT_MIN 0x1p-60f

/* Up to 64 heads of a query. */
struct index_heads {
    int32_t sums[INDEX_HEADS_MAX * BLOCKS];
    float weight[INDEX_HEADS_MAX]; /* times the scale, where that can be */
    bool scaled[INDEX_HEADS_MAX];  /* that it is */
};

static void prepare_index_heads(size_t n_heads, const int8_t *x, const float *x_scale,
                                const float *weight, struct index_heads *heads)
{
    sum_blocks(n_heads * BLOCKS, x, heads->sums);
    for (size_t h = 0; h < n_heads; h++, x_scale += BLOCKS) {
        uint32_t bits = sl_f32_bits(x_scale[0]);
        float magnitude = weight[h] < 0 ? -weight[h] : weight[h];
        bool scaled = bits << 9 == 0 && bits >= SCALE_BITS_MIN && bits <= SCALE_BITS_MAX &&
                      (magnitude >= WEIGHT_MIN || magnitude == 0) && magnitude <= 1.0f / WEIGHT_MIN;

        for (size_t b = 1; b < BLOCKS; b++)
            scaled &= sl_f32_bits(x_scale[b]) == bits;
        heads->scaled[h] = scaled;
        heads->weight[h] = scaled ? weight[h] * x_scale[0] : weight[h];
    }
}

/* Adds the scores of n heads (1 to 6) for up to two tiles to total (2, 16). */
static ALWAYS_INLINE void add_heads(size_t n_tiles, size_t n, bool scaled,
                                    const struct fp4_group *group, const int8_t *x,
                                    const float *x_scale, const int32_t *sums, const float *weight,
                                    float *total)
{
    __m512 sum[TOKENS_AT_ONCE][TILES_AT_ONCE];

    for (size_t h = 0; h < n; h++)
        for (size_t tile = 0; tile < n_tiles; tile++)
            sum[h][tile] = _mm512_setzero_ps();
    for (size_t b = 0; b < BLOCKS; b++) {
        __m512i dot[TOKENS_AT_ONCE][TILES_AT_ONCE];

        for (size_t h = 0; h < n; h++)
            for (size_t tile = 0; tile < n_tiles; tile++)
                dot[h][tile] = _mm512_set1_epi32(sums[h * BLOCKS + b]);
#pragma GCC unroll 8 /* a loop would move the sums from register to register */
        for (size_t i = 0; i < 8; i++) {
            __m512i w[TILES_AT_ONCE];

            for (size_t tile = 0; tile < n_tiles; tile++)
                w[tile] = group->weights[b][i][tile];
            for (size_t h = 0; h < n; h++) {
                __m512i four = broadcast4(x + h * SL_FP4_GROUP_COLS + b * 32 + i * 4);

                for (size_t tile = 0; tile < n_tiles; tile++)
                    dot[h][tile] = _mm512_dpbusd_epi32(dot[h][tile], w[tile], four);
            }
        }
        for (size_t h = 0; h < n; h++) {
            for (size_t tile = 0; tile < n_tiles; tile++) {
                __m512 scale = group->half_scale[b][tile];

                if (!scaled)
                    scale = _mm512_mul_ps(scale, _mm512_set1_ps(x_scale[h * BLOCKS + b]));
                sum[h][tile] =
                    _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[h][tile]), scale, sum[h][tile]);
            }
        }
    }
    for (size_t tile = 0; tile < n_tiles; tile++) {
        __m512 all = _mm512_loadu_ps(total + tile * ROWS);

        for (size_t h = 0; h < n; h++) /* a NaN is the first operand's and so becomes zero */
            all =
                _mm512_add_ps(all, _mm512_mul_ps(_mm512_set1_ps(weight[h]),
                                                 _mm512_max_ps(sum[h][tile], _mm512_setzero_ps())));
        _mm512_storeu_ps(total + tile * ROWS, all);
    }
}

/* A constant count keeps the sums in registers. */
static ALWAYS_INLINE void add_some_heads(size_t n_tiles, size_t n, bool scaled,
                                         const struct fp4_group *group, const int8_t *x,
                                         const float *x_scale, const int32_t *sums,
                                         const float *weight, float *total)
{
    if (n == TOKENS_AT_ONCE && scaled)
        add_heads(n_tiles, TOKENS_AT_ONCE, true, group, x, x_scale, sums, weight, total);
    else if (n == TOKENS_AT_ONCE)
        add_heads(n_tiles, TOKENS_AT_ONCE, false, group, x, x_scale, sums, weight, total);
    else if (n == 4 && scaled)
        add_heads(n_tiles, 4, true, group, x, x_scale, sums, weight, total);
    else if (scaled)
        add_heads(n_tiles, 1, true, group, x, x_scale, sums, weight, total);
    else
        add_heads(n_tiles, 1, false, group, x, x_scale, sums, weight, total);
}

/* Not inlined, like add_tiles(). */
static __attribute__((noinline)) void add_index_tiles(size_t n_tiles, size_t n_heads,
                                                      const struct fp4_group *group,
                                                      const struct index_heads *heads,
                                                      const int8_t *x, const float *x_scale,
                                                      float *total)
{
    for (size_t h = 0, n; h < n_heads; h += n) {
        const bool scaled = heads->scaled[h];
        size_t same = 1;

        while (same < TOKENS_AT_ONCE && h + same < n_heads && heads->scaled[h + same] == scaled)
            same++;
        n = same == TOKENS_AT_ONCE ? same : same >= 4 && scaled ? 4 : 1;
        if (n_tiles == 2)
            add_some_heads(2, n, scaled, group, x + h * SL_FP4_GROUP_COLS, x_scale + h * BLOCKS,
                           heads->sums + h * BLOCKS, heads->weight + h, total);
        else
            add_some_heads(1, n, scaled, group, x + h * SL_FP4_GROUP_COLS, x_scale + h * BLOCKS,
                           heads->sums + h * BLOCKS, heads->weight + h, total);
    }
}

void sl_index_scores_avx512vnni(size_t tile_count, size_t cols, size_t head_count,
                                const uint8_t *restrict keys, const int8_t *restrict x,
                                const float *restrict x_scale, const float *restrict weight,
                                float *restrict total)
{
    struct index_heads heads;
    struct fp4_group group;

    if (cols != SL_FP4_GROUP_COLS) {
        sl_index_scores_by(sl_matmul_fp4_avx512vnni, tile_count, cols, head_count, keys, x, x_scale,
                           weight, total);
        return;
    }
    clear_rows(1, tile_count, total, 0);
    for (size_t head = 0; head < head_count; head += INDEX_HEADS_MAX) {
        size_t n_heads = head_count - head < INDEX_HEADS_MAX ? head_count - head : INDEX_HEADS_MAX;

        prepare_index_heads(n_heads, x + head * cols, x_scale + head * BLOCKS, weight + head,
                            &heads);
        for (size_t tile = 0; tile < tile_count; tile += TILES_AT_ONCE) {
            size_t n = tile_count - tile < TILES_AT_ONCE ? tile_count - tile : TILES_AT_ONCE;

            for (size_t i = 0; i < n; i++) {
                const uint8_t *codes = keys + (tile + i) * SL_FP4_GROUP_BYTES;

                decode_group(codes, i, &group);
                prefetch_group(codes + TILES_AT_ONCE * SL_FP4_GROUP_BYTES);
            }
            add_index_tiles(n, n_heads, &group, &heads, x + head * cols, x_scale + head * BLOCKS,
                            total + tile * ROWS);
        }
    }
}
