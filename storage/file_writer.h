/* How a store's files are written: the few calls that sluice pack makes, as a table, so that a test
 * can stand in for a disk that fills up or loses power.
 *
 * What was written is safe after sync() of the file, and for a new file sync_folder() of where it
 * is. All calls return 0 or -errno. write() may come from any thread; the rest from one. */
#ifndef SL_STORAGE_FILE_WRITER_H
#define SL_STORAGE_FILE_WRITER_H

#include <stdbool.h>
#include <stdint.h>

#define SL_WRITE_ALIGN_BYTES UINT64_C(4096)

struct sl_file_writer;

struct sl_file_writer_ops {
    int (*make_folder)(struct sl_file_writer *writer, const char *path); /* it may be there */
    int (*sync_folder)(struct sl_file_writer *writer, const char *path);

    /* Creates the file if there is none, and gives a number for it. For `bulk` what is in it stays,
     * and offset, size and address of every write are multiples of SL_WRITE_ALIGN_BYTES: it goes
     * past the page cache where the file system and the drive do that for such blocks. Otherwise
     * the file is emptied. */
    int (*open)(struct sl_file_writer *writer, const char *path, bool bulk, int *ret_file);

    int (*write)(struct sl_file_writer *writer, int file, uint64_t offset_bytes, const void *data,
                 uint64_t size_bytes);
    int (*sync)(struct sl_file_writer *writer, int file);
    void (*close)(struct sl_file_writer *writer, int file);

    /* Shortens a file that is there. Nothing waits for this to be on disk. */
    int (*cut)(struct sl_file_writer *writer, const char *path, uint64_t size_bytes);
};

/* First member of every implementation. */
struct sl_file_writer {
    const struct sl_file_writer_ops *ops;
};

/* The real one; without state, never destroyed. */
struct sl_file_writer *sl_file_writer(void);

#endif
