/* How much memory this process can have: of the machine, and within its control groups. */
#ifndef SL_DAEMON_ENGINE_MEMORY_ROOM_H
#define SL_DAEMON_ENGINE_MEMORY_ROOM_H

#include <stdint.h>

#include "core/base/cgroup.h"
#include "core/base/err.h"

struct sl_memory_room {
    uint64_t total_bytes;     /* of the machine, or of its tightest control group if that is less */
    uint64_t available_bytes; /* that can be had now, at most: others may have to swap for it */
    uint64_t default_bytes;   /* for a run that was not told how much: some is left to others */
    char limit_file[SL_CGROUP_FILE_BYTES]; /* what sets total_bytes; "" if it is the machine */
};

/* `root` as in sl_cgroup_read().
 *
 * What is left to others by default: on a machine an eighth, between 2 and 16 GiB, since what a
 * desktop's programs come to need grows with the machine up to a point, but at most a quarter. Our
 * memory is locked, so it cannot be taken back when they need it. In a control group nobody else
 * has to live, and a sixteenth is for what the system keeps there on our behalf. */
void sl_memory_room_read(const char *root, struct sl_memory_room *ret_room);

/* Fails with -SL_EBUDGET and the figures if a budget can never be had here, or if so much of it is
 * needed on top of what the process has that it cannot be had now. */
int sl_memory_room_check(const struct sl_memory_room *room, uint64_t budget_bytes,
                         uint64_t more_bytes, struct sl_err *err);

#endif
