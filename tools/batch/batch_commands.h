/* The kinds of `sluice batch`, as the command itself sees them; see tools/cli/commands.h. */
#ifndef SL_TOOLS_BATCH_BATCH_COMMANDS_H
#define SL_TOOLS_BATCH_BATCH_COMMANDS_H

/* Without a daemon. */
int sl_batch_make(int argc, char **argv);
int sl_batch_check(int argc, char **argv);
int sl_batch_run(int argc, char **argv);

/* With a daemon. */
int sl_batch_submit(int argc, char **argv);
int sl_batch_status(int argc, char **argv);
int sl_batch_results(int argc, char **argv);
int sl_batch_cancel(int argc, char **argv);
int sl_batch_forget(int argc, char **argv);

#endif
