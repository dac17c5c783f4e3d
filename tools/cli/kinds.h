/* Commands that come in kinds, as `sluice bench decode` and `sluice bench io` do. */
#ifndef SL_TOOLS_CLI_KINDS_H
#define SL_TOOLS_CLI_KINDS_H

#include <stddef.h>

struct sl_kind {
    const char *name;
    int (*run)(int argc, char **argv);
};

/* Runs the kind that argv[1] names and returns its exit status. For --help and where nothing is
 * named, prints `usage`, lines that each begin with the name of the command behind argv[0]. */
int sl_run_kind(const struct sl_kind *kinds, size_t n_kinds, int argc, char **argv,
                const char *const *usage);

#endif
