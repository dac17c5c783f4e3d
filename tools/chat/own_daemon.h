/* A daemon of this program's own, for one who talks to a model without having started one. */
#ifndef SL_TOOLS_CHAT_OWN_DAEMON_H
#define SL_TOOLS_CHAT_OWN_DAEMON_H

#include <sys/types.h>

#include "core/base/err.h"
#include "tools/cli/daemon_client.h"

/* Starts from {0}. */
struct sl_own_daemon {
    pid_t process; /* 0: none */
    char *folder;  /* with its socket, for this user alone */
    char *socket_path;
};

/* Starts `sluice serve` with these arguments, which begin with the command's name, as a process
 * that ends with this one. To be called before there are threads. Fails with -errno or -ENOMEM; the
 * caller calls sl_own_daemon_stop() in any case. */
int sl_own_daemon_start(struct sl_own_daemon *daemon, int argc, char *const *argv,
                        struct sl_err *err);

/* Waits until the daemon has loaded its model. If it ends before, it has said why on standard
 * error: returns its exit status, which is above 0. Fails with -EINTR when *stop is set. */
int sl_own_daemon_wait(struct sl_own_daemon *daemon, struct sl_daemon_client *client,
                       const atomic_bool *stop, struct sl_err *err);

void sl_own_daemon_stop(struct sl_own_daemon *daemon);

#endif
