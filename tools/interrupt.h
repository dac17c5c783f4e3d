/* Ctrl-C and its like (SIGINT, SIGTERM, SIGHUP), the same way in every command that has something
 * to say or to clean up; other commands leave the signals alone.
 *
 * After sl_interrupt_catch() a signal ends the program at once, but leaves no unfinished output
 * file behind (tools/output_file.h). After sl_interrupt_defer() the first signal only asks the work
 * to stop, which then prints its figures, and the second ends the program at once. In the end
 * sl_interrupt_finish() lets the program die of the signal, as a shell, make or a job scheduler
 * expects. A signal that is ignored, as under nohup(1), stays ignored.
 *
 * The main thread makes the calls; any thread may ask whether to stop. */
#ifndef SL_TOOLS_INTERRUPT_H
#define SL_TOOLS_INTERRUPT_H

#include <stdatomic.h>
#include <stdbool.h>

void sl_interrupt_catch(void);
void sl_interrupt_defer(void);

/* Whether a signal has asked the work to stop. */
bool sl_interrupted(void);

/* The flag itself, for options named `stop`. */
const atomic_bool *sl_interrupt_stop(void);

/* Returns `status`, or does not return where a signal came. Nothing may be left to do. */
int sl_interrupt_finish(int status);

#endif
