#include "daemon/http/service_manager.h"

#include <errno.h>
#include <systemd/sd-daemon.h>

int sl_service_sockets(int *fds, uint32_t n_max, struct sl_err *err)
{
    const int n = sd_listen_fds(1);

    if (n < 0)
        return sl_err_set(err, n, "the service manager's sockets: %s", sl_strerror(n));
    if ((uint32_t)n > n_max)
        return sl_err_set(err, -E2BIG, "the service manager hands %d sockets over, at most %u fit",
                          n, n_max);
    for (int i = 0; i < n; i++) {
        fds[i] = SD_LISTEN_FDS_START + i;
        if (sd_is_socket(fds[i], 0, 0, 1) <= 0)
            return sl_err_set(err, -EINVAL,
                              "what the service manager hands over is no socket that listens");
    }
    return n;
}

void sl_service_notify(const char *state)
{
    sd_notify(0, state);
}
