/* The AMX entries of the kernel table. */
#ifndef SL_KERNELS_AVX512_AMX_H
#define SL_KERNELS_AVX512_AMX_H

#include "core/kernels/kernels.h"

sl_matmul_fp4_fn sl_matmul_fp4_amx;
sl_index_scores_fn sl_index_scores_amx;
sl_probe_multiply_fn sl_probe_int8_amx;

#endif
