/* A weight source that passes reads on to another one and tells how far they have come. */
#ifndef SL_DAEMON_ENGINE_WEIGHT_PROGRESS_H
#define SL_DAEMON_ENGINE_WEIGHT_PROGRESS_H

#include "core/base/progress_fn.h"
#include "core/model/weight_source.h"

struct sl_weight_progress {
    struct sl_weight_source source; /* first: give this to the reader of weights */
    struct sl_weight_source *inner;
    uint64_t read_bytes, total_bytes;
    sl_progress_fn *on_progress; /* NULL, or told after each read */
    void *context;
};

/* Borrows `inner`. */
void sl_weight_progress_init(struct sl_weight_progress *progress, struct sl_weight_source *inner,
                             uint64_t total_bytes, sl_progress_fn *on_progress, void *context);

#endif
