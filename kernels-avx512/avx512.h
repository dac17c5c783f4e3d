/* The AVX-512 folder's entries of the kernel table, under the CPU flags each needs. */
#ifndef SL_KERNELS_AVX512_AVX512_H
#define SL_KERNELS_AVX512_AVX512_H

#include <stdbool.h>

#include "core/kernels/kernels.h"

sl_matmul_fp4_fn sl_matmul_fp4_avx512vnni;
sl_matmul_fp4_fn sl_matmul_fp4_avx512vbmi;
sl_index_scores_fn sl_index_scores_avx512vnni;
sl_index_scores_fn sl_index_scores_avx512vbmi;
sl_matmul_fp8_fn sl_matmul_fp8_avx512bf16;
sl_matmul_fp8_fn sl_matmul_fp8_block_avx512bf16;
sl_matmul_bf16_fn sl_matmul_bf16_avx512bf16;
sl_matmul_f32_fn sl_matmul_f32_avx512;
sl_quantise_int8_fn sl_quantise_int8_avx512;
sl_kv_decode_fn sl_kv_decode_avx512;
sl_pair_rows_fn sl_pair_rows_avx512;
sl_attend_softmax_fn sl_attend_softmax_avx512;
sl_index_encode_fn sl_index_encode_avx512;
sl_find_scores_fn sl_find_scores_avx512;
sl_probe_multiply_fn sl_probe_f32_avx512;
sl_probe_multiply_fn sl_probe_int8_avx512vnni;
sl_probe_multiply_fn sl_probe_bf16_avx512bf16;

/* Tries whether this CPU's BF16 dot product gives the bits of two fused multiply-adds, the odd
 * element first, on some 65,000 numbers of the sizes that linears may meet. */
bool sl_avx512_dot_bf16_is_two_fmas(void);

#endif
