/* Kernels, threads and numerics, with which every part of the forward pass computes, and the work
 * that goes on beside it: after each larger piece of work the forward pass calls
 * sl_compute_background(). */
#ifndef SL_MODEL_COMPUTE_H
#define SL_MODEL_COMPUTE_H

#include "core/base/pool.h"
#include "core/kernels/kernels.h"
#include "core/model/phase.h"

enum sl_numerics {
    SL_NUMERICS_NATIVE, /* what ships: docs/NUMERICS.md */
    SL_NUMERICS_EXACT,  /* for tests: nothing rounded to less than float32, scalar code */
};

/* The name of `native` where work is kept that only the same arithmetic may go on with: another
 * name whenever the same tokens give other logits, and then SL_IMAGE_VERSION as well. */
#define SL_NATIVE_ID "native4"

/* Work beside the forward pass that must not wait for the end of a layer: reads that have landed
 * are taken in and others begun, so that the drives stay busy. `run` is called by the thread that
 * drives the pool, while no job runs; it may run jobs itself. NULL: nothing to be done. */
struct sl_background {
    void (*run)(void *context);
    void *context;
};

struct sl_compute {
    const struct sl_kernels *kernels;
    struct sl_pool *pool;
    enum sl_numerics numerics;
    struct sl_background background;
};

static inline void sl_compute_background(const struct sl_compute *compute)
{
    if (compute->background.run)
        compute->background.run(compute->background.context);
}

#endif
