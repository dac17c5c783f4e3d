/* sluice pack: makes a store from a checkpoint. */
#include "tools/cli/commands.h"

#include <argp.h>
#include <errno.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/json.h"
#include "core/base/size.h"
#include "storage/io/drive.h"
#include "storage/pack/drive_speed.h"
#include "storage/io/file_writer.h"
#include "storage/store/store.h"
#include "storage/store/store_layout.h"
#include "storage/pack/store_write.h"
#include "tools/cli/command_line.h"
#include "tools/cli/engine_options.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/pack_source.h"
#include "tools/cli/progress.h"
#include "tools/cli/json_lines.h"

/* Each takes 70 MB of V4-Pro's experts; more would not be faster than a drive. */
#define THREADS_DEFAULT_MAX 4u

struct arguments {
    const char *checkpoint;
    const char *store;
    uint32_t n_threads; /* 0: default */
    uint64_t batch_bytes;
    const char *stripe_folders[SL_STRIPES_MAX];
    uint32_t n_stripes;
    bool consume;
    bool compress;
    bool any_model_type;
    bool json;
};

enum {
    OPTION_THREADS = 0x100,
    OPTION_BATCH,
    OPTION_STRIPE,
    OPTION_CONSUME,
    OPTION_COMPRESS,
    OPTION_ANY_MODEL_TYPE,
    OPTION_JSON
};

static const struct argp_option options[] = {
    {"threads", OPTION_THREADS, "N", 0, "experts packed at once (default: one per core, up to 4)",
     0},
    {"batch", OPTION_BATCH, "SIZE", 0,
     "what at most has to be done again after a crash (default 256M)", 0},
    {"stripe", OPTION_STRIPE, "DIR", 0,
     "lay a part of each expert in this folder of another drive, the parts sized by what the "
     "drives read; may be given several times",
     0},
    {"consume", OPTION_CONSUME, NULL, 0,
     "free each shard of CHECKPOINT as soon as all of it is safe in the store: it is no checkpoint "
     "any more then",
     0},
    {"compress", OPTION_COMPRESS, NULL, 0,
     "store experts with zstd where that halves them: their scales, as a rule", 0},
    {"any-model-type", OPTION_ANY_MODEL_TYPE, NULL, 0,
     "pack CHECKPOINT also if its config.json names another kind of model", 0},
    {"json", OPTION_JSON, NULL, 0, "print the result as a JSON object", 0},
    {0},
};

static error_t parse_option(int key, char *text, struct argp_state *state)
{
    struct arguments *arguments = state->input;

    switch (key) {
    case OPTION_THREADS:
        arguments->n_threads = sl_parse_count(state, "--threads", text, SL_POOL_THREADS_MAX);
        return 0;
    case OPTION_BATCH:
        arguments->batch_bytes = sl_parse_size(state, "--batch", text);
        return 0;
    case OPTION_STRIPE:
        if (arguments->n_stripes == SL_STRIPES_MAX)
            argp_error(state, "--stripe: at most %u folders", SL_STRIPES_MAX);
        arguments->stripe_folders[arguments->n_stripes++] = text;
        return 0;
    case OPTION_CONSUME:
        arguments->consume = true;
        return 0;
    case OPTION_COMPRESS:
        arguments->compress = true;
        return 0;
    case OPTION_ANY_MODEL_TYPE:
        arguments->any_model_type = true;
        return 0;
    case OPTION_JSON:
        arguments->json = true;
        return 0;
    case ARGP_KEY_ARG:
        if (state->arg_num > 1)
            return ARGP_ERR_UNKNOWN;
        if (state->arg_num == 0)
            arguments->checkpoint = sl_parse_model(text);
        else
            arguments->store = text;
        return 0;
    case ARGP_KEY_END:
        if (state->arg_num < 2)
            argp_error(state,
                       "a checkpoint or a store, and a folder for the new store, are needed");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp parser = {
    .options = options,
    .parser = parse_option,
    .args_doc = "CHECKPOINT STORE",
    .doc =
        "Makes a store of a checkpoint: each expert in one piece, laid out as it is computed "
        "with, with checksums."
        "\vSTORE is a new folder, or one that a pack of this checkpoint was stopped in: it goes "
        "on where that ended. CHECKPOINT may be a store too, whose experts are then laid anew over "
        "the drives of this one.",
};

/* ---- the result --------------------------------------------------------------------------------
 */

struct figures {
    struct sl_pack_result result;
    bool complete; /* false: stopped, to be gone on with */
    uint64_t n_experts, n_tensors;
    uint64_t n_left_aside; /* tensors of the checkpoint that no store has */
    uint64_t raw_bytes;    /* of the experts, if none is compressed */
    double seconds;
    uint64_t
        drive_rates[1 + SL_STRIPES_MAX]; /* bytes a second; all but the first 0: not measured */
};

static double ratio(uint64_t stored_bytes, uint64_t size_bytes)
{
    return size_bytes ? (double)stored_bytes / (double)size_bytes : 1;
}

/* Prints how much smaller the data became: for all experts in the store, and for scales and codes
 * of the experts that this run compressed. */
static void print_gain(const struct figures *figures)
{
    const struct sl_codec_gain *gain = &figures->result.gain;
    uint64_t raw_bytes = figures->raw_bytes, saved_bytes = figures->result.saved_bytes;
    char raw[SL_SIZE_TEXT_BYTES], stored[SL_SIZE_TEXT_BYTES];

    printf("compressed: experts take %s instead of %s, %.3f of it",
           sl_size_format(raw_bytes - saved_bytes, stored), sl_size_format(raw_bytes, raw),
           ratio(raw_bytes - saved_bytes, raw_bytes));
    if (gain->scales_bytes > 0)
        printf("; scales %.3f, codes %.3f", ratio(gain->scales_stored_bytes, gain->scales_bytes),
               ratio(gain->codes_stored_bytes, gain->codes_bytes));
    putchar('\n');
}

static void print_figures(const struct arguments *arguments, const struct figures *figures)
{
    const struct sl_pack_result *result = &figures->result;
    char total[SL_SIZE_TEXT_BYTES], written[SL_SIZE_TEXT_BYTES], freed[SL_SIZE_TEXT_BYTES];

    if (!figures->complete)
        printf("stopped");
    else
        printf("packed %s: %llu experts, %llu dense tensors",
               sl_size_format(result->total_bytes, total), (unsigned long long)figures->n_experts,
               (unsigned long long)figures->n_tensors);
    if (figures->complete && result->written_bytes == 0)
        printf("; all of it was there\n");
    else
        printf("; %s written in %.1f s, %.2f GB/s\n",
               sl_size_format(result->written_bytes, written), figures->seconds,
               (double)result->written_bytes * 1e-9 / figures->seconds);
    if (figures->complete && result->compressed)
        print_gain(figures);
    if (figures->complete && figures->n_left_aside > 0)
        printf("left aside: %llu tensor%s that this engine does not use\n",
               (unsigned long long)figures->n_left_aside, sl_plural(figures->n_left_aside));
    if (result->freed_bytes > 0)
        printf("freed %s: %s is no checkpoint any more; what is left there is its small files and "
               "the headers of its shards\n",
               sl_size_format(result->freed_bytes, freed), arguments->checkpoint);
}

static void print_json(const struct arguments *arguments, const struct figures *figures)
{
    const struct sl_pack_result *result = &figures->result;
    json_t *drives = json_array();
    json_t *object;

    for (uint32_t i = 0; figures->drive_rates[1] && i <= arguments->n_stripes; i++)
        json_array_append_new(drives,
                              json_pack("{s:s, s:I}", "folder",
                                        i ? arguments->stripe_folders[i - 1] : arguments->store,
                                        "bytes_per_second", (json_int_t)figures->drive_rates[i]));
    object = json_pack(
        "{s:s, s:s, s:b, s:I, s:I, s:f, s:I, s:I, s:I, s:I, s:b, s:I, s:I, s:o}", "checkpoint",
        arguments->checkpoint, "store", arguments->store, "complete", figures->complete, "bytes",
        (json_int_t)result->total_bytes, "written_bytes", (json_int_t)result->written_bytes,
        "seconds", figures->seconds, "experts", (json_int_t)figures->n_experts, "dense_tensors",
        (json_int_t)figures->n_tensors, "tensors_left_aside", (json_int_t)figures->n_left_aside,
        "freed_bytes", (json_int_t)result->freed_bytes, "compressed", result->compressed,
        "expert_bytes_raw", (json_int_t)figures->raw_bytes, "expert_bytes",
        (json_int_t)(figures->raw_bytes - result->saved_bytes), "drives", drives);
    sl_json_line_print(object);
}

/* ---- the work ----------------------------------------------------------------------------------
 */

/* A store in its source's folder would be packed along with it, and be freed with it. */
static int check_apart(const char *source, const char *folder, struct sl_err *err)
{
    char *source_path = realpath(source, NULL), *path = strdup(folder), *parent = NULL;
    const size_t length = source_path ? strlen(source_path) : 0;
    bool inside;

    if (path) /* the folder may not be there yet, but what it is made in must be */
        parent = realpath(access(folder, F_OK) == 0 ? folder : dirname(path), NULL);
    inside = source_path && parent && strncmp(parent, source_path, length) == 0 &&
             (parent[length] == '/' || parent[length] == '\0');
    free(parent);
    free(path);
    free(source_path);
    return inside
               ? sl_err_set(err, -EINVAL, "%s: is in the folder that is packed, %s", folder, source)
               : 0;
}

static int check_folders(const struct arguments *arguments, struct sl_err *err)
{
    int rc = check_apart(arguments->checkpoint, arguments->store, err);

    for (uint32_t i = 0; rc == 0 && i < arguments->n_stripes; i++)
        rc = check_apart(arguments->checkpoint, arguments->stripe_folders[i], err);
    return rc;
}

/* Measures the drives of all folders. The folders are made before, since a folder's drive is known
 * only once it is there; those that were made for drives that are refused go again. */
static int measure_drives(const struct arguments *arguments, uint64_t weights[1 + SL_STRIPES_MAX],
                          struct sl_err *err)
{
    const char *folders[1 + SL_STRIPES_MAX] = {arguments->store};
    bool is_new[1 + SL_STRIPES_MAX];
    char text[SL_SIZE_TEXT_BYTES];
    int rc = 0;

    weights[0] = 1;
    if (arguments->n_stripes == 0 || sl_store_is(arguments->store))
        return 0; /* nothing to share out, or that was done when the store was begun */
    for (uint32_t i = 0; i < arguments->n_stripes; i++)
        folders[1 + i] = arguments->stripe_folders[i];
    for (uint32_t i = 0; i <= arguments->n_stripes; i++)
        is_new[i] = access(folders[i], F_OK) != 0;
    for (uint32_t i = 0; rc == 0 && i <= arguments->n_stripes; i++) {
        rc = sl_file_writer()->ops->make_folder(sl_file_writer(), folders[i]);
        if (rc < 0)
            sl_write_error(err, rc, folders[i], "make the folder");
    }
    if (rc == 0)
        rc = sl_drives_check(folders, 1 + arguments->n_stripes, err);
    for (uint32_t i = 0; i <= arguments->n_stripes && rc == 0; i++) {
        rc = sl_drive_speed(folders[i], sl_io_threads_open, &weights[i], err);
        if (rc == 0 && !arguments->json)
            printf("%s reads %s/s\n", folders[i], sl_size_format(weights[i], text));
    }
    for (uint32_t i = 0; rc < 0 && i <= arguments->n_stripes; i++)
        if (is_new[i])
            rmdir(folders[i]);
    return rc;
}

static void count(const struct sl_pack_source *source, struct figures *figures)
{
    const struct sl_expert_shape *shape = sl_expert_map_shape(source->experts);

    figures->n_experts = sl_store_expert_count(shape);
    figures->n_tensors = source->tensors.n_names;
    figures->raw_bytes = figures->n_experts * sl_packed_expert_bytes(shape);
    if (!source->store)
        figures->n_left_aside = sl_checkpoint_tensor_count(source->checkpoint) -
                                figures->n_tensors - figures->n_experts * 2 * SL_EXPERT_MATRICES;
}

/* Packs, and prints the figures if the work was done or stopped. */
static int pack(const struct sl_pack_source *source, const struct arguments *arguments,
                struct sl_err *err)
{
    struct sl_progress progress;
    uint32_t n_threads =
        arguments->n_threads ? arguments->n_threads : sl_choose_affinity(0).n_threads;
    struct figures figures = {0};
    struct sl_pack_options pack_options = {
        .stripe_folders = arguments->stripe_folders,
        .weights = figures.drive_rates,
        .n_stripes = arguments->n_stripes,
        .consume = arguments->consume,
        .compress = arguments->compress,
        .store_folder = arguments->store,
        .checkpoint_folder = arguments->checkpoint,
        .checkpoint = source->checkpoint,
        .from = source->store,
        .experts = source->experts,
        .tensors = (const char *const *)source->tensors.names,
        .n_tensors = source->tensors.n_names,
        .writer = sl_file_writer(),
        .batch_bytes = arguments->batch_bytes,
        .on_progress = sl_progress_show,
        .progress_context = &progress,
        .stop = sl_interrupt_stop(),
    };
    uint64_t start_ns = sl_clock_ns();
    int rc;

    if (!arguments->n_threads && n_threads > THREADS_DEFAULT_MAX)
        n_threads = THREADS_DEFAULT_MAX;
    rc = measure_drives(arguments, figures.drive_rates, err);
    if (rc < 0)
        return rc;
    rc = sl_pool_create(&pack_options.pool, n_threads, err);
    if (rc < 0)
        return rc;
    progress = sl_progress_start(stderr, "packing", NULL);
    sl_interrupt_defer();
    rc = sl_store_pack(&pack_options, &figures.result, err);
    sl_pool_destroy(pack_options.pool);
    sl_progress_end(&progress);
    if (rc < 0 && rc != -ECANCELED)
        return rc;
    count(source, &figures);
    figures.complete = rc == 0;
    figures.seconds = (double)(sl_clock_ns() - start_ns) * 1e-9;
    if (arguments->json)
        print_json(arguments, &figures);
    else
        print_figures(arguments, &figures);
    return rc;
}

static void print_notes(const struct sl_pack_source *source)
{
    char note[SL_CONFIG_NOTE_BYTES];

    for (uint32_t i = 0; sl_config_note(&source->config, i, note); i++)
        fprintf(stderr, "note: %s\n", note);
    if (source->unused.n > 0)
        fprintf(stderr, "note: %u tensor%s not packed, such as %s\n", source->unused.n,
                source->unused.n == 1 ? " is" : "s are", source->unused.first);
}

int sl_cmd_pack(int argc, char **argv)
{
    struct arguments arguments = {.batch_bytes = SL_PACK_BATCH_BYTES};
    struct sl_pack_source source = {0};
    struct sl_err err = {0};
    int rc;

    sl_command_parse(&parser, argc, argv, &arguments);
    rc = sl_pack_source_open(&source, arguments.checkpoint, arguments.any_model_type, &err);
    if (rc == 0 && arguments.consume && source.store)
        rc = sl_err_set(&err, -SL_EFORMAT, "%s: a store; --consume takes a checkpoint",
                        arguments.checkpoint);
    if (rc == 0)
        rc = check_folders(&arguments, &err);
    if (rc == 0) {
        print_notes(&source);
        rc = pack(&source, &arguments, &err);
    }
    sl_pack_source_close(&source);
    return sl_command_status(rc, &err);
}
