/* Experts' linears with AVX-512: FP4 weights by int8 dot products (VNNI). The order of summation is
 * that of core/kernels/kernels.h.
 *
 * Where each row's four scales of a group of 128 columns are near each other, codes take the
 * difference ("levels", kernels-avx512/fp4_levels.h), and a group's dot product is one exact
 * integer that is converted and scaled once. Other groups ("uneven") do so for each block of 32
 * columns, as do all on processors without VBMI, which the levels' decoder needs.
 *
 * Few tokens: weights go from memory through the decoder straight into the dot products, and speed
 * is that of memory. More tokens: a group at a time, two tiles decoded once for all tokens, and the
 * sums of up to six tokens by two tiles kept in registers: each activation that is loaded serves
 * two products, each weight six. */
#include <stdbool.h>

#include "core/kernels/formats.h"
#include "core/kernels/index_scores.h"
#include "kernels-avx512/avx512.h"
#include "kernels-avx512/fp4_levels.h"
#include "kernels-avx512/vectors.h"

/* VPDPBUSD multiplies unsigned by signed, so weights enter with an offset, and each sum starts at
 * minus that times the sum of its activations. */
#define WEIGHT_OFFSET FP4_LARGEST

#define BLOCKS FP4_BLOCKS
#define WORDS (SL_FP4_GROUP_COLS / 4) /* of a group: four columns of 16 rows each */
#define BLOCK_WORDS (WORDS / BLOCKS)

#define TILES_AT_ONCE 2u
#define TOKENS_AT_ONCE 8u
#define TOKENS_PADDED 4u /* more tokens than few are a multiple */
#define TOKENS_MAX 64u
#define FEW_TOKENS_MAX 8u
#define PLACES_MAX 2048u /* groups times tokens */

/* ---- activations -------------------------------------------------------------------------------
 */

/* Activations, group after group and in there token after token: rows lie a power of two apart and
 * would evict each other from the cache. */
struct panel {
    int8_t x[PLACES_MAX * SL_FP4_GROUP_COLS];
    float x_scale[PLACES_MAX];
    int32_t start[PLACES_MAX];                /* of a group's sum */
    int32_t block_start[PLACES_MAX * BLOCKS]; /* of a block's */
};

/* Activations of one group, token after token. */
struct activations {
    const int8_t *x;
    const float *x_scale;
    const int32_t *start, *block_start;
};

static ALWAYS_INLINE struct activations panel_at(const struct panel *panel, size_t place)
{
    return (struct activations){panel->x + place * SL_FP4_GROUP_COLS, panel->x_scale + place,
                                panel->start + place, panel->block_start + place * BLOCKS};
}

static ALWAYS_INLINE struct activations skip(struct activations from, size_t n_tokens)
{
    return (struct activations){from.x + n_tokens * SL_FP4_GROUP_COLS, from.x_scale + n_tokens,
                                from.start + n_tokens, from.block_start + n_tokens * BLOCKS};
}

/* Where the sums of n groups start, and those of their blocks. */
static void find_starts(size_t n, const int8_t *x, int32_t *start, int32_t *block_start)
{
    const __m256i offset = _mm256_set1_epi8(WEIGHT_OFFSET);

    for (size_t i = 0; i < n; i++) {
        start[i] = 0;
        for (size_t b = 0; b < BLOCKS; b++, x += SL_FP4_BLOCK_COLS) {
            __m256i block = _mm256_loadu_si256((const __m256i *)(const void *)x);
            __m256i sum = _mm256_dpbusd_epi32(_mm256_setzero_si256(), offset, block);
            __m128i half =
                _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));

            half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
            half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1));
            block_start[i * BLOCKS + b] = -_mm_cvtsi128_si32(half);
            start[i] += block_start[i * BLOCKS + b];
        }
    }
}

/* `padded` tokens, of which n_tokens are there, and the others zero. */
static void fill_panel(struct panel *panel, size_t n_groups, size_t cols, size_t padded,
                       size_t n_tokens, const int8_t *x, const float *x_scale)
{
    for (size_t t = 0; t < padded; t++) {
        for (size_t g = 0; g < n_groups; g++) {
            int8_t *to = panel->x + (g * padded + t) * SL_FP4_GROUP_COLS;

            if (t < n_tokens)
                copy_row(to, x + t * cols + g * SL_FP4_GROUP_COLS, SL_FP4_GROUP_COLS);
            else
                memset(to, 0, SL_FP4_GROUP_COLS);
            panel->x_scale[g * padded + t] =
                t < n_tokens ? x_scale[t * (cols / SL_FP4_GROUP_COLS) + g] : 0.0f;
        }
    }
    find_starts(n_groups * padded, panel->x, panel->start, panel->block_start);
}

/* ---- weights -----------------------------------------------------------------------------------
 * Groups are asked for this far ahead, since the processor's own prefetching ends with each page.
 * What lies beyond a matrix is asked for too, which has no effect. */

#define AHEAD_BYTES 2048u

static ALWAYS_INLINE void ask_for(const uint8_t *weights)
{
    _mm_prefetch((const char *)weights + AHEAD_BYTES, _MM_HINT_T0);
}

/* A decoder makes the codes of a block words. */
struct decoder {
    __m512i table, level;
    bool levels; /* constant */
};

static ALWAYS_INLINE struct decoder decoder_of(bool levels)
{
    const __m512i table = fp4_table(WEIGHT_OFFSET);

    return (struct decoder){levels ? table : _mm512_shuffle_i64x2(table, table, 0),
                            _mm512_setzero_si512(), levels};
}

static ALWAYS_INLINE void decode(const struct decoder *decoder, const uint8_t *codes,
                                 __m512i *ret_even, __m512i *ret_odd)
{
    const __m512i both = _mm512_loadu_si512(codes), low = _mm512_set1_epi8(15);

    if (decoder->levels) {
        fp4_decode(decoder->table, decoder->level, both, ret_even, ret_odd);
        return;
    }
    *ret_even = _mm512_shuffle_epi8(decoder->table, _mm512_and_si512(both, low));
    *ret_odd =
        _mm512_shuffle_epi8(decoder->table, _mm512_and_si512(_mm512_srli_epi16(both, 4), low));
}

/* ---- few tokens --------------------------------------------------------------------------------
 * Up to eight have sums in registers for all columns, so a tile's weights go from memory through
 * the decoder into the products of all of them. */

/* Adds one block's products to n tokens' sums, two each, or each would wait for itself. */
static ALWAYS_INLINE void few_block(size_t n, const struct decoder *decoder, const uint8_t *codes,
                                    const int8_t *x, __m512i dot[FEW_TOKENS_MAX][2])
{
#pragma GCC unroll 4 /* a loop would move the sums from register to register */
    for (size_t j = 0; j < FP4_BLOCK_VECTORS; j++) {
        __m512i even, odd;

        ask_for(codes + j * 64);
        decode(decoder, codes + j * 64, &even, &odd);
        for (size_t t = 0; t < n; t++) {
            const int8_t *eight = x + t * SL_FP4_GROUP_COLS + j * 8;

            dot[t][0] = _mm512_dpbusd_epi32(dot[t][0], even, broadcast4(eight));
            dot[t][1] = _mm512_dpbusd_epi32(dot[t][1], odd, broadcast4(eight + 4));
        }
    }
}

static ALWAYS_INLINE void start_sums(size_t n, const int32_t *start, size_t stride,
                                     __m512i dot[FEW_TOKENS_MAX][2])
{
    for (size_t t = 0; t < n; t++) {
        dot[t][0] = _mm512_set1_epi32(start[t * stride]);
        dot[t][1] = _mm512_setzero_si512();
    }
}

static ALWAYS_INLINE __m512 sum_of(const __m512i dot[2])
{
    return _mm512_cvtepi32_ps(_mm512_add_epi32(dot[0], dot[1]));
}

/* An even group's sums of n tokens. */
static ALWAYS_INLINE void few_even_group(size_t n, struct decoder *decoder,
                                         const struct fp4_levels *levels, const uint8_t *group,
                                         struct activations from, __m512 sum[FEW_TOKENS_MAX])
{
    const __m512 scale = fp4_half_scales(levels->least);
    __m512i dot[FEW_TOKENS_MAX][2];

    start_sums(n, from.start, 1, dot);
#pragma GCC unroll 4
    for (size_t b = 0; b < BLOCKS; b++) {
        decoder->level = fp4_block_levels(levels->levels, b);
        few_block(n, decoder, fp4_block(group, b), from.x + b * SL_FP4_BLOCK_COLS, dot);
    }
    for (size_t t = 0; t < n; t++)
        sum[t] = _mm512_mul_ps(sum_of(dot[t]), scale);
}

/* Sums of a group whose scales may be anything. */
static ALWAYS_INLINE void few_any_group(size_t n, struct decoder *decoder, const uint8_t *group,
                                        struct activations from, __m512 sum[FEW_TOKENS_MAX])
{
    decoder->level = _mm512_setzero_si512();
    for (size_t t = 0; t < n; t++)
        sum[t] = _mm512_setzero_ps();
    for (size_t b = 0; b < BLOCKS; b++) {
        const __m512 scale = fp4_half_scales(fp4_load16(group + b * ROWS));
        __m512i dot[FEW_TOKENS_MAX][2];

        start_sums(n, from.block_start + b, BLOCKS, dot);
        few_block(n, decoder, fp4_block(group, b), from.x + b * SL_FP4_BLOCK_COLS, dot);
        for (size_t t = 0; t < n; t++)
            sum[t] = _mm512_fmadd_ps(sum_of(dot[t]), scale, sum[t]);
    }
}

/* One tile; n is a constant, which keeps the sums in registers. y = or, after the first panel, +=
 * the products of a panel's columns. */
static ALWAYS_INLINE void few_tile(bool has_levels, size_t n, bool is_first,
                                   const struct panel *panel, size_t n_groups, const uint8_t *w,
                                   float *y, size_t y_stride)
{
    struct decoder decoder = decoder_of(has_levels);
    __m512 acc[FEW_TOKENS_MAX];

    for (size_t t = 0; t < n; t++)
        acc[t] = is_first ? _mm512_setzero_ps() : _mm512_loadu_ps(y + t * y_stride);
    for (size_t g = 0; g < n_groups; g++, w += SL_FP4_GROUP_BYTES) {
        const struct activations from = panel_at(panel, g * n);
        const struct fp4_levels levels = fp4_levels_of(w);
        __m512 sum[FEW_TOKENS_MAX];

        ask_for(w);
        if (has_levels && levels.even)
            few_even_group(n, &decoder, &levels, w, from, sum);
        else
            few_any_group(n, &decoder, w, from, sum);
        for (size_t t = 0; t < n; t++)
            acc[t] = _mm512_fmadd_ps(sum[t], _mm512_set1_ps(from.x_scale[t]), acc[t]);
    }
    for (size_t t = 0; t < n; t++)
        _mm512_storeu_ps(y + t * y_stride, acc[t]);
}

#define FEW_TILES(n)                                                                               \
    case n:                                                                                        \
        for (size_t tile = 0; tile < tile_count; tile++)                                           \
            few_tile(has_levels, n, is_first, panel, n_groups, w + tile * tile_bytes,              \
                     y + tile * ROWS, y_stride);                                                   \
        break

static ALWAYS_INLINE void add_panel_few(bool has_levels, bool is_first, const struct panel *panel,
                                        size_t n_groups, size_t tile_count, size_t tile_bytes,
                                        size_t n_tokens, const uint8_t *w, float *y,
                                        size_t y_stride)
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

/* ---- more tokens -------------------------------------------------------------------------------
 */

/* A group of 128 columns of up to two tiles, decoded. */
struct decoded {
    __m512i words[WORDS][TILES_AT_ONCE];
    __m512 scale[BLOCKS][TILES_AT_ONCE]; /* half of it; only the first where the group is even */
    bool even;
};

static ALWAYS_INLINE void decode_group(bool has_levels, size_t n_tiles, const uint8_t *group,
                                       size_t tile_bytes, const uint8_t *next, struct decoded *to)
{
    struct decoder decoder = decoder_of(has_levels);
    struct fp4_levels levels[TILES_AT_ONCE];

    to->even = has_levels;
    for (size_t tile = 0; tile < n_tiles; tile++) {
        levels[tile] = fp4_levels_of(group + tile * tile_bytes);
        to->even &= levels[tile].even;
    }
    for (size_t tile = 0; tile < n_tiles; tile++, group += tile_bytes, next += tile_bytes) {
        for (size_t b = 0; b < BLOCKS; b++) {
            __m128i scales = fp4_load16(group + b * ROWS);

            decoder.level = _mm512_setzero_si512();
            if (to->even) {
                decoder.level = fp4_block_levels(levels[tile].levels, b);
                scales = levels[tile].least;
            }
            to->scale[b][tile] = fp4_half_scales(scales);
            for (size_t j = 0; j < FP4_BLOCK_VECTORS; j++)
                decode(&decoder, fp4_block(group, b) + j * 64,
                       &to->words[b * BLOCK_WORDS + 2 * j][tile],
                       &to->words[b * BLOCK_WORDS + 2 * j + 1][tile]);
        }
        for (size_t i = 0; i < SL_FP4_GROUP_BYTES; i += 64) /* to the second-level cache */
            __builtin_prefetch(next + i, 0, 2);
    }
}

/* Adds the products of `words` and n tokens' activations to their dots. */
static ALWAYS_INLINE void add_words(size_t n_tiles, size_t n, size_t n_words,
                                    const __m512i (*words)[TILES_AT_ONCE], const int8_t *x,
                                    __m512i dot[TOKENS_AT_ONCE][TILES_AT_ONCE])
{
#pragma GCC unroll 4 /* a loop would move the sums from register to register */
    for (size_t i = 0; i < n_words; i++) {
        for (size_t t = 0; t < n; t++) {
            const __m512i four = broadcast4(x + t * SL_FP4_GROUP_COLS + i * 4);

            for (size_t tile = 0; tile < n_tiles; tile++)
                dot[t][tile] = _mm512_dpbusd_epi32(dot[t][tile], words[i][tile], four);
        }
    }
}

/* Adds a decoded group's products of n_tiles tiles (1 or 2) and n tokens (1 to 6) to acc
 * (n, 2, 16). */
static ALWAYS_INLINE void add_group(bool even, size_t n_tiles, size_t n,
                                    const struct decoded *group, struct activations from,
                                    float *acc)
{
    __m512 sum[TOKENS_AT_ONCE][TILES_AT_ONCE];

    for (size_t t = 0; t < n; t++)
        for (size_t tile = 0; tile < n_tiles; tile++)
            sum[t][tile] = _mm512_setzero_ps();
    for (size_t b = 0; b < (even ? 1 : BLOCKS); b++) {
        const size_t n_words = even ? WORDS : BLOCK_WORDS;
        __m512i dot[TOKENS_AT_ONCE][TILES_AT_ONCE];

        for (size_t t = 0; t < n; t++)
            for (size_t tile = 0; tile < n_tiles; tile++)
                dot[t][tile] =
                    _mm512_set1_epi32(even ? from.start[t] : from.block_start[t * BLOCKS + b]);
        add_words(n_tiles, n, n_words, group->words + b * n_words, from.x + b * n_words * 4, dot);
        for (size_t t = 0; t < n; t++)
            for (size_t tile = 0; tile < n_tiles; tile++) {
                const __m512 value = _mm512_cvtepi32_ps(dot[t][tile]);

                sum[t][tile] = _mm512_fmadd_ps(value, group->scale[b][tile], sum[t][tile]);
            }
    }
    for (size_t t = 0; t < n; t++) {
        const __m512 scale = _mm512_set1_ps(from.x_scale[t]);

        for (size_t tile = 0; tile < n_tiles; tile++) {
            float *to = acc + (t * TILES_AT_ONCE + tile) * ROWS;

            _mm512_storeu_ps(to, _mm512_fmadd_ps(sum[t][tile], scale, _mm512_loadu_ps(to)));
        }
    }
}

/* n_tokens is a multiple of four. */
static ALWAYS_INLINE void add_group_tokens(bool even, size_t n_tiles, size_t n_tokens,
                                           const struct decoded *group, struct activations from,
                                           float *acc)
{
    while (n_tokens) { /* a constant count keeps the sums in registers */
        const size_t n = even && n_tokens >= TOKENS_AT_ONCE ? TOKENS_AT_ONCE : TOKENS_PADDED;

        if (n == TOKENS_AT_ONCE)
            add_group(even, n_tiles, TOKENS_AT_ONCE, group, from, acc);
        else
            add_group(even, n_tiles, TOKENS_PADDED, group, from, acc);
        n_tokens -= n;
        from = skip(from, n);
        acc += n * TILES_AT_ONCE * ROWS;
    }
}

/* Does one or two tiles, as many as there are. Not inlined, or the compiler would keep the
 * decoded weights in registers that it does not have. */
static __attribute__((noinline)) void add_tiles(size_t n_tiles, size_t n_tokens,
                                                const struct decoded *group,
                                                struct activations from, float *acc)
{
    if (n_tiles == 2 && group->even)
        add_group_tokens(true, 2, n_tokens, group, from, acc);
    else if (n_tiles == 2)
        add_group_tokens(false, 2, n_tokens, group, from, acc);
    else if (group->even)
        add_group_tokens(true, 1, n_tokens, group, from, acc);
    else
        add_group_tokens(false, 1, n_tokens, group, from, acc);
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

/* y = or, after the first panel, += the products of a panel's columns; w is where they start in the
 * first tile. */
static ALWAYS_INLINE void add_panel(bool has_levels, bool is_first, const struct panel *panel,
                                    size_t n_groups, size_t tile_count, size_t tile_bytes,
                                    size_t padded, size_t n_tokens, const uint8_t *w, float *y,
                                    size_t y_stride)
{
    const size_t acc_stride = TILES_AT_ONCE * ROWS;
    _Alignas(64) float acc[TOKENS_MAX * TILES_AT_ONCE * ROWS];
    struct decoded group;

    for (size_t tile = 0; tile < tile_count; tile += TILES_AT_ONCE) {
        size_t n = tile_count - tile < TILES_AT_ONCE ? tile_count - tile : TILES_AT_ONCE;

        clear_rows(padded, TILES_AT_ONCE, acc, acc_stride);
        if (!is_first)
            move_rows(n_tokens, n, y + tile * ROWS, y_stride, acc, acc_stride);
        for (size_t g = 0; g < n_groups; g++) {
            const uint8_t *from = w + tile * tile_bytes + g * SL_FP4_GROUP_BYTES;
            const size_t to_next = g + 1 < n_groups
                                       ? SL_FP4_GROUP_BYTES
                                       : TILES_AT_ONCE * tile_bytes - g * SL_FP4_GROUP_BYTES;

            decode_group(has_levels, n, from, tile_bytes, from + to_next, &group);
            add_tiles(n, padded, &group, panel_at(panel, g * padded), acc);
        }
        move_rows(n_tokens, n, acc, acc_stride, y + tile * ROWS, y_stride);
    }
}

static ALWAYS_INLINE void fp4_tokens(bool has_levels, size_t tile_count, size_t cols,
                                     size_t n_tokens, const uint8_t *w, const int8_t *x,
                                     const float *x_scale, float *y, size_t y_stride)
{
    const size_t tile_bytes = sl_r16_fp4_tile_bytes(cols), groups = cols / SL_FP4_GROUP_COLS;
    const size_t padded = n_tokens <= FEW_TOKENS_MAX
                              ? n_tokens
                              : (n_tokens + TOKENS_PADDED - 1) / TOKENS_PADDED * TOKENS_PADDED;
    const size_t groups_max = PLACES_MAX / padded;
    struct panel panel;

    for (size_t g = 0; g < groups; g += groups_max) {
        size_t n = groups - g < groups_max ? groups - g : groups_max;

        fill_panel(&panel, n, cols, padded, n_tokens, x + g * SL_FP4_GROUP_COLS, x_scale + g);
        if (n_tokens <= FEW_TOKENS_MAX)
            add_panel_few(has_levels, g == 0, &panel, n, tile_count, tile_bytes, n_tokens,
                          w + g * SL_FP4_GROUP_BYTES, y, y_stride);
        else
            add_panel(has_levels, g == 0, &panel, n, tile_count, tile_bytes, padded, n_tokens,
                      w + g * SL_FP4_GROUP_BYTES, y, y_stride);
    }
}

static ALWAYS_INLINE void fp4_matmul(bool has_levels, size_t tile_count, size_t cols,
                                     size_t token_count, const uint8_t *w, const int8_t *x,
                                     const float *x_scale, float *y, size_t y_stride)
{
    for (size_t t = 0; t < token_count; t += TOKENS_MAX)
        fp4_tokens(has_levels, tile_count, cols,
                   token_count - t < TOKENS_MAX ? token_count - t : TOKENS_MAX, w, x + t * cols,
                   x_scale + t * (cols / SL_FP4_GROUP_COLS), y + t * y_stride, y_stride);
}

void sl_matmul_fp4_avx512vnni(size_t tile_count, size_t cols, size_t token_count,
                              const uint8_t *restrict w, const int8_t *restrict x,
                              const float *restrict x_scale, float *restrict y, size_t y_stride)
{
    fp4_matmul(false, tile_count, cols, token_count, w, x, x_scale, y, y_stride);
}

void sl_matmul_fp4_avx512vbmi(size_t tile_count, size_t cols, size_t token_count,
                              const uint8_t *restrict w, const int8_t *restrict x,
                              const float *restrict x_scale, float *restrict y, size_t y_stride)
{
    fp4_matmul(true, tile_count, cols, token_count, w, x, x_scale, y, y_stride);
}

/* ---- the indexer -------------------------------------------------------------------------------
 * The same product of keys of 128 columns and a query's heads, but each head's scores are added to
 * the keys' totals while they are in registers.
 *
 * Where a head's four scales are one power of two ("whole"), and the keys even, all 128 columns are
 * one dot product, and the head's weight takes the scale: exactly, as nothing gets near float32's
 * ends. */

#define INDEX_HEADS_MAX 64u
#define SCALE_BITS_MIN 0x2b800000u /* 2^-40 */
#define SCALE_BITS_MAX 0x53800000u /* 2^40 */
#define WEIGHT_MIN 0x1p-60f

/* Up to 64 heads of a query. */
struct index_heads {
    int32_t start[INDEX_HEADS_MAX], block_start[INDEX_HEADS_MAX * BLOCKS];
    float scaled_weight[INDEX_HEADS_MAX]; /* of heads that are whole */
    bool whole[INDEX_HEADS_MAX];
};

static void prepare_index_heads(size_t n_heads, const int8_t *x, const float *x_scale,
                                const float *weight, struct index_heads *heads)
{
    find_starts(n_heads, x, heads->start, heads->block_start);
    for (size_t h = 0; h < n_heads; h++, x_scale += BLOCKS) {
        uint32_t bits = sl_f32_bits(x_scale[0]);
        float magnitude = weight[h] < 0 ? -weight[h] : weight[h];
        bool whole = bits << 9 == 0 && bits >= SCALE_BITS_MIN && bits <= SCALE_BITS_MAX &&
                     (magnitude >= WEIGHT_MIN || magnitude == 0) && magnitude <= 1.0f / WEIGHT_MIN;

        for (size_t b = 1; b < BLOCKS; b++)
            whole &= sl_f32_bits(x_scale[b]) == bits;
        heads->whole[h] = whole;
        heads->scaled_weight[h] = weight[h] * x_scale[0];
    }
}

/* A query's heads, as they meet a tile of keys. */
struct queries {
    const int8_t *x;
    const float *x_scale, *weight;
    const struct index_heads *heads;
};

/* Adds the scores of n heads (1 to 6) from `first` on for up to two tiles to total (2, 16). */
static ALWAYS_INLINE void add_heads(bool whole, size_t n_tiles, size_t first, size_t n,
                                    const struct decoded *group, const struct queries *from,
                                    float *total)
{
    const int8_t *x = from->x + first * SL_FP4_GROUP_COLS;
    const float *weight = (whole ? from->heads->scaled_weight : from->weight) + first;
    __m512 sum[TOKENS_AT_ONCE][TILES_AT_ONCE];

    for (size_t h = 0; h < n; h++)
        for (size_t tile = 0; tile < n_tiles; tile++)
            sum[h][tile] = _mm512_setzero_ps();
    for (size_t b = 0; b < (whole ? 1 : BLOCKS); b++) {
        const size_t n_words = whole ? WORDS : BLOCK_WORDS;
        const int32_t *start =
            whole ? from->heads->start + first : from->heads->block_start + first * BLOCKS + b;
        __m512i dot[TOKENS_AT_ONCE][TILES_AT_ONCE];

        for (size_t h = 0; h < n; h++)
            for (size_t tile = 0; tile < n_tiles; tile++)
                dot[h][tile] = _mm512_set1_epi32(start[whole ? h : h * BLOCKS]);
        add_words(n_tiles, n, n_words, group->words + b * n_words, x + b * n_words * 4, dot);
        for (size_t h = 0; h < n; h++)
            for (size_t tile = 0; tile < n_tiles; tile++) {
                const __m512 value = _mm512_cvtepi32_ps(dot[h][tile]);
                __m512 scale = group->scale[b][tile];

                if (!whole)
                    scale = _mm512_mul_ps(scale,
                                          _mm512_set1_ps(from->x_scale[(first + h) * BLOCKS + b]));
                sum[h][tile] = _mm512_fmadd_ps(value, scale, sum[h][tile]);
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

/* Not inlined, like add_tiles(). Constant counts keep the sums in registers. */
static __attribute__((noinline)) void add_index_tiles(size_t n_tiles, size_t n_heads,
                                                      const struct decoded *group,
                                                      const struct queries *from, float *total)
{
    for (size_t h = 0, n; h < n_heads; h += n) {
        size_t same = 0;

        while (group->even && same < TOKENS_AT_ONCE && h + same < n_heads &&
               from->heads->whole[h + same])
            same++;
        n = same == TOKENS_AT_ONCE ? same : same >= 4 ? 4 : 1;
        if (n == TOKENS_AT_ONCE && n_tiles == 2)
            add_heads(true, 2, h, TOKENS_AT_ONCE, group, from, total);
        else if (n == 4 && n_tiles == 2)
            add_heads(true, 2, h, 4, group, from, total);
        else if (n == TOKENS_AT_ONCE)
            add_heads(true, 1, h, TOKENS_AT_ONCE, group, from, total);
        else if (n == 4)
            add_heads(true, 1, h, 4, group, from, total);
        else if (n_tiles == 2)
            add_heads(false, 2, h, 1, group, from, total);
        else
            add_heads(false, 1, h, 1, group, from, total);
    }
}

static ALWAYS_INLINE void index_scores(bool has_levels, size_t tile_count, size_t head_count,
                                       const uint8_t *keys, const int8_t *x, const float *x_scale,
                                       const float *weight, float *total)
{
    struct index_heads heads;
    struct decoded group;

    clear_rows(1, tile_count, total, 0);
    for (size_t head = 0; head < head_count; head += INDEX_HEADS_MAX) {
        size_t n_heads = head_count - head < INDEX_HEADS_MAX ? head_count - head : INDEX_HEADS_MAX;
        const struct queries from = {x + head * SL_FP4_GROUP_COLS, x_scale + head * BLOCKS,
                                     weight + head, &heads};

        prepare_index_heads(n_heads, from.x, from.x_scale, from.weight, &heads);
        for (size_t tile = 0; tile < tile_count; tile += TILES_AT_ONCE) {
            const size_t left = tile_count - tile, n = left < TILES_AT_ONCE ? left : TILES_AT_ONCE;
            const uint8_t *at = keys + tile * SL_FP4_GROUP_BYTES;

            decode_group(has_levels, n, at, SL_FP4_GROUP_BYTES,
                         at + TILES_AT_ONCE * SL_FP4_GROUP_BYTES, &group);
            add_index_tiles(n, n_heads, &group, &from, total + tile * ROWS);
        }
    }
}

void sl_index_scores_avx512vnni(size_t tile_count, size_t cols, size_t head_count,
                                const uint8_t *restrict keys, const int8_t *restrict x,
                                const float *restrict x_scale, const float *restrict weight,
                                float *restrict total)
{
    if (cols == SL_FP4_GROUP_COLS)
        index_scores(false, tile_count, head_count, keys, x, x_scale, weight, total);
    else
        sl_index_scores_by(sl_matmul_fp4_avx512vnni, tile_count, cols, head_count, keys, x, x_scale,
                           weight, total);
}

void sl_index_scores_avx512vbmi(size_t tile_count, size_t cols, size_t head_count,
                                const uint8_t *restrict keys, const int8_t *restrict x,
                                const float *restrict x_scale, const float *restrict weight,
                                float *restrict total)
{
    if (cols == SL_FP4_GROUP_COLS)
        index_scores(true, tile_count, head_count, keys, x, x_scale, weight, total);
    else
        sl_index_scores_by(sl_matmul_fp4_avx512vbmi, tile_count, cols, head_count, keys, x, x_scale,
                           weight, total);
}
