/* sluice chat-template: prints the prompt that a conversation becomes, for people who want to see
 * what the model is given. */
#include <argp.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/text/chat_profile.h"
#include "core/text/chat_request.h"
#include "tools/cli/command_line.h"
#include "tools/cli/commands.h"
#include "tools/cli/model_profile.h"

#define REQUEST_BYTES_MAX (UINT64_C(256) << 20)

struct arguments {
    const char *model;
    const char *file;
    const char *profile; /* NULL: as the model's folder says */
    bool ids;
    struct sl_chat_options options;
};

enum {
    OPTION_PROFILE = 256,
    OPTION_EFFORT,
    OPTION_NO_THINKING,
    OPTION_KEEP_THINKING,
    OPTION_NO_BOS,
    OPTION_IDS,
};

static const struct argp_option option_table[] = {
    {"profile", OPTION_PROFILE, "v4-preview|v4-0731", 0,
     "the chat format (default: what the model's folder says, as inspect shows)", 0},
    {"effort", OPTION_EFFORT, "low|high|max", 0,
     "how hard the model is asked to think (default: the format's own)", 0},
    {"no-thinking", OPTION_NO_THINKING, NULL, 0, "the answer comes without thinking", 0},
    {"keep-thinking", OPTION_KEEP_THINKING, NULL, 0,
     "print the reasoning of earlier turns also where the conversation has no tools", 0},
    {"no-bos", OPTION_NO_BOS, NULL, 0, "print no begin-of-sentence token", 0},
    {"ids", OPTION_IDS, NULL, 0, "print token ids", 0},
    {0}};

static const struct sl_word efforts[] = {
    {"low", SL_CHAT_LOW}, {"high", SL_CHAT_HIGH}, {"max", SL_CHAT_MAX}, {0}};

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct arguments *arguments = state->input;

    switch (key) {
    case OPTION_PROFILE:
        arguments->profile = value;
        if (sl_chat_profile_find(&arguments->options.profile, value, NULL) < 0)
            argp_error(state, "--profile takes v4-preview or v4-0731, not \"%s\"", value);
        return 0;
    case OPTION_EFFORT:
        arguments->options.effort =
            (enum sl_chat_effort)sl_parse_word(state, "--effort", value, efforts);
        return 0;
    case OPTION_NO_THINKING:
        arguments->options.thinking = false;
        return 0;
    case OPTION_KEEP_THINKING:
        arguments->options.keep_thinking = true;
        return 0;
    case OPTION_NO_BOS:
        arguments->options.no_bos = true;
        return 0;
    case OPTION_IDS:
        arguments->ids = true;
        return 0;
    case ARGP_KEY_ARG:
        if (state->arg_num > 1)
            return ARGP_ERR_UNKNOWN;
        if (state->arg_num == 0)
            arguments->model = sl_parse_model(value);
        else
            arguments->file = value;
        return 0;
    case ARGP_KEY_END:
        if (state->arg_num < 2)
            argp_error(state, "MODEL and a file with messages are needed; - is standard input");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static int choose_profile(struct arguments *arguments, struct sl_err *err)
{
    struct sl_chat_profile_found found;
    int rc;

    if (arguments->profile)
        return 0;
    rc = sl_model_profile(arguments->model, &found, err);
    if (rc == 0 && !found.is_chat)
        rc = sl_err_set(err, -SL_EUNSUPPORTED,
                        "%s: a base model, which has no chat format (%s); --profile gives one",
                        arguments->model, found.file);
    if (rc == 0)
        arguments->options.profile = found.profile;
    return rc;
}

static int render(const struct arguments *arguments, struct sl_chat_prompt *prompt,
                  struct sl_err *err)
{
    const char *name = strcmp(arguments->file, "-") == 0 ? "standard input" : arguments->file;
    json_t *request = NULL, *messages = NULL;
    size_t length;
    char *text;
    int rc = sl_input_read_all(arguments->file, REQUEST_BYTES_MAX, &text, &length, err);

    if (rc < 0)
        return rc;
    rc = sl_json_parse(&request, text, length, name, err);
    free(text);
    if (rc < 0)
        return rc;
    if ((rc = sl_chat_request_messages(request, &messages, err)) < 0 ||
        (rc = sl_chat_render(prompt, messages, &arguments->options, err)) < 0)
        rc = sl_err_prefix(err, rc, "%s", name);
    json_decref(messages);
    json_decref(request);
    return rc;
}

static int print_ids(const char *model, const struct sl_chat_prompt *prompt, struct sl_err *err)
{
    struct sl_encoder *encoder = NULL;
    struct sl_tokenizer *tok = NULL;
    struct sl_token_list ids = {0};
    int rc;

    if ((rc = sl_tokenizer_open(&tok, model, err)) == 0 &&
        (rc = sl_encoder_create(&encoder, tok, err)) == 0 &&
        (rc = sl_chat_prompt_encode(prompt, tok, encoder, &ids, err)) == 0) {
        for (size_t i = 0; i < ids.n; i++)
            printf("%s%" PRIu32, i ? " " : "", ids.ids[i]);
        putchar('\n');
    }
    sl_token_list_fini(&ids);
    sl_encoder_destroy(encoder);
    sl_tokenizer_close(tok);
    return rc;
}

int sl_cmd_chat_template(int argc, char **argv)
{
    static const struct argp argp = {
        .options = option_table,
        .parser = parse_option,
        .args_doc = "MODEL MESSAGES.json",
        .doc = "Prints the prompt that a conversation becomes, control tokens spelled out, and "
               "nothing else: no newline is added. MESSAGES.json is a list of messages, or an "
               "object with \"messages\", \"tools\" and \"response_format\", as the chat API has "
               "them; - is standard input."};
    struct arguments arguments = {.options = {.thinking = true}};
    struct sl_chat_prompt prompt = {0};
    struct sl_err err = {0};
    int rc;

    sl_command_parse(&argp, argc, argv, &arguments);
    rc = choose_profile(&arguments, &err);
    if (rc == 0)
        rc = render(&arguments, &prompt, &err);
    if (rc == 0 && arguments.ids)
        rc = print_ids(arguments.model, &prompt, &err);
    else if (rc == 0)
        fwrite(prompt.bytes, 1, prompt.length, stdout);
    sl_chat_prompt_fini(&prompt);
    return sl_command_status(rc, &err);
}
