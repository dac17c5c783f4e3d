/* Probes of memory and of float32 multiplication, as far as the compiler's vectors go. */
#include "core/kernels/isa.h"

#if defined(__AVX512F__)
#define VECTOR_BYTES 64u
#elif defined(__AVX__)
#define VECTOR_BYTES 32u
#else
#define VECTOR_BYTES 16u
#endif

typedef uint64_t __attribute__((vector_size(VECTOR_BYTES), may_alias)) words;

#define WORDS (VECTOR_BYTES / 8)
#define STREAMS 4u

/* Four streams side by side, as the kernels read four tiles. */
static uint64_t probe_read(size_t size_bytes, const uint8_t *data)
{
    const words *at = (const words *)(const void *)data;
    const size_t n = size_bytes / STREAMS / VECTOR_BYTES;
    words acc[STREAMS] = {{0}};
    uint64_t sum = 0;

    for (size_t i = 0; i < n; i++)
        for (size_t s = 0; s < STREAMS; s++)
            acc[s] ^= at[s * n + i];
    for (size_t s = 0; s < STREAMS; s++)
        for (size_t w = 0; w < WORDS; w++)
            sum ^= acc[s][w];
    return sum;
}

/* Sums side by side: more than additions that are under way at once, on any CPU we know. */
#define CHAINS 12u

/* In full width only up to AVX2: kernels-avx512/ has its own. The built-in is there because
 * -ffp-contract=off leaves a product and a sum apart, and what the compilers make of a loop over
 * fmaf() does not always stay in registers. Newer releases of clang have the first one only, and
 * older ones, like gcc, the second. */
#ifdef __FMA__
#define FLOATS 8u
#if __has_builtin(__builtin_elementwise_fma)
#define MULTIPLY_ADD(a, b, c) __builtin_elementwise_fma(a, b, c)
#else
#define MULTIPLY_ADD(a, b, c) __builtin_ia32_vfmaddps256(a, b, c)
#endif
#else
#define FLOATS 4u
#define MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))
#endif

typedef float __attribute__((vector_size(FLOATS * 4))) floats;

static uint64_t probe_f32(size_t rounds, float *sum)
{
    floats acc[CHAINS], factor, addend;

    for (size_t i = 0; i < FLOATS; i++) {
        factor[i] = *sum + 0.999f;
        addend[i] = *sum + 0.001f;
    }
    for (size_t chain = 0; chain < CHAINS; chain++)
        acc[chain] = factor * (float)chain;
    for (size_t round = 0; round < rounds; round++)
        for (size_t chain = 0; chain < CHAINS; chain++)
            acc[chain] = MULTIPLY_ADD(acc[chain], factor, addend);
    for (size_t chain = 0; chain < CHAINS; chain++)
        for (size_t i = 0; i < FLOATS; i++)
            *sum += acc[chain][i];
    return (uint64_t)rounds * CHAINS * FLOATS;
}

void SL_ISA_NAME(sl_install_probes)(struct sl_kernels *kernels)
{
    kernels->probes = (struct sl_probes){.read = probe_read, .f32 = probe_f32};
}
