/* Checks a checkpoint that was downloaded, or copied: all files that the index names are there, as
 * long as their headers say; their SHA-256 is the one that is known, where one is
 * (storage/checkpoint/file_hashes.h); and no scale is NaN. Everything is read once, past the page
 * cache, several files at a time. */
#ifndef SL_STORAGE_CHECKPOINT_CHECKPOINT_VERIFY_H
#define SL_STORAGE_CHECKPOINT_CHECKPOINT_VERIFY_H

#include <stdatomic.h>
#include <stdint.h>

#include "core/base/err.h"
#include "core/base/progress_fn.h"
#include "storage/checkpoint/file_hashes.h"
#include "storage/io/io.h"

/* Is told of a file that is bad: its name within the folder, and a message that names it too. A
 * file may be reported more than once. One call at a time, from any thread. */
typedef void sl_checkpoint_bad_fn(void *context, const char *name, const char *message);

struct sl_checkpoint_verify_options {
    const char *folder;
    const struct sl_file_hashes *list; /* NULL: none; its files must all be there */
    sl_io_open_fn *open_io;
    uint32_t n_threads; /* files that are read at a time; each takes 16 MiB */
    sl_checkpoint_bad_fn *on_bad;
    void *bad_context;
    sl_progress_fn *on_progress; /* by the thread that calls */
    void *progress_context;
    const atomic_bool *stop;
};

struct sl_checkpoint_verify_result {
    uint32_t n_files, n_bad;
    uint32_t n_hashed; /* files whose SHA-256 was known */
    uint64_t read_bytes;
};

/* Bad files are no error. Fails with -ENOMEM, -ECANCELED if stopped, -ETIMEDOUT if a drive does not
 * answer (storage/io/reader.h), and where there is no checkpoint at all as sl_checkpoint_open();
 * ret_result is filled in any case. */
int sl_checkpoint_verify(const struct sl_checkpoint_verify_options *options,
                         struct sl_checkpoint_verify_result *ret_result, struct sl_err *err);

#endif
