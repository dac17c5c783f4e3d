#include "tools/cli/served_model.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/text/utf8.h"

/* A conversation rarely has more; longer contexts are asked for. */
#define CONTEXT_TOKENS_DEFAULT 65536u

enum { OPTION_OTHER_NAME = 768, OPTION_PROFILE }; /* apart from the commands' and the engine's */

static const struct argp_option options[] = {
    {"alias", OPTION_OTHER_NAME, "NAME", 0,
     "another name of the model that requests may give; may be given several times", 0},
    {"profile", OPTION_PROFILE, "v4-preview|v4-0731", 0,
     "the chat format (default: what the model's folder says, as inspect shows)", 0},
    {0}};

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct sl_served_model *served = state->input;

    switch (key) {
    case OPTION_OTHER_NAME:
        if (served->n_names == SL_MODEL_NAMES_MAX - 1)
            argp_error(state, "--alias can be given %u times", SL_MODEL_NAMES_MAX - 1);
        if (sl_utf8_mend(value))
            argp_error(state, "--alias takes UTF-8, not \"%s\"", value);
        served->names[++served->n_names] = value;
        return 0;
    case OPTION_PROFILE:
        served->profile = value;
        if (sl_chat_profile_find(&served->model.profile.profile, value, NULL) < 0)
            argp_error(state, "--profile takes v4-preview or v4-0731, not \"%s\"", value);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

const struct argp sl_served_model_argp = {.options = options, .parser = parse_option};

static int choose_profile(struct sl_served_model *served, const char *folder, struct sl_err *err)
{
    struct sl_chat_profile_found *found = &served->model.profile;

    if (!served->profile)
        return sl_chat_profile_detect(folder, found, err);
    found->is_chat = true;
    found->file = "--profile";
    return sl_chat_profile_find(&found->profile, served->profile, err);
}

/* The folder's name, as the shell would complete it. */
static int choose_name(struct sl_served_model *served, const char *folder, struct sl_err *err)
{
    char *path = realpath(folder, NULL);
    const char *last = path ? strrchr(path, '/') : NULL;

    if (last)
        served->own_name = strdup(last[1] ? last + 1 : "model");
    free(path);
    if (!served->own_name)
        return sl_err_set(err, -errno, "%s: %s", folder, sl_strerror(errno));
    sl_utf8_mend(served->own_name); /* replies hold it */
    served->names[0] = served->own_name;
    served->n_names++;
    return 0;
}

static int choose_context(const struct sl_served_model *served, uint32_t *context_tokens,
                          struct sl_err *err)
{
    const uint32_t model_max = served->config.max_position_embeddings;

    if (*context_tokens == 0)
        *context_tokens = model_max < CONTEXT_TOKENS_DEFAULT ? model_max : CONTEXT_TOKENS_DEFAULT;
    return *context_tokens >= 2
               ? 0
               : sl_err_set(err, -SL_EBUDGET, "a context of %u tokens has no room for an answer",
                            *context_tokens);
}

int sl_served_model_open(struct sl_served_model *served, const char *folder,
                         uint32_t *context_tokens, struct sl_err *err)
{
    const char *note;
    int rc;

    if ((rc = sl_config_read(&served->config, folder, err)) < 0 ||
        (rc = choose_profile(served, folder, err)) < 0 ||
        (rc = choose_name(served, folder, err)) < 0 ||
        (rc = choose_context(served, context_tokens, err)) < 0 ||
        (rc = sl_tokenizer_open(&served->tok, folder, err)) < 0)
        return rc;
    for (size_t i = 0; (note = sl_tokenizer_note(served->tok, i)); i++)
        fprintf(stderr, "note: %s\n", note);
    served->model.tok = served->tok;
    served->model.config = &served->config;
    served->model.context_tokens = *context_tokens;
    served->model.names = served->names;
    served->model.n_names = served->n_names;
    return 0;
}

void sl_served_model_close(struct sl_served_model *served)
{
    sl_tokenizer_close(served->tok);
    free(served->own_name);
}
