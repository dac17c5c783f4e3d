/* Writes a planned checkpoint's shards, at the drive's speed: several threads make and write large
 * aligned pieces past the page cache. */
#ifndef SL_TOOLS_SYNTH_SYNTH_WRITE_H
#define SL_TOOLS_SYNTH_SYNTH_WRITE_H

#include <stdatomic.h>
#include <stdint.h>

#include "core/base/err.h"
#include "core/base/progress_fn.h"
#include "tools/synth/synth_plan.h"

/* Writes all shards into `folder` and flushes them; `progress` is told a few times a second. Ends
 * early with -ECANCELED once `stop` is set. Also fails with -ENOMEM, -EAGAIN (no thread to be had)
 * or -errno of open and write; the files written so far stay. */
int sl_synth_write(const struct sl_synth_plan *plan, const struct sl_synth_tables *tables,
                   const char *folder, uint32_t n_threads, const atomic_bool *stop,
                   sl_progress_fn *progress, void *context, struct sl_err *err);

#endif
