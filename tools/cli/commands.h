/* The subcommands of `sluice`, one file each. argv[0] names the command; the result is the exit
 * status: 0 done, 1 failed (one line on stderr has said what and where), 2 misuse. */
#ifndef SL_TOOLS_CLI_COMMANDS_H
#define SL_TOOLS_CLI_COMMANDS_H

int sl_cmd_batch(int argc, char **argv);
int sl_cmd_bench(int argc, char **argv);
int sl_cmd_chat(int argc, char **argv);
int sl_cmd_chat_template(int argc, char **argv);
int sl_cmd_doctor(int argc, char **argv);
int sl_cmd_generate(int argc, char **argv);
int sl_cmd_images(int argc, char **argv);
int sl_cmd_inspect(int argc, char **argv);
int sl_cmd_logits(int argc, char **argv);
int sl_cmd_pack(int argc, char **argv);
int sl_cmd_perplexity(int argc, char **argv);
int sl_cmd_plan(int argc, char **argv);
int sl_cmd_serve(int argc, char **argv);
int sl_cmd_synth(int argc, char **argv);
int sl_cmd_tokenize(int argc, char **argv);
int sl_cmd_trace(int argc, char **argv);
int sl_cmd_verify(int argc, char **argv);

#endif
