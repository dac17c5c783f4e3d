/* How a store's files are written: the few calls that sluice pack makes, as a table, so that a test
 * can stand in for a disk that fills up or loses power.
 *
 * What was written is safe after sync() of the file, and for a new file sync_folder() of where it
 * is. All calls return 0 or -errno. write() may come from any thread; the rest from one. */
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

    /* Opens a file and gives a number for it. For `bulk` what is in it stays, it is created if
     * there is none, and offset, size and address of every write are multiples of
     * SL_BLOCK_BYTES, so that it goes past the page cache where the file system and the drive
     * do that for such blocks; nobody else can open it so until it is closed (-EBUSY). Otherwise a
     * new file takes the place of any that is there. A symbolic link is not followed (-ELOOP). */
    int (*open)(struct sl_file_writer *writer, const char *path, bool bulk, int *ret_file);

    int (*write)(struct sl_file_writer *writer, int file, uint64_t offset_bytes, const void *data,
                 uint64_t size_bytes);
    int (*sync)(struct sl_file_writer *writer, int file);
    void (*close)(struct sl_file_writer *writer, int file);

    /* Gives a file that is written and closed another name, in place of any file of that name. */
    int (*rename)(struct sl_file_writer *writer, const char *from, const char *to);

    /* -ESTALE if the path does not lead to this open file any more. */
    int (*leads)(struct sl_file_writer *writer, const char *path, int file);

    /* Shortens a file that is there. Nothing waits for this to be on disk. */
    int (*cut)(struct sl_file_writer *writer, const char *path, uint64_t size_bytes);
};

/* First member of every implementation. */
struct sl_file_writer {
    const struct sl_file_writer_ops *ops;
};

/* The real one; without state, never destroyed. */
struct sl_file_writer *sl_file_writer(void);

/* ---- over any of them -------------------------------------------------------------------------
 */

/* A small file, whole and synced: written under its name with SL_WRITE_NEW behind it, then renamed,
 * so that under its name there is the old one or the new one at any time. */
#define SL_WRITE_NEW ".new"
int sl_write_small(struct sl_file_writer *writer, const char *path, const void *bytes,
                   size_t size_bytes, struct sl_err *err);

/* Syncs the folder that a file is in, and with it the file's name. */
int sl_write_name(struct sl_file_writer *writer, const char *path, struct sl_err *err);

/* Fills `err` for a call of a file writer that failed with `rc`, and returns it. */
int sl_write_error(struct sl_err *err, int rc, const char *path, const char *what);

#endif
