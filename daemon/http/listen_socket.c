#include "daemon/http/listen_socket.h"

#include <errno.h>
#include <grp.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define BACKLOG 128

static int fail(int fd, struct sl_err *err, const char *what, const char *where)
{
    const int code = errno;

    if (fd >= 0)
        close(fd);
    return sl_err_set(err, -code, "%s: %s: %s", where, what, sl_strerror(code));
}

/* ---- Unix --------------------------------------------------------------------------------------
 */

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

int sl_listen_unix(const char *path, const char *group, struct sl_err *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    mode_t before;
    int fd, rc;

    if (strlen(path) >= sizeof(address.sun_path))
        return sl_err_set(err, -ENAMETOOLONG, "%s: a socket's path has at most %zu bytes", path,
                          sizeof(address.sun_path) - 1);
    strcpy(address.sun_path, path);
    rc = remove_stale(&address, err);
    if (rc < 0)
        return rc;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return fail(fd, err, "no socket to be had", path);
    before = umask(0177); /* there is no moment at which others could open it */
    rc = bind(fd, (const struct sockaddr *)&address, sizeof(address));
    umask(before);
    if (rc < 0)
        return fail(fd, err, "cannot be made", path);
    rc = group ? give_to_group(path, group, err) : 0;
    if (rc == 0 && listen(fd, BACKLOG) < 0)
        return fail(fd, err, "cannot be listened on", path);
    if (rc < 0) {
        close(fd);
        unlink(path);
        return rc;
    }
    return fd;
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
