/* The AMX entries of the kernel table. */
#ifndef SL_KERNELS_AVX512_AMX_H
#define SL_KERNELS_AVX512_AMX_H

#include <stdbool.h>

#include "core/kernels/kernels.h"

sl_matmul_fp4_fn sl_matmul_fp4_amx;
sl_index_scores_fn sl_index_scores_amx;
sl_matmul_fp8_fn sl_matmul_fp8_amx;
sl_matmul_fp8_fn sl_matmul_fp8_block_amx;
sl_matmul_bf16_fn sl_matmul_bf16_amx;
sl_probe_multiply_fn sl_probe_int8_amx;
sl_probe_multiply_fn sl_probe_bf16_amx;

/* Tries whether this CPU's product of BF16 tiles gives the bits of the block order, on some 65,000
 * numbers of the sizes that linears may meet. */
bool sl_amx_dot_bf16_is_block_order(void);

#endif
