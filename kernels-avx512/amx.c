/* Puts the AMX kernels into the table, over those of AVX-512. Compiled for the baseline CPU. */
#include "core/kernels/isa.h"
#include "kernels-avx512/amx.h"
#include "kernels-avx512/avx512.h"

void sl_install_amx(struct sl_kernels *kernels)
{
    kernels->matmul_fp4 = sl_matmul_fp4_amx;
    kernels->index_scores = sl_index_scores_amx;
    kernels->probes.int8 = sl_probe_int8_amx;
    /* Few tokens go to AVX-512's kernels, which may be missing. */
    if (kernels->matmul_fp8 == sl_matmul_fp8_avx512bf16 && sl_amx_dot_bf16_is_block_order()) {
        kernels->matmul_fp8 = sl_matmul_fp8_amx;
        kernels->matmul_fp8_block = sl_matmul_fp8_block_amx;
        kernels->matmul_bf16 = sl_matmul_bf16_amx;
        kernels->probes.bf16 = sl_probe_bf16_amx;
    }
}
