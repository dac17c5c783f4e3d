/* Adapts the process to the limits of a shell or service manager (ulimit), as far as a program
 * can. */
#ifndef SL_TOOLS_CLI_LIMITS_H
#define SL_TOOLS_CLI_LIMITS_H

/* Raises the number of files that may be open to the most that is allowed; lets writes beyond the
 * largest file allowed fail with EFBIG instead of a signal; and gives all threads that are started
 * from now on stacks that are large enough, whatever the limit for the main thread's is. */
void sl_limits_prepare(void);

/* Runs the program on a thread that has such a stack, and returns what it returns. Signals go to
 * that thread, or to those that it starts. */
int sl_limits_run(int (*run)(int argc, char **argv), int argc, char **argv);

#endif
