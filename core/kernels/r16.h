/* R16: weights of 16 output rows side by side, and how a checkpoint's row-major matrices get there.
 *
 * A matrix [rows, cols] becomes ceil(rows / 16) tiles, one after the other; rows that do not exist
 * are zero. Within a tile columns ascend, and all 16 rows of a column (or pair of columns) lie
 * together, so that one vector register holds the running sums of 16 rows: no horizontal adds, and
 * one order of summation for any number of tokens on any instruction set.
 *
 *   FP4   per 128 columns 1,088 bytes: 4 x 16 scale bytes (block of 32 columns, row), then 4 blocks
 *         of 4 x 64 bytes of codes. Byte 4 * row + i of the 64 bytes j of a block holds columns
 *         8j + 2i (low nibble) and 8j + 2i + 1 (high): the checkpoint's own bytes, only moved.
 *         Low nibbles so are the even columns of eight and high nibbles the odd ones.
 *   FP8   per pair of columns 32 bytes: row 0 even, row 0 odd, row 1 even, ... Scales stay apart.
 *   BF16  per pair of columns 64 bytes, in the same order.
 *   F32   per column 64 bytes.
 *
 * FP4: rows a multiple of 16, cols of 128. FP8: cols a multiple of 128. BF16: cols even.
 *
 * So that no product or partial sum of a linear is ever subnormal, whatever the instruction set
 * does with those, operands smaller than 2^-48 count as zero and scales larger than 2^60 as corrupt
 * (docs/NUMERICS.md, "Tiny operands"). The pack functions see to that for weights. */
#ifndef SL_KERNELS_R16_H
#define SL_KERNELS_R16_H

#include <stddef.h>
#include <stdint.h>

#include "core/kernels/formats.h"

#define SL_R16_ROWS 16u

#define SL_FP4_BLOCK_COLS 32u  /* columns that share a scale */
#define SL_FP4_GROUP_COLS 128u /* whose activations do */
#define SL_FP4_GROUP_BYTES 1088u

#define SL_FP8_BLOCK 128u /* rows, and columns, that share a scale */
#define SL_FP8_BLOCK_TILES (SL_FP8_BLOCK / SL_R16_ROWS)

static inline size_t sl_r16_tile_count(size_t rows)
{
    return (rows + SL_R16_ROWS - 1) / SL_R16_ROWS;
}

static inline size_t sl_r16_padded_rows(size_t rows)
{
    return sl_r16_tile_count(rows) * SL_R16_ROWS;
}

/* Bytes of one tile of `cols` columns. */
static inline size_t sl_r16_fp4_tile_bytes(size_t cols)
{
    return cols / SL_FP4_GROUP_COLS * SL_FP4_GROUP_BYTES;
}

static inline size_t sl_r16_fp8_tile_bytes(size_t cols)
{
    return cols * SL_R16_ROWS;
}

static inline size_t sl_r16_bf16_tile_bytes(size_t cols)
{
    return cols * SL_R16_ROWS * 2;
}

static inline size_t sl_r16_f32_tile_bytes(size_t cols)
{
    return cols * SL_R16_ROWS * 4;
}

/* Tiles from `tile` on, before end_tile, that lie in one block of rows and so have the same scales.
 */
static inline size_t sl_fp8_tiles_of_block(size_t tile, size_t end_tile)
{
    size_t n = SL_FP8_BLOCK_TILES - tile % SL_FP8_BLOCK_TILES;

    return n < end_tile - tile ? n : end_tile - tile;
}

/* Packs tiles first_tile <= t < end_tile of a matrix; `codes` and `scales` start at row 0 of the
 * whole matrix, tiles at tile 0. codes (rows, cols / 2), scales (rows, cols / 32), both as in the
 * checkpoint, no alignment needed. Returns 0 or -SL_ECORRUPT for a scale that is NaN or too large.
 */
int sl_r16_pack_fp4(size_t cols, size_t first_tile, size_t end_tile, const uint8_t *codes,
                    const uint8_t *scales, uint8_t *tiles);

/* Zeroes rows first_row <= r < 16 of one FP4 tile. */
void sl_r16_clear_fp4_rows(size_t first_row, size_t cols, uint8_t *tile);

/* Packs `rows` rows (the last tile may be partial) of an FP8 matrix into tiles; `codes` (rows,
 * cols) and `tiles` start at the same row, a multiple of 16. scale_bytes (one per 128 columns) is
 * the E8M0 row of the 128-row block that all these rows belong to. Codes whose value is tiny become
 * zero. Returns 0 or -SL_ECORRUPT for a NaN code or a scale that is NaN or too large. */
int sl_r16_pack_fp8(size_t rows, size_t cols, const uint8_t *codes, const uint8_t *scale_bytes,
                    uint8_t *tiles);

/* Packs `rows` rows as sl_r16_pack_fp8() does, but for matmul_fp8_block, whose scales stay apart:
 * no code becomes zero. Returns 0 or -SL_ECORRUPT for a NaN code. */
int sl_r16_pack_fp8_codes(size_t rows, size_t cols, const uint8_t *codes, uint8_t *tiles);

/* count float32 scales of FP8 blocks: values below 2^SL_F32_SCALE_EXPONENT_MIN become zero. Returns
 * 0 or -SL_ECORRUPT for one that is negative, not finite, or too large. */
int sl_f32_scales_read(size_t count, const float *scales, float *ret_scales);

/* codes (rows, cols) BF16. Returns 0 or -SL_ECORRUPT for a value that is not finite. */
int sl_r16_pack_bf16(size_t rows, size_t cols, const uint16_t *codes, uint8_t *tiles);

/* Lays out one tile of 16 rows of finite numbers that are not tiny; cols is even. */
void sl_r16_lay_bf16(size_t cols, const uint16_t *codes, uint8_t *tile);

/* values (rows, cols), row r at values + r * cols. Returns 0 or -SL_ECORRUPT as above. */
int sl_r16_pack_f32(size_t rows, size_t cols, const float *values, uint8_t *tiles);

#endif
