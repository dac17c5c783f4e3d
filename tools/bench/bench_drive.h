/* The drives' limit for a decode: how fast they deliver the same experts that it asked for, when
 * all reads are queued at once.
 *
 * It has a reader of its own, with the same pieces and depth as the engine's, over files opened
 * again. One thread makes all calls, between steps but for note(). */
#ifndef SL_TOOLS_BENCH_BENCH_DRIVE_H
#define SL_TOOLS_BENCH_BENCH_DRIVE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/arena.h"
#include "daemon/engine/engine.h"

/* A zeroed one is closed. */
struct sl_bench_drive {
    const struct sl_engine *engine;
    struct sl_io *io;
    struct sl_arena area;
    bool *noted; /* (layers, n_routed_experts) since the last reading */
    struct sl_extent *extents;
    uint32_t n_extents, n_extents_max;
};

/* Borrows the engine. open_io may be NULL, as in the engine's options. Fails as opening files does,
 * and with -ENOMEM; the caller closes *drive in any case. */
int sl_bench_drive_open(struct sl_bench_drive *drive, const struct sl_engine *engine,
                        sl_io_open_fn *open_io, struct sl_err *err);
void sl_bench_drive_close(struct sl_bench_drive *drive);

/* A sl_route_fn that notes the experts that were asked for. This and the next two functions do
 * nothing while it is closed. */
void sl_bench_drive_note(void *drive, uint32_t layer_index, uint32_t n_tokens,
                         const uint16_t *experts);

/* Forgets what was noted. */
void sl_bench_drive_forget(struct sl_bench_drive *drive);

/* Reads the noted experts for about ns, in the order in which they were first asked for, and again
 * from the start. Gives 10^9 bytes a second, 0 if nothing was noted. Fails as reads do. */
int sl_bench_drive_rate(struct sl_bench_drive *drive, uint64_t ns, double *ret_rate,
                        struct sl_err *err);

#endif
