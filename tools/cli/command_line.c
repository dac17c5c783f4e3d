#include "tools/cli/command_line.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/size.h"
#include "core/model/model_folder.h"
#include "tools/cli/interrupt.h"

static error_t parse_common(int key, char *value, struct argp_state *state)
{
    (void)value;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = state->input;
        return 0;
    case 'h':
        argp_state_help(state, stdout, ARGP_HELP_STD_HELP);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

void sl_command_parse(const struct argp *argp, int argc, char **argv, void *input)
{
    static const struct argp_option options[] = {
        {NULL, 'h', NULL, OPTION_HIDDEN, NULL, 0}, /* argp itself only has -? and --help */
        {0}};
    const struct argp_child children[] = {{argp, 0, NULL, 0}, {0}};
    const struct argp parent = {.options = options, .parser = parse_common, .children = children};

    argp_parse(&parent, argc, argv, 0, NULL, input);
}

int sl_command_status(int rc, const struct sl_err *err)
{
    if (rc >= 0)
        return 0;
    fprintf(stderr, "sluice: %s%s\n", sl_interrupted() ? "interrupted: " : "", err->message);
    return 1;
}

uint32_t sl_parse_count(struct argp_state *state, const char *option, const char *text,
                        uint32_t max)
{
    char *end;
    unsigned long value;

    errno = 0;
    value = strtoul(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end || errno || value < 1 || value > max)
        argp_error(state, "%s takes a whole number from 1 to %u, not \"%s\"", option, max, text);
    return (uint32_t)value;
}

uint64_t sl_parse_seed(struct argp_state *state, const char *option, const char *text)
{
    char *end;
    unsigned long long value;

    errno = 0;
    value = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end || errno)
        argp_error(state, "%s takes a whole number below 2^64, not \"%s\"", option, text);
    return value;
}

double sl_parse_real(struct argp_state *state, const char *option, const char *text, double min,
                     double max)
{
    const char *end;
    double value = 0;

    if (sl_number_parse(text, &value, &end) < 0 || *end || !(value >= min && value <= max))
        argp_error(state, "%s takes a number from %g to %g, not \"%s\"", option, min, max, text);
    return value;
}

double sl_parse_seconds(struct argp_state *state, const char *option, const char *text)
{
    const char *end;
    double seconds = 0;

    if (sl_number_parse(text, &seconds, &end) < 0 || *end || !(seconds > 0 && seconds <= 3600))
        argp_error(state, "%s takes a number above 0 and up to 3600, not \"%s\"", option, text);
    return seconds;
}

uint64_t sl_parse_size(struct argp_state *state, const char *option, const char *text)
{
    uint64_t bytes = 0;

    if (sl_size_parse(text, &bytes) < 0 || bytes == 0)
        argp_error(state, "%s takes a size such as 512M or 24G, not \"%s\"", option, text);
    return bytes;
}

int sl_parse_word(struct argp_state *state, const char *option, const char *value,
                  const struct sl_word *words)
{
    char list[64] = "";

    for (const struct sl_word *word = words; word->name; word++) {
        const size_t length = strlen(list);

        if (strcmp(value, word->name) == 0)
            return word->value;
        snprintf(list + length, sizeof(list) - length, "%s%s",
                 length == 0    ? ""
                 : word[1].name ? ", "
                                : " or ",
                 word->name);
    }
    argp_error(state, "%s takes %s, not \"%s\"", option, list, value);
    return 0;
}

const char *sl_parse_model(const char *text)
{
    static char *found[2]; /* no command takes more models */
    static size_t n_found;
    struct sl_err err;
    char *path;
    int rc = sl_model_folder_find(text, &path, &err);

    if (rc < 0)
        exit(sl_command_status(rc, &err));
    if (!path)
        return text;
    sl_assert(n_found < SL_ARRAY_LEN(found));
    return found[n_found++] = path;
}
