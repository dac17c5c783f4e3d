/* Ends the command when a file does not answer, wherever in it that is waited for. */
#ifndef SL_TOOLS_CLI_WATCH_H
#define SL_TOOLS_CLI_WATCH_H

#include <stdint.h>

/* Starts a thread that looks at all others (core/base/call_watch.h). When one of them has been in
 * the same call on a file for SL_READER_DEADLINE_STALLS times the stall time, it prints one line
 * and ends the process with status 1: nothing else could, since the thread may hold any lock.
 * Without memory for it the command runs unwatched. */
void sl_watch_start(void);

/* What --io-stall says; SL_READER_STALL_NS until then. */
void sl_watch_set_stall(uint64_t stall_ns);

#endif
