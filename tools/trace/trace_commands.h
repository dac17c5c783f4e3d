/* The kinds of `sluice trace`, as the command itself sees them; see tools/cli/commands.h. */
#ifndef SL_TOOLS_TRACE_TRACE_COMMANDS_H
#define SL_TOOLS_TRACE_TRACE_COMMANDS_H

int sl_trace_record(int argc, char **argv);
int sl_trace_replay(int argc, char **argv);
int sl_trace_summary(int argc, char **argv);

#endif
