/* sluice batch run: takes a batch through a model, without a daemon. */
#include <argp.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/size.h"
#include "core/text/chat_format.h"
#include "daemon/batch/batch_runner.h"
#include "storage/experts/model_files.h"
#include "storage/experts/model_identity.h"
#include "storage/images/image_folder.h"
#include "tools/batch/batch_commands.h"
#include "tools/batch/batch_figures.h"
#include "tools/batch/read_input.h"
#include "tools/cli/command_line.h"
#include "tools/cli/engine_options.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/progress.h"
#include "tools/cli/served_model.h"
#include "tools/cli/time_of_day.h"

#define PULSE_NS 100000000
#define LOCK_PULSES 30u
#define ITEMS_MAX_DEFAULT 64u
#define IMAGE_TOKENS 8192u

/* Stands for a folder in the journal's, until that is known. */
static const char images_default[] = "";

/* An exit status of its own: all went well, and there is more to do. */
#define STATUS_PARKED 3

enum {
    OPTION_ITEMS_MAX = 256,
    OPTION_SKIP_BAD,
    OPTION_UNTIL,
    OPTION_ERRORS,
    OPTION_JOURNAL,
    OPTION_JOURNAL_EVERY,
    OPTION_QUIET,
};

struct command {
    struct sl_engine_options options;
    const char *input_path, *output_path, *error_path, *journal_path;
    uint32_t items_max;
    double journal_s;
    bool skip_bad, quiet, has_until;
    int until_second; /* of the day */
    struct sl_served_model served;

    char *default_error, *default_journal, *default_images;
    char identity[40];
    struct sl_journal *journal;
    struct sl_batch_runner *runner;
    struct sl_worker *worker;
    char id[SL_BATCH_NAME_BYTES];
    time_t until_s; /* 0: for ever */
    struct sl_progress progress;
    struct sl_batch_figures figures;
    bool is_done, is_parked;
};

/* ---- options -----------------------------------------------------------------------------------
 */

static error_t parse_argument(struct command *command, const char *value, struct argp_state *state)
{
    if (!command->options.model) /* the engine's options take it */
        return ARGP_ERR_UNKNOWN;
    if (!command->input_path)
        command->input_path = value;
    else if (!command->output_path)
        command->output_path = value;
    else
        argp_error(state, "MODEL, IN and OUT, but not \"%s\" as well", value);
    return 0;
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
    case OPTION_ITEMS_MAX:
        command->items_max = sl_parse_count(state, "--max-items-at-once", value, 4095);
        return 0;
    case OPTION_SKIP_BAD:
        command->skip_bad = true;
        return 0;
    case OPTION_UNTIL:
        command->has_until = true;
        command->until_second = sl_parse_time_of_day(state, "--until", value);
        return 0;
    case OPTION_ERRORS:
        command->error_path = value;
        return 0;
    case OPTION_JOURNAL:
        command->journal_path = value;
        return 0;
    case OPTION_JOURNAL_EVERY:
        command->journal_s = sl_parse_seconds(state, "--journal-every", value);
        return 0;
    case OPTION_QUIET:
        command->quiet = true;
        return 0;
    case ARGP_KEY_ARG:
        return parse_argument(command, value, state);
    case ARGP_KEY_END:
        if (command->options.model && !command->output_path)
            argp_error(state, "MODEL, IN and OUT are needed");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_option options[] = {
    {"max-items-at-once", OPTION_ITEMS_MAX, "N", 0,
     "items that are under way at a time, as far as memory allows (default 64)", 0},
    {"skip-bad", OPTION_SKIP_BAD, NULL, 0,
     "lines that are no request become errors, instead of the file being refused", 0},
    {"until", OPTION_UNTIL, "HH:MM[:SS]", 0,
     "end at this time of the day, and say how to go on; the exit status is 3 then", 0},
    {"errors", OPTION_ERRORS, "FILE", 0, "where items that fail go (default OUT.errors)", 0},
    {"journal", OPTION_JOURNAL, "DIR", 0,
     "what is needed to go on after a kill (default OUT.journal)", 0},
    {"journal-every", OPTION_JOURNAL_EVERY, "SECONDS", 0,
     "how often answers that are under way are journalled (default 10)", 0},
    {"quiet", OPTION_QUIET, NULL, 0, "tell of nothing but what goes wrong", 0},
    {0}};

/* ---- before the model is opened ----------------------------------------------------------------
 */

static int choose_paths(struct command *command, struct sl_err *err)
{
    int n = 0;

    if (!command->error_path)
        n |= asprintf(&command->default_error, "%s.errors", command->output_path);
    if (!command->journal_path)
        n |= asprintf(&command->default_journal, "%s.journal", command->output_path);
    if (n >= 0 && !command->error_path)
        command->error_path = command->default_error;
    if (n >= 0 && !command->journal_path)
        command->journal_path = command->default_journal;
    if (n >= 0 && command->options.images == images_default) {
        n |= asprintf(&command->default_images, "%s/images", command->journal_path);
        command->options.images = command->default_images;
    }
    command->options.images_optional = command->default_images != NULL;
    return n < 0 ? sl_err_set(err, -ENOMEM, "out of memory") : 0;
}

static int identify(struct command *command, struct sl_err *err)
{
    struct sl_model_files files = {NULL, NULL};
    uint64_t identity = 0;
    int rc = sl_model_files_open(&files, command->options.model, err);

    if (rc == 0)
        rc = sl_model_identity(&files, command->options.model, &identity, err);
    sl_model_files_close(&files);
    snprintf(command->identity, sizeof(command->identity), "%s %016llx",
             command->options.numerics == SL_NUMERICS_EXACT ? "exact" : SL_NATIVE_ID,
             (unsigned long long)identity);
    return rc;
}

static int check_output(const struct command *command, struct sl_err *err)
{
    struct stat status, input;

    if (stat(command->output_path, &status) < 0)
        return 0;
    if (stat(command->input_path, &input) == 0 && input.st_dev == status.st_dev &&
        input.st_ino == status.st_ino)
        return sl_err_set(err, -EINVAL, "%s: IN and OUT are one file", command->output_path);
    if (status.st_size == 0)
        return 0;
    return sl_err_set(err, -EEXIST,
                      "%s: is there already, but %s does not tell of it: name another OUT, or "
                      "remove it",
                      command->output_path, command->journal_path);
}

static int add_batch(struct command *command, struct sl_batch_input *input, struct sl_err *err)
{
    const struct sl_batch_order order = {.input_path = command->input_path,
                                         .output_path = command->output_path,
                                         .error_path = command->error_path,
                                         .skip_bad = command->skip_bad,
                                         .input = input};
    int rc;

    if (input->n_faults_all > 0 && (!command->skip_bad || input->n_items == 0)) {
        sl_print_batch_faults(input, command->input_path);
        rc = sl_err_set(err, -SL_EFORMAT,
                        "%s: %u of %u lines are faulty; --skip-bad passes them over",
                        command->input_path, input->n_faults_all, input->n_items);
    } else {
        rc = check_output(command, err);
    }
    if (rc < 0) {
        sl_batch_input_close(input);
        return rc;
    }
    return sl_batch_runner_add(command->runner, &order, command->id, err);
}

/* The journal has the batch: it has to be this one. */
static int resume_batch(struct command *command, const struct sl_batch_record *record,
                        struct sl_batch_input *input, struct sl_err *err)
{
    int rc = 0;

    memcpy(command->id, record->id, sizeof(command->id));
    if (record->input_sha256[0] && (record->input_bytes != input->size_bytes ||
                                    strcmp(record->input_sha256, input->sha256) != 0))
        rc = sl_err_set(err, -ESTALE,
                        "%s: the input is not the one that %s was begun with (%u of its %u items "
                        "are done); nothing was changed",
                        command->input_path, command->output_path,
                        record->n_done + record->n_failed, record->n_items);
    else if (strcmp(record->output_path, command->output_path) != 0)
        rc = sl_err_set(err, -EINVAL, "%s: is the journal of %s", command->journal_path,
                        record->output_path);
    command->is_done = rc == 0 && sl_batch_has_ended(record->state);
    if (rc < 0 || command->is_done) {
        sl_batch_input_close(input);
        return rc;
    }
    if (!command->quiet)
        fprintf(stderr, "going on: %u of %u items are done\n", record->n_done + record->n_failed,
                record->n_items);
    return sl_batch_runner_give_input(command->runner, command->id, input);
}

static void on_note(void *context, const char *line)
{
    struct command *command = context;

    sl_progress_end(&command->progress);
    fprintf(stderr, "note: %s\n", line);
}

static int open_batch(struct command *command, struct sl_err *err)
{
    const uint32_t every = command->options.images_every;
    const struct sl_batch_runner_options runner = {
        .journal = command->journal,
        .writer = sl_file_writer(),
        .model = &command->served.model,
        .model_identity = command->identity,
        .items_max = command->items_max,
        .commit_ns = (uint64_t)(command->journal_s * 1e9),
        .image_tokens = every > 0 ? every : IMAGE_TOKENS,
        .keeps_images = command->options.images != NULL,
        .on_note = on_note,
        .context = command,
    };
    const struct sl_batch_input_options reading = {&command->served.model, NULL};
    struct sl_batch_status status;
    struct sl_batch_input *input;
    int rc = sl_batch_runner_create(&command->runner, &runner, err);

    if (rc < 0)
        return rc;
    rc = sl_read_batch_input(&input, command->input_path, &reading, err);
    if (rc < 0)
        return rc;
    if (sl_batch_runner_status_at(command->runner, 0, &status) == 0) {
        rc = resume_batch(command, &status.record, input, err);
        sl_batch_status_fini(&status);
        return rc;
    }
    return add_batch(command, input, err);
}

/* A run that was killed keeps its lock until the system has taken back all of its memory. */
static int open_journal(struct command *command, struct sl_err *err)
{
    static const struct timespec pulse = {0, PULSE_NS};
    int rc;

    for (uint32_t i = 0;; i++) {
        rc = sl_journal_open(&command->journal, command->journal_path, sl_file_writer(), err);
        if (rc != -EBUSY || i == LOCK_PULSES)
            return rc;
        nanosleep(&pulse, NULL);
    }
}

static int prepare(struct command *command, struct sl_err *err)
{
    struct sl_engine_options *o = &command->options;
    int rc;

    if (command->has_until)
        command->until_s = sl_next_time_of_day(command->until_second, time(NULL));
    if ((rc = choose_paths(command, err)) < 0 ||
        (rc = sl_served_model_open(&command->served, o->model, &o->context_tokens, err)) < 0 ||
        (rc = identify(command, err)) < 0 || (rc = open_journal(command, err)) < 0)
        return rc;
    o->n_sequences = command->items_max + 1; /* the worker leaves one to others */
    o->small_step_tokens = 1;
    o->kv_share = o->kv_bytes == 0;
    sl_interrupt_defer();
    return open_batch(command, err);
}

/* ---- running -----------------------------------------------------------------------------------
 */

static int open_engine(void *context, struct sl_engine **ret_engine, struct sl_err *err)
{
    struct command *command = context;

    return sl_open_engine(ret_engine, &command->options, err);
}

static void on_failure(void *context, const struct sl_err *err)
{
    on_note(context, err->message);
}

static int start_worker(struct command *command, struct sl_err *err)
{
    uint32_t turn_token;
    struct sl_worker_options work = {.open = open_engine,
                                     .on_failure = on_failure,
                                     .context = command,
                                     .n_texts_max = command->items_max + 1,
                                     .context_tokens = command->options.context_tokens,
                                     .turn_token = -1,
                                     .queue_max = 1,
                                     .with_hot_list = true};

    if (sl_tokenizer_find(command->served.tok, SL_CHAT_USER, &turn_token) == 0)
        work.turn_token = (int32_t)turn_token;
    return sl_worker_start(&command->worker, &work, err);
}

static bool is_time(const struct command *command)
{
    return command->until_s > 0 && time(NULL) >= command->until_s;
}

static void show(struct command *command, const struct sl_batch_status *status)
{
    char line[256];

    if (command->quiet || !sl_progress_is_due(&command->progress))
        return;
    sl_batch_figures_line(status, line, sizeof(line));
    sl_progress_show_line(&command->progress, line);
}

/* Until the batch has ended, cannot go on, or is to stop. */
static int watch(struct command *command, struct sl_err *err)
{
    static const struct timespec pulse = {0, PULSE_NS};
    struct sl_batch_status status;
    bool goes_on = true;
    int rc = 0;

    command->progress = sl_progress_start(stderr, "batch", "tokens");
    while (goes_on && rc == 0) {
        nanosleep(&pulse, NULL);
        sl_energy_note(&command->figures.energy);
        rc = sl_batch_runner_status(command->runner, command->id, &status);
        if (rc < 0)
            return sl_err_set(err, rc, "batch: %s", sl_strerror(rc));
        if (sl_batch_has_ended(status.record.state)) {
            command->is_done = true;
            goes_on = false;
        } else if (sl_worker_state(command->worker) == SL_WORKER_ENDED || sl_interrupted()) {
            goes_on = false;
        } else if (is_time(command)) {
            command->is_parked = true;
            goes_on = false;
        } else if (status.is_stuck) {
            rc = sl_err_set(err, -EIO, "%s", status.pause);
        } else {
            show(command, &status);
        }
        sl_batch_status_fini(&status);
    }
    sl_progress_end(&command->progress);
    return rc;
}

static int run(struct command *command, struct sl_err *err)
{
    struct sl_worker_status status;
    struct sl_err park_err;
    int rc = start_worker(command, err), park_rc;

    if (rc < 0)
        return rc;
    sl_batch_figures_begin(&command->figures);
    rc = sl_batch_runner_start(command->runner, command->worker, err);
    if (rc == 0)
        rc = watch(command, err);
    park_rc = sl_batch_runner_park(command->runner, &park_err);
    sl_worker_stop(command->worker, 0);
    sl_worker_status(command->worker, &status);
    sl_batch_figures_end(&command->figures, &status);
    if (rc == 0 && status.err.code < 0) {
        *err = status.err;
        rc = status.err.code;
    }
    if (rc == 0 && park_rc < 0) {
        *err = park_err;
        rc = park_rc;
    }
    return rc;
}

/* Images are for going on. */
static void remove_images(const struct command *command)
{
    struct sl_image_folder folder;

    if (!command->default_images ||
        sl_image_folder_scan(&folder, command->default_images, NULL, NULL, NULL) < 0)
        return;
    for (uint32_t i = 0; i < folder.n_images; i++) {
        char *path = sl_image_folder_path(&folder, folder.images[i].header.prefix);

        if (path)
            unlink(path);
        free(path);
    }
    sl_image_folder_fini(&folder);
    rmdir(command->default_images);
}

/* Tells what came of it; returns the exit status. */
static int tell(struct command *command)
{
    struct sl_batch_status status;
    int exit_status = 0;

    if (sl_batch_runner_status(command->runner, command->id, &status) < 0)
        return 1;
    if (!command->quiet)
        sl_batch_figures_print(&command->figures, &status, command->output_path,
                               command->error_path);
    if (!command->is_done) {
        fprintf(stderr, "parked: %u of %u items are done; the same command goes on\n",
                status.record.n_done + status.record.n_failed, status.record.n_items);
        exit_status = STATUS_PARKED;
    } else if (status.record.n_failed > 0) {
        exit_status = 1;
    }
    sl_batch_status_fini(&status);
    return exit_status;
}

static void finish(struct command *command)
{
    if (command->worker)
        sl_worker_join(command->worker);
    sl_batch_runner_destroy(command->runner);
    sl_journal_close(command->journal);
    if (command->is_done)
        remove_images(command);
    sl_served_model_close(&command->served);
    free(command->default_error);
    free(command->default_journal);
    free(command->default_images);
}

int sl_batch_run(int argc, char **argv)
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
        .args_doc = "MODEL IN OUT",
        .doc =
            "Answers all requests of the batch IN, lines of JSON as OpenAI's batches have them, "
            "and writes a line for each to OUT, in any order. Killed at any moment, the same "
            "command goes on where it was; the results are the same bytes. Images of long prompts "
            "lie in the journal's folder, unless --images names another or none.",
        .children = children};
    struct command command = {
        .options.images = images_default, .items_max = ITEMS_MAX_DEFAULT, .journal_s = 10};
    struct sl_err err = {0};
    int rc, status;

    sl_command_parse(&argp, argc, argv, &command);
    rc = prepare(&command, &err);
    if (rc == 0 && !command.is_done)
        rc = run(&command, &err);
    status = rc == 0 ? tell(&command) : sl_command_status(rc, &err);
    finish(&command);
    return status;
}
