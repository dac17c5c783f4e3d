/* Finds threads of this process that have been in one call on a file for too long.
 *
 * A plain call on a file (open, read, stat, write, or a page of a mapped file) has no deadline: on
 * a drive or a server that does not answer it never returns. But the system tells what each thread
 * waits in (/proc/self/task/TID/syscall), so another thread can see it, and those that make the
 * calls need do nothing for that. Pipes, terminals and the like may keep anybody waiting, and are
 * left aside; so are syncs, which take as long as there is something to write.
 *
 * Where the system tells nothing, nothing is found. One thread makes all calls. */
#ifndef SL_BASE_CALL_WATCH_H
#define SL_BASE_CALL_WATCH_H

#include <stdint.h>

#include "core/base/err.h"

#define SL_CALL_WATCH_FOLDER "/proc/self/task"

/* Threads of this name are left aside: their reads have a deadline of their own. */
#define SL_CALL_WATCH_NOT "sluice-io"

struct sl_call_watch;

/* NULL if out of memory. destroy() takes NULL. */
struct sl_call_watch *sl_call_watch_create(void);
void sl_call_watch_destroy(struct sl_call_watch *watch);

/* Looks once at all threads; `folder` is SL_CALL_WATCH_FOLDER but in tests. Returns -ETIMEDOUT if
 * one of them is in the same call as at each of the `n_looks` looks before: `err` then names the
 * file and what is done to it, with drive and offset where these can be told without asking the
 * drive, and says that `waited_s` went by. Else returns 0. */
int sl_call_watch_look(struct sl_call_watch *watch, const char *folder, uint32_t n_looks,
                       double waited_s, struct sl_err *err);

#endif
