/* How much memory this process can have, on the machine and within its control groups. */
#ifndef SL_DAEMON_ENGINE_MEMORY_ROOM_H
#define SL_DAEMON_ENGINE_MEMORY_ROOM_H

#include <stdint.h>

#include "core/base/cgroup.h"
#include "core/base/err.h"
#include "core/base/nodes.h"

struct sl_memory_room {
    /* The machine's, or less: that of its tightest control group, or of the memory nodes that this
     * process is bound to. */
    uint64_t total_bytes;
    uint64_t available_bytes; /* that can be had now, at most: others may have to swap for it */
    uint64_t default_bytes;   /* for a run that was not told how much: some is left to others */
    char limit_file[SL_CGROUP_FILE_BYTES]; /* the file with the limit; "" if the machine's memory is
                                              the limit, or that of nodes */
    bool bound_to_nodes;                   /* total_bytes is what the allowed nodes have */
};

/* `root` as in sl_cgroup_read().
 *
 * By default other programs keep an eighth of the machine's memory, at least 2 and at most 16 GiB,
 * but never more than a quarter: the needs of a desktop's programs grow with the machine only up to
 * a point. Our memory is locked, so they cannot get it back when they need it. A control group is
 * ours alone; a sixteenth of it is left for what the system keeps there on our behalf. */
void sl_memory_room_read(const char *root, struct sl_memory_room *ret_room);

/* Narrows the room to what the nodes of `allowed` have, if the machine has others. For tests:
 * sl_memory_room_read() does it on this machine. */
void sl_memory_room_keep_to(const char *root, const struct sl_node_mask *allowed,
                            struct sl_memory_room *room);

/* Fails with -SL_EBUDGET and the figures if a budget can never be had here, or if so much of it is
 * needed on top of what the process has that it cannot be had now. */
int sl_memory_room_check(const struct sl_memory_room *room, uint64_t budget_bytes,
                         uint64_t more_bytes, struct sl_err *err);

#endif
