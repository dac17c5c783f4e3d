#include "daemon/http/listen_socket.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define BACKLOG 128
#define LOCK_TRIES 50
#define LOCK_PAUSE_NS 20000000L

static int fail(int fd, struct sl_err *err, const char *what, const char *where)
{
    const int code = errno;

    if (fd >= 0)
        close(fd);
    return sl_err_set(err, -code, "%s: %s: %s", where, what, sl_strerror(code));
}

/* ---- Unix --------------------------------------------------------------------------------------
 */

/* Between looking for a socket, removing it and listening on another, no other server may do the
 * same: they lock the folder. Returns a descriptor that holds the lock, or -1 where the folder
 * cannot be read or somebody keeps it locked; a lock that anybody could take must not stop us. */
static int lock_folder(const char *path)
{
    const struct timespec pause = {0, LOCK_PAUSE_NS};
    const char *slash = strrchr(path, '/');
    char folder[sizeof(((struct sockaddr_un *)NULL)->sun_path)] = ".";
    int fd, rc = -1;

    if (slash == path)
        strcpy(folder, "/");
    else if (slash)
        stpncpy(folder, path, (size_t)(slash - path))[0] = '\0';
    fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (int i = 0; fd >= 0 && rc < 0 && i < LOCK_TRIES; i++) {
        rc = flock(fd, LOCK_EX | LOCK_NB);
        if (rc < 0)
            nanosleep(&pause, NULL);
    }
    return fd;
}

static void unlock_folder(int lock)
{
    if (lock >= 0)
        close(lock);
}

/* Removes a socket that is left from before. */
static int remove_stale(const struct sockaddr_un *address, struct sl_err *err)
{
    const char *path = address->sun_path;
    struct stat status;
    int fd, rc;

    if (lstat(path, &status) < 0)
        return errno == ENOENT ? 0 : fail(-1, err, "cannot be looked at", path);
    if (!S_ISSOCK(status.st_mode))
        return sl_err_set(err, -EEXIST, "%s: is no socket, so it is not replaced by one", path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return fail(fd, err, "no socket to be had", path);
    rc = connect(fd, (const struct sockaddr *)address, sizeof(*address));
    if (rc == 0 || errno == EAGAIN) {
        close(fd);
        return sl_err_set(err, -EADDRINUSE, "%s: another server listens there", path);
    }
    if (errno != ECONNREFUSED)
        return fail(fd, err, "cannot tell whether another server listens there", path);
    close(fd);
    return unlink(path) < 0 ? fail(-1, err, "cannot be removed", path) : 0;
}

static int give_to_group(const char *path, const char *group, struct sl_err *err)
{
    const struct group *entry = getgrnam(group);

    if (!entry)
        return sl_err_set(err, -ENOENT, "there is no group \"%s\"", group);
    if (chown(path, (uid_t)-1, entry->gr_gid) < 0 || chmod(path, 0660) < 0)
        return fail(-1, err, "cannot be given to the group", path);
    return 0;
}

static int listen_unix(const struct sockaddr_un *address, const char *group, struct sl_err *err)
{
    const char *path = address->sun_path;
    int rc = remove_stale(address, err), fd;
    mode_t before;

    if (rc < 0)
        return rc;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return fail(fd, err, "no socket to be had", path);
    before = umask(0177); /* there is no moment at which others could open it */
    rc = bind(fd, (const struct sockaddr *)address, sizeof(*address));
    umask(before);
    if (rc < 0)
        return fail(fd, err, "cannot be made", path);
    rc = group ? give_to_group(path, group, err) : 0;
    if (rc == 0 && listen(fd, BACKLOG) < 0)
        rc = fail(-1, err, "cannot be listened on", path);
    if (rc < 0) {
        close(fd);
        unlink(path);
        return rc;
    }
    return fd;
}

char *sl_default_socket_path(void)
{
    const char *folder = getenv("XDG_RUNTIME_DIR");
    char *path;

    if (asprintf(&path, "%s/sluice.sock", folder && *folder ? folder : "/run/sluice") < 0)
        return NULL;
    return path;
}

int sl_listen_unix(const char *path, const char *group, struct sl_socket_file *file,
                   struct sl_err *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct stat status;
    int lock, fd;

    if (strlen(path) >= sizeof(address.sun_path))
        return sl_err_set(err, -ENAMETOOLONG, "%s: a socket's path has at most %zu bytes", path,
                          sizeof(address.sun_path) - 1);
    strcpy(address.sun_path, path);
    lock = lock_folder(path);
    fd = listen_unix(&address, group, err);
    *file = (struct sl_socket_file){0};
    if (fd >= 0 && lstat(path, &status) == 0)
        *file = (struct sl_socket_file){status.st_dev, status.st_ino};
    unlock_folder(lock);
    return fd;
}

void sl_remove_unix(const char *path, const struct sl_socket_file *file)
{
    const int lock = lock_folder(path);
    struct stat status;

    if (lstat(path, &status) == 0 && status.st_dev == file->device && status.st_ino == file->inode)
        unlink(path);
    unlock_folder(lock);
}

/* ---- TCP ---------------------------------------------------------------------------------------
 */

static bool is_local(const struct sockaddr *address)
{
    const struct sockaddr_in *v4 = (const void *)address;
    const struct sockaddr_in6 *v6 = (const void *)address;

    if (address->sa_family == AF_INET)
        return ntohl(v4->sin_addr.s_addr) >> 24 == 127;
    return IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr);
}

static int listen_at(const struct addrinfo *at, const char *address, struct sl_err *err)
{
    const int yes = 1;
    const int fd = socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return fail(fd, err, "no socket to be had", address);
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)) < 0 ||
        bind(fd, at->ai_addr, at->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0)
        return fail(fd, err, "cannot be listened on", address);
    return fd;
}

int sl_listen_tcp(const char *address, bool *ret_is_local, char **ret_host, struct sl_err *err)
{
    const struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE,
                                   .ai_socktype = SOCK_STREAM};
    const char *colon = strrchr(address, ':');
    struct addrinfo *found = NULL;
    char *host, *bare;
    size_t length;
    int fd;

    if (!colon || colon == address || !colon[1])
        return sl_err_set(err, -EINVAL, "%s: give an address and a port, as 127.0.0.1:8080",
                          address);
    host = strndup(address, (size_t)(colon - address));
    if (!host)
        return sl_err_set(err, -ENOMEM, "out of memory");
    bare = host;
    length = strlen(host);
    if (host[0] == '[' && host[length - 1] == ']') {
        bare = strndup(host + 1, length - 2);
        if (!bare) {
            free(host);
            return sl_err_set(err, -ENOMEM, "out of memory");
        }
    }
    if (getaddrinfo(bare, colon + 1, &hints, &found) != 0)
        fd = sl_err_set(err, -EINVAL, "%s: is no address with a port, as 127.0.0.1:8080", address);
    else
        fd = listen_at(found, address, err);
    if (fd >= 0) {
        *ret_is_local = is_local(found->ai_addr);
        *ret_host = strdup(host);
    }
    if (found)
        freeaddrinfo(found);
    if (bare != host)
        free(bare);
    free(host);
    return fd;
}

bool sl_socket_is_tcp(int fd)
{
    struct sockaddr_storage address;
    socklen_t size = sizeof(address);

    return getsockname(fd, (struct sockaddr *)&address, &size) == 0 && address.ss_family != AF_UNIX;
}
