/* Checks what the system allows this process: io_uring, open files, address space. */
#include <limits.h>
#include <stdio.h>
#include <sys/resource.h>

#include "core/base/cgroup.h"
#include "core/base/size.h"
#include "storage/io/io.h"
#include "tools/cmd/doctor.h"

/* Files that are open besides a model's: standard streams, the ring, files of libraries. */
#define FILES_BESIDE 32u

static void find_io_uring(struct sl_doctor *doctor)
{
    char path[PATH_MAX];
    const char *mend;
    struct sl_err why;

    if (sl_io_choose(&why) == sl_io_uring_open) {
        sl_doctor_find(doctor, SL_DOCTOR_OK, "io_uring", NULL, "available: reads go through it");
        return;
    }
    snprintf(path, sizeof(path), "%s/proc/sys/kernel/io_uring_disabled", doctor->root);
    mend = sl_read_number(path, "", 0) > 0
               ? "sudo sysctl kernel.io_uring_disabled=0"
               : "docker run --security-opt seccomp=unconfined ...  (in a container; or a Linux of "
                 "5.11 or later)";
    sl_doctor_find(doctor, SL_DOCTOR_SHORT, "io_uring", mend, "%s; reads go through threads",
                   why.message);
}

/* Writes a limit: "unlimited" or a number. */
static const char *limit_text(rlim_t limit, char text[SL_SIZE_TEXT_BYTES])
{
    if (limit == RLIM_INFINITY)
        return "unlimited";
    snprintf(text, SL_SIZE_TEXT_BYTES, "%llu", (unsigned long long)limit);
    return text;
}

/* Checks the hard limit, because a run raises the soft one to it where that is needed. */
static void find_open_files(struct sl_doctor *doctor)
{
    const uint64_t needed = doctor->n_files + FILES_BESIDE;
    char text[SL_SIZE_TEXT_BYTES];
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return;
    if (limit.rlim_max < needed)
        sl_doctor_find(doctor, SL_DOCTOR_NO, "open files",
                       "echo \"$USER - nofile 65536\" | sudo tee "
                       "/etc/security/limits.d/sluice-nofile.conf  (and log in again)",
                       "at most %s, %llu are needed", limit_text(limit.rlim_max, text),
                       (unsigned long long)needed);
    else
        sl_doctor_find(doctor, SL_DOCTOR_OK, "open files", NULL, "at most %s, %llu are needed",
                       limit_text(limit.rlim_max, text), (unsigned long long)needed);
}

/* Checks ulimit -v and the system's strict accounting, which both refuse memory though it is
 * there. */
static void find_address_space(struct sl_doctor *doctor)
{
    char path[PATH_MAX], text[SL_SIZE_TEXT_BYTES], needed[SL_SIZE_TEXT_BYTES];
    struct rlimit limit;
    uint64_t limit_kib, promised_kib, left_bytes;

    sl_size_format(doctor->memory_bytes, needed);
    if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
        sl_doctor_find(doctor, limit.rlim_cur < doctor->memory_bytes ? SL_DOCTOR_NO : SL_DOCTOR_OK,
                       "address space",
                       limit.rlim_cur < doctor->memory_bytes ? "ulimit -v unlimited" : NULL,
                       "at most %s, a run takes %s", sl_size_format(limit.rlim_cur, text), needed);
    snprintf(path, sizeof(path), "%s/proc/sys/vm/overcommit_memory", doctor->root);
    if (sl_read_number(path, "", 0) != 2)
        return;
    snprintf(path, sizeof(path), "%s/proc/meminfo", doctor->root);
    limit_kib = sl_read_number(path, "CommitLimit:", UINT64_MAX >> 10);
    promised_kib = sl_read_number(path, "Committed_AS:", 0);
    left_bytes = limit_kib > promised_kib ? (limit_kib - promised_kib) << 10 : 0;
    sl_doctor_find(doctor, left_bytes < doctor->memory_bytes ? SL_DOCTOR_NO : SL_DOCTOR_OK,
                   "overcommit",
                   left_bytes < doctor->memory_bytes ? "sudo sysctl vm.overcommit_memory=0" : NULL,
                   "the system promises no more than it has: %s are left, a run takes %s",
                   sl_size_format(left_bytes, text), needed);
}

void sl_doctor_system(struct sl_doctor *doctor)
{
    find_io_uring(doctor);
    find_open_files(doctor);
    find_address_space(doctor);
}
