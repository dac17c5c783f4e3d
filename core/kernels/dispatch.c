/* Compiled for the baseline CPU, since it also runs where the better sets are missing. */
#include "core/kernels/dispatch.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "core/base/cpu.h"
#include "core/base/size.h"
#include "core/kernels/isa.h"

static void install_ref(struct sl_kernels *kernels, uint32_t cpu_flags)
{
    (void)cpu_flags;
    sl_install_linear_ref(kernels);
    sl_install_activation_ref(kernels);
    sl_install_attention_ref(kernels);
    sl_install_probes_ref(kernels);
}

#if defined(__x86_64__)
static void install_avx2(struct sl_kernels *kernels, uint32_t cpu_flags)
{
    (void)cpu_flags;
    sl_install_linear_avx2(kernels);
    sl_install_activation_avx2(kernels);
    sl_install_attention_avx2(kernels);
    sl_install_probes_avx2(kernels);
}

static void install_avx512(struct sl_kernels *kernels, uint32_t cpu_flags)
{
    sl_install_linear_avx512(kernels);
    sl_install_activation_avx512(kernels);
    sl_install_attention_avx512(kernels);
    sl_install_probes_avx512(kernels);
    sl_install_avx512(kernels, cpu_flags);
}

static void install_amx(struct sl_kernels *kernels, uint32_t cpu_flags)
{
    install_avx512(kernels, cpu_flags);
    sl_install_amx(kernels);
}
#else
#define install_avx2 NULL
#define install_avx512 NULL
#define install_amx NULL
#endif

#if defined(__aarch64__)
/* The reference is NEON already, as far as the compiler gets. */
static void install_neon(struct sl_kernels *kernels, uint32_t cpu_flags)
{
    install_ref(kernels, cpu_flags);
    sl_install_neon(kernels, cpu_flags);
}
#else
#define install_neon NULL
#endif

/* From the least to the most capable. Names of other architectures are known, but no CPU that this
 * is built for has their flags. */
static const struct {
    const char *name;
    uint32_t flags_needed;
    void (*install)(struct sl_kernels *kernels, uint32_t cpu_flags);
} sets[] = {
    {"ref", 0, install_ref},
    {"avx2", SL_CPU_AVX2_FMA, install_avx2},
    {"avx512", SL_CPU_AVX2_FMA | SL_CPU_AVX512, install_avx512},
    {"amx",
     SL_CPU_AVX2_FMA | SL_CPU_AVX512 | SL_CPU_AVX512_VNNI | SL_CPU_AVX512_BF16 |
         SL_CPU_AVX512_VBMI | SL_CPU_AMX,
     install_amx},
    {"neon", SL_CPU_NEON, install_neon},
};

int sl_kernels_select(struct sl_kernels *ret_kernels, const char *isa, struct sl_err *err)
{
    uint32_t flags = sl_cpu_flags();
    bool known = false, runs = false;

    for (size_t i = 0; i < SL_ARRAY_LEN(sets); i++) {
        if (isa && strcmp(isa, sets[i].name) != 0)
            continue;
        known = true;
        if ((flags & sets[i].flags_needed) != sets[i].flags_needed)
            continue;
        runs = true;
        ret_kernels->isa = sets[i].name;
        sets[i].install(ret_kernels, flags);
    }
    if (!known)
        return sl_err_set(err, -EINVAL, "unknown instruction set \"%s\"", isa);
    if (!runs)
        return sl_err_set(err, -SL_EUNSUPPORTED, "this CPU does not have the instruction set %s",
                          isa);
    return 0;
}
