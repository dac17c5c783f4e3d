/* The subcommands of sluice, one file each. Each parses its own arguments (argv[0] is its name),
 * prints its own errors and returns the exit status: 0 done, 1 failed, 2 misuse. */
#ifndef SL_TOOLS_COMMANDS_H
#define SL_TOOLS_COMMANDS_H

int sl_cmd_synth(int argc, char **argv);

#endif
