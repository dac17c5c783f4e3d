/* Puts the NEON kernels into the table. Compiled for the baseline CPU: it also runs where the dot
 * product is missing. */
#include "core/base/cpu.h"
#include "core/kernels/index_scores.h"
#include "core/kernels/isa.h"
#include "kernels-neon/neon.h"

static void index_scores_dot(size_t tile_count, size_t cols, size_t head_count,
                             const uint8_t *restrict keys, const int8_t *restrict x,
                             const float *restrict x_scale, const float *restrict weight,
                             float *restrict total)
{
    sl_index_scores_by(sl_matmul_fp4_neondot, tile_count, cols, head_count, keys, x, x_scale,
                       weight, total);
}

static void index_scores(size_t tile_count, size_t cols, size_t head_count,
                         const uint8_t *restrict keys, const int8_t *restrict x,
                         const float *restrict x_scale, const float *restrict weight,
                         float *restrict total)
{
    sl_index_scores_by(sl_matmul_fp4_neon, tile_count, cols, head_count, keys, x, x_scale, weight,
                       total);
}

void sl_install_neon(struct sl_kernels *kernels, uint32_t cpu_flags)
{
    kernels->matmul_fp4 = cpu_flags & SL_CPU_NEON_DOT ? sl_matmul_fp4_neondot : sl_matmul_fp4_neon;
    kernels->index_scores = cpu_flags & SL_CPU_NEON_DOT ? index_scores_dot : index_scores;
    kernels->matmul_fp8 = sl_matmul_fp8_neon;
    kernels->matmul_fp8_block = sl_matmul_fp8_block_neon;
    kernels->matmul_bf16 = sl_matmul_bf16_neon;
    kernels->quantise_int8 = sl_quantise_int8_neon;
    kernels->kv_decode = sl_kv_decode_neon;
    kernels->attend_softmax = sl_attend_softmax_neon;
    kernels->index_encode = sl_index_encode_neon;
}
