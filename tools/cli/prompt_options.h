/* The options of all commands that run a model over text, as a child of their argp parsers: where
 * the text comes from, and how it becomes tokens. */
#ifndef SL_TOOLS_CLI_PROMPT_OPTIONS_H
#define SL_TOOLS_CLI_PROMPT_OPTIONS_H

#include <argp.h>

/* One of the first three is given. */
struct sl_prompt_options {
    const char *text;  /* -p */
    const char *file;  /* -f */
    const char *jsonl; /* --jsonl */
    unsigned flags;    /* enum sl_prompt_flag */
};

/* The parser's input (state->child_inputs[...]) is a zeroed struct sl_prompt_options. */
extern const struct argp sl_prompt_argp;

#endif
