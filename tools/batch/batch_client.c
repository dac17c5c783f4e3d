/* sluice batch submit, status, results, cancel and forget: batches at a daemon, over its socket. */
#include <argp.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/size.h"
#include "daemon/http/listen_socket.h"
#include "daemon/protocol/batches.h"
#include "tools/batch/batch_commands.h"
#include "tools/cli/command_line.h"
#include "tools/cli/daemon_client.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/json_lines.h"
#include "tools/cli/output_file.h"
#include "tools/cli/work_rate.h"

#define LOOK_NS 200000000L
#define LINE_BYTES_MAX (64u << 20)
#define DEFAULT_ENDPOINT "/v1/chat/completions"

enum {
    OPTION_SOCKET = 256,
    OPTION_ENDPOINT,
    OPTION_WINDOW,
    OPTION_PRIORITY,
    OPTION_SKIP_BAD,
    OPTION_META,
    OPTION_JSON,
    OPTION_ERRORS,
    OPTION_OLDER,
};

struct command {
    const char *socket, *argument, *output;
    const char *wanted; /* what the argument is, for messages */
    bool wants_argument, json, errors, has_older;
    uint64_t older_s; /* those are meant that ended longer ago */
    json_t *create;   /* the body that creates a batch */
    struct sl_daemon_client *client;
};

/* ---- options -----------------------------------------------------------------------------------
 */

#define SOCKET_OPTION                                                                              \
    {                                                                                              \
        "socket", OPTION_SOCKET, "PATH", 0, "the daemon's (default: where sluiced listens)", 0     \
    }

static void add_metadata(struct argp_state *state, json_t *create, const char *text)
{
    json_t *metadata = json_object_get(create, "metadata");
    const char *equals = strchr(text, '=');
    char key[65];

    if (!equals || (size_t)(equals - text) >= sizeof(key))
        argp_error(state, "--meta takes KEY=VALUE, not \"%s\"", text);
    stpncpy(key, text, (size_t)(equals - text))[0] = '\0';
    if (!metadata) {
        metadata = json_object();
        json_object_set_new(create, "metadata", metadata);
    }
    if (json_object_set_new(metadata, key, json_string(equals + 1)) < 0)
        argp_error(state, "--meta takes UTF-8, not \"%s\"", text);
}

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct command *command = state->input;

    switch (key) {
    case OPTION_SOCKET:
        command->socket = value;
        return 0;
    case OPTION_ENDPOINT:
        json_object_set_new(command->create, "endpoint", json_string(value));
        return 0;
    case OPTION_WINDOW:
        json_object_set_new(command->create, "completion_window", json_string(value));
        return 0;
    case OPTION_PRIORITY:
        json_object_set_new(command->create, "priority",
                            json_real(sl_parse_real(state, "--priority", value, -1000, 1000)));
        return 0;
    case OPTION_SKIP_BAD:
        json_object_set_new(command->create, "skip_bad", json_true());
        return 0;
    case OPTION_META:
        add_metadata(state, command->create, value);
        return 0;
    case OPTION_JSON:
        command->json = true;
        return 0;
    case OPTION_ERRORS:
        command->errors = true;
        return 0;
    case OPTION_OLDER:
        command->has_older = sl_batch_window_parse(value, &command->older_s);
        if (!command->has_older)
            argp_error(state, "--older takes a time such as 30d or 12h, not \"%s\"", value);
        return 0;
    case 'o':
        command->output = value;
        return 0;
    case ARGP_KEY_ARG:
        if (command->argument)
            argp_error(state, "one %s, not \"%s\" as well", command->wanted, value);
        command->argument = value;
        return 0;
    case ARGP_KEY_END:
        if (command->wants_argument && !command->argument && !command->has_older)
            argp_error(state, "%s is missing", command->wanted);
        if (command->argument && command->has_older)
            argp_error(state, "ID or --older, not both");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* ---- asking ------------------------------------------------------------------------------------
 */

static int connect_to(struct command *command, struct sl_err *err)
{
    char *path = command->socket ? strdup(command->socket) : sl_default_socket_path();
    int rc = path ? sl_daemon_client_create(&command->client, path, err)
                  : sl_err_set(err, -ENOMEM, "batch: out of memory");

    free(path);
    return rc;
}

static int ask(struct command *command, const char *method, const char *path, const json_t *body,
               json_t **ret_object, struct sl_err *err)
{
    char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
    const struct sl_daemon_request request = {
        .method = method, .path = path, .body = text, .stop = sl_interrupt_stop()};
    int rc = body && !text ? sl_err_set(err, -ENOMEM, "batch: out of memory")
                           : sl_daemon_client_ask(command->client, &request, ret_object, err);

    free(text);
    return rc;
}

static const char *text_in(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));

    return text ? text : "";
}

static uint64_t count_in(const json_t *object, const char *name)
{
    return (uint64_t)json_integer_value(json_object_get(object, name));
}

static int get_batch(struct command *command, const char *id, json_t **ret_batch,
                     struct sl_err *err)
{
    char path[256];

    /* An id has no characters that would make another path of it. */
    if (strspn(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") !=
            strlen(id) ||
        strlen(id) > 100)
        return sl_err_set(err, -EINVAL, "\"%s\" is no id of a batch", id);
    snprintf(path, sizeof(path), "/v1/batches/%s", id);
    return ask(command, "GET", path, NULL, ret_batch, err);
}

/* ---- what is shown -----------------------------------------------------------------------------
 */

/* Returns when a batch has ended, since 1970, or 0. */
static uint64_t end_of(const json_t *batch)
{
    static const char *const ends[] = {"completed_at", "failed_at", "expired_at", "cancelled_at"};
    uint64_t end_s = 0;

    for (size_t i = 0; end_s == 0 && i < SL_ARRAY_LEN(ends); i++)
        end_s = count_in(batch, ends[i]);
    return end_s;
}

static void print_times(const json_t *batch)
{
    char text[SL_SECONDS_TEXT_BYTES];
    const uint64_t end_s = end_of(batch);

    if (end_s > 0)
        printf(", took %s",
               sl_seconds_format((double)(end_s - count_in(batch, "created_at")), text));
}

/* `live` is what the daemon's status says of a batch that has not ended, or NULL. */
static void print_batch(const json_t *batch, const json_t *live)
{
    const json_t *counts = json_object_get(batch, "request_counts");
    const json_t *usage = json_object_get(batch, "usage");
    const json_t *errors = json_object_get(json_object_get(batch, "errors"), "data");
    const double rate = json_number_value(json_object_get(live, "tokens_per_s"));
    const json_t *left = json_object_get(live, "left_s"), *paused = json_object_get(live, "paused");
    char text[SL_SECONDS_TEXT_BYTES];

    printf("%s  %s", text_in(batch, "id"), text_in(batch, "status"));
    if (count_in(counts, "total") > 0)
        printf("  %llu of %llu items",
               (unsigned long long)(count_in(counts, "completed") + count_in(counts, "failed")),
               (unsigned long long)count_in(counts, "total"));
    if (count_in(counts, "failed") > 0)
        printf(", %llu failed", (unsigned long long)count_in(counts, "failed"));
    if (count_in(usage, "total_tokens") > 0)
        printf(", %llu tokens in, %llu out", (unsigned long long)count_in(usage, "input_tokens"),
               (unsigned long long)count_in(usage, "output_tokens"));
    if (rate > 0)
        printf(", %.1f tokens/s", rate);
    if (json_is_number(left))
        printf(", %s left", sl_seconds_format(json_number_value(left), text));
    print_times(batch);
    putchar('\n');
    if (json_is_string(paused))
        printf("  stands still: %s\n", json_string_value(paused));
    for (size_t i = 0; i < json_array_size(errors); i++) {
        const json_t *error = json_array_get(errors, i);

        if (count_in(error, "line") > 0)
            printf("  line %llu: %s\n", (unsigned long long)count_in(error, "line"),
                   text_in(error, "message"));
        else
            printf("  %s\n", text_in(error, "message"));
    }
}

static const json_t *find_live(const json_t *status, const char *id)
{
    const json_t *batches = json_object_get(status, "batches");

    for (size_t i = 0; i < json_array_size(batches); i++)
        if (strcmp(text_in(json_array_get(batches, i), "id"), id) == 0)
            return json_array_get(batches, i);
    return NULL;
}

static void show(const struct command *command, json_t *batch, const json_t *status)
{
    const json_t *live = find_live(status, text_in(batch, "id"));

    if (command->json)
        sl_json_line_print(json_incref(batch));
    else
        print_batch(batch, live);
}

/* ---- submit ------------------------------------------------------------------------------------
 */

/* All lines are of one endpoint, so the first one tells it; whatever is wrong with it, the daemon
 * says better. */
static void find_endpoint(const char *path, json_t *create)
{
    FILE *in = fopen(path, "r");
    char *line = NULL;
    size_t size = 0;
    ssize_t length = in ? getline(&line, &size, in) : -1;
    json_t *object = NULL;
    const char *url;

    if (length > 0 && length <= LINE_BYTES_MAX)
        sl_json_parse(&object, line, (size_t)length, "line 1", NULL);
    url = json_string_value(json_object_get(object, "url"));
    json_object_set_new(create, "endpoint", json_string(url ? url : DEFAULT_ENDPOINT));
    json_decref(object);
    free(line);
    if (in)
        fclose(in);
}

/* An sl_json_line_fn: looks at what needs no model to be told, and would make the batch fail. */
static int check_line(void *context, const json_t *value, struct sl_err *err)
{
    static const char *const strings[] = {"custom_id", "method", "url"};

    (void)context;
    for (size_t i = 0; i < SL_ARRAY_LEN(strings); i++)
        if (!json_is_string(json_object_get(value, strings[i])))
            return sl_err_set(err, -SL_EFORMAT, "no item of a batch: \"%s\" is no string",
                              strings[i]);
    if (!json_is_object(json_object_get(value, "body")))
        return sl_err_set(err, -SL_EFORMAT, "no item of a batch: \"body\" is no object");
    return 0;
}

/* Looks at a file before it is sent, so that one of another kind leaves no batch that has failed
 * behind. */
static int check_file(struct command *command, struct sl_err *err)
{
    return json_is_true(json_object_get(command->create, "skip_bad"))
               ? 0
               : sl_json_lines_each(command->argument, check_line, NULL, err);
}

static int upload(struct command *command, struct sl_err *err)
{
    const struct sl_daemon_request request = {.method = "POST",
                                              .path = "/v1/files",
                                              .upload = command->argument,
                                              .stop = sl_interrupt_stop()};
    json_t *file;
    int rc, fd = sl_file_open(command->argument, err);

    if (fd < 0)
        return fd;
    close(fd);
    rc = sl_daemon_client_ask(command->client, &request, &file, err);
    if (rc < 0)
        return rc;
    json_object_set(command->create, "input_file_id", json_object_get(file, "id"));
    json_decref(file);
    return 0;
}

/* A file with bad lines is told at once, as far as somebody waits for that. */
static int wait_until_valid(struct command *command, json_t **batch, struct sl_err *err)
{
    const struct timespec pause = {0, LOOK_NS};
    int rc = 0;

    while (rc == 0 && strcmp(text_in(*batch, "status"), "validating") == 0 && !sl_interrupted()) {
        json_t *next = NULL;

        nanosleep(&pause, NULL);
        rc = get_batch(command, text_in(*batch, "id"), &next, err);
        if (rc == 0) {
            json_decref(*batch);
            *batch = next;
        }
    }
    if (rc == 0 && strcmp(text_in(*batch, "status"), "failed") == 0) {
        print_batch(*batch, NULL);
        return sl_err_set(err, -SL_EFORMAT, "%s: is no input of a batch", command->argument);
    }
    return rc == -EINTR ? 0 : rc;
}

static int submit(struct command *command, struct sl_err *err)
{
    json_t *batch = NULL;
    int rc = check_file(command, err);

    if (rc == 0)
        rc = upload(command, err);
    if (rc == 0 && !json_object_get(command->create, "endpoint"))
        find_endpoint(command->argument, command->create);
    if (rc == 0)
        rc = ask(command, "POST", "/v1/batches", command->create, &batch, err);
    if (rc == 0 && command->json)
        sl_json_line_print(json_incref(batch));
    else if (rc == 0)
        puts(text_in(batch, "id"));
    if (rc == 0) {
        fflush(stdout);
        rc = wait_until_valid(command, &batch, err);
    }
    json_decref(batch);
    return rc;
}

/* ---- status ------------------------------------------------------------------------------------
 */

/* Adds all batches that the daemon knows to a list. */
static int get_all(struct command *command, json_t *batches, struct sl_err *err)
{
    char path[256] = "/v1/batches?limit=100";
    bool has_more = true;
    int rc = 0;

    while (rc == 0 && has_more) {
        json_t *page = NULL;

        rc = ask(command, "GET", path, NULL, &page, err);
        json_array_extend(batches, json_object_get(page, "data"));
        has_more = json_is_true(json_object_get(page, "has_more"));
        snprintf(path, sizeof(path), "/v1/batches?limit=100&after=%s", text_in(page, "last_id"));
        json_decref(page);
    }
    return rc;
}

static int show_status(struct command *command, struct sl_err *err)
{
    json_t *status = NULL, *batch = NULL, *batches = json_array();
    int rc = ask(command, "GET", "/status", NULL, &status, err);

    if (rc == 0 && !command->argument)
        rc = get_all(command, batches, err);
    else if (rc == 0 && (rc = get_batch(command, command->argument, &batch, err)) == 0)
        json_array_append_new(batches, batch);
    for (size_t i = 0; rc == 0 && i < json_array_size(batches); i++)
        show(command, json_array_get(batches, i), status);
    json_decref(batches);
    json_decref(status);
    return rc;
}

/* ---- results -----------------------------------------------------------------------------------
 */

static int64_t write_results(void *context, const char *bytes, size_t n_bytes)
{
    return fwrite(bytes, 1, n_bytes, context) == n_bytes ? (int64_t)n_bytes : -1;
}

static int fetch(struct command *command, const char *file_id, FILE *out, struct sl_err *err)
{
    struct sl_bytes reply = {0};
    char path[256];
    const struct sl_daemon_request request = {.method = "GET",
                                              .path = path,
                                              .on_bytes = write_results,
                                              .context = out,
                                              .stop = sl_interrupt_stop()};
    int rc;

    snprintf(path, sizeof(path), "/v1/files/%s/content", file_id);
    rc = sl_daemon_client_send(command->client, &request, &reply, err);
    if (rc == -ECANCELED)
        rc = 0; /* the output tells why it could not be written */
    else if (rc == 0)
        rc = sl_err_set(err, -EINTR, "interrupted");
    else if (rc > 0)
        rc = rc == 200 ? 0 : sl_daemon_client_refused(rc, &reply, err);
    sl_bytes_fini(&reply);
    return rc;
}

static int fetch_results(struct command *command, struct sl_err *err)
{
    static const char *const unfinished[] = {"validating", "in_progress", "finalizing",
                                             "cancelling"};
    struct sl_output_file out = {.stream = NULL};
    const char *file_id;
    json_t *batch;
    int rc = get_batch(command, command->argument, &batch, err);

    if (rc < 0)
        return rc;
    for (size_t i = 0; i < SL_ARRAY_LEN(unfinished); i++)
        if (strcmp(text_in(batch, "status"), unfinished[i]) == 0)
            rc = sl_err_set(err, -EAGAIN, "%s: is %s; its results come when it has ended",
                            command->argument, unfinished[i]);
    if (rc == 0)
        rc = sl_output_open(&out, command->output ? command->output : "-", err);
    file_id = text_in(batch, command->errors ? "error_file_id" : "output_file_id");
    if (rc == 0 && *file_id)
        rc = fetch(command, file_id, out.stream, err);
    if (rc == 0)
        rc = sl_output_commit(&out, err);
    else
        sl_output_discard(&out);
    if (rc == 0 && !command->errors && *text_in(batch, "error_file_id"))
        fprintf(stderr, "note: %llu items failed; --errors gives them\n",
                (unsigned long long)count_in(json_object_get(batch, "request_counts"), "failed"));
    json_decref(batch);
    return rc;
}

/* ---- cancel ------------------------------------------------------------------------------------
 */

static int cancel(struct command *command, struct sl_err *err)
{
    char path[256];
    json_t *batch;
    int rc = get_batch(command, command->argument, &batch, err);

    if (rc < 0)
        return rc;
    json_decref(batch);
    snprintf(path, sizeof(path), "/v1/batches/%s/cancel", command->argument);
    rc = ask(command, "POST", path, NULL, &batch, err);
    if (rc < 0)
        return rc;
    show(command, batch, NULL);
    json_decref(batch);
    return 0;
}

/* ---- forget ------------------------------------------------------------------------------------
 */

static int forget(struct command *command, const json_t *batch, struct sl_err *err)
{
    char path[256];
    json_t *deleted;
    int rc;

    snprintf(path, sizeof(path), "/v1/batches/%s", text_in(batch, "id"));
    rc = ask(command, "DELETE", path, NULL, &deleted, err);
    if (rc == 0) {
        printf("%s  forgotten\n", text_in(batch, "id"));
        json_decref(deleted);
    }
    return rc;
}

static int forget_those(struct command *command, struct sl_err *err)
{
    const uint64_t now_s = (uint64_t)time(NULL);
    json_t *batch, *batches = json_array();
    int rc;

    if (!command->argument)
        rc = get_all(command, batches, err);
    else if ((rc = get_batch(command, command->argument, &batch, err)) == 0)
        json_array_append_new(batches, batch);
    for (size_t i = 0; rc == 0 && i < json_array_size(batches); i++) {
        const uint64_t end_s = end_of(batch = json_array_get(batches, i));

        if (command->argument || (end_s > 0 && end_s + command->older_s < now_s))
            rc = forget(command, batch, err);
    }
    json_decref(batches);
    return rc;
}

/* ---- the commands ------------------------------------------------------------------------------
 */

static int run(const struct argp *argp, int argc, char **argv, struct command *command,
               int (*act)(struct command *command, struct sl_err *err))
{
    struct sl_err err = {0};
    int rc;

    command->create = json_object();
    sl_command_parse(argp, argc, argv, command);
    rc = connect_to(command, &err);
    if (rc == 0)
        rc = act(command, &err);
    sl_daemon_client_destroy(command->client);
    json_decref(command->create);
    return sl_command_status(rc, &err);
}

int sl_batch_submit(int argc, char **argv)
{
    static const struct argp_option options[] = {
        SOCKET_OPTION,
        {"endpoint", OPTION_ENDPOINT, "PATH", 0,
         "that all lines are of (default: the url of the first one)", 0},
        {"window", OPTION_WINDOW, "TIME", 0,
         "such as 24h or 7d, after which what is left expires (default: none)", 0},
        {"priority", OPTION_PRIORITY, "N", 0, "higher ones run first (default 0)", 0},
        {"skip-bad", OPTION_SKIP_BAD, NULL, 0,
         "let lines that are no requests become errors, instead of refusing the file", 0},
        {"meta", OPTION_META, "KEY=VALUE", 0, "kept with the batch; may be given several times", 0},
        {"json", OPTION_JSON, NULL, 0, "print the batch as the API has it", 0},
        {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse_option,
        .args_doc = "FILE",
        .doc =
            "Sends FILE, JSON lines as OpenAI's batches have them, to the daemon, and prints the "
            "id of the batch that it becomes."};
    struct command command = {.wants_argument = true, .wanted = "FILE"};

    return run(&argp, argc, argv, &command, submit);
}

int sl_batch_status(int argc, char **argv)
{
    static const struct argp_option options[] = {
        SOCKET_OPTION,
        {"json", OPTION_JSON, NULL, 0, "a line of JSON for each batch, as the API has it", 0},
        {0}};
    static const struct argp argp = {.options = options,
                                     .parser = parse_option,
                                     .args_doc = "[ID]",
                                     .doc = "Shows how far the daemon's batches are, or one."};
    struct command command = {.wanted = "ID"};

    return run(&argp, argc, argv, &command, show_status);
}

int sl_batch_results(int argc, char **argv)
{
    static const struct argp_option options[] = {
        SOCKET_OPTION,
        {"output", 'o', "FILE", 0, "where they go (default: standard output)", 0},
        {"errors", OPTION_ERRORS, NULL, 0, "the items that failed, instead of the answers", 0},
        {0}};
    static const struct argp argp = {.options = options,
                                     .parser = parse_option,
                                     .args_doc = "ID",
                                     .doc = "Fetches the results of a batch that has ended."};
    struct command command = {.wants_argument = true, .wanted = "ID"};

    return run(&argp, argc, argv, &command, fetch_results);
}

int sl_batch_cancel(int argc, char **argv)
{
    static const struct argp_option options[] = {SOCKET_OPTION, {0}};
    static const struct argp argp = {.options = options,
                                     .parser = parse_option,
                                     .args_doc = "ID",
                                     .doc = "Cancels a batch; the answers that there are stay."};
    struct command command = {.wants_argument = true, .wanted = "ID"};

    return run(&argp, argc, argv, &command, cancel);
}

int sl_batch_forget(int argc, char **argv)
{
    static const struct argp_option options[] = {
        SOCKET_OPTION,
        {"older", OPTION_OLDER, "TIME", 0,
         "all that ended longer ago than that, such as 30d, instead of ID", 0},
        {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse_option,
        .args_doc = "ID\n--older=TIME",
        .doc = "Deletes a batch that has ended, with its results and its input."};
    struct command command = {.wants_argument = true, .wanted = "ID or --older"};

    return run(&argp, argc, argv, &command, forget_those);
}
