/* Owns how a process's control groups are found: /proc/self/cgroup names its group in each
 * hierarchy, /proc/self/mountinfo says where that hierarchy is mounted, and which group is at the
 * mount's top. */
#include "core/base/cgroup.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"

#define TEXT_BYTES_MAX (UINT64_C(16) << 20)

static char *read_text(const char *path)
{
    char *text;
    size_t length;

    return sl_file_read_all(path, TEXT_BYTES_MAX, &text, &length, NULL) < 0 ? NULL : text;
}

/* Where the text of the line that begins with `key` goes on; NULL if there is no such line. */
static const char *line_after(const char *text, const char *key)
{
    const size_t length = strlen(key);

    while (text && strncmp(text, key, length) != 0) {
        text = strchr(text, '\n');
        if (text)
            text++;
    }
    return text ? text + length : NULL;
}

uint64_t sl_read_number(const char *path, const char *key, uint64_t otherwise)
{
    char *text = read_text(path);
    const char *at = line_after(text, key);
    uint64_t value = otherwise;

    if (at) {
        at += strspn(at, " \t");
        errno = 0;
        if (*at >= '0' && *at <= '9')
            value = strtoull(at, NULL, 10);
        if (errno)
            value = otherwise;
    }
    free(text);
    return value;
}

/* True if `word` is in a list "a,b,c" that ends before `end`. */
static bool has_word(const char *list, const char *end, const char *word)
{
    const size_t length = strlen(word);

    while (list < end) {
        size_t n = strcspn(list, ",:\n ");

        if (n == length && memcmp(list, word, n) == 0)
            return true;
        list += n + 1;
    }
    return false;
}

/* The process's group for a controller of version 1, or of version 2 where that is NULL: a path
 * that the caller frees. The lines are "4:cpu,cpuacct:/path", and "0::/path" for version 2. */
static char *group_of(const char *groups, const char *controller)
{
    while (groups) {
        const char *end = strchrnul(groups, '\n');
        const char *names = memchr(groups, ':', (size_t)(end - groups));
        const char *path = names ? memchr(names + 1, ':', (size_t)(end - names - 1)) : NULL;

        if (path && (controller ? has_word(names + 1, path, controller) : path == names + 1))
            return strndup(path + 1, (size_t)(end - path - 1));
        groups = *end ? end + 1 : NULL;
    }
    return NULL;
}

/* Blanks and backslashes are written as \040 and the like. */
static void unescape(char *text)
{
    char *to = text;

    for (const char *from = text; *from; to++) {
        unsigned code;

        if (sscanf(from, "\\%3o", &code) == 1 && strspn(from + 1, "01234567") >= 3) {
            *to = (char)code;
            from += 4;
        } else {
            *to = *from++;
        }
    }
    *to = '\0';
}

struct mount {
    char *group; /* that is at the top of what is mounted */
    char *folder;
};

/* Reads one line of mountinfo: "35 31 0:32 GROUP FOLDER rw,relatime [...] - cgroup cgroup
 * rw,memory". Returns false if the line is of another file system or controller. */
static bool read_mount(char *line, const char *controller, struct mount *ret_mount)
{
    char *rest = strstr(line, " - "), *fields[5], *position = NULL;
    char *type, *options;

    if (!rest)
        return false;
    *rest = '\0';
    type = strtok_r(rest + 3, " ", &position);
    options = strtok_r(NULL, " ", &position) ? strtok_r(NULL, " ", &position) : NULL;
    if (!type || strcmp(type, controller ? "cgroup" : "cgroup2") != 0)
        return false;
    if (controller && (!options || !has_word(options, options + strlen(options), controller)))
        return false;
    for (int i = 0; i < 5; i++) {
        fields[i] = strtok_r(i == 0 ? line : NULL, " ", &position);
        if (!fields[i])
            return false;
    }
    unescape(fields[3]);
    unescape(fields[4]);
    *ret_mount = (struct mount){fields[3], fields[4]};
    return true;
}

/* The part of the group's path that lies below the mount's top; NULL if the group is not below it.
 * A path that begins with "/.." leads out of what this process may see. */
static const char *below(const char *group, const char *top)
{
    const size_t length = strcmp(top, "/") == 0 ? 0 : strlen(top);

    if (strncmp(group, "/..", 3) == 0 || strncmp(group, top, length) != 0)
        return NULL;
    group += length;
    return strcmp(group, "/") == 0 ? "" : *group == '/' || !*group ? group : NULL;
}

/* The folder of a group, and how much of that path is the mount's. */
struct group_folder {
    char *folder; /* the caller's; NULL: not found */
    size_t top_length;
};

/* `mounts` is overwritten. A group that is outside of all that is mounted, as in a container that
 * sees the system's names, is taken to be the mount's top: what the container may see is its own.
 */
static struct group_folder find_group(const char *root, const char *group, char *mounts,
                                      const char *controller)
{
    struct group_folder found = {0};
    char *line, *position = NULL;

    for (line = strtok_r(mounts, "\n", &position); line; line = strtok_r(NULL, "\n", &position)) {
        struct mount mount;
        const char *rest;

        if (!read_mount(line, controller, &mount))
            continue;
        rest = below(group, mount.group);
        if (!rest && found.folder)
            continue;
        free(found.folder);
        if (asprintf(&found.folder, "%s%s%s", root, mount.folder, rest ? rest : "") < 0) {
            found.folder = NULL;
            continue;
        }
        found.top_length = strlen(root) + strlen(mount.folder);
        if (rest)
            break;
    }
    return found;
}

static uint64_t number_in(const char *folder, const char *file, const char *key, uint64_t otherwise)
{
    char path[PATH_MAX];

    if ((size_t)snprintf(path, sizeof(path), "%s/%s", folder, file) >= sizeof(path))
        return otherwise;
    return sl_read_number(path, key, otherwise);
}

static void limit_memory(struct sl_cgroup_limits *limits, const char *folder, const char *file,
                         uint64_t used_bytes)
{
    const uint64_t max_bytes = number_in(folder, file, "", UINT64_MAX);
    const uint64_t left_bytes = max_bytes > used_bytes ? max_bytes - used_bytes : 0;

    if (max_bytes >= INT64_MAX / 2) /* version 1 writes the largest number of whole pages */
        return;
    if (left_bytes < limits->memory_left_bytes)
        limits->memory_left_bytes = left_bytes;
    if (max_bytes >= limits->memory_max_bytes)
        return;
    limits->memory_max_bytes = max_bytes;
    snprintf(limits->memory_file, sizeof(limits->memory_file), "%s/%s", folder, file);
}

static void limit_cpus(struct sl_cgroup_limits *limits, uint64_t quota, uint64_t period)
{
    const uint64_t cpus = period ? quota / period : 0;

    if (period == 0 || quota == UINT64_MAX || cpus >= UINT32_MAX)
        return;
    if (limits->cpus == 0 || cpus < limits->cpus)
        limits->cpus = cpus > 1 ? (uint32_t)cpus : 1;
}

/* Over memory.high the system makes the group wait while it takes back what it can, so that is as
 * much of a limit as memory.max. */
static void read_unified(struct sl_cgroup_limits *limits, const char *folder)
{
    const uint64_t used = number_in(folder, "memory.current", "", 0);
    const uint64_t cached = number_in(folder, "memory.stat", "inactive_file ", 0) +
                            number_in(folder, "memory.stat", "active_file ", 0);
    char quota[64], path[PATH_MAX];
    char *text;

    limit_memory(limits, folder, "memory.max", used > cached ? used - cached : 0);
    limit_memory(limits, folder, "memory.high", used > cached ? used - cached : 0);
    if ((size_t)snprintf(path, sizeof(path), "%s/cpu.max", folder) >= sizeof(path))
        return;
    text = read_text(path); /* "50000 100000" or "max 100000" */
    if (text && sscanf(text, "%63s", quota) == 1 && quota[0] >= '0' && quota[0] <= '9')
        limit_cpus(limits, strtoull(quota, NULL, 10), number_in(folder, "cpu.max", quota, 0));
    free(text);
}

static void read_memory(struct sl_cgroup_limits *limits, const char *folder)
{
    const uint64_t used = number_in(folder, "memory.usage_in_bytes", "", 0);
    const uint64_t cached = number_in(folder, "memory.stat", "total_inactive_file ", 0) +
                            number_in(folder, "memory.stat", "total_active_file ", 0);

    limit_memory(limits, folder, "memory.limit_in_bytes", used > cached ? used - cached : 0);
}

static void read_cpu(struct sl_cgroup_limits *limits, const char *folder)
{
    limit_cpus(limits, number_in(folder, "cpu.cfs_quota_us", "", UINT64_MAX),
               number_in(folder, "cpu.cfs_period_us", "", 0));
}

typedef void group_fn(struct sl_cgroup_limits *limits, const char *folder);

/* Calls fn for the process's group of a controller, and for all groups above it. */
static void walk_up(const char *root, const char *controller, group_fn *fn,
                    struct sl_cgroup_limits *limits)
{
    char path[PATH_MAX];
    char *groups, *mounts, *group;
    struct group_folder found = {0};

    snprintf(path, sizeof(path), "%s/proc/self/cgroup", root);
    groups = read_text(path);
    snprintf(path, sizeof(path), "%s/proc/self/mountinfo", root);
    mounts = read_text(path);
    group = group_of(groups, controller);
    if (group && mounts)
        found = find_group(root, group, mounts, controller);
    while (found.folder) {
        char *last = strrchr(found.folder + found.top_length, '/');

        fn(limits, found.folder);
        if (!last)
            break;
        *last = '\0';
    }
    free(found.folder);
    free(group);
    free(groups);
    free(mounts);
}

void sl_cgroup_read(const char *root, struct sl_cgroup_limits *ret_limits)
{
    *ret_limits =
        (struct sl_cgroup_limits){.memory_max_bytes = UINT64_MAX, .memory_left_bytes = UINT64_MAX};
    walk_up(root, NULL, read_unified, ret_limits);
    walk_up(root, "memory", read_memory, ret_limits);
    walk_up(root, "cpu", read_cpu, ret_limits);
}
