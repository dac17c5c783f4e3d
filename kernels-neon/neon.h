/* The NEON folder's entries of the kernel table. Those called ..._neondot need a CPU
 * with the int8 dot product (SL_CPU_NEON_DOT); the others run on every aarch64. */
#ifndef SL_KERNELS_NEON_NEON_H
#define SL_KERNELS_NEON_NEON_H

#include "core/kernels/kernels.h"

sl_matmul_fp4_fn sl_matmul_fp4_neon;
sl_matmul_fp4_fn sl_matmul_fp4_neondot;
sl_matmul_fp8_fn sl_matmul_fp8_neon;
sl_matmul_fp8_fn sl_matmul_fp8_block_neon;
sl_matmul_bf16_fn sl_matmul_bf16_neon;
sl_quantise_int8_fn sl_quantise_int8_neon;
sl_kv_decode_fn sl_kv_decode_neon;
sl_attend_softmax_fn sl_attend_softmax_neon;
sl_index_encode_fn sl_index_encode_neon;

#endif
