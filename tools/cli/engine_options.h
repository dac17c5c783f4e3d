/* The options of all commands that run a model, as a child of their argp parsers. */
#ifndef SL_TOOLS_CLI_ENGINE_OPTIONS_H
#define SL_TOOLS_CLI_ENGINE_OPTIONS_H

#include <argp.h>
#include <stdbool.h>
#include <stdio.h>

#include "daemon/engine/engine.h"
#include "tools/cli/output_file.h"

/* The parser's input (state->child_inputs[...]) is a struct sl_engine_options, which it first sets
 * to the defaults, but for `images`: a command may have one. It takes MODEL as the only positional
 * argument, and requires it. */
extern const struct argp sl_engine_argp;

/* --images and what goes with it, for the commands that keep images. Its input is the same struct;
 * in the list of children it comes behind sl_engine_argp. */
extern const struct argp sl_images_argp;

/* --draft, for the commands that generate; likewise. */
extern const struct argp sl_draft_argp;

/* --kv-disk, for the commands that run batches; likewise. */
extern const struct argp sl_pages_argp;

/* Parses a size for struct sl_reader_options, or ends with argp_error(). */
#define SL_IO_PIECE_BYTES_MAX (UINT32_C(64) << 20)
#define SL_IO_DEPTH_MAX 256u
uint32_t sl_parse_piece(struct argp_state *state, const char *option, const char *text);

/* Returns what an option --dense names. */
enum sl_dense_mode sl_parse_dense(struct argp_state *state, const char *text);

/* Returns `name`, if an instruction set is called that. `source` is the option, or the variable of
 * the environment, that names it. */
const char *sl_parse_isa(struct argp_state *state, const char *source, const char *name);

/* Returns the back end that an option --io names. */
sl_io_open_fn *sl_parse_io(struct argp_state *state, const char *text);

/* Returns `wanted`, or the machine's back end if it is NULL, and says on stderr if that is not
 * io_uring. For commands that read without an engine. */
sl_io_open_fn *sl_choose_io(sl_io_open_fn *wanted);

/* Returns the affinity of n_threads threads on this machine; 0 stands for one per core. */
struct sl_affinity sl_choose_affinity(uint32_t n_threads);

/* Opens the engine, showing progress. Prints its notes to stderr, and the memory table if the model
 * does not fit; printing `err` is left to the caller. From then on Ctrl-C stops the engine's steps
 * (tools/cli/interrupt.h), which end with -ECANCELED. */
int sl_open_engine(struct sl_engine **ret_engine, const struct sl_engine_options *options,
                   struct sl_err *err);

/* Refuses, as sl_output_keep_off() does, an output that would replace a file with experts: a store
 * may have some outside its folder. */
int sl_keep_off_experts(const struct sl_output_file *out, const struct sl_engine *engine,
                        struct sl_err *err);

/* Prints two lines about the machine: where the threads ran, and the share of huge pages in each
 * area of memory. */
void sl_print_resources(const struct sl_engine *engine, const struct sl_affinity *affinity,
                        FILE *out);

#endif
