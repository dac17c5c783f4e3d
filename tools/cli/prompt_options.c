#include "tools/cli/prompt_options.h"

#include "tools/cli/prompt.h"

enum {
    OPTION_JSONL = 768, /* apart from the commands' own, and the engine's */
    OPTION_SPECIAL,
    OPTION_NO_BOS,
};

static const struct argp_option options[] = {
    {"prompt", 'p', "TEXT", 0, "the text", 0},
    {"file", 'f', "FILE", 0, "the same from a file; - is standard input", 0},
    {"jsonl", OPTION_JSONL, "FILE", 0,
     "many texts: one JSON string, or object with a \"text\", a line; - is standard input", 0},
    {"special", OPTION_SPECIAL, NULL, 0, "recognise the model's control tokens in the text", 0},
    {"no-bos", OPTION_NO_BOS, NULL, 0, "put no begin-of-sentence token before the text", 0},
    {0}};

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct sl_prompt_options *o = state->input;

    switch (key) {
    case 'p':
        o->text = value;
        return 0;
    case 'f':
        o->file = value;
        return 0;
    case OPTION_JSONL:
        o->jsonl = value;
        return 0;
    case OPTION_SPECIAL:
        o->flags |= SL_PROMPT_SPECIAL;
        return 0;
    case OPTION_NO_BOS:
        o->flags |= SL_PROMPT_NO_BOS;
        return 0;
    case ARGP_KEY_END:
        if (!!o->text + !!o->file + !!o->jsonl != 1)
            argp_error(state, "give the text with -p, the file with -f, or many with --jsonl");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

const struct argp sl_prompt_argp = {.options = options, .parser = parse_option};
