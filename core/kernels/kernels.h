/* The kernel table: every operation of the forward pass that is worth an instruction set.
 *
 * Kernels are pure: no allocation, no globals, no errors, no locks. Each contract below fixes the
 * order of summation; an implementation is right when its output equals the reference's byte for
 * byte (docs/NUMERICS.md). Unless said otherwise buffers do not overlap, need no more alignment
 * than their type, and nothing is read or written outside the stated shapes. Strides are in
 * elements.
 *
 * The plain-C sources core/kernels/..._isa.c are the specification. They are compiled once per
 * instruction set that the compiler can vectorise for; hand-written sets overwrite single entries.
 */
#ifndef SL_KERNELS_KERNELS_H
#define SL_KERNELS_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "core/kernels/r16.h"

/* ---- linears: y[token][row] over the rows of tile_count R16 tiles ------------------------------
 */

/* y[t][r] = sum over groups g of 128 columns, ascending, of x_scale[t][g] * sum(g), each added with
 * one fused multiply-add. sum(g) = sum over the group's four blocks b of 32 columns, ascending,
 * from zero, of scale_w[r][b] * dot(b), where dot is an exact integer; these products are exact
 * too, so each addition rounds once. Where a row's four scales are within 2^6 of each other no
 * addition rounds at all: the sum is an integer below 2^24 times the least of them.
 *
 * w: FP4 tiles of at most 65,536 columns. x (token_count, cols): int8 as quantise_int8() lays them
 * out; x_scale (token_count, cols / 128), below 2^60, so that weights' scales may be multiplied
 * with it first. y (token_count, tile_count * 16) at y_stride. */
typedef void sl_matmul_fp4_fn(size_t tile_count, size_t cols, size_t token_count,
                              const uint8_t *restrict w, const int8_t *restrict x,
                              const float *restrict x_scale, float *restrict y, size_t y_stride);

/* The block order, in which products of BF16 numbers are summed: columns in blocks of 32,
 * ascending. A block has two chains, one of its even columns and one of its odd ones, each from +0
 * and ascending, one rounding per addition (the products are exact); the sum of the two is rounded,
 * and then added to the sum of the blocks before. Missing columns count as zeros, which change
 * nothing.
 */
#define SL_BLOCK_ORDER_COLS 32u

/* Tiles first_tile to first_tile + tile_count of an FP8 matrix, of which w has these alone and
 * `scale` (rows / 128, rounded up, cols / 128) all: one for each block of 128 rows and 128 columns.
 * x (token_count, cols) BF16 at x_stride; many tokens are fastest where rows begin with a line of
 * the cache and are an odd number of lines apart. Two kernels, for two kinds of scales:
 *
 * matmul_fp8: scales are powers of two, part of the weights. y[t][r] = sum over columns, in block
 * order, of w[r][c] * x[t][c].
 *
 * matmul_fp8_block: scales are any float32 that is 0 or from 2^-32 to 2^60, and no part of the
 * weights. y[t][r] = sum over blocks b of 128 columns, ascending, of scale[r / 128][b] * dot(b),
 * where dot is that first sum over the block's columns, from zero; each adds with one fused
 * multiply-add.
 */
typedef void sl_matmul_fp8_fn(size_t first_tile, size_t tile_count, size_t cols, size_t token_count,
                              const uint8_t *restrict w, const float *restrict scale,
                              const uint16_t *restrict x, size_t x_stride, float *restrict y,
                              size_t y_stride);

/* The sum of matmul_fp8 for BF16 tiles; cols is even. */
typedef void sl_matmul_bf16_fn(size_t tile_count, size_t cols, size_t token_count,
                               const uint8_t *restrict w, const uint16_t *restrict x,
                               size_t x_stride, float *restrict y, size_t y_stride);

/* y[t][r] = sum over columns, ascending: multiply, round, add, round. F32 tiles. */
typedef void sl_matmul_f32_fn(size_t tile_count, size_t cols, size_t token_count,
                              const uint8_t *restrict w, const float *restrict x, size_t x_stride,
                              float *restrict y, size_t y_stride);

/* ---- activations -------------------------------------------------------------------------------
 */

/* One row of `cols` values (a multiple of 128) to int8: per group of 128, scale = max|x| / 127 and
 * q = round(x * (127 / max|x|)), ties to even; all zero with scale 0 when max|x| < 2^-40 ("Tiny
 * operands" in docs/NUMERICS.md). Columns of each eight are stored in the order 0 2 4 6 1 3 5 7,
 * which is how FP4 tiles hold them. */
#define SL_QUANTISE_AMAX_MIN 0x1p-40f
typedef void sl_quantise_int8_fn(size_t cols, const float *restrict x, int8_t *restrict q,
                                 float *restrict scale);

/* Nearest even; magnitudes below 2^-48 become zero. */
typedef void sl_to_bf16_fn(size_t count, const float *restrict x, uint16_t *restrict y);

/* 1 / sqrt(sum / count + eps). `sum` of squares: element i into lane i mod 16, ascending; lanes
 * folded 16 -> 8 -> 4 -> 2 -> 1, lane l with lane l + half. */
typedef float sl_rms_factor_fn(size_t count, const float *x, float eps);

/* y = weight * (x * rms_factor(x)), weight NULL for 1. y == x is allowed. */
typedef void sl_rms_norm_fn(size_t count, const float *x, const float *restrict weight, float eps,
                            float *y);

/* y = silu(min(gate, limit)) * clamp(up, -limit, limit) * weight; limit 0 means none. */
typedef void sl_swiglu_fn(size_t count, const float *restrict gate, const float *restrict up,
                          float limit, float weight, float *restrict y);

/* y = sqrt(log(1 + exp(x))). In place is allowed. */
typedef void sl_sqrt_softplus_fn(size_t count, const float *x, float *y);

/* Rotates the pairs (x[2i], x[2i+1]) by angle i, whose cosine and sine are given; `sin_sign` -1
 * rotates back. In place. */
typedef void sl_rotate_fn(size_t pair_count, float *restrict x, const float *restrict cosine,
                          const float *restrict sine, float sin_sign);

/* Walsh-Hadamard transform in place, Sylvester order, butterflies of ascending span, scaled by
 * count^-0.5. count is a power of two. */
typedef void sl_hadamard_fn(size_t count, float *restrict x);

/* ---- residual streams (mHC) --------------------------------------------------------------------
 */

/* x[c] = sum over s ascending of pre[s] * streams[s][c].  streams (hc_mult, count). */
typedef void sl_hc_reduce_fn(size_t hc_mult, size_t count, const float *restrict pre,
                             const float *restrict streams, float *restrict x);

/* streams[k][c] = post[k] * out[c] + sum over j ascending of comb[j][k] * streams[j][c], in place.
 */
typedef void sl_hc_update_fn(size_t hc_mult, size_t count, const float *restrict post,
                             const float *restrict comb, const float *restrict out,
                             float *restrict streams);

/* ---- KV entries and attention ------------------------------------------------------------------
 */

/* An entry: `fp8_count` values (a multiple of 64) as e4m3, one E8M0 scale byte per 64, then
 * `bf16_count` values as BF16. Scales are the smallest power of two that keeps the block within
 * 448, and at least 1e-4 / 448. */
typedef void sl_kv_encode_fn(size_t fp8_count, size_t bf16_count, const float *restrict x,
                             uint8_t *restrict entry);
typedef void sl_kv_decode_fn(size_t fp8_count, size_t bf16_count, const uint8_t *restrict entry,
                             uint16_t *restrict y);

/* Rows 2i and 2i + 1 of `rows` (2 * pair_count, count) side by side, as column pair i of R16 BF16
 * tiles whose rows are the `count` columns, in the last one zero beyond them: tile t is at tiles +
 * t * tile_bytes, pair i at 64 * i in it. */
typedef void sl_pair_rows_fn(size_t pair_count, size_t count, const uint16_t *restrict rows,
                             uint8_t *restrict tiles, size_t tile_bytes);

/* Pools `row_count` rows per channel: y[c] = sum_r kv[r][c] * e[r] / sum_r e[r], rows ascending,
 * e[r] = exp(score[r][c] - max_r score[r][c]). Rows are given by pointer. */
typedef void sl_pool_rows_fn(size_t row_count, size_t count, const float *const *kv,
                             const float *const *score, float *restrict y);

/* Softmax over entries for 16 heads side by side, with a sink.
 * scores (entry_count, 16) at score_stride, still to be multiplied by `scale`. With top = max(sink,
 * scores): p[h][n] = exp(score - top) as BF16 at p_stride, and total[h] = sum over n ascending of
 * the unrounded p, plus exp(sink[h] - top). A score of SL_SCORE_ABSENT gives p = 0. */
#define SL_SCORE_ABSENT (-1e30f)
typedef void sl_attend_softmax_fn(size_t entry_count, const float *restrict scores,
                                  size_t score_stride, float scale, const float *restrict sink,
                                  uint16_t *restrict p, size_t p_stride, float *restrict total);

/* ---- indexer -----------------------------------------------------------------------------------
 */

/* Rounds a rotated vector to FP4 with one scale per 32: codes (one byte each) and E8M0 bytes. A
 * block whose largest magnitude is below 6 * 2^-48 is zero with scale byte 0. */
typedef void sl_index_encode_fn(size_t count, const float *restrict x, uint8_t *restrict codes,
                                uint8_t *restrict scale_bytes);

/* Scores of the keys that are the rows of FP4 tiles for one query: total[n] = sum over heads
 * ascending of weight[h] * max(s[h][n], 0). s is what matmul_fp4 gives for x (head_count, cols),
 * but that each block of 32 columns has a scale of its own, a power of two or zero: the sum over
 * groups of 128 columns, ascending, of the sums over a group's blocks b, ascending and from zero,
 * of dot(b) times scale_w[n][b] times x_scale[h][b]. x_scale (head_count, cols / 32). Fastest where
 * a head's scales are one power of two. total (tile_count * 16). */
typedef void sl_index_scores_fn(size_t tile_count, size_t cols, size_t head_count,
                                const uint8_t *restrict keys, const int8_t *restrict x,
                                const float *restrict x_scale, const float *restrict weight,
                                float *restrict total);

/* Finds scores that are not below `floor`, in the order of sl_f32_order(), but no more than the
 * first found_max of them: their places in `scores`, ascending, and themselves. Returns how many.
 * places and found (found_max), of which only so many are written. */
typedef size_t sl_find_scores_fn(size_t count, const float *restrict scores, float floor,
                                 size_t found_max, uint32_t *restrict places,
                                 float *restrict found);

/* ---- probes: what the instruction set can do at most, to compare the kernels with --------------
 */

/* Reads size_bytes, a multiple of 1,024, 64-byte aligned. The result depends on all of it. */
typedef uint64_t sl_probe_read_fn(size_t size_bytes, const uint8_t *data);

/* Multiplies and adds in registers alone, `rounds` times some; returns how many multiplications
 * that was. *sum, 0 at first, depends on all of them. (With AMX a group's int8 sums must pass
 * through memory, and that is part of it.) */
typedef uint64_t sl_probe_multiply_fn(size_t rounds, float *sum);

/* bf16 and int8 are NULL where the set's matrix kernels multiply float32 instead. */
struct sl_probes {
    sl_probe_read_fn *read;
    sl_probe_multiply_fn *f32, *bf16, *int8;
};

struct sl_kernels {
    const char *isa; /* as --isa spells it */
    sl_matmul_fp4_fn *matmul_fp4;
    sl_matmul_fp8_fn *matmul_fp8;
    sl_matmul_fp8_fn *matmul_fp8_block;
    sl_matmul_bf16_fn *matmul_bf16;
    sl_matmul_f32_fn *matmul_f32;
    sl_quantise_int8_fn *quantise_int8;
    sl_to_bf16_fn *to_bf16;
    sl_rms_factor_fn *rms_factor;
    sl_rms_norm_fn *rms_norm;
    sl_swiglu_fn *swiglu;
    sl_sqrt_softplus_fn *sqrt_softplus;
    sl_rotate_fn *rotate;
    sl_hadamard_fn *hadamard;
    sl_hc_reduce_fn *hc_reduce;
    sl_hc_update_fn *hc_update;
    sl_kv_encode_fn *kv_encode;
    sl_kv_decode_fn *kv_decode;
    sl_pair_rows_fn *pair_rows;
    sl_pool_rows_fn *pool_rows;
    sl_attend_softmax_fn *attend_softmax;
    sl_index_encode_fn *index_encode;
    sl_index_scores_fn *index_scores;
    sl_find_scores_fn *find_scores;
    struct sl_probes probes;
};

static inline size_t sl_kv_entry_bytes(size_t fp8_count, size_t bf16_count)
{
    return fp8_count + fp8_count / 64 + bf16_count * 2;
}

#endif
