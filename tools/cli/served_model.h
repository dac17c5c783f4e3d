/* The model as commands serve it, before its weights are there: config, tokenizer, chat format,
 * names, and what they answer with (daemon/answer/answer.h). */
#ifndef SL_TOOLS_CLI_SERVED_MODEL_H
#define SL_TOOLS_CLI_SERVED_MODEL_H

#include <argp.h>

#include "daemon/answer/answer.h"

#define SL_MODEL_NAMES_MAX 16u

struct sl_served_model {
    const char *profile;                   /* the chat format's name; NULL: the folder tells it */
    const char *names[SL_MODEL_NAMES_MAX]; /* (n_names) others go behind the first, its own */
    uint32_t n_names;

    struct sl_config config;
    struct sl_tokenizer *tok;
    char *own_name;
    struct sl_answer_model model;
};

/* --alias and --profile, as a child of the parsers of commands. Its input is a zeroed struct
 * sl_served_model, which borrows the values. */
extern const struct argp sl_served_model_argp;

/* Opens the model in a folder; *context_tokens is set where it is 0. Prints the tokenizer's notes.
 * The caller closes it, also after an error. */
int sl_served_model_open(struct sl_served_model *served, const char *folder,
                         uint32_t *context_tokens, struct sl_err *err);
void sl_served_model_close(struct sl_served_model *served);

#endif
