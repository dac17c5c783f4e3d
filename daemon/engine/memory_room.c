#include "daemon/engine/memory_room.h"

#include <limits.h>
#include <stdio.h>

#include "core/base/size.h"

/* Bounds of the memory that is left to other programs; the header gives the reasons. */
#define RESERVE_SHARE 8u
#define RESERVE_MIN_BYTES (UINT64_C(2) << 30)
#define RESERVE_MAX_BYTES (UINT64_C(16) << 30)
#define RESERVE_SHARE_MAX 4u
#define GROUP_RESERVE_SHARE 16u

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t less(uint64_t a, uint64_t b)
{
    return a > b ? a - b : 0;
}

static uint64_t reserve_of(uint64_t total_bytes)
{
    uint64_t reserve = total_bytes / RESERVE_SHARE;

    if (reserve < RESERVE_MIN_BYTES)
        reserve = RESERVE_MIN_BYTES;
    return least(least(reserve, RESERVE_MAX_BYTES), total_bytes / RESERVE_SHARE_MAX);
}

void sl_memory_room_keep_to(const char *root, const struct sl_node_mask *allowed,
                            struct sl_memory_room *room)
{
    uint64_t total = 0, available = 0;
    bool has_others = false;

    for (uint32_t node = 0; node < SL_NODES_MAX; node++) {
        const struct sl_node_memory memory = sl_node_memory_read(root, node);

        if (!sl_node_mask_has(allowed, node)) {
            has_others |= memory.total_bytes > 0;
            continue;
        }
        total += memory.total_bytes;
        available += memory.available_bytes;
    }
    if (!has_others || total == 0)
        return;
    if (total < room->total_bytes) {
        room->total_bytes = total;
        room->limit_file[0] = '\0';
        room->bound_to_nodes = true;
    }
    room->available_bytes = least(room->available_bytes, available);
    room->default_bytes = least(room->default_bytes, less(available, reserve_of(total)));
}

/* Fills in what the machine and the control groups leave. */
static void read_limits(const char *root, struct sl_memory_room *ret_room)
{
    struct sl_cgroup_limits limits;
    char path[PATH_MAX];
    uint64_t total, available, swap;

    snprintf(path, sizeof(path), "%s/proc/meminfo", root);
    total = sl_read_number(path, "MemTotal:", 0) << 10;
    available = sl_read_number(path, "MemAvailable:", 0) << 10;
    swap = sl_read_number(path, "SwapFree:", 0) << 10;
    *ret_room = (struct sl_memory_room){.total_bytes = total,
                                        .available_bytes = least(total, available + swap),
                                        .default_bytes = less(available, reserve_of(total))};
    sl_cgroup_read(root, &limits);
    if (limits.memory_max_bytes >= total)
        return;
    ret_room->total_bytes = limits.memory_max_bytes;
    ret_room->available_bytes = least(ret_room->available_bytes, limits.memory_left_bytes);
    ret_room->default_bytes =
        least(ret_room->default_bytes,
              less(limits.memory_left_bytes, limits.memory_max_bytes / GROUP_RESERVE_SHARE));
    snprintf(ret_room->limit_file, sizeof(ret_room->limit_file), "%s", limits.memory_file);
}

void sl_memory_room_read(const char *root, struct sl_memory_room *ret_room)
{
    struct sl_node_mask allowed;

    read_limits(root, ret_room);
    if (root[0])
        return;
    sl_nodes_allowed(&allowed);
    sl_memory_room_keep_to(root, &allowed, ret_room);
}

int sl_memory_room_check(const struct sl_memory_room *room, uint64_t budget_bytes,
                         uint64_t more_bytes, struct sl_err *err)
{
    char budget[SL_SIZE_TEXT_BYTES], more[SL_SIZE_TEXT_BYTES];
    char total[SL_SIZE_TEXT_BYTES], available[SL_SIZE_TEXT_BYTES];

    sl_size_format(budget_bytes, budget);
    sl_size_format(more_bytes, more);
    sl_size_format(room->total_bytes, total);
    sl_size_format(room->available_bytes, available);
    if (budget_bytes > room->total_bytes && room->limit_file[0])
        return sl_err_set(err, -SL_EBUDGET,
                          "--ram of %s is more than the %s that the control group allows (%s); "
                          "give less, or raise that limit",
                          budget, total, room->limit_file);
    if (budget_bytes > room->total_bytes && room->bound_to_nodes)
        return sl_err_set(err, -SL_EBUDGET,
                          "--ram of %s is more than the %s of the memory nodes that this process "
                          "is bound to (a cpuset, or numactl); give less, or allow it more nodes",
                          budget, total);
    if (budget_bytes > room->total_bytes)
        return sl_err_set(err, -SL_EBUDGET,
                          "--ram of %s is more than the %s that this machine has; give less",
                          budget, total);
    if (more_bytes > room->available_bytes)
        return sl_err_set(
            err, -SL_EBUDGET,
            "needs %s more memory, but other programs leave only %s of %s now; give less "
            "--ram, or end some of them",
            more, available, total);
    return 0;
}
