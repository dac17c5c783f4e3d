/* FP4 weights by int8 activations with AMX. The order of summation is that of
 * core/kernels/kernels.h.
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

/* Up to 64 tokens. Not inlined, or its panel would lie on the stack beside that of AVX-512. */
static __attribute__((noinline)) void fp4_tokens(size_t tile_count, size_t cols, size_t n_tokens,
                                                 const uint8_t *w, const int8_t *x,
                                                 const float *x_scale, float *y, size_t y_stride)
{
    const size_t groups = cols / SL_FP4_GROUP_COLS;
    const size_t groups_max = PLACES_MAX / ((n_tokens + UNIT - 1) / UNIT);
    const struct tile_config config = whole_tiles();
    struct panel panel;

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
