/* A probe of the products of tiles that the linears use: independent sums that keep the unit busy,
 * and nothing else. */
#include "kernels-avx512/amx.h"
#include "kernels-avx512/tiles_amx.h"

#include <string.h>

#define CHAINS 4u

/* In blocks of 32 columns: that is how FP4 weights share a scale, and each block's sum must come
 * out on its own. Such a product takes as long as one of 64 columns. */
#define BLOCK_COLS 32u

uint64_t sl_probe_int8_amx(size_t rounds, float *sum)
{
    struct tile_config config = {.palette = 1};
    int8_t ones[TILE_ROWS_MAX * TILE_ROW_BYTES_MAX];
    int32_t sums[TILE_ROWS_MAX * TILE_ROW_BYTES_MAX / 4];

    memset(ones, 1 + (int)*sum, sizeof(ones));
    for (size_t i = 0; i < TILES; i++) {
        config.rows[i] = TILE_ROWS_MAX;
        config.row_bytes[i] = TILE_ROW_BYTES_MAX;
    }
    config.row_bytes[4] = BLOCK_COLS;
    config.rows[5] = BLOCK_COLS / 4;
    tiles_begin(&config);
    TILE_LOAD(4, ones, TILE_ROW_BYTES_MAX);
    TILE_LOAD(5, ones, TILE_ROW_BYTES_MAX);
    for (size_t round = 0; round < rounds; round++) {
        TILE_DOT_INT8(0, 4, 5);
        TILE_DOT_INT8(1, 4, 5);
        TILE_DOT_INT8(2, 4, 5);
        TILE_DOT_INT8(3, 4, 5);
    }
    TILE_STORE(0, sums, TILE_ROW_BYTES_MAX); /* volatile: none of the others is left out */
    tiles_end();
    *sum += (float)sums[0];
    return (uint64_t)rounds * CHAINS * TILE_ROWS_MAX * SL_R16_ROWS * BLOCK_COLS;
}
