#include "core/base/cpu.h"

#include <sched.h>
#if defined(__aarch64__)
#include <sys/auxv.h>
#endif

uint32_t sl_cpu_flags(void)
{
    uint32_t flags = 0;

#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        flags |= SL_CPU_AVX2_FMA;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        flags |= SL_CPU_AVX512;
        if (__builtin_cpu_supports("avx512vnni"))
            flags |= SL_CPU_AVX512_VNNI;
        if (__builtin_cpu_supports("avx512bf16"))
            flags |= SL_CPU_AVX512_BF16;
        if (__builtin_cpu_supports("avx512vbmi"))
            flags |= SL_CPU_AVX512_VBMI;
    }
#elif defined(__aarch64__)
    unsigned long capabilities = getauxval(AT_HWCAP);

    if (capabilities & HWCAP_ASIMD)
        flags |= SL_CPU_NEON;
    if (capabilities & HWCAP_ASIMDDP)
        flags |= SL_CPU_NEON_DOT;
#endif
    return flags;
}

uint32_t sl_cpu_count(void)
{
    cpu_set_t set;
    int count;

    if (sched_getaffinity(0, sizeof(set), &set) != 0)
        return 1;
    count = CPU_COUNT(&set);
    return count > 0 ? (uint32_t)count : 1;
}

#if defined(__x86_64__)

#define MXCSR_FLUSH_TO_ZERO 0x8000u
#define MXCSR_DENORMALS_ARE_ZERO 0x0040u

uint64_t sl_cpu_flush_subnormals(void)
{
    uint32_t mode = __builtin_ia32_stmxcsr();

    __builtin_ia32_ldmxcsr(mode | MXCSR_FLUSH_TO_ZERO | MXCSR_DENORMALS_ARE_ZERO);
    return mode;
}

void sl_cpu_restore_float_mode(uint64_t mode)
{
    __builtin_ia32_ldmxcsr((uint32_t)mode);
}

#elif defined(__aarch64__)

#define FPCR_FLUSH_TO_ZERO (UINT64_C(1) << 24)

uint64_t sl_cpu_flush_subnormals(void)
{
    uint64_t mode;

    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    __asm__ volatile("msr fpcr, %0" : : "r"(mode | FPCR_FLUSH_TO_ZERO));
    return mode;
}

void sl_cpu_restore_float_mode(uint64_t mode)
{
    __asm__ volatile("msr fpcr, %0" : : "r"(mode));
}

#else
#error "Sluice knows x86-64 and aarch64"
#endif
