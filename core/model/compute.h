/* What every part of the forward pass computes with: kernels, threads, numerics. */
#ifndef SL_MODEL_COMPUTE_H
#define SL_MODEL_COMPUTE_H

#include "core/base/pool.h"
#include "core/kernels/kernels.h"
#include "core/model/phase.h"

enum sl_numerics {
    SL_NUMERICS_NATIVE, /* what ships: docs/NUMERICS.md */
    SL_NUMERICS_EXACT,  /* for tests: nothing rounded to less than float32, scalar code */
};

struct sl_compute {
    const struct sl_kernels *kernels;
    struct sl_pool *pool;
    enum sl_numerics numerics;
};

#endif
