#include "tools/cli/kinds.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

int sl_run_kind(const struct sl_kind *kinds, size_t n_kinds, int argc, char **argv,
                const char *const *usage)
{
    bool is_help = argc >= 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
                                 strcmp(argv[1], "-?") == 0);
    FILE *out = is_help ? stdout : stderr;

    for (size_t i = 0; argc >= 2 && i < n_kinds; i++) {
        char name[64];

        if (strcmp(argv[1], kinds[i].name) != 0)
            continue;
        snprintf(name, sizeof(name), "%s %s", argv[0], argv[1]); /* as argp's usage line shows it */
        argv[1] = name;
        return kinds[i].run(argc - 1, argv + 1);
    }
    if (argc >= 2 && !is_help) {
        fprintf(stderr, "%s: there is no kind \"%s\"; \"%s --help\" lists those there are\n",
                argv[0], argv[1], argv[0]);
        return 2;
    }
    for (size_t i = 0; usage[i]; i++)
        fprintf(out, "%s %s %s\n", i == 0 ? "Usage:" : "      ", argv[0], usage[i]);
    return is_help ? 0 : 2;
}
