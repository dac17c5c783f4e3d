/* sluice: the command. Finds the subcommand; each has a file of its own, cmd_NAME.c. */
#include <argp.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tools/commands.h"

#define SL_VERSION "0.1.0"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *summary;
} commands[] = {
    {"bench", sl_cmd_bench, "measure kernels, decode and prefill against what the machine can do"},
    {"generate", sl_cmd_generate, "continue a text"},
    {"inspect", sl_cmd_inspect, "show what a model holds and what memory it needs"},
    {"logits", sl_cmd_logits, "write the logits after each token of a list, as .npy"},
    {"pack", sl_cmd_pack, "make a store of a checkpoint, which runs at the drive's speed"},
    {"perplexity", sl_cmd_perplexity, "measure how well a model predicts a text"},
    {"plan", sl_cmd_plan, "tell what a machine would make of a model: memory, speed, what binds"},
    {"synth", sl_cmd_synth, "make a random checkpoint in the official layout"},
    {"tokenize", sl_cmd_tokenize, "text to token ids, and back"},
    {"trace", sl_cmd_trace,
     "record which experts a text asks for, and replay it with other caches"},
    {"verify", sl_cmd_verify, "hold a store against its checksums, and mend it"},
};

static void print_usage(FILE *out)
{
    fprintf(out, "Usage: sluice COMMAND [OPTION...]\n"
                 "Runs DeepSeek-V4 on one machine, its experts streamed from disk.\n\n");
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
        fprintf(out, "  %-12s %s\n", commands[i].name, commands[i].summary);
    fprintf(out, "\n\"sluice COMMAND --help\" tells a command's options; so does sluice(1).\n");
}

/* If the caller closed stdin, stdout or stderr, the next file that is opened would get its number,
 * and what we print would end up in it. Reading finds nothing then, and writing fails. */
static void fill_standard_descriptors(void)
{
    int fd = open("/dev/null", O_RDONLY);

    while (fd >= 0 && fd <= STDERR_FILENO)
        fd = open("/dev/null", O_RDONLY);
    if (fd >= 0)
        close(fd);
}

int main(int argc, char **argv)
{
    fill_standard_descriptors();
    argp_err_exit_status = 2; /* misuse, in every command */
    if (argc >= 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0)) {
        print_usage(stdout);
        return 0;
    }
    if (argc >= 2 && strcmp(argv[1], "--version") == 0) {
        printf("sluice %s\n", SL_VERSION);
        return 0;
    }
    for (size_t i = 0; argc >= 2 && i < sizeof(commands) / sizeof(commands[0]); i++) {
        char name[64];

        if (strcmp(argv[1], commands[i].name) != 0)
            continue;
        snprintf(name, sizeof(name), "sluice %s", argv[1]); /* as argp's usage line shows it */
        argv[1] = name;
        return commands[i].run(argc - 1, argv + 1);
    }
    if (argc >= 2)
        fprintf(stderr, "sluice: unknown command \"%s\"\n", argv[1]);
    print_usage(stderr);
    return 2;
}
