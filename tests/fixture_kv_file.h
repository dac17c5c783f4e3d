/* A file for KV caches in memory (core/model/kv_file.h), whose reads can be slow, out of order,
 * late, corrupt or fail, and whose writes can fail. What is read of a place that was never written
 * is noise. One thread makes all calls. */
#ifndef SL_TESTS_FIXTURE_KV_FILE_H
#define SL_TESTS_FIXTURE_KV_FILE_H

#include "core/model/kv_pager.h"

struct fixture_kv_read {
    uint32_t first_place, n_places;
    uint8_t *dst;
    bool busy, is_cancelled, is_urgent;
    uint32_t n_late; /* calls of is_free() until its drive lets go of dst */
};

struct fixture_kv_file {
    struct sl_kv_file file;
    uint8_t *bytes; /* (n_places, place_bytes) */
    uint64_t place_bytes;
    uint32_t n_places;

    /* How it behaves; may be changed at any time. */
    uint32_t delay_permille; /* of calls of end() without `wait` say that the read is under way */
    uint64_t late_nth;       /* the nth read from now on fails with -ETIMEDOUT, and its dst is
                                written to later; 0: none */
    uint64_t fail_write_nth; /* likewise for writes, with -ENOSPC */
    uint64_t fault_nth;      /* from the nth read on, so many fail with -EIO or come back corrupt */
    uint32_t n_fail, n_corrupt;
    uint64_t random;

    /* What it saw. */
    uint64_t n_reads, n_writes, n_urgent, n_hurried, n_cancelled;

    struct fixture_kv_read reads[SL_KV_READS_MAX];
};

void fixture_kv_file_init(struct fixture_kv_file *file, uint32_t page_bytes, uint64_t file_bytes,
                          uint64_t seed);
void fixture_kv_file_fini(struct fixture_kv_file *file);

#endif
