/* The subcommands of `sluice`. Each takes the arguments from its own name on and returns the exit
 * status: 0 done, 1 failed (one line on stderr has said why), 2 misuse. */
#ifndef SL_TOOLS_COMMANDS_H
#define SL_TOOLS_COMMANDS_H

int sl_cmd_tokenize(int argc, char **argv);

#endif
