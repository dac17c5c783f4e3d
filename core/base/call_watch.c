/* Owns what the looks have seen. Nothing here may wait for a file itself: names come from the
 * process's own tables (/proc), and statx() is told not to ask a server. */
#include "core/base/call_watch.h"
#include "core/base/size.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Threads seen in a call on a file in one look; what is beyond is seen when these have gone on. */
#define CALLS_MAX 256u

#define LINE_BYTES 256u

/* "nr args sp pc", or "-1 sp pc" for a thread that waits for a page. */
struct call {
    long number;
    uint64_t arguments[6];
    uint64_t stack, program;
};

struct seen {
    long thread;
    uint32_t n_looks; /* before this one at which it was in the same call */
    struct call call;
};

struct sl_call_watch {
    struct seen seen[2][CALLS_MAX]; /* at the last look, and at the one before */
    uint32_t n_seen[2];
    uint32_t current;
};

/* ---- which calls ------------------------------------------------------------------------------
 */

enum { NO_OFFSET = -1, FILE_POSITION = -2 };

/* Calls by descriptor have it as their first argument; the others have a path, and those that open
 * it have flags after that. Those with a size have it as their third argument. */
static const struct kind {
    long number;
    int path_argument; /* -1: by descriptor */
    bool sized, opens;
    int offset_argument;
    const char *what;
} kinds[] = {
    {__NR_read, -1, true, false, FILE_POSITION, "reading"},
    {__NR_readv, -1, false, false, FILE_POSITION, "reading"},
    {__NR_pread64, -1, true, false, 3, "reading"},
    {__NR_preadv, -1, false, false, 3, "reading"},
    {__NR_write, -1, true, false, FILE_POSITION, "writing"},
    {__NR_writev, -1, false, false, FILE_POSITION, "writing"},
    {__NR_pwrite64, -1, true, false, 3, "writing"},
    {__NR_pwritev, -1, false, false, 3, "writing"},
    {__NR_getdents64, -1, false, false, NO_OFFSET, "listing it"},
    {__NR_fstat, -1, false, false, NO_OFFSET, "looking it up"},
    {__NR_fadvise64, -1, false, false, NO_OFFSET, "reading ahead"},
    {__NR_openat, 1, false, true, NO_OFFSET, "opening it"},
    {__NR_newfstatat, 1, false, false, NO_OFFSET, "looking it up"},
    {__NR_statx, 1, false, false, NO_OFFSET, "looking it up"},
    {__NR_faccessat, 1, false, false, NO_OFFSET, "looking it up"},
#ifdef __NR_open /* not on newer architectures */
    {__NR_open, 0, false, true, NO_OFFSET, "opening it"},
    {__NR_stat, 0, false, false, NO_OFFSET, "looking it up"},
    {__NR_access, 0, false, false, NO_OFFSET, "looking it up"},
#endif
};

static const struct kind *kind_of(const struct call *call)
{
    for (size_t i = 0; i < SL_ARRAY_LEN(kinds); i++)
        if (kinds[i].number == call->number)
            return &kinds[i];
    return NULL;
}

/* A file's, folder's or disk's descriptor. */
static bool is_of_drive(int fd, struct statx *ret_status)
{
    return statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, ret_status) == 0 &&
           (S_ISREG(ret_status->stx_mode) || S_ISDIR(ret_status->stx_mode) ||
            S_ISBLK(ret_status->stx_mode));
}

static bool may_be_stuck(const struct call *call)
{
    const struct kind *kind = kind_of(call);
    struct statx status;

    if (call->number == -1)
        return true;
    if (!kind)
        return false;
    if (kind->sized && call->arguments[2] == 0) /* how the kernel's own workers look */
        return false;
    if (kind->opens) /* a pipe to write to waits for its reader; those to read from open at once */
        return (call->arguments[kind->path_argument + 1] & O_ACCMODE) != O_WRONLY;
    return kind->path_argument >= 0 || is_of_drive((int)call->arguments[0], &status);
}

/* ---- what the system tells --------------------------------------------------------------------
 */

/* The first bytes of folder/thread/name, as text. */
static bool read_line(const char *folder, const char *thread, const char *name,
                      char line[LINE_BYTES])
{
    char path[PATH_MAX];
    ssize_t got = -1;
    int fd;

    if (snprintf(path, sizeof(path), "%s/%s/%s", folder, thread, name) >= (int)sizeof(path))
        return false;
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        got = read(fd, line, LINE_BYTES - 1);
        close(fd);
    }
    line[got > 0 ? got : 0] = '\0';
    return got > 0;
}

/* False for a thread that runs. */
static bool parse_call(const char *line, struct call *ret_call)
{
    struct call call = {0};
    uint64_t *a = call.arguments;

    if (sscanf(line,
               "%ld 0x%" SCNx64 " 0x%" SCNx64 " 0x%" SCNx64 " 0x%" SCNx64 " 0x%" SCNx64
               " 0x%" SCNx64 " 0x%" SCNx64 " 0x%" SCNx64,
               &call.number, &a[0], &a[1], &a[2], &a[3], &a[4], &a[5], &call.stack,
               &call.program) < (call.number == -1 ? 3 : 9))
        return false;
    *ret_call = call;
    return true;
}

static void name_descriptor(int fd, char path[PATH_MAX])
{
    char link[64];
    ssize_t length;

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    length = readlink(link, path, PATH_MAX - 1);
    if (length < 0)
        snprintf(path, PATH_MAX, "descriptor %d", fd);
    else
        path[length] = '\0';
}

/* A thread that waits in a call does not change the path that it gave. */
static void copy_path(uint64_t address, char path[PATH_MAX])
{
    int fd = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : pread(fd, path, PATH_MAX - 1, (off_t)address);

    if (fd >= 0)
        close(fd);
    path[got > 0 ? got : 0] = '\0';
    if (path[0] == '\0')
        snprintf(path, PATH_MAX, "a file");
}

/* lseek() would wait for the read. */
static uint64_t file_position(int fd)
{
    char line[LINE_BYTES], number[16];
    unsigned long long position = 0;

    snprintf(number, sizeof(number), "%d", fd);
    if (read_line("/proc/self", "fdinfo", number, line))
        sscanf(line, "pos: %llu", &position);
    return position;
}

static int explain(const struct call *call, double waited_s, struct sl_err *err)
{
    const struct kind *kind = kind_of(call);
    const int fd = (int)call->arguments[0];
    char path[PATH_MAX], drive[64] = "", where[96] = "";
    struct statx status;
    uint64_t offset_bytes;

    if (!kind)
        return sl_err_set(err, -ETIMEDOUT,
                          "no answer for %.3g s, waiting for a page of memory: a mapped file's "
                          "drive, or that of the swap space, does not answer",
                          waited_s);
    if (kind->path_argument >= 0) {
        copy_path(call->arguments[kind->path_argument], path);
    } else {
        name_descriptor(fd, path);
        if (is_of_drive(fd, &status))
            snprintf(drive, sizeof(drive), "drive %u:%u: ", status.stx_dev_major,
                     status.stx_dev_minor);
    }
    if (kind->offset_argument != NO_OFFSET) {
        offset_bytes = kind->offset_argument == FILE_POSITION
                           ? file_position(fd)
                           : call->arguments[kind->offset_argument];
        snprintf(where, sizeof(where), " at offset %" PRIu64, offset_bytes);
    }
    return sl_err_set(err, -ETIMEDOUT, "%.700s: %sno answer for %.3g s, %s%s", path, drive,
                      waited_s, kind->what, where);
}

/* ---- looking ----------------------------------------------------------------------------------
 */

struct sl_call_watch *sl_call_watch_create(void)
{
    return calloc(1, sizeof(struct sl_call_watch));
}

void sl_call_watch_destroy(struct sl_call_watch *watch)
{
    free(watch);
}

/* At how many looks in a row, up to the last one, the thread was in this call. */
static uint32_t looks_before(const struct sl_call_watch *watch, long thread,
                             const struct call *call)
{
    const struct seen *seen = watch->seen[1 - watch->current];

    for (uint32_t i = 0; i < watch->n_seen[1 - watch->current]; i++)
        if (seen[i].thread == thread && memcmp(&seen[i].call, call, sizeof(*call)) == 0)
            return seen[i].n_looks + 1;
    return 0;
}

/* Returns the thread's call, if it is one that may be stuck. */
static bool look_at(const char *folder, const char *thread, struct call *ret_call)
{
    char line[LINE_BYTES];

    return read_line(folder, thread, "syscall", line) && parse_call(line, ret_call) &&
           may_be_stuck(ret_call) && read_line(folder, thread, "comm", line) &&
           strcmp(line, SL_CALL_WATCH_NOT "\n") != 0;
}

int sl_call_watch_look(struct sl_call_watch *watch, const char *folder, uint32_t n_looks,
                       double waited_s, struct sl_err *err)
{
    DIR *dir = opendir(folder);
    const struct dirent *entry;
    uint32_t *n_seen;
    int rc = 0;

    if (!dir)
        return 0;
    watch->current = 1 - watch->current;
    n_seen = &watch->n_seen[watch->current];
    *n_seen = 0;
    while (rc == 0 && *n_seen < CALLS_MAX && (entry = readdir(dir))) {
        struct seen *seen = &watch->seen[watch->current][*n_seen];

        seen->thread = atol(entry->d_name);
        if (seen->thread == 0 || seen->thread == gettid() || /* ".", "..", and who looks */
            !look_at(folder, entry->d_name, &seen->call))
            continue;
        seen->n_looks = looks_before(watch, seen->thread, &seen->call);
        if (seen->n_looks >= n_looks)
            rc = explain(&seen->call, waited_s, err);
        ++*n_seen;
    }
    closedir(dir);
    return rc;
}
