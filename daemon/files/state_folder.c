#include "daemon/files/state_folder.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* A server that has just been told to end lets go of its folder within that. */
#define LOCK_TRIES 20
#define LOCK_PAUSE_NS 100000000L

char *sl_state_folder_default(void)
{
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    char *folder;

    if (state && *state ? asprintf(&folder, "%s/sluice", state) < 0
                        : !home || asprintf(&folder, "%s/.local/state/sluice", home) < 0)
        return NULL;
    return folder;
}

int sl_state_folder_make(const char *path, struct sl_err *err)
{
    char *part = strdup(path);
    int rc = 0;

    if (!part)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", path);
    for (char *slash = strchr(part + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(part, 0700); /* most are there; what cannot be made shows in the last one */
        *slash = '/';
    }
    if (mkdir(part, 0700) < 0 && errno != EEXIST)
        rc = sl_err_set(err, -errno, "%s: cannot create: %s", path, sl_strerror(errno));
    free(part);
    return rc;
}

int sl_state_folder_lock(const char *path, struct sl_err *err)
{
    const struct timespec pause = {0, LOCK_PAUSE_NS};
    const int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc;

    if (fd < 0)
        return sl_err_set(err, -errno, "%s: %s", path, sl_strerror(errno));
    for (int i = 0; i < LOCK_TRIES; i++) {
        if (flock(fd, LOCK_EX | LOCK_NB) == 0)
            return fd;
        nanosleep(&pause, NULL);
    }
    rc = errno == EWOULDBLOCK
             ? sl_err_set(err, -EBUSY, "%s: another server keeps its files there", path)
             : sl_err_set(err, -errno, "%s: cannot be locked: %s", path, sl_strerror(errno));
    close(fd);
    return rc;
}
