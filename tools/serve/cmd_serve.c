/* sluice serve, and sluiced: answers requests for texts over a Unix socket. */
#include <argp.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/base/size.h"
#include "core/text/chat_format.h"
#include "daemon/http/routes.h"
#include "daemon/http/listen_socket.h"
#include "daemon/http/service_manager.h"
#include "tools/cli/command_line.h"
#include "tools/cli/commands.h"
#include "tools/cli/engine_options.h"
#include "tools/cli/model_profile.h"
#include "tools/cli/served_model.h"
#include "tools/cli/version.h"
#include "tools/serve/serve_log.h"
#include "tools/serve/serve_state.h"

#define NS_PER_S UINT64_C(1000000000)
#define SOCKETS_MAX 8u
#define KEY_BYTES_MAX 4096u

/* Bodies that are being read take their size, and about three times that as JSON, prompt and token
 * ids. */
#define BODY_COPIES 4u
#define CONNECTIONS_MAX 1024u
#define FORM_MORE_BYTES (64u << 10) /* beside the file of an upload */
#define CONNECTION_BYTES (64u << 10)

/* When all texts have ended, what they hold still has to be sent, also to those who read slowly. */
#define LAST_REPLIES_NS (2 * NS_PER_S)

enum {
    OPTION_SOCKET = 256,
    OPTION_SOCKET_GROUP,
    OPTION_LISTEN,
    OPTION_KEY_FILE,
    OPTION_PARALLEL,
    OPTION_SMALL_STEP,
    OPTION_QUEUE,
    OPTION_MAX_BODY,
    OPTION_BODY_TIME,
    OPTION_STATE,
    OPTION_MAX_FILE,
    OPTION_GRACE,
    OPTION_KEEP_PROMPT,
    OPTION_BATCH_SHARE,
    OPTION_LOG_JSON,
    OPTION_QUIET,
    OPTION_TRACE,
    OPTION_NO_HOT_LIST,
};

struct command {
    struct sl_engine_options options;
    const char *socket; /* NULL: the default, where the service manager gives none */
    const char *socket_group;
    const char *listen;
    const char *key_file;
    const char *trace;
    const char *state_folder; /* NULL: the default */
    bool log_json, quiet;
    uint32_t body_s;
    double grace_s;
    struct sl_worker_options work;

    struct sl_serve_log log;
    bool has_log;
    struct sl_serve_state state;
    struct sl_served_model served;
    char *socket_path, *tcp_host, *key;
    bool made_socket; /* it goes when the server ends */
    struct sl_socket_file socket_file;
    struct {
        int fd;
        bool is_tcp;
    } sockets[SOCKETS_MAX];
    uint32_t n_sockets;
    int state_event, signals;
    struct sl_front front;
    struct sl_worker *worker;
    struct sl_http_server *server;
    bool is_ready;
};

/* ---- options -----------------------------------------------------------------------------------
 */

static error_t parse_serving(int key, char *value, struct argp_state *state)
{
    struct command *command = state->input;

    switch (key) {
    case OPTION_PARALLEL:
        command->work.n_texts_max = sl_parse_count(state, "--parallel", value, 4096);
        return 0;
    case OPTION_SMALL_STEP:
        command->options.small_step_tokens = sl_parse_count(state, "--small-step", value, 65536);
        return 0;
    case OPTION_QUEUE:
        command->work.queue_max = sl_parse_count(state, "--queue", value, 1u << 20);
        return 0;
    case OPTION_MAX_BODY:
        command->front.body_bytes_max = sl_parse_size(state, "--max-body", value);
        return 0;
    case OPTION_MAX_FILE:
        command->front.file_bytes_max = sl_parse_size(state, "--max-file", value);
        return 0;
    case OPTION_BODY_TIME:
        command->body_s = sl_parse_count(state, "--body-time", value, 86400);
        return 0;
    case OPTION_GRACE:
        command->grace_s = sl_parse_real(state, "--grace", value, 0, 86400);
        return 0;
    case OPTION_KEEP_PROMPT:
        command->work.keep_prompt_ns =
            (uint64_t)(sl_parse_real(state, "--keep-prompt", value, 0, 86400) * 1e9);
        return 0;
    case OPTION_BATCH_SHARE:
        command->work.batch_permille =
            (uint32_t)(sl_parse_real(state, "--batch-share", value, 0, 1) * 1000);
        return 0;
    case OPTION_NO_HOT_LIST:
        command->work.with_hot_list = false;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct command *command = state->input;

    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &command->options;
        state->child_inputs[1] = &command->options;
        state->child_inputs[2] = &command->options;
        state->child_inputs[3] = &command->options;
        state->child_inputs[4] = &command->served;
        return 0;
    case OPTION_SOCKET:
        command->socket = value;
        return 0;
    case OPTION_SOCKET_GROUP:
        command->socket_group = value;
        return 0;
    case OPTION_LISTEN:
        command->listen = value;
        return 0;
    case OPTION_KEY_FILE:
        command->key_file = value;
        return 0;
    case OPTION_QUIET:
        command->quiet = true;
        return 0;
    case OPTION_LOG_JSON:
        command->log_json = true;
        return 0;
    case OPTION_STATE:
        command->state_folder = value;
        return 0;
    case OPTION_TRACE:
        command->trace = value;
        return 0;
    default:
        return parse_serving(key, value, state);
    }
}

static const struct argp_option options[] = {
    {"socket", OPTION_SOCKET, "PATH", 0,
     "the Unix socket (default $XDG_RUNTIME_DIR/sluice.sock, or /run/sluice/sluice.sock)", 0},
    {"socket-group", OPTION_SOCKET_GROUP, "GROUP", 0, "users of this group may open it too", 0},
    {"listen", OPTION_LISTEN, "ADDRESS:PORT", 0, "listen on TCP as well, as in 127.0.0.1:8080", 0},
    {"api-key-file", OPTION_KEY_FILE, "FILE", 0,
     "TCP requests must have the key that is in this file; other addresses than this machine's own "
     "are not listened on without one",
     0},
    {"parallel", OPTION_PARALLEL, "N", 0, "texts that are made at a time (default 64)", 0},
    {"small-step", OPTION_SMALL_STEP, "TOKENS", 0,
     "most tokens of a step for those who wait for the next one (default 256)", 0},
    {"queue", OPTION_QUEUE, "N", 0, "requests that may wait for a turn (default 64)", 0},
    {"max-body", OPTION_MAX_BODY, "SIZE", 0, "the largest request (default 64M)", 0},
    {"state", OPTION_STATE, "FOLDER", 0,
     "where files and batches are kept; \"none\" keeps none (default $XDG_STATE_HOME/sluice)", 0},
    {"max-file", OPTION_MAX_FILE, "SIZE", 0, "the largest file that is uploaded (default 1G)", 0},
    {"body-time", OPTION_BODY_TIME, "SECONDS", 0,
     "that a request may take to come, and a second more for each MiB (default 60)", 0},
    {"grace", OPTION_GRACE, "SECONDS", 0,
     "that requests under way are given when the server is to end (default 10)", 0},
    {"keep-prompt", OPTION_KEEP_PROMPT, "SECONDS", 0,
     "that a prompt is still taken in for when its client has gone, since it may ask again "
     "(default "
     "60)",
     0},
    {"batch-share", OPTION_BATCH_SHARE, "SHARE", 0,
     "of the time that batches get while somebody waits for an answer (default 0)", 0},
    {"quiet", OPTION_QUIET, NULL, 0, "tell of nothing but what goes wrong", 0},
    {"log-json", OPTION_LOG_JSON, NULL, 0, "log lines of JSON", 0},
    {"trace", OPTION_TRACE, "FILE", 0,
     "append all requests and replies to this file, as JSON lines", 0},
    {"no-hot-list", OPTION_NO_HOT_LIST, NULL, 0,
     "begin with an empty cache, and leave the store's hot list as it is", 0},
    {0}};

/* ---- before the model is opened ----------------------------------------------------------------
 */

static int read_key(struct command *command, struct sl_err *err)
{
    size_t length;
    int rc;

    if (!command->key_file)
        return 0;
    rc = sl_file_read_all(command->key_file, KEY_BYTES_MAX, &command->key, &length, err);
    if (rc < 0)
        return rc;
    command->key[strcspn(command->key, "\r\n")] = '\0';
    if (!command->key[0])
        return sl_err_set(err, -SL_EFORMAT, "%s: the first line is to be a key", command->key_file);
    return 0;
}

static void choose_sizes(struct command *command)
{
    struct sl_engine_options *o = &command->options;
    const uint64_t body_bytes = command->front.body_bytes_max;

    if (o->small_step_tokens == 0)
        o->small_step_tokens = 256;
    o->n_sequences = command->work.n_texts_max;
    o->kv_share = o->kv_bytes == 0;
    o->other_bytes = BODY_COPIES * body_bytes + (uint64_t)CONNECTIONS_MAX * CONNECTION_BYTES;
    command->work.context_tokens = o->context_tokens;
}

/* ---- sockets -----------------------------------------------------------------------------------
 */

static void add_socket(struct command *command, int fd, bool is_tcp)
{
    command->sockets[command->n_sockets].fd = fd;
    command->sockets[command->n_sockets++].is_tcp = is_tcp;
}

static int open_unix(struct command *command, struct sl_err *err)
{
    int fd;

    command->socket_path = command->socket ? strdup(command->socket) : sl_default_socket_path();
    if (!command->socket_path)
        return sl_err_set(err, -ENOMEM, "out of memory");
    fd = sl_listen_unix(command->socket_path, command->socket_group, &command->socket_file, err);
    if (fd < 0)
        return fd;
    command->made_socket = true;
    add_socket(command, fd, false);
    return 0;
}

/* Before it is closed: from then on another server may put its own there. */
static void remove_socket(struct command *command)
{
    if (command->made_socket)
        sl_remove_unix(command->socket_path, &command->socket_file);
    command->made_socket = false;
}

static int open_tcp(struct command *command, struct sl_err *err)
{
    bool is_local;
    int fd = sl_listen_tcp(command->listen, &is_local, &command->tcp_host, err);

    if (fd < 0)
        return fd;
    add_socket(command, fd, true);
    if (!is_local && !command->key)
        return sl_err_set(
            err, -EACCES,
            "%s: others than this machine could reach it, so --api-key-file is needed",
            command->listen);
    return 0;
}

static int open_sockets(struct command *command, struct sl_err *err)
{
    int fds[SOCKETS_MAX - 2];
    const int n = sl_service_sockets(fds, SOCKETS_MAX - 2, err);
    int rc = n < 0 ? n : 0;

    for (int i = 0; i < n; i++)
        add_socket(command, fds[i], sl_socket_is_tcp(fds[i]));
    if (rc == 0 && (n == 0 || command->socket))
        rc = open_unix(command, err);
    if (rc == 0 && command->listen)
        rc = open_tcp(command, err);
    return rc;
}

static int prepare(struct command *command, struct sl_err *err)
{
    struct sl_engine_options *o = &command->options;
    uint32_t turn_token;
    int rc;

    if ((rc = sl_serve_log_open(&command->log, command->log_json, command->quiet, command->trace,
                                err)) < 0)
        return rc;
    command->has_log = true;
    if ((rc = sl_served_model_open(&command->served, o->model, &o->context_tokens, err)) < 0 ||
        (rc = read_key(command, err)) < 0)
        return rc;
    choose_sizes(command);
    command->work.turn_token = -1;
    if (sl_tokenizer_find(command->served.tok, SL_CHAT_USER, &turn_token) == 0)
        command->work.turn_token = (int32_t)turn_token;
    return open_sockets(command, err);
}

/* ---- the server --------------------------------------------------------------------------------
 */

static int open_engine(void *context, struct sl_engine **ret_engine, struct sl_err *err)
{
    struct command *command = context;

    return sl_open_engine(ret_engine, &command->options, err);
}

static void on_state(void *context, enum sl_worker_state state)
{
    const struct command *command = context;
    const uint64_t one = 1;
    ssize_t written = write(command->state_event, &one, sizeof(one));

    (void)state;
    (void)written; /* a counter that is full wakes as well */
}

static void on_failure(void *context, const struct sl_err *err)
{
    struct command *command = context;

    sl_serve_log_line(&command->log, "a step failed: %s", err->message);
}

/* An sl_note_fn. */
static void on_note(void *context, const char *line)
{
    struct command *command = context;

    sl_serve_log_line(&command->log, "note: %s", line);
}

static void fill_front(struct command *command)
{
    struct sl_front *front = &command->front;

    front->model = command->served.model;
    front->started_s = (int64_t)time(NULL);
    front->version = sl_version_line;
    front->api_key = command->key;
    front->tcp_host = command->tcp_host;
    front->log = sl_serve_log_request;
    front->trace = command->log.trace >= 0 ? sl_serve_log_trace : NULL;
    front->context = &command->log;
}

static int open_state(struct command *command, struct sl_err *err)
{
    const struct sl_serve_state_options state = {.folder = command->state_folder,
                                                 .model_folder = command->options.model,
                                                 .numerics = command->options.numerics,
                                                 .model = &command->front.model,
                                                 .items_max = command->work.n_texts_max,
                                                 .keeps_images = command->options.images != NULL,
                                                 .log = &command->log};
    const int rc = sl_serve_state_open(&command->state, &state, err);

    command->front.files = command->state.files;
    command->front.batches = command->state.batches;
    return rc;
}

static int start(struct command *command, struct sl_err *err)
{
    const struct sl_http_options http = {.handle = sl_routes_handle,
                                         .begin_form = sl_routes_begin_form,
                                         .refuse = sl_routes_refuse,
                                         .context = &command->front,
                                         .body_bytes_max = command->front.body_bytes_max,
                                         .form_bytes_max =
                                             command->front.file_bytes_max + FORM_MORE_BYTES,
                                         .connections_max = CONNECTIONS_MAX,
                                         .body_s = command->body_s,
                                         .idle_s = 120};
    int rc;

    command->options.images_optional = true;
    command->options.on_note = on_note;
    command->options.on_note_context = command;
    command->work.open = open_engine;
    command->work.on_state = on_state;
    command->work.on_failure = on_failure;
    command->work.context = command;
    fill_front(command);
    if ((rc = open_state(command, err)) < 0 ||
        (rc = sl_worker_start(&command->worker, &command->work, err)) < 0)
        return rc;
    command->front.worker = command->worker;
    rc = sl_serve_state_start(&command->state, command->worker, err);
    if (rc == 0)
        rc = sl_http_server_create(&command->server, &http, err);
    for (uint32_t i = 0; rc == 0 && i < command->n_sockets; i++) {
        const int fd = command->sockets[i].fd;

        command->sockets[i].fd = -1;
        rc = sl_http_server_listen(command->server, fd, command->sockets[i].is_tcp, err);
    }
    return rc;
}

static void tell_ready(struct command *command)
{
    command->is_ready = true;
    sl_service_notify("READY=1\nSTATUS=serving");
    if (command->quiet)
        return;
    sl_serve_log_line(
        &command->log, "serving %s (chat format %s)%s%s%s%s", command->served.own_name,
        sl_chat_profile_found_name(&command->front.model.profile),
        command->socket_path ? " on " : "", command->socket_path ? command->socket_path : "",
        command->listen ? " and " : "", command->listen ? command->listen : "");
}

/* The first signal ends the server when what is under way has ended; the second at once. */
static void on_signal(struct command *command, uint32_t n_signals, uint64_t *deadline_ns)
{
    if (n_signals > 1 || sl_worker_state(command->worker) == SL_WORKER_LOADING) {
        *deadline_ns = 0;
        return;
    }
    sl_service_notify("STOPPING=1\nSTATUS=ending what is under way");
    if (!command->quiet)
        sl_serve_log_line(&command->log, "ending; what is under way has %g s", command->grace_s);
    remove_socket(command);
    sl_http_server_quiesce(command->server);
    sl_serve_state_let_go(&command->state);
    *deadline_ns = sl_clock_ns() + (uint64_t)(command->grace_s * 1e9);
    sl_worker_stop(command->worker, (uint64_t)(command->grace_s * 1e9));
}

/* A model that is still being loaded cannot be stopped, but nothing is lost by leaving it. */
static void leave_loading(struct command *command)
{
    remove_socket(command);
    fflush(NULL);
    quick_exit(0); /* threads go on until the end */
}

static int wait_ms(uint64_t deadline_ns)
{
    const uint64_t now_ns = sl_clock_ns();

    if (deadline_ns == UINT64_MAX)
        return -1;
    return now_ns >= deadline_ns ? 0 : (int)((deadline_ns - now_ns) / 1000000 + 1);
}

/* Until the worker has ended. */
static void run(struct command *command)
{
    struct pollfd events[2] = {{.fd = command->state_event, .events = POLLIN},
                               {.fd = command->signals, .events = POLLIN}};
    uint64_t deadline_ns = UINT64_MAX, ignored;
    struct signalfd_siginfo signal_info;
    uint32_t n_signals = 0;

    sl_service_notify("STATUS=loading the model");
    for (;;) {
        const enum sl_worker_state state = sl_worker_state(command->worker);

        if (state == SL_WORKER_ENDED)
            return;
        if (state == SL_WORKER_READY && !command->is_ready)
            tell_ready(command);
        if (poll(events, 2, wait_ms(deadline_ns)) == 0) {
            deadline_ns = UINT64_MAX;
            sl_worker_stop(command->worker, 0);
        }
        if (events[0].revents && read(command->state_event, &ignored, sizeof(ignored)) < 0)
            continue;
        if (events[1].revents &&
            read(command->signals, &signal_info, sizeof(signal_info)) == sizeof(signal_info)) {
            on_signal(command, ++n_signals, &deadline_ns);
            if (sl_worker_state(command->worker) == SL_WORKER_LOADING)
                leave_loading(command);
        }
    }
}

static int serve(struct command *command, struct sl_err *err)
{
    struct sl_worker_status status;
    sigset_t signals;
    int rc;

    /* All threads that are started from now on leave them to this one. */
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    signal(SIGPIPE, SIG_IGN); /* whoever reads the log may go */
    command->signals = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    command->state_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (command->signals < 0 || command->state_event < 0)
        return sl_err_set(err, -errno, "signals: %s", sl_strerror(errno));
    rc = start(command, err);
    if (command->worker && rc < 0)
        sl_worker_stop(command->worker, 0);
    if (command->worker) {
        run(command);
        sl_worker_status(command->worker, &status);
        if (rc == 0 && status.err.code < 0) {
            *err = status.err;
            rc = status.err.code;
        }
    }
    remove_socket(command);
    if (rc == 0)
        sl_http_server_finish(command->server, LAST_REPLIES_NS);
    sl_http_server_destroy(command->server);
    sl_serve_state_let_go(&command->state);
    if (command->worker)
        sl_worker_join(command->worker);
    return rc;
}

static void finish(struct command *command)
{
    remove_socket(command);
    for (uint32_t i = 0; i < command->n_sockets; i++)
        if (command->sockets[i].fd >= 0)
            close(command->sockets[i].fd);
    sl_serve_state_close(&command->state);
    sl_served_model_close(&command->served);
    if (command->has_log)
        sl_serve_log_close(&command->log);
    free(command->socket_path);
    free(command->tcp_host);
    free(command->key);
}

int sl_cmd_serve(int argc, char **argv)
{
    static const struct argp_child children[] = {{&sl_engine_argp, 0, "Running the model:", 1},
                                                 {&sl_images_argp, 0, NULL, 0},
                                                 {&sl_draft_argp, 0, NULL, 0},
                                                 {&sl_pages_argp, 0, NULL, 0},
                                                 {&sl_served_model_argp, 0, NULL, 0},
                                                 {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse_option,
        .args_doc = "MODEL",
        .doc = "Serves the model in the folder MODEL over HTTP on a Unix socket: chat, completions "
               "and what goes with them, as OpenAI's clients ask for them.",
        .children = children};
    struct command command = {
        .body_s = 60,
        .grace_s = 10,
        .work = {.n_texts_max = 64,
                 .queue_max = 64,
                 .keep_prompt_ns = 60 * NS_PER_S,
                 .with_hot_list = true},
        .state.lock = -1,
        .front = {.body_bytes_max = UINT64_C(64) << 20, .file_bytes_max = UINT64_C(1) << 30}};
    struct sl_err err = {0};
    int rc;

    sl_command_parse(&argp, argc, argv, &command);
    rc = prepare(&command, &err);
    if (rc == 0)
        rc = serve(&command, &err);
    finish(&command);
    return sl_command_status(rc, &err);
}
