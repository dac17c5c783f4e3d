/* Probes of what the linears can reach at most with AMX.
 *
 * FP4 weights by int8 activations: groups of 128 columns, since each has its scale, of 16 tokens by
 * 16 rows. Products of tiles alone would promise more: every group's sums must go through memory to
 * float32 registers, and be scaled and added there.
 *
 * BF16: products of tiles alone, which hold their sums themselves. */
#include "kernels-avx512/amx.h"

#include <immintrin.h>
#include <string.h>

#include "kernels-avx512/tiles_amx.h"

#define GROUP_COLS SL_FP4_GROUP_COLS
#define ROWS SL_R16_ROWS

/* Stores a group's sums, begins the next one, two products of 64 columns, and adds them. */
#define GROUP(tile)                                                                                \
    do {                                                                                           \
        TILE_STORE(tile, sums, ROWS * 4);                                                          \
        TILE_ZERO(tile);                                                                           \
        TILE_DOT_INT8(tile, 0, 1);                                                                 \
        TILE_DOT_INT8(tile, 2, 3);                                                                 \
        for (size_t t = 0; t < TILE_ROWS_MAX; t++)                                                 \
            acc[t] =                                                                               \
                _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(sums[t])), factor, acc[t]);   \
    } while (0)

uint64_t sl_probe_int8_amx(size_t rounds, float *sum)
{
    const __m512 factor = _mm512_set1_ps(0x1p-20f);
    struct tile_config config = {.palette = 1};
    _Alignas(64) int32_t sums[TILE_ROWS_MAX][ROWS];
    int8_t ones[TILE_ROWS_MAX * TILE_ROW_BYTES_MAX];
    __m512 acc[TILE_ROWS_MAX];

    memset(ones, 1 + (int)*sum, sizeof(ones));
    for (size_t i = 0; i < TILES; i++) {
        config.rows[i] = TILE_ROWS_MAX;
        config.row_bytes[i] = TILE_ROW_BYTES_MAX;
    }
#pragma GCC unroll 16 /* or the sums are no registers */
    for (size_t t = 0; t < TILE_ROWS_MAX; t++)
        acc[t] = _mm512_setzero_ps();
    tiles_begin(&config);
    TILE_LOAD(0, ones, TILE_ROW_BYTES_MAX);
    TILE_LOAD(1, ones, TILE_ROW_BYTES_MAX);
    TILE_LOAD(2, ones, TILE_ROW_BYTES_MAX);
    TILE_LOAD(3, ones, TILE_ROW_BYTES_MAX);
    for (size_t round = 0; round < rounds; round++) {
        GROUP(4);
        GROUP(5);
        GROUP(6);
        GROUP(7);
    }
    tiles_end();
#pragma GCC unroll 16
    for (size_t t = 1; t < TILE_ROWS_MAX; t++)
        acc[0] = _mm512_add_ps(acc[0], acc[t]);
    *sum += _mm512_reduce_add_ps(acc[0]);
    return (uint64_t)rounds * 4 * TILE_ROWS_MAX * ROWS * GROUP_COLS;
}

uint64_t sl_probe_bf16_amx(size_t rounds, float *sum)
{
    struct tile_config config = {.palette = 1};
    uint16_t ones[TILE_ROWS_MAX * TILE_ROW_BYTES_MAX / 2];
    float sums[TILE_ROWS_MAX * TILE_ROW_BYTES_MAX / 4];

    for (size_t i = 0; i < sizeof(ones) / sizeof(*ones); i++)
        ones[i] = (uint16_t)(0x3f80 + (int)*sum);
    for (size_t i = 0; i < TILES; i++) {
        config.rows[i] = TILE_ROWS_MAX;
        config.row_bytes[i] = TILE_ROW_BYTES_MAX;
    }
    tiles_begin(&config);
    TILE_LOAD(4, ones, TILE_ROW_BYTES_MAX);
    TILE_LOAD(5, ones, TILE_ROW_BYTES_MAX);
    for (size_t round = 0; round < rounds; round++) {
        TILE_DOT_BF16(0, 4, 5);
        TILE_DOT_BF16(1, 4, 5);
        TILE_DOT_BF16(2, 4, 5);
        TILE_DOT_BF16(3, 4, 5);
    }
    TILE_STORE(0, sums, TILE_ROW_BYTES_MAX);
    tiles_end();
    *sum += sums[0];
    return (uint64_t)rounds * 4 * TILE_ROWS_MAX * ROWS * SL_BLOCK_ORDER_COLS;
}
