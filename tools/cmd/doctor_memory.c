/* Checks the memory for a run: how much there is, whether it can be locked, and in which pages it
 * comes. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "core/base/arena.h"
#include "core/base/file.h"
#include "core/base/size.h"
#include "daemon/engine/memory_room.h"
#include "tools/cmd/doctor.h"
#include "tools/cli/huge_pages.h"

#define FILE_BYTES_MAX 4096u
#define HUGE_SHARE_MIN                                                                             \
    0.9 /* of what was tried: below that most of a cache will be in small pages */
#define BEYOND_BYTES (UINT64_C(64) << 10)

/* Returns whether so much can be locked. Some users may exceed their limit, which only a trial
 * shows. The trial brings in no page. */
static bool can_lock(uint64_t size_bytes)
{
    void *base = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    bool can;

    if (base == MAP_FAILED)
        return false;
    can = mlock2(base, size_bytes, MLOCK_ONFAULT) == 0;
    munmap(base, size_bytes);
    return can;
}

static void find_locking(struct sl_doctor *doctor)
{
    char text[SL_SIZE_TEXT_BYTES], needed[SL_SIZE_TEXT_BYTES];
    struct rlimit limit;

    if (getrlimit(RLIMIT_MEMLOCK, &limit) < 0)
        return;
    if (limit.rlim_cur == RLIM_INFINITY || can_lock(limit.rlim_cur + BEYOND_BYTES)) {
        sl_doctor_find(doctor, SL_DOCTOR_OK, "locked memory", NULL, "as much as is wanted");
        return;
    }
    sl_size_format(limit.rlim_cur, text);
    sl_size_format(doctor->memory_bytes, needed);
    if (limit.rlim_cur >= doctor->memory_bytes)
        sl_doctor_find(doctor, SL_DOCTOR_OK, "locked memory", NULL, "up to %s; a run takes %s",
                       text, needed);
    else
        sl_doctor_find(doctor, SL_DOCTOR_SHORT, "locked memory",
                       limit.rlim_max == RLIM_INFINITY
                           ? "ulimit -l unlimited"
                           : "echo \"$USER - memlock unlimited\" | sudo tee "
                             "/etc/security/limits.d/sluice.conf  (and log in again; docker: "
                             "--ulimit memlock=-1)",
                       "up to %s, a run takes %s: it may be swapped out, and reads cost more "
                       "processor time",
                       text, needed);
}

static void find_room(struct sl_doctor *doctor)
{
    char total[SL_SIZE_TEXT_BYTES], available[SL_SIZE_TEXT_BYTES], given[SL_SIZE_TEXT_BYTES];
    char mend[SL_CGROUP_FILE_BYTES + 64];
    struct sl_memory_room room, machine;
    char path[PATH_MAX];

    sl_memory_room_read(doctor->root, &room);
    if (doctor->memory_bytes == 0)
        doctor->memory_bytes = room.default_bytes;
    sl_size_format(room.total_bytes, total);
    sl_size_format(room.available_bytes, available);
    sl_size_format(room.default_bytes, given);
    snprintf(path, sizeof(path), "%s/proc/meminfo", doctor->root);
    machine.total_bytes = sl_read_number(path, "MemTotal:", 0) << 10;
    if (room.limit_file[0]) {
        char whole[SL_SIZE_TEXT_BYTES];

        snprintf(mend, sizeof(mend), "echo %s | sudo tee %s",
                 strstr(room.limit_file, "limit_in_bytes") ? "-1" : "max", room.limit_file);
        sl_doctor_find(doctor, SL_DOCTOR_SHORT, "memory", mend,
                       "a control group allows %s of the machine's %s; %s can be had now", total,
                       sl_size_format(machine.total_bytes, whole), available);
    } else {
        sl_doctor_find(doctor, SL_DOCTOR_OK, "memory", NULL,
                       "%s, of which %s can be had now; without --ram a run takes up to %s", total,
                       available, given);
    }
}

/* Returns whether `choice` is in force in a file such as "always [madvise] never". */
static bool is_chosen(const char *root, const char *file, const char *choice)
{
    char path[PATH_MAX], wanted[64], *text;
    size_t length;
    bool chosen;

    snprintf(path, sizeof(path), "%s%s", root, file);
    snprintf(wanted, sizeof(wanted), "[%s]", choice);
    if (sl_file_read_all(path, FILE_BYTES_MAX, &text, &length, NULL) < 0)
        return false;
    chosen = strstr(text, wanted) != NULL;
    free(text);
    return chosen;
}

static void find_huge_pages(struct sl_doctor *doctor)
{
    double share;

    if (is_chosen(doctor->root, "/sys/kernel/mm/transparent_hugepage/enabled", "never")) {
        sl_doctor_find(doctor, SL_DOCTOR_SHORT, "huge pages",
                       "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
                       "switched off: every access to weights costs more");
        return;
    }
    share = sl_huge_pages_share();
    if (share < 0)
        return; /* no memory to try it with: find_room() shows how much there is */
    if (share < HUGE_SHARE_MIN)
        sl_doctor_find(doctor, SL_DOCTOR_SHORT, "huge pages",
                       "echo 1 | sudo tee /proc/sys/vm/compact_memory",
                       "%.0f %% of what was tried: memory is in small pieces", 100 * share);
    else
        sl_doctor_find(doctor, SL_DOCTOR_OK, "huge pages", NULL, "%.0f %% of what was tried",
                       100 * share);
}

static void find_nodes(struct sl_doctor *doctor)
{
    char path[PATH_MAX], *nodes;
    size_t length;
    bool several;

    snprintf(path, sizeof(path), "%s/sys/devices/system/node/online", doctor->root);
    if (sl_file_read_all(path, FILE_BYTES_MAX, &nodes, &length, NULL) < 0)
        return;
    several = strpbrk(nodes, "-,") != NULL; /* "0-1", "0,2"; one is "0" */
    free(nodes);
    snprintf(path, sizeof(path), "%s/proc/sys/kernel/numa_balancing", doctor->root);
    if (!several)
        sl_doctor_find(doctor, SL_DOCTOR_OK, "NUMA balancing", NULL, "all memory is on one node");
    else if (sl_read_number(path, "", 0) == 0)
        sl_doctor_find(doctor, SL_DOCTOR_OK, "NUMA balancing", NULL, "off");
    else
        sl_doctor_find(doctor, SL_DOCTOR_SHORT, "NUMA balancing",
                       "sudo sysctl kernel.numa_balancing=0",
                       "on: the system takes pages away to see who misses them, and moves what "
                       "was placed");
}

void sl_doctor_memory(struct sl_doctor *doctor)
{
    find_room(doctor);
    find_locking(doctor);
    find_huge_pages(doctor);
    find_nodes(doctor);
}
