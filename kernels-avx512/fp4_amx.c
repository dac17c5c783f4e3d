/* FP4 weights by int8 activations, and the indexer's scores, with AMX. The order of summation is
 * that of core/kernels/kernels.h.
 *
 * A product of tiles gives one block's sums of 32 columns for 16 tokens by 16 rows: exact integers,
 * each of which AVX-512 then adds to its float32 sum. That is what takes the time, all the more as
 * only one of the two units for float32 runs beside AMX (measured on Sapphire Rapids), and a tile
 * must go through memory to get there. So the scales cost as little as can be. Where the scales of
 * a block's rows differ by at most three powers of two (FP4 values doubled are at most 12, and
 * eight times that is an int8), the codes take the difference and the rows have one scale: then a
 * token's factor is one number. BF16 tiles would spare the conversion to float32, but took longer.
 *
 * A group of 128 columns of a tile is decoded once for all tokens, in the order that it has in
 * memory, which is the one that tiles need. While one group is added the next is multiplied. */
#include <stdbool.h>
#include <string.h>

#include "core/kernels/formats.h"
#include "kernels-avx512/amx.h"
#include "kernels-avx512/avx512.h"
#include "kernels-avx512/tiles_amx.h"
#include "kernels-avx512/vectors.h"

#define COLS SL_FP4_BLOCK_COLS
#define BLOCKS (SL_FP4_GROUP_COLS / SL_FP4_BLOCK_COLS)
#define BLOCK_BYTES 256u /* of codes */
#define LEVELS_MAX 3     /* powers of two that codes can take */

#define UNIT TILE_ROWS_MAX /* tokens whose sums are in registers */
#define UNITS_MAX 4u
#define TOKENS_MAX (UNITS_MAX * UNIT)
#define PANEL_COLS 4096u
#define TILES_AT_ONCE 4u

/* Fewer tokens are AVX-512's, which decodes the weights on the way. From here on tiles take less
 * time while weights come from memory (measured on Sapphire Rapids). */
#define TOKENS_MIN 5u

/* Up to 64 tokens' activations of up to 4,096 columns, unit after unit: rows lie a power of two
 * apart and would evict each other from the cache. */
struct panel {
    _Alignas(64) int8_t x[UNITS_MAX][PANEL_COLS / COLS][UNIT][COLS];
    float x_scale[UNITS_MAX][PANEL_COLS / COLS][UNIT];
};

/* A group of 128 columns of a tile, decoded: four columns of 16 rows in a tile's row. */
struct group {
    _Alignas(64) int8_t values[BLOCKS][COLS / 4][ROWS][4];
    float scale[BLOCKS][ROWS]; /* half of it, as values are doubled */
    float level_scale[BLOCKS]; /* likewise, where all rows have one; else 1 */
    bool level[BLOCKS];        /* that they have */
};

/* Sums on their way: those of a group of a tile by a unit of tokens. */
struct work {
    _Alignas(64) float factor[BLOCKS][UNIT]; /* of tokens; if the rows have one scale, times that */
    const struct group *group;
    size_t n_tokens;
    float (*y)[ROWS]; /* (n_tokens, 16) */
};

/* ---- weights -----------------------------------------------------------------------------------
 */

/* Twice the value of code c times 2^level, at 16 * level + c. */
static const _Alignas(64) int8_t level_values[64] = {
    0, 1, 2,  3,  4,  6,  8,  12, 0, -1, -2,  -3,  -4,  -6,  -8,  -12,
    0, 2, 4,  6,  8,  12, 16, 24, 0, -2, -4,  -6,  -8,  -12, -16, -24,
    0, 4, 8,  12, 16, 24, 32, 48, 0, -4, -8,  -12, -16, -24, -32, -48,
    0, 8, 16, 24, 32, 48, 64, 96, 0, -8, -16, -24, -32, -48, -64, -96,
};

static ALWAYS_INLINE __m128i load16(const uint8_t *bytes)
{
    return _mm_loadu_si128((const __m128i *)(const void *)bytes);
}

/* 16 E8M0 bytes, halved, as floats. */
static ALWAYS_INLINE __m512 half_scales(__m128i bytes)
{
    __m512i wide = _mm512_slli_epi32(_mm512_cvtepu8_epi32(bytes), 23);

    return _mm512_mul_ps(_mm512_castsi512_ps(wide), _mm512_set1_ps(0.5f));
}

/* The least and the largest byte of each quarter, in all its places. */
static ALWAYS_INLINE __m512i quarter_least(__m512i bytes)
{
    bytes = _mm512_min_epu8(bytes, _mm512_alignr_epi8(bytes, bytes, 8));
    bytes = _mm512_min_epu8(bytes, _mm512_alignr_epi8(bytes, bytes, 4));
    bytes = _mm512_min_epu8(bytes, _mm512_alignr_epi8(bytes, bytes, 2));
    return _mm512_min_epu8(bytes, _mm512_alignr_epi8(bytes, bytes, 1));
}

static ALWAYS_INLINE __m512i quarter_most(__m512i bytes)
{
    bytes = _mm512_max_epu8(bytes, _mm512_alignr_epi8(bytes, bytes, 8));
    bytes = _mm512_max_epu8(bytes, _mm512_alignr_epi8(bytes, bytes, 4));
    bytes = _mm512_max_epu8(bytes, _mm512_alignr_epi8(bytes, bytes, 2));
    return _mm512_max_epu8(bytes, _mm512_alignr_epi8(bytes, bytes, 1));
}

/* One block's codes to int8 (8, 16, 4): four columns of 16 rows in a tile's row; levels (16). */
static ALWAYS_INLINE void level_block(const uint8_t *codes, __m128i levels,
                                      int8_t (*values)[ROWS][4])
{
    const __m512i table = _mm512_load_si512(level_values);
    const __m512i low = _mm512_set1_epi8(15);
    const __m512i four_each =
        _mm512_set_epi32(0x0f0f0f0f, 0x0e0e0e0e, 0x0d0d0d0d, 0x0c0c0c0c, 0x0b0b0b0b, 0x0a0a0a0a,
                         0x09090909, 0x08080808, 0x07070707, 0x06060606, 0x05050505, 0x04040404,
                         0x03030303, 0x02020202, 0x01010101, 0);
    const __m512i level =
        _mm512_slli_epi16(_mm512_shuffle_epi8(_mm512_broadcast_i32x4(levels), four_each), 4);

    for (size_t j = 0; j < COLS / 8; j++, values += 2) {
        __m512i pair = _mm512_loadu_si512(codes + j * 64);
        __m512i even = _mm512_ternarylogic_epi32(pair, low, level, 0xea); /* a & b | c */
        __m512i odd = _mm512_ternarylogic_epi32(_mm512_srli_epi16(pair, 4), low, level, 0xea);

        _mm512_store_si512(values[0], _mm512_permutexvar_epi8(even, table));
        _mm512_store_si512(values[1], _mm512_permutexvar_epi8(odd, table));
    }
}

/* Blocks whose scales are near each other get the least of them. */
static void decode_group(const uint8_t *from, struct group *to)
{
    const __m512i scales = _mm512_loadu_si512(from);
    const __m512i least = quarter_least(scales);
    const __mmask64 level = _mm512_cmple_epu8_mask(_mm512_sub_epi8(quarter_most(scales), least),
                                                   _mm512_set1_epi8(LEVELS_MAX));
    _Alignas(64) uint8_t levels[BLOCKS * ROWS], of_all[BLOCKS * ROWS];

    _mm512_store_si512(levels, _mm512_maskz_sub_epi8(level, scales, least));
    _mm512_store_si512(of_all, least);
    for (size_t b = 0; b < BLOCKS; b++) {
        const float least_scale = _mm512_cvtss_f32(half_scales(load16(of_all + b * ROWS)));

        to->level[b] = level >> (b * ROWS) & 1;
        to->level_scale[b] = to->level[b] ? least_scale : 1.0f;
        _mm512_storeu_ps(to->scale[b], half_scales(load16(from + b * ROWS)));
        level_block(from + BLOCKS * ROWS + b * BLOCK_BYTES, load16(levels + b * ROWS),
                    to->values[b]);
    }
}

/* Has a group on its way to the second-level cache while the one before is multiplied. */
static ALWAYS_INLINE void prefetch_group(const uint8_t *group)
{
    for (size_t i = 0; i < SL_FP4_GROUP_BYTES; i += 64)
        __builtin_prefetch(group + i, 0, 2);
}

/* ---- products ----------------------------------------------------------------------------------
 * Tiles 0 and 1 are activations, 2 and 3 weights, 4 to 7 the sums of a group's blocks. A tile is
 * stored four products after its own, or the next would wait, and cleared at once: a product right
 * behind tilezero waits too (as measured; nothing says so). */

#define MULTIPLY(sum, a, b, x, values)                                                             \
    do {                                                                                           \
        TILE_ZERO(sum);                                                                            \
        TILE_LOAD(a, x, COLS);                                                                     \
        TILE_LOAD(b, values, ROWS * 4);                                                            \
        TILE_DOT_INT8(sum, a, b);                                                                  \
    } while (0)

/* Adds one block's sums of n tokens (constant, or acc is no registers). */
static ALWAYS_INLINE void add_block(size_t n, bool level, const int32_t (*sums)[ROWS],
                                    const float *scale, const float *factor, __m512 acc[UNIT])
{
    __asm__ volatile("" : : : "memory"); /* gcc would load all sums at once, and store some */
    if (level) {
#pragma GCC unroll 16
        for (size_t t = 0; t < n; t++)
            acc[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(sums[t])),
                                     _mm512_set1_ps(factor[t]), acc[t]);
    } else {
        const __m512 scales = _mm512_loadu_ps(scale);

        __asm__ volatile("" : : : "memory");
#pragma GCC unroll 16
        for (size_t t = 0; t < n; t++)
            acc[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(sums[t])),
                                     _mm512_mul_ps(scales, _mm512_set1_ps(factor[t])), acc[t]);
    }
}

/* Stores a block's sums and adds them to those of n tokens, and has the next ones multiplied
 * meanwhile, if there are any. */
#define STEP(n, sum, a, b, i)                                                                      \
    do {                                                                                           \
        TILE_STORE(sum, sums[i], ROWS * 4);                                                        \
        if (next)                                                                                  \
            MULTIPLY(sum, a, b, x[i], next->group->values[i]);                                     \
        if (n)                                                                                     \
            add_block(n, last->group->level[i], (const int32_t(*)[ROWS])sums[i],                   \
                      last->group->scale[i], last->factor[i], acc);                                \
    } while (0)

static ALWAYS_INLINE void advance_by(size_t n, const struct work *last, const struct work *next,
                                     const int8_t (*x)[UNIT][COLS])
{
    _Alignas(64) int32_t sums[BLOCKS][UNIT][ROWS];
    __m512 acc[UNIT];

#pragma GCC unroll 16
    for (size_t t = 0; t < n; t++)
        acc[t] = _mm512_load_ps(last->y[t]);
    STEP(n, 4, 0, 2, 0);
    STEP(n, 5, 1, 3, 1);
    STEP(n, 6, 0, 2, 2);
    STEP(n, 7, 1, 3, 3);
#pragma GCC unroll 16
    for (size_t t = 0; t < n; t++)
        _mm512_store_ps(last->y[t], acc[t]);
}

/* Adds what was multiplied last, and multiplies the next by its activations x. Either work may be
 * NULL. */
static __attribute__((noinline)) void advance(const struct work *last, const struct work *next,
                                              const int8_t (*x)[UNIT][COLS])
{
    if (!last)
        advance_by(0, last, next, x);
    else if (last->n_tokens <= UNIT / 2)
        advance_by(UNIT / 2, last, next, x);
    else
        advance_by(UNIT, last, next, x);
}

/* ---- panels ------------------------------------------------------------------------------------
 */

/* Two blocks of all tokens at a time, so that whole cache lines are read and written. Tokens of the
 * last unit that do not exist are zero. */
static void fill_panel(struct panel *panel, size_t n_blocks, size_t cols, size_t n_tokens,
                       const int8_t *x, const float *x_scale)
{
    for (size_t first = 0; first < n_tokens; first += UNIT) {
        const size_t n = n_tokens - first < UNIT ? n_tokens - first : UNIT;
        int8_t(*to)[UNIT][COLS] = panel->x[first / UNIT];
        float(*to_scale)[UNIT] = panel->x_scale[first / UNIT];

        for (size_t b = 0; b < n_blocks; b++)
            for (size_t t = 0; t < UNIT; t++)
                to_scale[b][t] = t < n ? x_scale[(first + t) * (cols / COLS) + b] : 0.0f;
        for (size_t b = 0; b < n_blocks; b += 2) {
            for (size_t t = 0; t < UNIT; t++) {
                __m512i two = _mm512_setzero_si512();

                if (t < n)
                    two = _mm512_loadu_si512(x + (first + t) * cols + b * COLS);
                _mm256_store_si256((__m256i *)(void *)to[b][t], _mm512_castsi512_si256(two));
                _mm256_store_si256((__m256i *)(void *)to[b + 1][t],
                                   _mm512_extracti64x4_epi64(two, 1));
            }
        }
    }
}

/* One tile's rows of y (n_tokens) to acc (n_tokens, 16), or back. */
static ALWAYS_INLINE void move_rows(size_t n_tokens, const float *from, size_t from_stride,
                                    float *to, size_t to_stride)
{
    for (size_t t = 0; t < n_tokens; t++)
        _mm512_storeu_ps(to + t * to_stride, _mm512_loadu_ps(from + t * from_stride));
}

/* Adds the products of a panel's columns for up to TILES_AT_ONCE tiles to acc; w is where they
 * start in the first tile. The tiles take turns with a group of activations, which so come from the
 * first-level cache for all but one. */
static void add_panel(const struct panel *panel, size_t n_groups, size_t n_tiles, size_t tile_bytes,
                      size_t n_tokens, const uint8_t *w, float (*acc)[TOKENS_MAX][ROWS])
{
    struct group groups[2];
    struct work works[2], *last = NULL;
    size_t n_decoded = 0, n_works = 0;

    for (size_t g = 0; g < n_groups; g++) {
        for (size_t tile = 0; tile < n_tiles; tile++) {
            const uint8_t *from = w + tile * tile_bytes + g * SL_FP4_GROUP_BYTES;
            struct group *group = &groups[n_decoded++ % 2];

            decode_group(from, group);
            prefetch_group(from + (g + 1 < n_groups
                                       ? SL_FP4_GROUP_BYTES
                                       : TILES_AT_ONCE * tile_bytes - g * SL_FP4_GROUP_BYTES));
            for (size_t t = 0; t < n_tokens; t += UNIT) {
                struct work *next = &works[n_works++ % 2];

                next->group = group;
                next->n_tokens = n_tokens - t;
                next->y = acc[tile] + t;
                for (size_t b = 0; b < BLOCKS; b++)
                    _mm512_store_ps(
                        next->factor[b],
                        _mm512_mul_ps(_mm512_loadu_ps(panel->x_scale[t / UNIT][g * BLOCKS + b]),
                                      _mm512_set1_ps(group->level_scale[b])));
                advance(last, next, panel->x[t / UNIT] + g * BLOCKS);
                last = next;
            }
        }
    }
    advance(last, NULL, NULL);
}

/* y = or, after the first panel, += the products of a panel's columns. */
static void add_panel_tiles(bool is_first, const struct panel *panel, size_t n_groups,
                            size_t tile_count, size_t tile_bytes, size_t n_tokens, const uint8_t *w,
                            float *y, size_t y_stride)
{
    _Alignas(64) float acc[TILES_AT_ONCE][TOKENS_MAX][ROWS];

    for (size_t first = 0; first < tile_count; first += TILES_AT_ONCE, y += TILES_AT_ONCE * ROWS) {
        const size_t left = tile_count - first, n = left < TILES_AT_ONCE ? left : TILES_AT_ONCE;

        for (size_t tile = 0; tile < n; tile++) {
            clear_rows((n_tokens + UNIT - 1) / UNIT * UNIT, 1, acc[tile][0], ROWS);
            if (!is_first)
                move_rows(n_tokens, y + tile * ROWS, y_stride, acc[tile][0], ROWS);
        }
        add_panel(panel, n_groups, n, tile_bytes, n_tokens, w + first * tile_bytes, acc);
        for (size_t tile = 0; tile < n; tile++)
            move_rows(n_tokens, acc[tile][0], ROWS, y + tile * ROWS, y_stride);
    }
}

/* Tiles 0 and 1 for `cols` columns of int8, 2 and 3 to meet them, 4 to 7 for sums. */
static void configure(size_t cols, struct tile_config *config)
{
    *config = (struct tile_config){.palette = 1};
    for (size_t i = 0; i < TILES; i++) {
        config->rows[i] = i == 2 || i == 3 ? (uint8_t)(cols / 4) : TILE_ROWS_MAX;
        config->row_bytes[i] = i < 2 ? (uint16_t)cols : ROWS * 4;
    }
}

/* Up to 64 tokens. Not inlined, or its panel would lie on the stack beside that of AVX-512. */
static __attribute__((noinline)) void fp4_tokens(size_t tile_count, size_t cols, size_t n_tokens,
                                                 const uint8_t *w, const int8_t *x,
                                                 const float *x_scale, float *y, size_t y_stride)
{
    struct tile_config config;
    struct panel panel;

    configure(COLS, &config);
    tiles_begin(&config);
    for (size_t c = 0; c < cols; c += PANEL_COLS) {
        const size_t n_cols = cols - c < PANEL_COLS ? cols - c : PANEL_COLS;

        fill_panel(&panel, n_cols / COLS, cols, n_tokens, x + c, x_scale + c / COLS);
        add_panel_tiles(c == 0, &panel, n_cols / SL_FP4_GROUP_COLS, tile_count,
                        sl_r16_fp4_tile_bytes(cols), n_tokens,
                        w + c / SL_FP4_GROUP_COLS * SL_FP4_GROUP_BYTES, y, y_stride);
    }
    tiles_end();
}

void sl_matmul_fp4_amx(size_t tile_count, size_t cols, size_t token_count,
                       const uint8_t *restrict w, const int8_t *restrict x,
                       const float *restrict x_scale, float *restrict y, size_t y_stride)
{
    for (size_t t = 0, n; t < token_count; t += n) {
        const int8_t *from = x + t * cols;
        const float *from_scale = x_scale + t * (cols / COLS);

        n = token_count - t < TOKENS_MAX ? token_count - t : TOKENS_MAX;
        if (n < TOKENS_MIN)
            sl_matmul_fp4_avx512vnni(tile_count, cols, n, w, from, from_scale, y + t * y_stride,
                                     y_stride);
        else
            fp4_tokens(tile_count, cols, n, w, from, from_scale, y + t * y_stride, y_stride);
    }
}

/* ---- the indexer -------------------------------------------------------------------------------
 * Keys of 128 columns by a query's heads. Where a head's four scales are one power of two, and
 * those of a key differ by at most three (FP4 values doubled are at most 12, and eight times that
 * is an int8), the codes take the difference and all 128 columns are one exact integer below 2^24:
 * the order of summation would not have rounded either. Then whole tiles of int8 are multiplied,
 * and the scales come last, as nothing gets near float32's ends. What else there is goes to
 * AVX-512. */

#define INDEX_UNITS 4u /* of 16 heads */
#define INDEX_HEADS_MAX (INDEX_UNITS * UNIT)
#define HALF_COLS TILE_ROW_BYTES_MAX /* columns of int8 in a tile */

/* The limits of a head's scale, of its weight times that, and of keys' scales: the least sum is a
 * multiple of 2^-125. */
#define SCALE_BITS_MIN 0x2b800000u  /* 2^-40 */
#define SCALE_BITS_MAX 0x53800000u  /* 2^40 */
#define WEIGHT_BITS_MIN 0x21800000u /* 2^-60 */
#define WEIGHT_BITS_MAX 0x5d800000u /* 2^60 */
#define KEY_SCALE_MIN (SL_E8M0_BIAS - 40)
#define KEY_SCALE_MAX (SL_E8M0_BIAS + 20)

/* The heads of a query; those that do not exist are zero. */
struct index_heads {
    _Alignas(64) int8_t x[INDEX_UNITS][2][UNIT][HALF_COLS];
    float weight[INDEX_HEADS_MAX]; /* times the scale */
};

/* Products of tiles of keys on their way to their scores: tile i in slot i % 4. */
#define INDEX_SLOTS 4u
struct index_slots {
    _Alignas(64) int32_t sums[INDEX_SLOTS][INDEX_UNITS][UNIT][ROWS];
    float scale[INDEX_SLOTS][ROWS]; /* half of it, as values are doubled */
    bool level[INDEX_SLOTS];        /* that each key has one scale */
};

/* Returns whether each head has one scale, of a size that allows to apply it last. */
static bool prepare_index_heads(size_t n_heads, const int8_t *x, const float *x_scale,
                                const float *weight, struct index_heads *heads)
{
    bool level = true;

    memset(heads, 0, sizeof(*heads));
    for (size_t h = 0; h < n_heads; h++, x_scale += BLOCKS, x += SL_FP4_GROUP_COLS) {
        const uint32_t bits = sl_f32_bits(x_scale[0]);
        const float product = weight[h] * x_scale[0];
        const uint32_t magnitude = sl_f32_bits(product) & 0x7fffffffu;

        for (size_t half = 0; half < 2; half++)
            copy_row(heads->x[h / UNIT][half][h % UNIT], x + half * HALF_COLS, HALF_COLS);
        heads->weight[h] = product;
        level &= bits << 9 == 0 && bits >= SCALE_BITS_MIN && bits <= SCALE_BITS_MAX;
        level &= weight[h] == 0 || (magnitude >= WEIGHT_BITS_MIN && magnitude <= WEIGHT_BITS_MAX);
        for (size_t b = 1; b < BLOCKS; b++)
            level &= sl_f32_bits(x_scale[b]) == bits;
    }
    return level;
}

/* The least of each key's four scales, and whether each key's are near each other, and of a size
 * that allows to apply them last. */
static ALWAYS_INLINE __m128i least_of_keys(const uint8_t *group, bool *level)
{
    const __m128i first = load16(group), second = load16(group + ROWS);
    const __m128i third = load16(group + 2 * ROWS), fourth = load16(group + 3 * ROWS);
    const __m128i least = _mm_min_epu8(_mm_min_epu8(first, second), _mm_min_epu8(third, fourth));
    const __m128i most = _mm_max_epu8(_mm_max_epu8(first, second), _mm_max_epu8(third, fourth));
    const __mmask16 close_by =
        _mm_cmple_epu8_mask(_mm_sub_epi8(most, least), _mm_set1_epi8(LEVELS_MAX));
    const __mmask16 sized = _mm_cmpge_epu8_mask(least, _mm_set1_epi8(KEY_SCALE_MIN)) &
                            _mm_cmple_epu8_mask(least, _mm_set1_epi8((char)KEY_SCALE_MAX));
    const __mmask16 zero = _mm_cmpeq_epu8_mask(most, _mm_setzero_si128());

    *level = (__mmask16)(close_by & (sized | zero)) == 0xffff;
    return least;
}

/* Decodes a tile of keys; sets a slot's scale and level. */
static ALWAYS_INLINE void decode_keys(const uint8_t *group, int8_t (*values)[ROWS][4], float *scale,
                                      bool *level)
{
    const __m128i least = least_of_keys(group, level), most_levels = _mm_set1_epi8(LEVELS_MAX);

    _mm512_storeu_ps(scale, half_scales(least));
    for (size_t b = 0; b < BLOCKS; b++) {
        const __m128i levels = _mm_sub_epi8(load16(group + b * ROWS), least);

        level_block(group + BLOCKS * ROWS + b * BLOCK_BYTES, _mm_min_epu8(levels, most_levels),
                    values + b * (COLS / 4));
    }
}

/* Whether so few tiles are not level that it pays to do those twice. */
static bool most_are_level(size_t tile_count, const uint8_t *keys)
{
    size_t n = 0;

    for (size_t tile = 0; tile < tile_count; tile++) {
        bool level;

        (void)least_of_keys(keys + tile * SL_FP4_GROUP_BYTES, &level);
        n += level;
    }
    return n >= tile_count - tile_count / 8;
}

/* Tiles as above: 0 and 1 are halves of 16 heads, 2 and 3 of the keys, 4 to 7 sums. */
#define MULTIPLY_HEADS(sum, unit)                                                                  \
    do {                                                                                           \
        TILE_STORE(sum, sums[unit], ROWS * 4);                                                     \
        TILE_ZERO(sum);                                                                            \
        TILE_LOAD(0, heads->x[unit][0], HALF_COLS);                                                \
        TILE_LOAD(1, heads->x[unit][1], HALF_COLS);                                                \
        TILE_DOT_INT8(sum, 0, 2);                                                                  \
        TILE_DOT_INT8(sum, 1, 3);                                                                  \
    } while (0)

/* Stores the sums of the tile of keys before, and multiplies one. */
static ALWAYS_INLINE void multiply_keys(const struct index_heads *heads,
                                        const int8_t (*values)[ROWS][4],
                                        int32_t (*sums)[UNIT][ROWS])
{
    TILE_LOAD(2, values, ROWS * 4);
    TILE_LOAD(3, values + HALF_COLS / 4, ROWS * 4);
    MULTIPLY_HEADS(4, 0);
    MULTIPLY_HEADS(5, 1);
    MULTIPLY_HEADS(6, 2);
    MULTIPLY_HEADS(7, 3);
}

/* The scores of the keys of two slots, each to its total (16). Two, since each head waits for the
 * one before. */
static ALWAYS_INLINE void score_keys(const struct index_heads *heads,
                                     const struct index_slots *slots, size_t first, size_t second,
                                     float *first_total, float *second_total)
{
    __m512 all[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};

    for (size_t h = 0; h < INDEX_HEADS_MAX; h++) {
        const __m512 weight = _mm512_set1_ps(heads->weight[h]);

        for (size_t i = 0; i < 2; i++) {
            const int32_t *sums = slots->sums[i ? second : first][0][0] + h * ROWS;
            __m512i sum = _mm512_max_epi32(_mm512_load_si512(sums), _mm512_setzero_si512());

            all[i] = _mm512_add_ps(all[i], _mm512_mul_ps(weight, _mm512_cvtepi32_ps(sum)));
        }
    }
    for (size_t i = 0; i < 2; i++) { /* where the scale is zero, so is the score */
        const __m512 scale = _mm512_loadu_ps(slots->scale[i ? second : first]);
        const __mmask16 some = _mm512_cmp_ps_mask(scale, _mm512_setzero_ps(), _CMP_NEQ_OQ);

        _mm512_storeu_ps(i ? second_total : first_total, _mm512_maskz_mul_ps(some, all[i], scale));
    }
}

void sl_index_scores_amx(size_t tile_count, size_t cols, size_t head_count,
                         const uint8_t *restrict keys, const int8_t *restrict x,
                         const float *restrict x_scale, const float *restrict weight,
                         float *restrict total)
{
    _Alignas(64) int8_t values[SL_FP4_GROUP_COLS / 4][ROWS][4];
    struct tile_config config;
    struct index_heads heads;
    struct index_slots slots;

    if (cols != SL_FP4_GROUP_COLS || head_count > INDEX_HEADS_MAX ||
        !prepare_index_heads(head_count, x, x_scale, weight, &heads) ||
        !most_are_level(tile_count, keys)) {
        sl_index_scores_avx512vnni(tile_count, cols, head_count, keys, x, x_scale, weight, total);
        return;
    }
    configure(HALF_COLS, &config);
    tiles_begin(&config);
    for (size_t tile = 0; tile <= tile_count; tile++) {
        const size_t slot = tile % INDEX_SLOTS, before = (tile + INDEX_SLOTS - 1) % INDEX_SLOTS;
        const uint8_t *group = keys + tile * SL_FP4_GROUP_BYTES;
        size_t done = tile % 2 == 0 ? 2 : 1; /* tiles before this one */

        if (tile < tile_count) {
            decode_keys(group, values, slots.scale[slot], &slots.level[slot]);
            prefetch_group(group + 4 * SL_FP4_GROUP_BYTES);
        }
        multiply_keys(&heads, (const int8_t(*)[ROWS][4])values, slots.sums[before]);
        if (tile == 0 || (done == 1 && tile < tile_count))
            continue;
        score_keys(&heads, &slots, (tile - done) % INDEX_SLOTS, before,
                   total + (tile - done) * ROWS, total + (tile - 1) * ROWS);
        for (; done > 0; done--)
            if (!slots.level[(tile - done) % INDEX_SLOTS])
                sl_index_scores_avx512vnni(1, cols, head_count, group - done * SL_FP4_GROUP_BYTES,
                                           x, x_scale, weight, total + (tile - done) * ROWS);
    }
    tiles_end();
}
