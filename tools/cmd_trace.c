/* sluice trace: which experts a text asks for. One file for each kind. */
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "tools/commands.h"
#include "tools/trace_commands.h"

int sl_cmd_trace(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(int argc, char **argv);
    } kinds[] = {
        {"record", sl_trace_record},
        {"replay", sl_trace_replay},
        {"summary", sl_trace_summary},
    };
    bool is_help = argc >= 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-?") == 0);

    for (size_t i = 0; argc >= 2 && i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        char name[64];

        if (strcmp(argv[1], kinds[i].name) != 0)
            continue;
        snprintf(name, sizeof(name), "%s %s", argv[0], argv[1]); /* as argp's usage line shows it */
        argv[1] = name;
        return kinds[i].run(argc - 1, argv + 1);
    }
    fprintf(is_help ? stdout : stderr,
            "Usage: %s record MODEL --out TRACE [OPTION...]\n"
            "       %s replay|summary TRACE [OPTION...]\n",
            argv[0], argv[0]);
    return is_help ? 0 : 2;
}
