/* The speeds of a machine for `sluice plan`: measured, or assumed. */
#ifndef SL_TOOLS_PLAN_PLAN_PROBE_H
#define SL_TOOLS_PLAN_PLAN_PROBE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/err.h"
#include "tools/plan/cost.h"
#include "storage/io/io.h"

/* Returns what linears do on one core in 10^9 a second: six tenths of the peaks of a Zen 4 core
 * with AVX-512, which is what prompts reach there (docs/PERFORMANCE.md). */
struct sl_multiplications sl_plan_core_rates(void);

/* Reads memory and runs linears of V4-Flash's sizes with that many threads, for some seconds;
 * leaves the drive alone. Tells whether something disturbed that all the while. Fails with -ENOMEM.
 */
int sl_plan_probe_cores(uint32_t n_threads, struct sl_machine_speeds *speeds, bool *ret_disturbed,
                        struct sl_err *err);

/* Reads the drive, or drives, that hold the experts of the model in folder `path`, or else the file
 * `path`, through the back end `open_io`. Fails as opening does, and with -SL_EUNSUPPORTED where
 * the page cache would answer, or the files are too small to tell. */
int sl_plan_probe_drive(const char *path, sl_io_open_fn *open_io, double *ret_rate,
                        struct sl_err *err);

#endif
