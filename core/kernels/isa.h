/* Names inside the *_isa.c files, which are compiled once per instruction set: the Makefile defines
 * SL_ISA as ref, avx2, ... and each compilation exports its installers under that name. */
#ifndef SL_KERNELS_ISA_H
#define SL_KERNELS_ISA_H

#include "core/kernels/kernels.h"

#ifndef SL_ISA
#define SL_ISA ref
#endif

#define SL_ISA_PASTE(name, isa) name##_##isa
#define SL_ISA_EXPAND(name, isa) SL_ISA_PASTE(name, isa)
#define SL_ISA_NAME(name) SL_ISA_EXPAND(name, SL_ISA)

#define SL_DECLARE_INSTALLERS(isa)                                                                 \
    void sl_install_linear_##isa(struct sl_kernels *kernels);                                      \
    void sl_install_activation_##isa(struct sl_kernels *kernels);                                  \
    void sl_install_attention_##isa(struct sl_kernels *kernels);                                   \
    void sl_install_probes_##isa(struct sl_kernels *kernels);

SL_DECLARE_INSTALLERS(ref)
SL_DECLARE_INSTALLERS(avx2)
SL_DECLARE_INSTALLERS(avx512)

/* Overwrite entries of a table that the above filled: kernels-avx512/ and kernels-neon/. */
void sl_install_avx512(struct sl_kernels *kernels, uint32_t cpu_flags);
void sl_install_amx(struct sl_kernels *kernels);
void sl_install_neon(struct sl_kernels *kernels, uint32_t cpu_flags);

#endif
