/* A file for pages of KV caches that memory has no room for: declared here, implemented by storage,
 * faked by tests.
 *
 * The file has places, numbered from 0, each of place_bytes for one page. What lies in it is of use
 * to this process alone and only as long as it runs. Whoever writes keeps checksums in memory, so
 * nothing that comes back is trusted. */
#ifndef SL_MODEL_KV_FILE_H
#define SL_MODEL_KV_FILE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/err.h"
#include "core/base/size.h"

struct sl_kv_file;

/* Reads have numbers below the count that the file was made for, each for one read at a time:
 *
 *     begin() ──► start() ──► end() ... ──► end()       the number is free, once is_free() says so
 *
 * All calls but checksum() come from the thread that drives the forward pass. Memory is aligned to
 * SL_BLOCK_BYTES, and runs of places lie in it as in the file. */
struct sl_kv_file_ops {
    /* Writes a run of places. Blocks. Fails with -errno, and `err` names the file. */
    int (*write)(struct sl_kv_file *file, uint32_t first_place, uint32_t n_places,
                 const uint8_t *bytes, struct sl_err *err);

    /* Queues a read of a run of places. Somebody waits for what is urgent. */
    void (*begin)(struct sl_kv_file *file, uint32_t read_index, uint32_t first_place,
                  uint32_t n_places, uint8_t *dst, bool urgent);

    /* Sends off what was queued. */
    void (*start)(struct sl_kv_file *file);

    /* Somebody waits for the read now. */
    void (*hurry)(struct sl_kv_file *file, uint32_t read_index);

    /* Nobody wants it any more. It still ends, sooner or later. */
    void (*cancel)(struct sl_kv_file *file, uint32_t read_index);

    /* Returns 1 when all bytes are in dst; or 0 while the read is under way, which with `wait` does
     * not happen. Fails with -ECANCELED, or as reads do, and then `err` names file and offset. */
    int (*end)(struct sl_kv_file *file, uint32_t read_index, bool wait, struct sl_err *err);

    /* False while a drive that did not answer in time may still write to the dst of a read that
     * has ended. */
    bool (*is_free)(struct sl_kv_file *file, uint32_t read_index);

    /* Any thread may call it. */
    uint64_t (*checksum)(const void *bytes, size_t size_bytes);
};

/* First member of every implementation. */
struct sl_kv_file {
    const struct sl_kv_file_ops *ops;
};

/* Bytes from one place to the next, for pages of this size: direct I/O goes in blocks. */
static inline uint64_t sl_kv_place_bytes(uint32_t page_bytes)
{
    return sl_round_up(page_bytes, SL_BLOCK_BYTES);
}

#endif
