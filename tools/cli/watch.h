/* Ends the command when a call on a file does not return, whichever thread makes it. */
#ifndef SL_TOOLS_CLI_WATCH_H
#define SL_TOOLS_CLI_WATCH_H

#include <stdint.h>

/* Starts a thread that looks at all others (core/base/call_watch.h). When one of them has been in
 * the same call on a file for SL_READER_DEADLINE_STALLS times the stall time, it prints one line
 * and ends the process with status 1: an orderly end is impossible, since the thread may hold any
 * lock. If the thread cannot be started, the command runs unwatched. */
void sl_watch_start(void);

/* Sets the stall time of --io-stall; it is SL_READER_STALL_NS until then. */
void sl_watch_set_stall(uint64_t stall_ns);

#endif
