/* sluice chat: a conversation in the terminal. */
#include <argp.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/size.h"
#include "daemon/files/state_folder.h"
#include "daemon/http/listen_socket.h"
#include "tools/chat/chat_talk.h"
#include "tools/chat/own_daemon.h"
#include "tools/cli/command_line.h"
#include "tools/cli/commands.h"
#include "tools/cli/interrupt.h"

enum {
    OPTION_SOCKET = 256,
    OPTION_SYSTEM,
    OPTION_EFFORT,
    OPTION_LOAD,
    OPTION_TEMP,
    OPTION_TOP_P,
    OPTION_TOP_K,
    OPTION_MIN_P,
    OPTION_SEED,
    OPTION_TOKENS,
    OPTION_NO_HISTORY,
};

static const struct argp_option options[] = {
    {"socket", OPTION_SOCKET, "PATH", 0,
     "talk to the daemon that listens there, instead of running MODEL; without MODEL the default "
     "is where sluiced listens",
     0},
    {"system", OPTION_SYSTEM, "TEXT", 0, "what the model is told first", 0},
    {"effort", OPTION_EFFORT, "none|low|high|max", 0,
     "how hard the model thinks (default: the model's own)", 0},
    {"load", OPTION_LOAD, "FILE", 0, "go on with a conversation that /save wrote", 0},
    {"temp", OPTION_TEMP, "T", 0, "temperature; 0 takes the most probable token (default 1)", 0},
    {"top-p", OPTION_TOP_P, "P", 0, "keep the most probable tokens of this share (default 1)", 0},
    {"top-k", OPTION_TOP_K, "K", 0, "keep the K most probable tokens (default: all)", 0},
    {"min-p", OPTION_MIN_P, "P", 0, "drop tokens P times less probable than the best (default 0)",
     0},
    {"seed", OPTION_SEED, "S", 0,
     "of the first answer, each further one has the next (default: drawn anew for each)", 0},
    {"tokens", OPTION_TOKENS, "N", 0, "most tokens of an answer (default: what the context holds)",
     0},
    {"no-history", OPTION_NO_HISTORY, NULL, 0, "keep no file of the lines that were typed", 0},
    {0}};

struct command {
    const char *socket, *system, *load;
    bool no_history;
    char **serve_argv; /* (serve_argc) the command's name, MODEL, and options of `sluice serve` */
    int serve_argc;
    char *default_socket;
    struct sl_own_daemon daemon;
    struct sl_chat_talk talk;
};

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct command *command = state->input;
    struct sl_chat_settings *settings = &command->talk.settings;
    json_t *sampling = settings->sampling;

    switch (key) {
    case OPTION_SOCKET:
        command->socket = value;
        return 0;
    case OPTION_SYSTEM:
        command->system = value;
        return 0;
    case OPTION_EFFORT:
        settings->effort = value;
        return 0;
    case OPTION_LOAD:
        command->load = value;
        return 0;
    case OPTION_TEMP:
        json_object_set_new(sampling, "temperature",
                            json_real(sl_parse_real(state, "--temp", value, 0, 1e6)));
        return 0;
    case OPTION_TOP_P:
        json_object_set_new(sampling, "top_p",
                            json_real(sl_parse_real(state, "--top-p", value, 1e-9, 1)));
        return 0;
    case OPTION_TOP_K:
        json_object_set_new(sampling, "top_k",
                            json_integer(sl_parse_count(state, "--top-k", value, 1u << 24)));
        return 0;
    case OPTION_MIN_P:
        json_object_set_new(sampling, "min_p",
                            json_real(sl_parse_real(state, "--min-p", value, 0, 1)));
        return 0;
    case OPTION_SEED:
        settings->seed = sl_parse_seed(state, "--seed", value);
        settings->has_seed = true;
        return 0;
    case OPTION_TOKENS:
        json_object_set_new(sampling, "max_tokens",
                            json_integer(sl_parse_count(state, "--tokens", value, 1u << 24)));
        return 0;
    case OPTION_NO_HISTORY:
        command->no_history = true;
        return 0;
    case ARGP_KEY_END:
        if (command->socket && command->serve_argc > 1)
            argp_error(state, "give MODEL, or --socket of a daemon that runs one; not both");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* Returns chat's own option that an argument names, or NULL. */
static const struct argp_option *own_option(const char *argument)
{
    const size_t length = strcspn(argument, "=");

    for (const struct argp_option *o = options; o->name; o++)
        if (strncmp(argument, "--", 2) == 0 && strlen(o->name) == length - 2 &&
            strncmp(argument + 2, o->name, length - 2) == 0)
            return o;
    return NULL;
}

static bool asks_for_help(const char *argument)
{
    static const char *const words[] = {"-h", "-?", "--help", "--usage", "-V", "--version"};

    for (size_t i = 0; i < SL_ARRAY_LEN(words); i++)
        if (strcmp(argument, words[i]) == 0)
            return true;
    return false;
}

/* Splits the arguments: chat's own options, and the rest, which is for `sluice serve`. Both lists
 * begin with the command's name and have room for all. */
static void split(int argc, char **argv, int *own_argc, char **own_argv, struct command *command)
{
    own_argv[(*own_argc)++] = argv[0];
    command->serve_argv[command->serve_argc++] = argv[0];
    for (int i = 1; i < argc; i++) {
        const struct argp_option *option = own_option(argv[i]);

        if (!option && !asks_for_help(argv[i])) {
            command->serve_argv[command->serve_argc++] = argv[i];
            continue;
        }
        own_argv[(*own_argc)++] = argv[i];
        if (option && option->arg && !strchr(argv[i], '=') && i + 1 < argc)
            own_argv[(*own_argc)++] = argv[++i];
    }
}

/* The history's path, in a folder that is made if need be; NULL: there is no place for it. The
 * caller frees it. */
static char *history_path(void)
{
    char *folder = sl_state_folder_default(), *path = NULL;

    if (folder && sl_state_folder_make(folder, NULL) == 0 &&
        asprintf(&path, "%s/chat_history", folder) < 0)
        path = NULL;
    free(folder);
    return path;
}

/* Finds a daemon, or starts one. Returns an exit status, or below 0. */
static int connect_to_daemon(struct command *command, struct sl_err *err)
{
    const char *path = command->socket;
    const bool own = command->serve_argc > 1;
    int rc = 0;

    if (own) {
        rc = sl_own_daemon_start(&command->daemon, command->serve_argc, command->serve_argv, err);
        path = command->daemon.socket_path;
    } else if (!path) {
        path = command->default_socket = sl_default_socket_path();
        rc = path ? 0 : sl_err_set(err, -ENOMEM, "chat: out of memory");
    }
    if (rc == 0)
        rc = sl_daemon_client_create(&command->talk.client, path, err);
    sl_interrupt_keep();
    if (rc == 0 && own)
        return sl_own_daemon_wait(&command->daemon, command->talk.client, sl_interrupt_stop(), err);
    if (rc == 0) {
        rc = sl_daemon_client_get(command->talk.client, "/health/live", err);
        rc = rc < 0 ? rc : 0;
    }
    return rc;
}

static int talk(struct command *command, struct sl_err *err)
{
    char *path = command->no_history ? NULL : history_path();
    int rc = sl_line_input_create(&command->talk.input, path, err);

    free(path);
    if (rc == 0 && command->load)
        rc = sl_conversation_load(&command->talk.conversation, command->load, err);
    if (rc == 0 && command->system)
        rc = sl_conversation_set_system(&command->talk.conversation, command->system, err);
    return rc == 0 ? sl_chat_talk_run(&command->talk, err) : rc;
}

int sl_cmd_chat(int argc, char **argv)
{
    static const struct argp argp = {
        .options = options,
        .parser = parse_option,
        .args_doc = "[MODEL]",
        .doc = "A conversation in the terminal, with a daemon or with MODEL itself.\v"
               "Before MODEL and behind it all options of \"sluice serve\" can be given, too. "
               "/help lists what can be done in the conversation."};
    struct command command = {.talk.settings.sampling = json_object()};
    char **own_argv = calloc((size_t)argc + 1, sizeof(*own_argv));
    struct sl_err err = {0};
    int rc, own_argc = 0;

    command.serve_argv = calloc((size_t)argc + 1, sizeof(*command.serve_argv));
    if (!own_argv || !command.serve_argv)
        rc = sl_err_set(&err, -ENOMEM, "chat: out of memory");
    else {
        split(argc, argv, &own_argc, own_argv, &command);
        sl_command_parse(&argp, own_argc, own_argv, &command);
        rc = connect_to_daemon(&command, &err);
    }
    if (rc == 0)
        rc = talk(&command, &err);
    sl_line_input_destroy(command.talk.input);
    sl_daemon_client_destroy(command.talk.client);
    sl_own_daemon_stop(&command.daemon);
    sl_chat_talk_fini(&command.talk);
    free(command.default_socket);
    free(command.serve_argv);
    free(own_argv);
    return rc > 0 ? rc : sl_command_status(rc, &err);
}
