/* sluice: the command. Finds the subcommand; each has a file of its own, cmd_NAME.c. */
#include <argp.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/err.h"
#include "core/base/size.h"
#include "tools/cli/commands.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/limits.h"
#include "tools/cli/version.h"
#include "tools/cli/watch.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *summary;
} commands[] = {
    {"batch", sl_cmd_batch, "answer many requests overnight, and lose nothing"},
    {"bench", sl_cmd_bench, "measure kernels, decode and prefill against what the machine can do"},
    {"chat", sl_cmd_chat, "talk with a model, or with the daemon that runs one"},
    {"chat-template", sl_cmd_chat_template, "print the prompt that a conversation becomes"},
    {"doctor", sl_cmd_doctor, "check whether this machine suits, and say what mends it where not"},
    {"generate", sl_cmd_generate, "continue a text"},
    {"images", sl_cmd_images, "list, check and remove what generate --images keeps"},
    {"inspect", sl_cmd_inspect, "show what a model holds and what memory it needs"},
    {"logits", sl_cmd_logits, "write the logits after each token of a list, as .npy"},
    {"pack", sl_cmd_pack, "make a store of a checkpoint, which runs at the drive's speed"},
    {"perplexity", sl_cmd_perplexity, "measure how well a model predicts a text"},
    {"plan", sl_cmd_plan, "predict how a machine runs a model: memory, speed, and what limits it"},
    {"serve", sl_cmd_serve, "answer requests for texts over a Unix socket (sluiced is the same)"},
    {"synth", sl_cmd_synth, "make a random checkpoint in the official layout"},
    {"tokenize", sl_cmd_tokenize, "text to token ids, and back"},
    {"trace", sl_cmd_trace,
     "record which experts a text asks for, and replay it with other caches"},
    {"verify", sl_cmd_verify, "compare a store with its checksums, and repair it"},
};

#define N_COMMANDS (SL_ARRAY_LEN(commands))

static void print_usage(FILE *out)
{
    fprintf(out, "Usage: sluice COMMAND [OPTION...]\n"
                 "Runs DeepSeek-V4 on one machine, its experts streamed from disk.\n\n");
    for (size_t i = 0; i < N_COMMANDS; i++)
        fprintf(out, "  %-13s %s\n", commands[i].name, commands[i].summary);
    fprintf(out, "\n\"sluice help COMMAND\" tells a command's options; so does sluice(1).\n");
}

/* If the caller closed stdin, stdout or stderr, the next file that is opened would get its number,
 * and our output would end up in it. So closed ones are replaced, such that reading finds nothing
 * and writing fails. */
static void fill_standard_descriptors(void)
{
    int fd = open("/dev/null", O_RDONLY);

    while (fd >= 0 && fd <= STDERR_FILENO)
        fd = open("/dev/null", O_RDONLY);
    if (fd >= 0)
        close(fd);
}

/* Output that need not be shown at once is buffered until the end, or until a command flushes it,
 * so that the cause is still known if it cannot be written. */
static void set_buffer(void)
{
    static char buffer[1u << 18];

    if (!isatty(STDOUT_FILENO))
        setvbuf(stdout, buffer, _IOFBF, sizeof(buffer));
}

/* Checks, when a command ends with success, that everything it printed, help included, was
 * written. */
static void close_standard_output(int status, void *context)
{
    bool failed = ferror(stdout) != 0;

    (void)context;
    if (status != 0)
        return;
    errno = 0;
    if (fclose(stdout) == 0 && !failed)
        return;
    fprintf(stderr, "sluice: cannot write to standard output%s%s\n", errno ? ": " : "",
            errno ? sl_strerror(errno) : "");
    _exit(1);
}

/* Runs argv[0]; returns its exit status, or -1 if there is no such command. */
static int run_command(int argc, char **argv)
{
    char name[64];

    for (size_t i = 0; i < N_COMMANDS; i++) {
        if (strcmp(argv[0], commands[i].name) != 0)
            continue;
        snprintf(name, sizeof(name), "sluice %s", argv[0]); /* as argp's usage line shows it */
        argv[0] = name;
        return commands[i].run(argc, argv);
    }
    return -1;
}

/* "help COMMAND..." is "COMMAND... --help": `argv` has room for the exchange. */
static int help(int argc, char **argv)
{
    static char option[] = "--help";

    if (argc == 1) {
        print_usage(stdout);
        return 0;
    }
    memmove(argv, argv + 1, (size_t)(argc - 1) * sizeof(*argv));
    argv[argc - 1] = option;
    return run_command(argc, argv);
}

static bool is_one_of(const char *text, const char *a, const char *b, const char *c)
{
    return strcmp(text, a) == 0 || strcmp(text, b) == 0 || strcmp(text, c) == 0;
}

static int run(int argc, char **argv)
{
    int status;

    argp_err_exit_status = 2; /* misuse, in every command */
    argp_program_version = sl_version_line;
    if (strcmp(program_invocation_short_name, "sluiced") == 0) /* a link to this program */
        return sl_interrupt_finish(sl_cmd_serve(argc, argv));
    if (argc < 2) {
        print_usage(stderr);
        return 2;
    }
    if (is_one_of(argv[1], "--version", "-V", "version")) {
        puts(sl_version_line);
        return 0;
    }
    if (is_one_of(argv[1], "--help", "-h", "help"))
        status = help(argc - 1, argv + 1);
    else
        status = run_command(argc - 1, argv + 1);
    if (status < 0) {
        fprintf(stderr,
                "sluice: there is no command \"%s\"; \"sluice --help\" lists those there are\n",
                argv[1]);
        return 2;
    }
    return sl_interrupt_finish(status);
}

int main(int argc, char **argv)
{
    fill_standard_descriptors();
    set_buffer();
    on_exit(close_standard_output, NULL);
    sl_limits_prepare();
    sl_watch_start();
    sl_interrupt_catch();
    return sl_limits_run(run, argc, argv);
}
