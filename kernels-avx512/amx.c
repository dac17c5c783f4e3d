/* Puts the AMX kernels into the table, over those of AVX-512. Compiled for the baseline CPU. */
#include "core/kernels/isa.h"
#include "kernels-avx512/amx.h"

void sl_install_amx(struct sl_kernels *kernels)
{
    kernels->matmul_fp4 = sl_matmul_fp4_amx;
    kernels->index_scores = sl_index_scores_amx;
    kernels->probes.int8 = sl_probe_int8_amx;
}
