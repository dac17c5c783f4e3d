/* Puts the AVX-512 kernels into the table. Compiled for the baseline CPU: it also runs where
 * AVX-512 is missing. */
#include "core/base/cpu.h"
#include "core/kernels/isa.h"
#include "kernels-avx512/avx512.h"

void sl_install_avx512(struct sl_kernels *kernels, uint32_t cpu_flags)
{
    kernels->matmul_f32 = sl_matmul_f32_avx512;
    kernels->quantise_int8 = sl_quantise_int8_avx512;
    kernels->kv_decode = sl_kv_decode_avx512;
    kernels->pair_rows = sl_pair_rows_avx512;
    kernels->attend_softmax = sl_attend_softmax_avx512;
    kernels->index_encode = sl_index_encode_avx512;
    kernels->find_scores = sl_find_scores_avx512;
    kernels->probes.f32 = sl_probe_f32_avx512;
    if (cpu_flags & SL_CPU_AVX512_VNNI) {
        const bool vbmi = cpu_flags & SL_CPU_AVX512_VBMI;

        kernels->matmul_fp4 = vbmi ? sl_matmul_fp4_avx512vbmi : sl_matmul_fp4_avx512vnni;
        kernels->index_scores = vbmi ? sl_index_scores_avx512vbmi : sl_index_scores_avx512vnni;
        kernels->probes.int8 = sl_probe_int8_avx512vnni;
    }
    if (cpu_flags & SL_CPU_AVX512_BF16 && sl_avx512_dot_bf16_is_two_fmas()) {
        if (cpu_flags & SL_CPU_AVX512_VBMI) {
            kernels->matmul_fp8 = sl_matmul_fp8_avx512bf16;
            kernels->matmul_fp8_block = sl_matmul_fp8_block_avx512bf16;
        }
        kernels->matmul_bf16 = sl_matmul_bf16_avx512bf16;
        kernels->probes.bf16 = sl_probe_bf16_avx512bf16;
    }
}
