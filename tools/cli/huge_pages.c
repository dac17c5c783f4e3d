#include "tools/cli/huge_pages.h"

#include <string.h>

#include "core/base/arena.h"
#include "daemon/engine/memory_room.h"

double sl_huge_pages_share(void)
{
    struct sl_memory_room room;
    struct sl_arena trial;
    double share;

    sl_memory_room_read("", &room);
    if (room.available_bytes / 2 < SL_HUGE_TRIAL_BYTES ||
        sl_arena_map(&trial, SL_HUGE_TRIAL_BYTES, "trial of huge pages", NULL) < 0)
        return -1;
    memset(trial.base, 1, trial.size_bytes);
    share = (double)sl_arena_pages(&trial).huge_bytes / (double)trial.size_bytes;
    sl_arena_fini(&trial);
    return share;
}
