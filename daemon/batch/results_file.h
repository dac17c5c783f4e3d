/* A file of results: lines that are only appended.
 *
 * Its owner keeps its length in a journal. Lines are written and synced first, and count when the
 * journal has the new length; what is behind that length after a crash is cut off. So a line is
 * there whole or not at all, and once. Belongs to one thread. */
#ifndef SL_DAEMON_BATCH_RESULTS_FILE_H
#define SL_DAEMON_BATCH_RESULTS_FILE_H

#include "core/base/bytes.h"
#include "core/base/err.h"
#include "storage/io/file_writer.h"

struct sl_results_file {
    struct sl_file_writer *writer;
    const char *path;      /* borrowed */
    int file, read_fd;     /* below 0: not open */
    uint64_t kept_bytes;   /* that the journal has */
    struct sl_bytes lines; /* behind them; not in the journal yet */
};

/* Sets up a file of so many bytes, which is not opened yet. */
void sl_results_init(struct sl_results_file *results, struct sl_file_writer *writer,
                     const char *path, uint64_t kept_bytes);
void sl_results_fini(struct sl_results_file *results);

/* Opens the file, which is made where no byte of it is kept, and cuts off what is behind the kept
 * bytes. Allowed when it is open. Fails with -ENOENT or -SL_ECORRUPT where kept bytes are missing,
 * and with -errno. */
int sl_results_open(struct sl_results_file *results, struct sl_err *err);

/* Writes the new lines, and syncs them. A file that somebody has removed is made again with all
 * that it had; *ret_restored says so. A failure can be tried again; the kept bytes stay. */
int sl_results_write(struct sl_results_file *results, bool *ret_restored, struct sl_err *err);

/* The journal has the length with the new lines now. */
void sl_results_keep(struct sl_results_file *results);

#endif
