/* Chooses the instruction set whose kernels run. */
#ifndef SL_KERNELS_DISPATCH_H
#define SL_KERNELS_DISPATCH_H

#include "core/base/err.h"
#include "core/kernels/kernels.h"

/* Fills the table for instruction set `isa` ("ref", "avx2", "avx512", "amx", "neon", or NULL for
 * the best that this CPU has). Fails with -EINVAL for an unknown name and -SL_EUNSUPPORTED for one
 * that the CPU lacks. */
int sl_kernels_select(struct sl_kernels *ret_kernels, const char *isa, struct sl_err *err);

#endif
