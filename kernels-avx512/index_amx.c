/* The indexer's scores with AMX: keys of 128 columns by a query's heads. The order of summation is
 * that of core/kernels/kernels.h.
 *
 * Where a head's four scales are one power of two, and those of a key differ by at most three (FP4
 * values doubled are at most 12, and eight times that is an int8), the codes take the difference
 * and all 128 columns are one exact integer below 2^21: the order of summation would not have
 * rounded either. Then whole tiles of int8 are multiplied, and the scales come last, as nothing
 * gets near float32's ends. What else there is goes to AVX-512.
 *
 * Sums begin with the bits of 2^23, so that they are float32 numbers already: a head's weight takes
 * one multiply-add, which takes 2^23 away again (exactly, only the product rounds), and what is not
 * above 2^23 is no positive sum. */
#include <stdbool.h>
#include <string.h>

#include "core/kernels/formats.h"
#include "kernels-avx512/amx.h"
#include "kernels-avx512/avx512.h"
#include "kernels-avx512/fp4_levels.h"
#include "kernels-avx512/tiles_amx.h"
#include "kernels-avx512/vectors.h"

#define COLS SL_FP4_GROUP_COLS
#define BLOCKS FP4_BLOCKS
#define WORDS (COLS / 4)
#define HALF_COLS TILE_ROW_BYTES_MAX /* columns of int8 in a tile */

#define UNIT TILE_ROWS_MAX /* heads of a product */
#define UNITS 4u
#define HEADS_MAX (UNITS * UNIT)
#define TILES_AT_ONCE 4u /* of keys */

/* The limits of a head's scale, of its weight times that, and of keys' scales: the least sum is a
 * multiple of 2^-125. */
#define SCALE_BITS_MIN 0x2b800000u  /* 2^-40 */
#define SCALE_BITS_MAX 0x53800000u  /* 2^40 */
#define WEIGHT_BITS_MIN 0x21800000u /* 2^-60 */
#define WEIGHT_BITS_MAX 0x5d800000u /* 2^60 */
#define KEY_SCALE_MIN (SL_E8M0_BIAS - 40)
#define KEY_SCALE_MAX (SL_E8M0_BIAS + 20)

#define ZERO 0x1p23f /* a sum of nothing */
#define ZERO_BITS 0x4b000000

/* A query's heads; those that do not exist are zero. */
struct query {
    const int8_t *x;         /* (64, 128) */
    float weight[HEADS_MAX]; /* times the scale */
    float taken[HEADS_MAX];  /* what that makes of ZERO, negative */
};

/* Four tiles of keys, decoded: four columns of 16 keys in a tile's row. */
struct keys {
    _Alignas(64) int8_t values[TILES_AT_ONCE][WORDS][ROWS][4];
    __m512i levels;
    float scale[TILES_AT_ONCE][ROWS]; /* half of it, as values are doubled */
    bool level[TILES_AT_ONCE];        /* that each key has one scale */
};

/* Sums of the heads of two units with two tiles of keys. */
struct sums {
    _Alignas(64) float of[2][2][UNIT][ROWS];
};

/* Scores of four tiles of keys, which grow head by head. */
struct totals {
    __m512 of0, of1, of2, of3;
};

struct run {
    struct sums sums[2];                     /* in turn: stored, added up */
    _Alignas(64) int32_t zeros[UNIT * ROWS]; /* ZERO_BITS */
    struct keys keys[3];                     /* in turn: decoded, multiplied, added up */
    struct query query;
};

/* ---- preparing ---------------------------------------------------------------------------------
 */

/* Returns whether each head has one scale, of a size that allows to apply it last. */
static bool prepare_query(size_t n_heads, const float *x_scale, const float *weight,
                          struct query *query)
{
    __mmask16 level = 0xffff;

    for (size_t h = 0; h < HEADS_MAX; h += ROWS) {
        const size_t n = h < n_heads ? n_heads - h : 0;
        const __mmask16 there = (__mmask16)(n < ROWS ? (1u << n) - 1 : 0xffffu);
        const __m512i at = _mm512_mullo_epi32(
            _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
            _mm512_set1_epi32(BLOCKS));
        const __m512 weights = _mm512_maskz_loadu_ps(there, weight + h);
        const __m512 none = _mm512_setzero_ps();
        const __m512 scale = _mm512_mask_i32gather_ps(none, there, at, x_scale + h * BLOCKS, 4);
        const __m512 product = _mm512_mul_ps(weights, scale);
        const __m512i bits = _mm512_castps_si512(scale);
        const __m512i magnitude = _mm512_castps_si512(_mm512_abs_ps(product));
        __mmask16 sound = _mm512_cmpge_epu32_mask(magnitude, _mm512_set1_epi32(WEIGHT_BITS_MIN)) &
                          _mm512_cmple_epu32_mask(magnitude, _mm512_set1_epi32(WEIGHT_BITS_MAX));

        sound |= _mm512_cmp_ps_mask(weights, none, _CMP_EQ_OQ);
        sound &= _mm512_cmpge_epu32_mask(bits, _mm512_set1_epi32(SCALE_BITS_MIN)) &
                 _mm512_cmple_epu32_mask(bits, _mm512_set1_epi32(SCALE_BITS_MAX)) &
                 _mm512_testn_epi32_mask(bits, _mm512_set1_epi32(0x7fffff));
        for (size_t b = 1; b < BLOCKS; b++)
            sound &=
                _mm512_cmpeq_epi32_mask(bits, _mm512_castps_si512(_mm512_mask_i32gather_ps(
                                                  none, there, at, x_scale + h * BLOCKS + b, 4)));
        level &= (__mmask16)(sound | ~there);
        _mm512_storeu_ps(query->weight + h, product);
        _mm512_storeu_ps(query->taken + h, _mm512_mul_ps(product, _mm512_set1_ps(-ZERO)));
    }
    return level == 0xffff;
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

/* Decodes a block of columns of a tile; with the first its scales as well. Keys further on are
 * asked for, as the processor's own prefetching ends with each page; what lies beyond them is asked
 * for too, which has no effect. */
#define AHEAD_BYTES 8192u

static ALWAYS_INLINE void decode_block(size_t tile, size_t block, const uint8_t *group,
                                       struct keys *to)
{
    const __m512i table = fp4_table(0);
    const uint8_t *codes = fp4_block(group, block);
    int8_t(*values)[ROWS][4] = to->values[tile] + block * (WORDS / BLOCKS);
    __m512i level;

    if (block == 0) {
        const __m128i least = least_of_keys(group, &to->level[tile]);
        const __m512i levels =
            _mm512_sub_epi8(_mm512_loadu_si512(group), _mm512_broadcast_i32x4(least));

        to->levels =
            _mm512_slli_epi16(_mm512_min_epu8(levels, _mm512_set1_epi8(FP4_LEVELS_MAX)), 4);
        _mm512_storeu_ps(to->scale[tile], fp4_half_scales(least));
        _mm_prefetch((const char *)group + AHEAD_BYTES, _MM_HINT_T0);
    }
    level = fp4_block_levels(to->levels, block);
    for (size_t j = 0; j < FP4_BLOCK_VECTORS; j++, values += 2) {
        __m512i even, odd;

        _mm_prefetch((const char *)codes + j * 64 + AHEAD_BYTES, _MM_HINT_T0);
        fp4_decode(table, level, _mm512_loadu_si512(codes + j * 64), &even, &odd);
        _mm512_store_si512(values[0], even);
        _mm512_store_si512(values[1], odd);
    }
}

/* ---- adding up ---------------------------------------------------------------------------------
 */

/* Adds a head to the total of one tile's keys. */
static ALWAYS_INLINE __m512 add_head(__m512 total, const float *sums, __m512 weight, __m512 taken)
{
    const __m512 sum = _mm512_load_ps(sums);
    const __mmask16 is_positive = _mm512_cmp_ps_mask(sum, _mm512_set1_ps(ZERO), _CMP_GT_OQ);

    return _mm512_add_ps(total, _mm512_maskz_fmadd_ps(is_positive, sum, weight, taken));
}

/* Adds four heads of two units, from the one in row h on, to the totals of two tiles' keys; `head`
 * is the units' first. */
static ALWAYS_INLINE void add_heads(const struct query *query, size_t head, const struct sums *sums,
                                    size_t h, __m512 *first, __m512 *second)
{
#pragma GCC unroll 4
    for (size_t i = h; i < h + 4; i++) {
        const __m512 weight = _mm512_set1_ps(query->weight[head + i]);
        const __m512 taken = _mm512_set1_ps(query->taken[head + i]);

        *first = add_head(*first, sums->of[i / UNIT][0][i % UNIT], weight, taken);
        *second = add_head(*second, sums->of[i / UNIT][1][i % UNIT], weight, taken);
        /* Or gcc has all sums loaded, keeps them in memory and adds them where totals are used. */
        __asm__ volatile("" : "+v"(*first), "+v"(*second) : : "memory");
    }
}

/* Adds all heads of two units. */
static ALWAYS_INLINE void add_units(const struct query *query, size_t head, const struct sums *sums,
                                    __m512 *first, __m512 *second)
{
    for (size_t h = 0; h < 2 * UNIT; h += 4)
        add_heads(query, head, sums, h, first, second);
}

/* Where the scale is zero, so is the score. */
static ALWAYS_INLINE void give_total(__m512 total, const float *scales, float *to)
{
    const __m512 scale = _mm512_loadu_ps(scales);
    const __mmask16 some = _mm512_cmp_ps_mask(scale, _mm512_setzero_ps(), _CMP_NEQ_OQ);

    _mm512_storeu_ps(to, _mm512_maskz_mul_ps(some, total, scale));
}

/* The scores of n tiles. */
static ALWAYS_INLINE void give_totals(size_t n, const struct keys *keys, const struct totals *from,
                                      float *to)
{
    give_total(from->of0, keys->scale[0], to);
    if (n > 1)
        give_total(from->of1, keys->scale[1], to + ROWS);
    if (n > 2)
        give_total(from->of2, keys->scale[2], to + 2 * ROWS);
    if (n > 3)
        give_total(from->of3, keys->scale[3], to + 3 * ROWS);
}

/* ---- multiplying -------------------------------------------------------------------------------
 * Four tiles of keys by four units are four groups of two by two: tiles 0 and 1 hold halves of two
 * tiles of keys, 2 and 3 of the heads of two units, 4 to 7 sums. What adds to one sum is four
 * products apart, as a product takes as long as three to be there. While a group is multiplied, the
 * one before is stored, that before it added up, and the next keys are decoded: all of it a little
 * at a time, for the processor looks some 500 instructions ahead, which is one group. */

#define LOAD_KEYS(to, tile, half) TILE_LOAD(to, keys->values[tile] + (half) * (WORDS / 2), ROWS * 4)
#define LOAD_HEADS(to, unit, half)                                                                 \
    TILE_LOAD(to, run->query.x + (unit)*UNIT * COLS + (half)*HALF_COLS, COLS)
#define STORE_SUM(sum, unit, tile) TILE_STORE(sum, to->of[unit][tile], ROWS * 4)
#define BEGIN_SUM(sum, unit, tile)                                                                 \
    do {                                                                                           \
        STORE_SUM(sum, unit, tile);                                                                \
        TILE_LOAD(sum, run->zeros, ROWS * 4);                                                      \
    } while (0)
#define ADD(slot) add_heads(&run->query, head, from, 4 * (slot), first, second)
#define DECODE(block)                                                                              \
    do {                                                                                           \
        if (group)                                                                                 \
            decode_block(decoded, block, group, next);                                             \
    } while (0)

/* Multiplies units `unit` and the next by tiles `tile` and the next of `keys`; adds heads `head` to
 * head + 31 to two totals; decodes `group`, unless it is NULL, to tile `decoded` of `next`. */
static ALWAYS_INLINE void advance(struct run *run, size_t turn, const struct keys *keys,
                                  size_t unit, size_t tile, size_t head, __m512 *first,
                                  __m512 *second, const uint8_t *group, struct keys *next,
                                  size_t decoded)
{
    const struct sums *from = &run->sums[turn];
    struct sums *to = &run->sums[!turn];

    ADD(0);
    LOAD_KEYS(0, tile, 0);
    LOAD_HEADS(2, unit, 0);
    BEGIN_SUM(4, 0, 0);
    TILE_DOT_INT8(4, 2, 0);
    DECODE(0);
    ADD(1);
    LOAD_KEYS(1, tile + 1, 0);
    BEGIN_SUM(5, 0, 1);
    TILE_DOT_INT8(5, 2, 1);
    ADD(2);
    LOAD_HEADS(3, unit + 1, 0);
    BEGIN_SUM(6, 1, 0);
    TILE_DOT_INT8(6, 3, 0);
    DECODE(1);
    ADD(3);
    BEGIN_SUM(7, 1, 1);
    TILE_DOT_INT8(7, 3, 1);
    ADD(4);
    LOAD_KEYS(0, tile, 1);
    LOAD_HEADS(2, unit, 1);
    TILE_DOT_INT8(4, 2, 0);
    DECODE(2);
    ADD(5);
    LOAD_KEYS(1, tile + 1, 1);
    TILE_DOT_INT8(5, 2, 1);
    ADD(6);
    LOAD_HEADS(3, unit + 1, 1);
    TILE_DOT_INT8(6, 3, 0);
    DECODE(3);
    ADD(7);
    TILE_DOT_INT8(7, 3, 1);
}

/* Adds up the last two groups. */
static ALWAYS_INLINE void finish(struct run *run, struct totals *totals)
{
    struct sums *to = &run->sums[1];

    add_units(&run->query, 2 * UNIT, &run->sums[0], &totals->of0, &totals->of1);
    STORE_SUM(4, 0, 0);
    STORE_SUM(5, 0, 1);
    STORE_SUM(6, 1, 0);
    STORE_SUM(7, 1, 1);
    add_units(&run->query, 2 * UNIT, &run->sums[1], &totals->of2, &totals->of3);
}

/* ---- all keys ----------------------------------------------------------------------------------
 */

/* Whether so few of the tiles so far are not level that it pays to do those twice. */
static bool most_are_level(size_t n_uneven, size_t tile_count)
{
    return n_uneven <= tile_count / 8;
}

void sl_index_scores_amx(size_t tile_count, size_t cols, size_t head_count,
                         const uint8_t *restrict keys, const int8_t *restrict x,
                         const float *restrict x_scale, const float *restrict weight,
                         float *restrict total)
{
    const struct tile_config config = whole_tiles();
    struct totals totals = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                            _mm512_setzero_ps()};
    _Alignas(64) int8_t padded[HEADS_MAX * COLS];
    struct run run;
    size_t tile = 0, n_uneven = 0;

    if (tile_count == 0 || cols != COLS || head_count > HEADS_MAX ||
        !prepare_query(head_count, x_scale, weight, &run.query)) {
        sl_index_scores_avx512vbmi(tile_count, cols, head_count, keys, x, x_scale, weight, total);
        return;
    }
    run.query.x = x;
    if (head_count < HEADS_MAX) {
        memset(padded, 0, sizeof(padded));
        copy_row(padded, x, head_count * COLS);
        run.query.x = padded;
    }
    memset(run.sums, 0, sizeof(run.sums));
    for (size_t i = 0; i < UNIT * ROWS; i++)
        run.zeros[i] = ZERO_BITS;
    for (size_t i = 0; i < TILES_AT_ONCE && i < tile_count; i++)
        for (size_t block = 0; block < BLOCKS; block++)
            decode_block(i, block, keys + i * SL_FP4_GROUP_BYTES, &run.keys[0]);
    tiles_begin(&config);
    /* Each turn multiplies four tiles and adds up the four before. */
    for (size_t turn = 0; tile < tile_count + TILES_AT_ONCE; turn++) {
        const struct keys *now = &run.keys[turn % 3], *last = &run.keys[(turn + 2) % 3];
        struct keys *next = &run.keys[(turn + 1) % 3];
        const uint8_t *group[TILES_AT_ONCE];
        const size_t done = tile - TILES_AT_ONCE, left = tile_count - done;

        for (size_t i = 0; i < TILES_AT_ONCE; i++) {
            const size_t at = tile + TILES_AT_ONCE + i;

            group[i] = at < tile_count ? keys + at * SL_FP4_GROUP_BYTES : NULL;
        }
        if (tile < tile_count) {
            advance(&run, 0, now, 0, 0, 2 * UNIT, &totals.of0, &totals.of1, group[0], next, 0);
            advance(&run, 1, now, 0, 2, 2 * UNIT, &totals.of2, &totals.of3, group[1], next, 1);
        } else {
            finish(&run, &totals);
        }
        if (tile > 0)
            give_totals(left, last, &totals, total + done * ROWS);
        for (size_t i = 0; tile > 0 && i < TILES_AT_ONCE && i < left; i++) {
            if (last->level[i])
                continue;
            n_uneven++;
            sl_index_scores_avx512vbmi(1, COLS, head_count, keys + (done + i) * SL_FP4_GROUP_BYTES,
                                       x, x_scale, weight, total + (done + i) * ROWS);
        }
        if (tile >= tile_count || !most_are_level(n_uneven, tile_count))
            break;
        totals = (struct totals){_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                                 _mm512_setzero_ps()};
        advance(&run, 0, now, 2, 0, 0, &totals.of0, &totals.of1, group[2], next, 2);
        advance(&run, 1, now, 2, 2, 0, &totals.of2, &totals.of3, group[3], next, 3);
        tile += TILES_AT_ONCE;
    }
    tiles_end();
    if (tile < tile_count)
        sl_index_scores_avx512vbmi(tile_count - tile, COLS, head_count,
                                   keys + tile * SL_FP4_GROUP_BYTES, x, x_scale, weight,
                                   total + tile * ROWS);
}
