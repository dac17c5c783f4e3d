/* The service manager, where there is one: sockets that it hands over, and what it is told. */
#ifndef SL_DAEMON_HTTP_SERVICE_MANAGER_H
#define SL_DAEMON_HTTP_SERVICE_MANAGER_H

#include <stdint.h>

#include "core/base/err.h"

/* Fills fds with the sockets that were handed over, and returns how many there are; 0 without a
 * service manager. Fails where there are more than n_max, or one that does not listen. */
int sl_service_sockets(int *fds, uint32_t n_max, struct sl_err *err);

/* Tells it something, such as "READY=1\nSTATUS=serving"; nothing happens if there is none. */
void sl_service_notify(const char *state);

#endif
