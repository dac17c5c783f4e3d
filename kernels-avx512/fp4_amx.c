/* FP4 weights by int8 activations, and the indexer's scores, with AMX. The order of summation is
 * that of core/kernels/kernels.h.
 *
 * Two products of tiles give a group's sums of 128 columns for 16 tokens by 16 rows: exact
 * integers, where codes take the difference of a row's four scales (kernels-avx512/fp4_levels.h). A
 * tile must go through memory to be converted to float32 and added to its results by AVX-512, which
 * takes about as long as multiplying, so where the scales of all 16 rows are near each other they
 * get the same, and a token's factor is one number. Groups with scales far apart are AVX-512's.
 *
 * A group of a tile is decoded once for all tokens, in the order that it has in memory, which is
 * the one that tiles need. What is used again soon, which are decoded groups, sums and results,
 * must leave room in the first-level cache for a group's activations and weights that pass through
 * it. */
#include <stdbool.h>
#include <string.h>

#include "core/kernels/formats.h"
#include "kernels-avx512/amx.h"
#include "kernels-avx512/avx512.h"
#include "kernels-avx512/fp4_levels.h"
#include "kernels-avx512/tiles_amx.h"
#include "kernels-avx512/vectors.h"

#define BLOCKS FP4_BLOCKS
#define WORDS (SL_FP4_GROUP_COLS / 4)
#define HALF_COLS TILE_ROW_BYTES_MAX /* columns of int8 in a tile */

#define UNIT TILE_ROWS_MAX /* tokens of a product */
#define UNITS_MAX 4u
#define TOKENS_MAX (UNITS_MAX * UNIT)
#define PLACES_MAX 224u  /* groups times units: 7,168 columns of 64 tokens */
#define TILES_AT_ONCE 4u /* whose results are kept: they share what activations take to load */
#define TILES_MULTIPLIED 2u

/* One token is AVX-512's: both take as long as reading does, and there is no panel to fill. */
#define TOKENS_MIN 2u

/* Activations, group after group and in there unit after unit, in halves of their columns: rows lie
 * a power of two apart and would evict each other from the cache. */
struct panel {
    _Alignas(64) int8_t x[PLACES_MAX][2][UNIT][HALF_COLS];
    float x_scale[PLACES_MAX][UNIT];
};

/* How a group's sums are scaled: by one number for each token, or by one for each row as well. Or
 * they are AVX-512's. */
enum scaling { SCALE_TOKENS, SCALE_ROWS, NOT_EVEN };

/* A group of 128 columns of a tile. */
struct group {
    __m512i levels; /* of its blocks */
    __m512 scale;   /* half of it, as values are doubled */
    enum scaling scaling;
    const uint8_t *w;
};

/* A decoded group: four columns of 16 rows in a tile's row. */
struct values {
    _Alignas(64) int8_t at[WORDS][ROWS][4];
};

/* ---- weights -----------------------------------------------------------------------------------
 * They are asked for this far ahead, since the processor's own prefetching ends with each page.
 * What lies beyond a matrix is asked for too, which has no effect. */

#define AHEAD_BYTES 2048u

/* Decodes a block's codes: four columns of 16 rows make a tile's row. */
static ALWAYS_INLINE void decode_block(const uint8_t *codes, const uint8_t *next, __m512i level,
                                       int8_t (*values)[ROWS][4])
{
    const __m512i table = fp4_table(0);

    for (size_t j = 0; j < FP4_BLOCK_VECTORS; j++, values += 2) {
        __m512i even, odd;

        _mm_prefetch((const char *)next + j * 64, _MM_HINT_T0);
        fp4_decode(table, level, _mm512_loadu_si512(codes + j * 64), &even, &odd);
        _mm512_store_si512(values[0], even);
        _mm512_store_si512(values[1], odd);
    }
}

static ALWAYS_INLINE void begin_group(const uint8_t *from, struct group *to)
{
    struct fp4_levels levels = fp4_levels_of_all(from);

    to->scaling = SCALE_TOKENS;
    if (!levels.even) {
        levels = fp4_levels_of(from);
        to->scaling = levels.even ? SCALE_ROWS : NOT_EVEN;
    }
    to->levels = levels.levels;
    to->scale = fp4_half_scales(levels.least);
    to->w = from;
    _mm_prefetch((const char *)from + AHEAD_BYTES, _MM_HINT_T0);
}

/* Decodes blocks of a group that has begun. */
static ALWAYS_INLINE void decode_blocks(const struct group *group, size_t first, size_t end,
                                        struct values *to)
{
    for (size_t b = first; b < end; b++)
        decode_block(fp4_block(group->w, b), fp4_block(group->w + AHEAD_BYTES, b),
                     fp4_block_levels(group->levels, b), to->at + b * (WORDS / BLOCKS));
}

/* ---- products ----------------------------------------------------------------------------------
 * A step is a group of two tiles: they are loaded to tiles 0 to 3, halves of their columns each,
 * and multiplied by one unit after the other, whose halves are tiles 4 and 5. Sums are tiles 6 and
 * 7. While a unit is multiplied the one before is added, and a part of the next step's groups is
 * decoded to where the present ones have been loaded from. */

/* Sums that wait in tiles: those of a unit by two R16 tiles. */
struct products {
    const struct group *groups;         /* (2) */
    const float *factor[2];             /* (16), of tokens, with the scale of the group */
    const float *x_scale;               /* (16), of tokens, without */
    const int8_t (*x)[UNIT][HALF_COLS]; /* the unit's halves */
    float (*y[2])[ROWS];                /* (16, 16), where sums go */
};

static ALWAYS_INLINE __m512 sum_of(const int32_t *sums)
{
    return _mm512_cvtepi32_ps(_mm512_load_si512(sums));
}

static ALWAYS_INLINE void add_to(float *y, __m512 sum, float factor)
{
    _mm512_store_ps(y, _mm512_fmadd_ps(sum, _mm512_set1_ps(factor), _mm512_load_ps(y)));
}

static ALWAYS_INLINE void add_scaled_tokens(const int32_t (*restrict sums)[ROWS],
                                            const float *restrict factor, float (*restrict y)[ROWS])
{
#pragma GCC unroll 16
    for (size_t t = 0; t < UNIT; t++)
        add_to(y[t], sum_of(sums[t]), factor[t]);
}

static __attribute__((noinline)) void add_scaled_rows(const int32_t (*restrict sums)[ROWS],
                                                      __m512 scale, const float *restrict x_scale,
                                                      float (*restrict y)[ROWS])
{
    for (size_t t = 0; t < UNIT; t++)
        add_to(y[t], _mm512_mul_ps(sum_of(sums[t]), scale), x_scale[t]);
}

/* Has AVX-512 multiply a group whose scales are far apart. With a factor of 1 its sums are not
 * rounded once more. */
static __attribute__((noinline)) void add_uneven(const uint8_t *w,
                                                 const int8_t (*halves)[UNIT][HALF_COLS],
                                                 const float *x_scale, float (*y)[ROWS])
{
    _Alignas(64) float ones[UNIT], sums[UNIT][ROWS];
    int8_t x[UNIT][SL_FP4_GROUP_COLS];

    for (size_t t = 0; t < UNIT; t++) {
        ones[t] = 1.0f;
        for (size_t half = 0; half < 2; half++)
            copy_row(x[t] + half * HALF_COLS, halves[half][t], HALF_COLS);
    }
    sl_matmul_fp4_avx512vbmi(1, SL_FP4_GROUP_COLS, UNIT, w, x[0], ones, sums[0], ROWS);
    for (size_t t = 0; t < UNIT; t++)
        add_to(y[t], _mm512_load_ps(sums[t]), x_scale[t]);
}

/* Adds the sums of tile i, 0 or 1. */
static ALWAYS_INLINE void add_sums(const struct products *done, size_t i,
                                   const int32_t (*sums)[ROWS])
{
    const struct group *group = &done->groups[i];

    if (group->scaling == SCALE_TOKENS)
        add_scaled_tokens(sums, done->factor[i], done->y[i]);
    else if (group->scaling == SCALE_ROWS)
        add_scaled_rows(sums, group->scale, done->x_scale, done->y[i]);
    else
        add_uneven(group->w, done->x, done->x_scale, done->y[i]);
}

/* ---- panels ------------------------------------------------------------------------------------
 */

/* Tokens of the last unit that do not exist are zero. Written from front to back, as the panel has
 * many small pages. */
static void fill_panel(struct panel *panel, size_t n_groups, size_t cols, size_t n_tokens,
                       const int8_t *x, const float *x_scale)
{
    const size_t n_units = (n_tokens + UNIT - 1) / UNIT;

    for (size_t g = 0; g < n_groups; g++) {
        for (size_t t = 0; t < n_units * UNIT; t++) {
            const size_t place = g * n_units + t / UNIT, at = t % UNIT;
            const int8_t *from = x + t * cols + g * SL_FP4_GROUP_COLS;
            const bool is_there = t < n_tokens;

            for (size_t half = 0; half < 2; half++)
                _mm512_store_si512(panel->x[place][half][at],
                                   is_there ? _mm512_loadu_si512(from + half * HALF_COLS)
                                            : _mm512_setzero_si512());
            panel->x_scale[place][at] =
                is_there ? x_scale[t * (cols / SL_FP4_GROUP_COLS) + g] : 0.0f;
        }
    }
}

/* Some tiles' results, which are at y. */
struct results {
    _Alignas(64) float acc[TILES_AT_ONCE][TOKENS_MAX][ROWS];
    size_t n_tiles, n_tokens, y_stride;
    float *y;
};

/* Begins with those of the panels before, or with zero. (A mask, or gcc would clear them in a loop
 * of its own, as a repeated string move.) */
static void begin_results(bool is_first, struct results *results)
{
    const __mmask16 some = is_first ? 0 : 0xffff;

    for (size_t t = 0; t < results->n_tokens; t++)
        for (size_t tile = 0; tile < results->n_tiles; tile++)
            _mm512_store_ps(
                results->acc[tile][t],
                _mm512_maskz_loadu_ps(some, results->y + t * results->y_stride + tile * ROWS));
}

static void end_results(const struct results *results)
{
    for (size_t t = 0; t < results->n_tokens; t++)
        for (size_t tile = 0; tile < results->n_tiles; tile++)
            _mm512_storeu_ps(results->y + t * results->y_stride + tile * ROWS,
                             _mm512_load_ps(results->acc[tile][t]));
}

/* The weights that meet a panel: n_groups groups of pairs of tiles. Where there is an odd one it is
 * its own neighbour, for whose results there is room. */
struct weights {
    size_t n_groups, n_pairs;
    const uint8_t *w[TILES_AT_ONCE];
};

static ALWAYS_INLINE void begin_groups(const struct weights *from, size_t pair, size_t g,
                                       struct group groups[TILES_MULTIPLIED])
{
    for (size_t i = 0; i < TILES_MULTIPLIED; i++)
        begin_group(from->w[pair * TILES_MULTIPLIED + i] + g * SL_FP4_GROUP_BYTES, &groups[i]);
}

/* The tokens' scales times those of two groups. */
static ALWAYS_INLINE void find_factors(const struct panel *panel, size_t place, size_t n_units,
                                       const struct group groups[TILES_MULTIPLIED],
                                       float (*factor)[TOKENS_MAX])
{
    for (size_t i = 0; i < TILES_MULTIPLIED; i++)
        for (size_t unit = 0; unit < n_units; unit++)
            _mm512_store_ps(
                factor[i] + unit * UNIT,
                _mm512_mul_ps(_mm512_loadu_ps(panel->x_scale[place + unit]), groups[i].scale));
}

/* Stores what was multiplied before and multiplies the first half of the columns. */
#define MULTIPLY_FIRST(sum, first, i)                                                              \
    do {                                                                                           \
        TILE_STORE(sum, sums[i], ROWS * 4);                                                        \
        TILE_ZERO(sum);                                                                            \
        TILE_DOT_INT8(sum, 4, first);                                                              \
    } while (0)

/* Adds the products to acc. */
static void add_panel(const struct panel *panel, const struct weights *from, size_t n_tokens,
                      float (*acc)[TOKENS_MAX][ROWS])
{
    const size_t n_units = (n_tokens + UNIT - 1) / UNIT, n_steps = from->n_groups * from->n_pairs;
    _Alignas(64) float factors[2][TILES_MULTIPLIED][TOKENS_MAX];
    _Alignas(64) int32_t sums[TILES_MULTIPLIED][UNIT][ROWS];
    struct group groups[3][TILES_MULTIPLIED]; /* the step before still needs its scales */
    struct values values[TILES_MULTIPLIED];
    struct products done = {.groups = NULL};

    begin_groups(from, 0, 0, groups[0]);
    for (size_t i = 0; i < TILES_MULTIPLIED; i++)
        decode_blocks(&groups[0][i], 0, BLOCKS, &values[i]);
    for (size_t step = 0, g = 0, pair = 0; step < n_steps; step++) {
        const struct group *now = groups[step % 3];
        struct group *next = groups[(step + 1) % 3];
        const bool is_last = step + 1 == n_steps;
        const size_t place = g * n_units;
        float(*factor)[TOKENS_MAX] = factors[step % 2];
        float(*y)[TOKENS_MAX][ROWS] = acc + pair * TILES_MULTIPLIED;

        find_factors(panel, place, n_units, now, factor);
        if (++pair == from->n_pairs)
            pair = 0, g++;
        if (!is_last)
            begin_groups(from, pair, g, next);
        TILE_LOAD(0, values[0].at, ROWS * 4);
        TILE_LOAD(1, values[0].at + WORDS / 2, ROWS * 4);
        TILE_LOAD(2, values[1].at, ROWS * 4);
        TILE_LOAD(3, values[1].at + WORDS / 2, ROWS * 4);
        for (size_t unit = 0; unit < n_units; unit++) {
            const size_t t = unit * UNIT, at = place + unit;
            const size_t block = unit * BLOCKS / n_units, end = (unit + 1) * BLOCKS / n_units;

            TILE_LOAD(4, panel->x[at][0], HALF_COLS);
            MULTIPLY_FIRST(6, 0, 0);
            TILE_LOAD(5, panel->x[at][1], HALF_COLS);
            MULTIPLY_FIRST(7, 2, 1);
            if (!is_last)
                decode_blocks(&next[0], block, end, &values[0]);
            if (done.groups)
                add_sums(&done, 0, (const int32_t(*)[ROWS])sums[0]);
            TILE_DOT_INT8(6, 5, 1);
            TILE_DOT_INT8(7, 5, 3);
            if (!is_last)
                decode_blocks(&next[1], block, end, &values[1]);
            if (done.groups)
                add_sums(&done, 1, (const int32_t(*)[ROWS])sums[1]);
            done = (struct products){now,
                                     {factor[0] + t, factor[1] + t},
                                     panel->x_scale[at],
                                     panel->x[at],
                                     {y[0] + t, y[1] + t}};
        }
    }
    TILE_STORE(6, sums[0], ROWS * 4);
    add_sums(&done, 0, (const int32_t(*)[ROWS])sums[0]);
    TILE_STORE(7, sums[1], ROWS * 4);
    add_sums(&done, 1, (const int32_t(*)[ROWS])sums[1]);
}

/* y = or, after the first panel, += the products of a panel's columns. */
static void add_panel_tiles(bool is_first, const struct panel *panel, size_t n_groups,
                            size_t tile_count, size_t tile_bytes, size_t n_tokens, const uint8_t *w,
                            float *y, size_t y_stride)
{
    for (size_t first = 0; first < tile_count; first += TILES_AT_ONCE) {
        const size_t left = tile_count - first, n = left < TILES_AT_ONCE ? left : TILES_AT_ONCE;
        struct weights from = {.n_groups = n_groups,
                               .n_pairs = (n + TILES_MULTIPLIED - 1) / TILES_MULTIPLIED};
        struct results results;

        for (size_t i = 0; i < TILES_AT_ONCE; i++)
            from.w[i] = w + (first + (i < n ? i : n - 1)) * tile_bytes;
        results.n_tiles = n;
        results.n_tokens = n_tokens;
        results.y = y + first * ROWS;
        results.y_stride = y_stride;
        begin_results(is_first, &results);
        add_panel(panel, &from, n_tokens, results.acc);
        end_results(&results);
    }
}

/* All tiles whole. */
static void configure(struct tile_config *config)
{
    *config = (struct tile_config){.palette = 1};
    for (size_t i = 0; i < TILES; i++) {
        config->rows[i] = TILE_ROWS_MAX;
        config->row_bytes[i] = TILE_ROW_BYTES_MAX;
    }
}

/* Up to 64 tokens. Not inlined, or its panel would lie on the stack beside that of AVX-512. */
static __attribute__((noinline)) void fp4_tokens(size_t tile_count, size_t cols, size_t n_tokens,
                                                 const uint8_t *w, const int8_t *x,
                                                 const float *x_scale, float *y, size_t y_stride)
{
    const size_t groups = cols / SL_FP4_GROUP_COLS;
    const size_t groups_max = PLACES_MAX / ((n_tokens + UNIT - 1) / UNIT);
    struct tile_config config;
    struct panel panel;

    configure(&config);
    tiles_begin(&config);
    for (size_t g = 0; g < groups; g += groups_max) {
        const size_t n_groups = groups - g < groups_max ? groups - g : groups_max;

        fill_panel(&panel, n_groups, cols, n_tokens, x + g * SL_FP4_GROUP_COLS, x_scale + g);
        add_panel_tiles(g == 0, &panel, n_groups, tile_count, sl_r16_fp4_tile_bytes(cols), n_tokens,
                        w + g * SL_FP4_GROUP_BYTES, y, y_stride);
    }
    tiles_end();
}

void sl_matmul_fp4_amx(size_t tile_count, size_t cols, size_t token_count,
                       const uint8_t *restrict w, const int8_t *restrict x,
                       const float *restrict x_scale, float *restrict y, size_t y_stride)
{
    for (size_t t = 0, n; t < token_count; t += n) {
        const int8_t *from = x + t * cols;
        const float *from_scale = x_scale + t * (cols / SL_FP4_GROUP_COLS);

        n = token_count - t < TOKENS_MAX ? token_count - t : TOKENS_MAX;
        if (n < TOKENS_MIN)
            sl_matmul_fp4_avx512vbmi(tile_count, cols, n, w, from, from_scale, y + t * y_stride,
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
    const __m128i first = fp4_load16(group), second = fp4_load16(group + ROWS);
    const __m128i third = fp4_load16(group + 2 * ROWS), fourth = fp4_load16(group + 3 * ROWS);
    const __m128i least = _mm_min_epu8(_mm_min_epu8(first, second), _mm_min_epu8(third, fourth));
    const __m128i most = _mm_max_epu8(_mm_max_epu8(first, second), _mm_max_epu8(third, fourth));
    const __mmask16 close_by =
        _mm_cmple_epu8_mask(_mm_sub_epi8(most, least), _mm_set1_epi8(FP4_LEVELS_MAX));
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
    const __m128i least = least_of_keys(group, level), most_levels = _mm_set1_epi8(FP4_LEVELS_MAX);

    const __m512i four = _mm512_broadcast_i32x4(most_levels);
    const __m512i levels =
        _mm512_sub_epi8(_mm512_loadu_si512(group), _mm512_broadcast_i32x4(least));
    const __m512i capped = _mm512_slli_epi16(_mm512_min_epu8(levels, four), 4);

    _mm512_storeu_ps(scale, fp4_half_scales(least));
    for (size_t b = 0; b < BLOCKS; b++)
        decode_block(fp4_block(group, b), fp4_block(group + 4 * SL_FP4_GROUP_BYTES, b),
                     fp4_block_levels(capped, b), values + b * (WORDS / BLOCKS));
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
        sl_index_scores_avx512vbmi(tile_count, cols, head_count, keys, x, x_scale, weight, total);
        return;
    }
    configure(&config);
    tiles_begin(&config);
    for (size_t tile = 0; tile <= tile_count; tile++) {
        const size_t slot = tile % INDEX_SLOTS, before = (tile + INDEX_SLOTS - 1) % INDEX_SLOTS;
        const uint8_t *group = keys + tile * SL_FP4_GROUP_BYTES;
        size_t done = tile % 2 == 0 ? 2 : 1; /* tiles before this one */

        if (tile < tile_count) {
            decode_keys(group, values, slots.scale[slot], &slots.level[slot]);
        }
        multiply_keys(&heads, (const int8_t(*)[ROWS][4])values, slots.sums[before]);
        if (tile == 0 || (done == 1 && tile < tile_count))
            continue;
        score_keys(&heads, &slots, (tile - done) % INDEX_SLOTS, before,
                   total + (tile - done) * ROWS, total + (tile - 1) * ROWS);
        for (; done > 0; done--)
            if (!slots.level[(tile - done) % INDEX_SLOTS])
                sl_index_scores_avx512vbmi(1, cols, head_count, group - done * SL_FP4_GROUP_BYTES,
                                           x, x_scale, weight, total + (tile - done) * ROWS);
    }
    tiles_end();
}
