/* sluice doctor: one page that says whether this machine suits, and what mends it where not. */
#include <argp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>

#include "core/base/json.h"
#include "tools/cli/command_line.h"
#include "tools/cli/commands.h"
#include "tools/cmd/doctor.h"
#include "tools/cli/json_lines.h"

#define FOUND_BYTES 1024

/* Without a MODEL, the files of V4-Pro are assumed: all its shards, each open twice. */
#define N_FILES_DEFAULT (2 * 66u)

struct command {
    const char *model; /* or NULL */
    struct sl_doctor doctor;
};

static const char *const verdict_names[SL_DOCTOR_VERDICTS] = {"ok", "short", "no"};

static void print_json(const char *verdict, const char *what, const char *mend, const char *found)
{
    sl_json_line_print(json_pack("{ss ss ss ss?}", "what", what, "verdict", verdict, "found", found,
                                 "mend", mend));
}

void sl_doctor_find(struct sl_doctor *doctor, enum sl_doctor_verdict verdict, const char *what,
                    const char *mend, const char *format, ...)
{
    char found[FOUND_BYTES];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(found, sizeof(found), format, arguments);
    va_end(arguments);
    doctor->n_findings[verdict]++;
    if (doctor->json) {
        print_json(verdict_names[verdict], what, mend, found);
        return;
    }
    printf("%-6s %-15s %s\n", verdict_names[verdict], what, found);
    if (mend)
        printf("%*s> %s\n", 23, "", mend);
}

static void print_verdict(const struct command *command)
{
    const uint32_t n_short = command->doctor.n_findings[SL_DOCTOR_SHORT];
    const uint32_t n_no = command->doctor.n_findings[SL_DOCTOR_NO];
    const char *const model = command->model ? command->model : "a model";

    if (n_no > 0)
        printf("This machine cannot run %s as it is: see \"no\" above.\n", model);
    else if (n_short > 0)
        printf("This machine can run %s; %u thing%s could be better.\n", model, n_short,
               n_short == 1 ? "" : "s");
    else
        printf("This machine suits.\n");
}

enum { OPTION_ROOT = 256, OPTION_JSON };

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct command *command = state->input;

    switch (key) {
    case OPTION_ROOT:
        command->doctor.root = value;
        return 0;
    case OPTION_JSON:
        command->doctor.json = true;
        return 0;
    case ARGP_KEY_ARG:
        if (command->model)
            argp_error(state, "one MODEL, not \"%s\" as well", value);
        command->model = sl_parse_model(value);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

int sl_cmd_doctor(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"json", OPTION_JSON, NULL, 0, "one JSON object a line: what, verdict, found, mend", 0},
        {"root", OPTION_ROOT, "DIR", 0,
         "look at /proc and /sys of another system, copied below DIR: for tests", 0},
        {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse_option,
        .args_doc = "[MODEL]",
        .doc = "Says whether this machine suits, or with MODEL whether it suits that: what falls "
               "short is followed by the command that mends it."
               "\vVerdicts are ok, short (it runs, but slower than it could, or less safely) and "
               "no. The exit status is 1 if there is a \"no\"."};
    struct command command = {.doctor = {.root = "", .n_files = N_FILES_DEFAULT}};
    struct utsname name;

    sl_command_parse(&argp, argc, argv, &command);
    if (!command.doctor.json && uname(&name) == 0)
        printf("%s %s, %s\n", name.sysname, name.release, name.machine);
    if (command.model)
        sl_doctor_model(&command.doctor, command.model);
    sl_doctor_processor(&command.doctor);
    sl_doctor_memory(&command.doctor);
    sl_doctor_system(&command.doctor);
    if (!command.doctor.json)
        print_verdict(&command);
    return command.doctor.n_findings[SL_DOCTOR_NO] > 0 ? 1 : 0;
}
