/* How a store's files, images and results are written: the few calls that this takes, as a table,
 * so that a test can stand in for a disk that fills up or loses power.
 *
 * Written data are safe after sync() of the file; a new file also needs sync_folder() of its
 * folder. All calls return 0 or -errno. write() may come from any thread; the rest from one. */
#ifndef SL_STORAGE_IO_FILE_WRITER_H
#define SL_STORAGE_IO_FILE_WRITER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/err.h"

struct sl_file_writer;

struct sl_file_writer_ops {
    int (*make_folder)(struct sl_file_writer *writer, const char *path); /* it may be there */
    int (*sync_folder)(struct sl_file_writer *writer, const char *path);

    /* Opens a file and gives a number for it. A `bulk` file keeps its contents and is created if
     * there is none. Offset, size and address of every write to it are multiples of SL_BLOCK_BYTES,
     * so that writes go past the page cache where file system and drive allow it, and nobody else
     * can open it as bulk until it is closed (-EBUSY). Without `bulk`, a new file replaces any that
     * is there. A symbolic link is not followed (-ELOOP). */
    int (*open)(struct sl_file_writer *writer, const char *path, bool bulk, int *ret_file);

    /* Opens a file for writing that keeps its contents, and makes it if there is none. */
    int (*open_kept)(struct sl_file_writer *writer, const char *path, int *ret_file);

    int (*write)(struct sl_file_writer *writer, int file, uint64_t offset_bytes, const void *data,
                 uint64_t size_bytes);
    int (*sync)(struct sl_file_writer *writer, int file);
    void (*close)(struct sl_file_writer *writer, int file);

    /* Renames a file that is written and closed, and replaces any file of the new name. */
    int (*rename)(struct sl_file_writer *writer, const char *from, const char *to);

    /* Fails with -ESTALE if the path does not lead to this open file any more. */
    int (*leads)(struct sl_file_writer *writer, const char *path, int file);

    /* Removes a file. Nothing waits for this to be on disk. */
    int (*remove)(struct sl_file_writer *writer, const char *path);

    /* Shortens a file that is there. Nothing waits for this to be on disk. */
    int (*cut)(struct sl_file_writer *writer, const char *path, uint64_t size_bytes);
};

/* First member of every implementation. */
struct sl_file_writer {
    const struct sl_file_writer_ops *ops;
};

/* Returns the writer for real files. It has no state and is never destroyed. The second makes files
 * and folders that only their owner can read. */
struct sl_file_writer *sl_file_writer(void);
struct sl_file_writer *sl_file_writer_private(void);

/* ---- over any of them -------------------------------------------------------------------------
 */

/* Writes and syncs a small file: first under its name with SL_WRITE_NEW appended, then renamed, so
 * that at any time either the old or the new file is there, whole. */
#define SL_WRITE_NEW ".new"
int sl_write_small(struct sl_file_writer *writer, const char *path, const void *bytes,
                   size_t size_bytes, struct sl_err *err);

/* Syncs the folder that a file is in, and with it the file's name. */
int sl_write_name(struct sl_file_writer *writer, const char *path, struct sl_err *err);

/* Fills `err` for a call of a file writer that failed with `rc`, and returns it. */
int sl_write_error(struct sl_err *err, int rc, const char *path, const char *what);

#endif
