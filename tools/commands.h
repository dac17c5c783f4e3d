/* The subcommands of `sluice`, one file each. argv[0] names the command; the result is the exit
 * status: 0 done, 1 failed (one line on stderr says what and where), 2 misuse. */
#ifndef SL_TOOLS_COMMANDS_H
#define SL_TOOLS_COMMANDS_H

int sl_cmd_inspect(int argc, char **argv);

#endif
