/* sluice batch check: reads a batch's input as it would be read to be answered. */
#include <argp.h>
#include <stdio.h>

#include "core/base/size.h"
#include "tools/batch/batch_commands.h"
#include "tools/batch/read_input.h"
#include "tools/cli/command_line.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/json_lines.h"
#include "tools/cli/served_model.h"

enum { OPTION_CONTEXT = 256, OPTION_JSON };

struct command {
    const char *folder, *path;
    uint32_t context_tokens;
    bool json;
    struct sl_served_model served;
};

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct command *command = state->input;

    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &command->served;
        return 0;
    case OPTION_CONTEXT:
        command->context_tokens = sl_parse_count(state, "--context", value, 1u << 24);
        return 0;
    case OPTION_JSON:
        command->json = true;
        return 0;
    case ARGP_KEY_ARG:
        if (!command->folder)
            command->folder = sl_parse_model(value);
        else if (!command->path)
            command->path = value;
        else
            argp_error(state, "one MODEL and one IN, not \"%s\" as well", value);
        return 0;
    case ARGP_KEY_END:
        if (!command->path)
            argp_error(state, "MODEL and IN are needed");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static void print_json(const struct sl_batch_input *input)
{
    json_t *faults = json_array();

    for (uint32_t i = 0; i < input->n_faults; i++)
        json_array_append_new(faults,
                              json_pack("{s:s, s:I, s:s, s:s}", "code", input->faults[i].code,
                                        "line", (json_int_t)input->faults[i].line_number, "message",
                                        input->faults[i].message, "param", input->faults[i].param));
    sl_json_line_print(json_pack(
        "{s:I, s:I, s:I, s:I, s:s, s:I, s:o}", "items", (json_int_t)input->n_items, "prompt_tokens",
        (json_int_t)input->n_prompt_tokens, "computed_tokens", (json_int_t)input->n_computed_tokens,
        "bytes", (json_int_t)input->size_bytes, "sha256", input->sha256, "faulty_lines",
        (json_int_t)input->n_faults_all, "faults", faults));
}

static void print_text(const struct sl_batch_input *input, const char *path)
{
    uint32_t longest = 0, n_groups = 0;

    for (uint32_t i = 0; i < input->n_items; i++) {
        const struct sl_batch_item *item = &input->items[input->order[i]];

        n_groups += i == 0 || item->group != input->items[input->order[i - 1]].group;
        if (item->n_prompt_tokens > longest)
            longest = item->n_prompt_tokens;
    }
    sl_print_batch_faults(input, path);
    printf("%u item%s, %llu prompt tokens, %u the longest; %u different beginnings, so that %llu "
           "tokens are computed; %u faulty\n",
           input->n_items, sl_plural(input->n_items), (unsigned long long)input->n_prompt_tokens,
           longest, n_groups, (unsigned long long)input->n_computed_tokens, input->n_faults_all);
}

static int check(struct command *command, struct sl_err *err)
{
    const struct sl_batch_input_options options = {&command->served.model, NULL};
    struct sl_batch_input *input;
    int rc = sl_served_model_open(&command->served, command->folder, &command->context_tokens, err);

    if (rc < 0)
        return rc;
    sl_interrupt_defer();
    rc = sl_read_batch_input(&input, command->path, &options, err);
    if (rc < 0)
        return rc;
    if (command->json)
        print_json(input);
    else
        print_text(input, command->path);
    if (input->n_faults_all > 0)
        rc = sl_err_set(err, -SL_EFORMAT, "%s: %u of %u lines are faulty", command->path,
                        input->n_faults_all, input->n_items);
    sl_batch_input_close(input);
    return rc;
}

int sl_batch_check(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"context", OPTION_CONTEXT, "TOKENS", 0,
         "tokens that a prompt and its answer may have (default 65536, or what the model has)", 0},
        {"json", OPTION_JSON, NULL, 0, "print one JSON object", 0},
        {0}};
    static const struct argp_child children[] = {{&sl_served_model_argp, 0, NULL, 0}, {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse_option,
        .args_doc = "MODEL IN",
        .doc = "Checks every line of a batch's input, IN, as MODEL would read it, and counts its "
               "tokens. Prints a line for each fault, and fails if there is any.",
        .children = children};
    struct command command = {.folder = NULL};
    struct sl_err err = {0};
    int rc;

    sl_command_parse(&argp, argc, argv, &command);
    rc = check(&command, &err);
    sl_served_model_close(&command.served);
    return sl_command_status(rc, &err);
}
