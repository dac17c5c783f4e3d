/* The figures of `sluice batch run`: while it goes, and at the end. */
#ifndef SL_TOOLS_BATCH_BATCH_FIGURES_H
#define SL_TOOLS_BATCH_BATCH_FIGURES_H

#include "daemon/batch/batch_runner.h"
#include "tools/cli/energy.h"

struct sl_batch_figures {
    uint64_t begun_ns, elapsed_ns; /* the latter is 0 where nothing was run */
    struct sl_energy energy;
    double joules; /* below 0: not known */
    struct sl_worker_status worker;
};

void sl_batch_figures_begin(struct sl_batch_figures *figures);
void sl_batch_figures_end(struct sl_batch_figures *figures, const struct sl_worker_status *worker);

/* Writes how far a batch is, in one line. */
void sl_batch_figures_line(const struct sl_batch_status *status, char *line, size_t size);

/* Prints what came of it on standard error. */
void sl_batch_figures_print(const struct sl_batch_figures *figures,
                            const struct sl_batch_status *status, const char *output_path,
                            const char *error_path);

#endif
