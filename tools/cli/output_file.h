/* Files that commands write: whole or not at all.
 *
 * sl_output_open() finds out before the work begins whether the file can be written. Output goes to
 * a temporary file in the same folder, which sl_output_commit() syncs and renames. Until then, an
 * existing file of that name stays as it is, however the program ends; only SIGKILL leaves the
 * temporary file behind. "-" is standard output. Pipes and devices are written to directly, since
 * they have no contents to preserve.
 *
 * Belongs to the main thread. */
#ifndef SL_TOOLS_CLI_OUTPUT_FILE_H
#define SL_TOOLS_CLI_OUTPUT_FILE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "core/base/err.h"

struct sl_output_file {
    FILE *stream;     /* what the caller writes to; NULL when not open */
    const char *name; /* as given, for messages; borrowed */
    char *path;       /* of the file that will be replaced; NULL if written to directly */
    bool exists;      /* it does already: its identity */
    dev_t device;
    ino_t inode;
    int fd;
    int write_errno;     /* of the first write that failed; 0: none */
    uint32_t part_index; /* the temporary file's place in the list of all */
};

/* A program may open this many output files. */
#define SL_OUTPUT_FILES_MAX 72u

/* Opens *out for `name`, which must live as long; *out must stay where it is. Fails with -errno or
 * -ENOMEM; *out is closed then. The caller ends with commit() or discard(). */
int sl_output_open(struct sl_output_file *out, const char *name, struct sl_err *err);

/* Refuses, with -EINVAL, an output that would replace the file `path`, or a file in the folder
 * `path` or below: the model, or an input. "-" is standard input. An input that is not there is no
 * error here. *out may be closed. */
int sl_output_keep_off(const struct sl_output_file *out, const char *path, struct sl_err *err);

/* Returns whether both would become one file. */
bool sl_output_same(const struct sl_output_file *a, const struct sl_output_file *b);

/* Flushes, syncs, puts the file in its place and closes it. Also reports earlier writes that
 * failed. Fails with -errno; then nothing is replaced. */
int sl_output_commit(struct sl_output_file *out, struct sl_err *err);

/* Closes the output and leaves the existing file as it is. A closed or zeroed output is allowed. */
void sl_output_discard(struct sl_output_file *out);

/* Names a temporary folder that is being filled, which is then removed like a temporary file; it
 * has no folders in it. NULL names none, before the folder gets its name or is removed. The path
 * must live as long. */
void sl_output_folder(const char *path);

/* Removes the temporary files of all that are open, and the folder, for a signal handler that ends
 * the program. */
void sl_output_remove_unfinished(void);

#endif
