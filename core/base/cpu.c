#include "core/base/cpu.h"

#include <sched.h>
#if defined(__aarch64__)
#include <sys/auxv.h>
#elif defined(__x86_64__)
#include <cpuid.h>
#include <stdbool.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ARCH_REQ_XCOMP_PERM 0x1023 /* asm/prctl.h, not in older kernels' headers */
#define XFEATURE_XTILEDATA 18

#define CPUID_7_EDX_AMX ((1u << 22) | (1u << 24) | (1u << 25)) /* BF16, tiles, int8 */

/* Tiles are large, so Linux gives a process room for them only when asked (since 5.16). */
static bool amx_is_usable(void)
{
    unsigned int eax, ebx, ecx, edx = 0;

    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) &&
           (edx & CPUID_7_EDX_AMX) == CPUID_7_EDX_AMX &&
           syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}
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
        if (amx_is_usable())
            flags |= SL_CPU_AMX;
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
