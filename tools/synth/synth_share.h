/* Which layers of a planned checkpoint share their bytes, and which blocks of their files can be
 * the same on disk. */
#ifndef SL_TOOLS_SYNTH_SYNTH_SHARE_H
#define SL_TOOLS_SYNTH_SYNTH_SHARE_H

#include <stdint.h>

#include "core/base/err.h"
#include "tools/synth/synth_plan.h"

/* Gives tensors their donors and shards their runs, and plan->write_bytes what is left to write. A
 * quantised linear (FP4 or FP8: nearly all bytes of a layer) of one of the first `share_layers`
 * layers that have it is the donor of that linear in all later layers. Norms, routers, compressors
 * and hyper-connections stay each layer's own. Returns 0 or -ENOMEM. */
int sl_synth_share(struct sl_synth_plan *plan, uint32_t share_layers);

/* Tries whether files in `folder` can share blocks. Fails with a line that says what can. */
int sl_synth_check_sharing(const char *folder, struct sl_err *err);

/* Makes the bytes of a run in `fd` those of `donor_fd`, on disk too. Both files lie on one file
 * system. Returns 0 or -errno. */
int sl_synth_clone(int fd, int donor_fd, const struct sl_synth_run *run);

#endif
