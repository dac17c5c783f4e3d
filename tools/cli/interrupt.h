/* Ctrl-C and its like (SIGINT, SIGTERM, SIGHUP), the same way in every command.
 *
 * After sl_interrupt_catch(), which main() calls, a signal ends the program at once, but leaves no
 * unfinished output file behind (tools/cli/output_file.h). After sl_interrupt_defer(), for commands
 * whose work looks at sl_interrupt_stop(), the first signal only asks the work to stop, and the
 * command then prints its figures; the second ends the program at once. In the end
 * sl_interrupt_finish() lets the program die of the signal, as a shell, make or a job scheduler
 * expects. A signal that is ignored, as under nohup(1), stays ignored.
 *
 * A mapped file that another program cuts (SIGBUS) ends the program with status 1 and one line.
 *
 * The thread that runs the command makes the calls; any thread may ask whether to stop. */
#ifndef SL_TOOLS_CLI_INTERRUPT_H
#define SL_TOOLS_CLI_INTERRUPT_H

#include <stdatomic.h>
#include <stdbool.h>

void sl_interrupt_catch(void);
void sl_interrupt_defer(void);

/* For conversations: from then on each Ctrl-C only asks to stop what is being done, until
 * sl_interrupt_clear(), and ends a read that waits for a person. SIGTERM and SIGHUP end the program
 * at once. */
void sl_interrupt_keep(void);
void sl_interrupt_clear(void);

/* Waits until `fd` can be read, or is at its end. Returns 0, or -EINTR where Ctrl-C has come, also
 * if that was just before. For sl_interrupt_keep(). */
int sl_interrupt_wait(int fd);

/* Returns whether a signal has asked the work to stop. */
bool sl_interrupted(void);

/* Returns the flag itself, for options named `stop`. */
const atomic_bool *sl_interrupt_stop(void);

/* Returns `status`, or ends the program if a signal came. To be called when nothing is left to
 * do. */
int sl_interrupt_finish(int status);

#endif
