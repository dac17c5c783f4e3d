/* The memory and processor time that the control groups of this process leave it.
 *
 * A limit holds for all that is in the group that has it and below, so every group from the
 * process's own up to the mount's top counts, in both versions of the interface; on hybrid systems
 * each controller is where its own mount is. A group that is not there, that may not be read, or
 * whose files make no sense limits nothing. */
#ifndef SL_BASE_CGROUP_H
#define SL_BASE_CGROUP_H

#include <stdint.h>

#define SL_CGROUP_FILE_BYTES 256

struct sl_cgroup_limits {
    uint64_t memory_max_bytes; /* the tightest limit of them all; UINT64_MAX: there is none */
    /* Bytes that can still be had under every limit: file cache that the system can take back does
     * not count as used. UINT64_MAX where there is no limit. */
    uint64_t memory_left_bytes;
    char memory_file[SL_CGROUP_FILE_BYTES]; /* where the tightest limit is written; "" if nowhere */
    uint32_t cpus; /* whole processors that the tightest quota pays for, at least 1; 0: no quota */
};

/* `root` goes before every path: "" for this machine, a folder for one that is made up. */
void sl_cgroup_read(const char *root, struct sl_cgroup_limits *ret_limits);

/* The number after `key` in a file of lines "key number", or the file's first word where key is "".
 * Returns `otherwise` where there is no such number, such as for "max" and -1. */
uint64_t sl_read_number(const char *path, const char *key, uint64_t otherwise);

#endif
