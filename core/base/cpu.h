/* The processor's abilities, and the few instructions that have no C spelling. */
#ifndef SL_BASE_CPU_H
#define SL_BASE_CPU_H

#include <stdint.h>

enum sl_cpu_flag {
    SL_CPU_AVX2_FMA = 1u << 0, /* AVX2 and FMA3 together, and an operating system that saves them */
    SL_CPU_AVX512 = 1u << 1,   /* F, BW, DQ and VL together */
    SL_CPU_AVX512_VNNI = 1u << 2,
    SL_CPU_AVX512_BF16 = 1u << 3,
    SL_CPU_AVX512_VBMI = 1u << 4,
    SL_CPU_AMX =
        1u << 5, /* tiles, their int8 and BF16 products, and the kernel's leave to use them */
    SL_CPU_NEON = 1u << 6,
    SL_CPU_NEON_DOT = 1u << 7, /* int8 dot products */
};

/* The flags of the CPU we run on. Asks Linux for the process's leave to use AMX where there is
 * AMX: without it the first tile instruction would be a signal. */
uint32_t sl_cpu_flags(void);

/* Processors this process may run on. At least 1. */
uint32_t sl_cpu_count(void);

/* Makes this thread treat subnormal numbers as zero; returns the mode to restore. */
uint64_t sl_cpu_flush_subnormals(void);
void sl_cpu_restore_float_mode(uint64_t mode);

/* A pause inside a watching loop. */
static inline void sl_cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif
