/* Sockets that the server listens on. All return a descriptor, the caller's to close, or fail. */
#ifndef SL_DAEMON_HTTP_LISTEN_SOCKET_H
#define SL_DAEMON_HTTP_LISTEN_SOCKET_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/err.h"

/* A socket's file, which others may replace once nobody listens on it. */
struct sl_socket_file {
    uint64_t device, inode;
};

/* Returns where a daemon listens, and its clients look, if nothing else is said; the caller frees
 * it. NULL when out of memory. */
char *sl_default_socket_path(void);

/* A Unix socket that only this user can open, or with `group`, a name, the group's users too. A
 * socket that nobody listens on any more is replaced; one that is in use is refused with
 * -EADDRINUSE, and so is a file that is no socket. *file tells which file it became. */
int sl_listen_unix(const char *path, const char *group, struct sl_socket_file *file,
                   struct sl_err *err);

/* Removes a socket's file, unless another server's has taken its place: while the socket is open,
 * no other file has its number. */
void sl_remove_unix(const char *path, const struct sl_socket_file *file);

/* "127.0.0.1:8080", "[::1]:8080". *ret_is_local says whether only this machine can reach it;
 * *ret_host is the address without the port, for the caller to free. */
int sl_listen_tcp(const char *address, bool *ret_is_local, char **ret_host, struct sl_err *err);

/* Whether a socket that was handed over is of TCP. */
bool sl_socket_is_tcp(int fd);

#endif
