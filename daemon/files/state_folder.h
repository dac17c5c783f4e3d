/* The folder where what must outlive a process lies: what users have sent, and what has come of it.
 * No state. */
#ifndef SL_DAEMON_FILES_STATE_FOLDER_H
#define SL_DAEMON_FILES_STATE_FOLDER_H

#include "core/base/err.h"

/* Returns $XDG_STATE_HOME/sluice, or ~/.local/state/sluice; the caller frees it. NULL where there
 * is neither, or when out of memory. */
char *sl_state_folder_default(void);

/* Makes the folder and those it is in, as far as they are not there, for their owner alone. */
int sl_state_folder_make(const char *path, struct sl_err *err);

/* Returns a descriptor that keeps others out as long as it is open. Fails with -EBUSY where another
 * process has done so, or with -errno. */
int sl_state_folder_lock(const char *path, struct sl_err *err);

#endif
