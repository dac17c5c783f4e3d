#include "tools/cli/commands.h"

#include <argp.h>
#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/cpu.h"
#include "core/base/json.h"
#include "core/base/size.h"
#include "core/model/expert_key.h"
#include "tools/cli/command_line.h"
#include "tools/cli/config_file.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/output_file.h"
#include "tools/cli/progress.h"
#include "tools/synth/synth_plan.h"
#include "tools/synth/synth_share.h"
#include "tools/synth/synth_tokenizer.h"
#include "tools/synth/synth_write.h"

struct arguments {
    const char *config_path;
    const char *folder;
    uint32_t layers; /* 0: all */
    struct sl_synth_wishes wishes;
    bool no_mtp, dspark;
    const char *expert_dtype; /* that the format has; NULL: the config's */
};

enum {
    OPTION_LAYERS = 0x100,
    OPTION_SEED,
    OPTION_SKEW,
    OPTION_NO_MTP,
    OPTION_DSPARK,
    OPTION_SHARE_LAYERS,
    OPTION_FORMAT
};

static const struct argp_option options[] = {
    {"layers", OPTION_LAYERS, "N", 0, "Only the first N layers", 0},
    {"seed", OPTION_SEED, "S", 0, "Another seed gives other weights (default 1)", 0},
    {"skew", OPTION_SKEW, "X", 0,
     "How unevenly experts are chosen (default 0.1, nearly even; with 0.5 a cache of 12 % of the "
     "experts is hit 60 to 65 % of the time, as with V4-Flash)",
     0},
    {"share-layers", OPTION_SHARE_LAYERS, "N", 0,
     "Layers after the first N have the FP4 and FP8 weights of one of those, and share its blocks "
     "on disk: V4-Pro takes 35 GB with 2. Needs XFS or Btrfs",
     0},
    {"format", OPTION_FORMAT, "instruct|base", 0,
     "instruct: FP4 experts, scales are powers of two; base: all FP8, scales are float32 (default: "
     "as the config's expert_dtype says)",
     0},
    {"no-mtp", OPTION_NO_MTP, NULL, 0, "Leave out the MTP blocks that the config announces", 0},
    {"dspark", OPTION_DSPARK, NULL, 0,
     "The draft of the releases since June instead: three stages, which read the last three layers",
     0},
    {0},
};

static error_t parse_option(int key, char *text, struct argp_state *state)
{
    struct arguments *arguments = state->input;

    switch (key) {
    case OPTION_LAYERS:
        arguments->layers = sl_parse_count(state, "--layers", text, 1u << 20);
        return 0;
    case OPTION_SEED:
        arguments->wishes.seed = sl_parse_seed(state, "--seed", text);
        return 0;
    case OPTION_SKEW:
        arguments->wishes.skew = (float)sl_parse_real(state, "--skew", text, 0, 100);
        return 0;
    case OPTION_SHARE_LAYERS:
        arguments->wishes.share_layers = sl_parse_count(state, "--share-layers", text, 1u << 20);
        return 0;
    case OPTION_FORMAT:
        if (strcmp(text, "instruct") != 0 && strcmp(text, "base") != 0)
            argp_error(state, "--format takes instruct or base, not \"%s\"", text);
        arguments->expert_dtype =
            sl_expert_dtype_name(strcmp(text, "base") == 0 ? SL_EXPERT_FP8 : SL_EXPERT_FP4);
        return 0;
    case OPTION_NO_MTP:
        arguments->no_mtp = true;
        return 0;
    case OPTION_DSPARK:
        arguments->dspark = true;
        return 0;
    case ARGP_KEY_ARG:
        if (state->arg_num > 1)
            return ARGP_ERR_UNKNOWN;
        *(state->arg_num == 0 ? &arguments->config_path : &arguments->folder) = text;
        return 0;
    case ARGP_KEY_END:
        if (state->arg_num < 2)
            argp_error(state, "a config and a folder are needed");
        if (arguments->no_mtp && arguments->dspark)
            argp_error(state, "--no-mtp and --dspark exclude each other");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp parser = {
    .options = options,
    .parser = parse_option,
    .args_doc = "CONFIG.json DIR",
    .doc = "Write a random checkpoint in the official layout."
           "\vDIR must not exist or be empty; it appears when it is whole.",
};

/* Shortens the model to its first `layers` layers; the MTP blocks keep their ratios. */
static int cut_layers(json_t *root, const struct sl_config *config, uint32_t layers,
                      const char *where, struct sl_err *err)
{
    json_t *ratios = json_array();
    uint32_t hash = config->num_hash_layers < layers ? config->num_hash_layers : layers;
    uint32_t n = config->num_hidden_layers;

    if (layers > n) {
        json_decref(ratios);
        return sl_err_set(err, -SL_EFORMAT, "%s: \"num_hidden_layers\" is %u, less than --layers",
                          where, n);
    }
    for (uint32_t i = 0; i < n + config->num_nextn_predict_layers; i++)
        if (i < layers || i >= n)
            json_array_append_new(ratios, json_integer(config->compress_ratios[i]));
    json_object_set_new(root, "num_hidden_layers", json_integer(layers));
    json_object_set_new(root, "compress_ratios", ratios);
    json_object_set_new(root, "num_hash_layers", json_integer(hash));
    json_object_del(root, "layer_types"); /* a newer spelling of the two lines above */
    json_object_del(root, "mlp_layer_types");
    return 0;
}

static void drop_draft(json_t *root)
{
    json_object_set_new(root, "num_nextn_predict_layers", json_integer(0));
    json_object_del(root, "dspark_target_layer_ids");
    json_object_del(root, "dspark_block_size");
}

/* Gives the config a draft as the releases have it: DSpark, of a block of five. */
#define STAGES 3u
#define BLOCK_SIZE 5u
#define MARKOV_RANK 256u      /* as Flash; Pro has twice as much */
#define NOISE_BEFORE_END 481u /* in the vocabulary */
static int add_dspark(json_t *root, const char *where, struct sl_err *err)
{
    const uint32_t n = (uint32_t)json_integer_value(json_object_get(root, "num_hidden_layers"));
    const json_int_t vocab_size = json_integer_value(json_object_get(root, "vocab_size"));
    json_t *ratios = json_object_get(root, "compress_ratios"), *targets = json_array();

    if (n < STAGES) {
        json_decref(targets);
        return sl_err_set(err, -SL_EFORMAT, "%s: %u layers, less than the %u that --dspark reads",
                          where, n, STAGES);
    }
    while (json_array_size(ratios) > n)
        json_array_remove(ratios, n);
    for (uint32_t i = 0; i < STAGES; i++) {
        json_array_append_new(ratios, json_integer(0));
        json_array_append_new(targets, json_integer(n - STAGES + i));
    }
    json_object_set_new(root, "num_nextn_predict_layers", json_integer(1));
    json_object_set_new(root, "dspark_target_layer_ids", targets);
    json_object_set_new(root, "dspark_block_size", json_integer(BLOCK_SIZE));
    json_object_set_new(root, "dspark_markov_rank", json_integer(MARKOV_RANK));
    json_object_set_new(root, "dspark_noise_token_id",
                        json_integer(vocab_size > NOISE_BEFORE_END ? vocab_size - NOISE_BEFORE_END
                                                                   : vocab_size - 1));
    return 0;
}

/* Reads the config and changes it as the arguments ask. The changed text becomes the checkpoint's
 * config.json. */
static int read_config(const struct arguments *arguments, struct sl_config *ret_config,
                       char **ret_text, struct sl_err *err)
{
    const char *where = arguments->config_path;
    struct sl_config config;
    json_t *root = NULL;
    char *text;
    int rc;

    rc = sl_config_file_read(where, &config, &text, err);
    if (rc < 0)
        return rc;
    rc = sl_json_parse(&root, text, strlen(text), where, err);
    free(text);
    if (rc == 0 && arguments->expert_dtype)
        json_object_set_new(root, "expert_dtype", json_string(arguments->expert_dtype));
    if (rc == 0 && arguments->no_mtp)
        drop_draft(root);
    if (rc == 0 && arguments->layers)
        rc = cut_layers(root, &config, arguments->layers, where, err);
    if (rc == 0 && arguments->dspark)
        rc = add_dspark(root, where, err);
    if (rc == 0) {
        text = json_dumps(root, JSON_INDENT(2));
        rc = text ? sl_config_parse(ret_config, text, strlen(text), where, err)
                  : sl_err_set(err, -ENOMEM, "%s: out of memory", where);
        if (rc == 0)
            *ret_text = text;
        else
            free(text);
    }
    json_decref(root);
    return rc;
}

static int write_text(const char *folder, const char *name, const char *text, struct sl_err *err)
{
    char *path;
    FILE *file;
    int rc = 0;

    if (asprintf(&path, "%s/%s", folder, name) < 0)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", folder);
    file = fopen(path, "we");
    if (!file || fputs(text, file) < 0 || fflush(file) != 0 || fdatasync(fileno(file)) < 0)
        rc = -errno;
    if (file && fclose(file) != 0 && rc == 0)
        rc = -errno;
    if (rc < 0)
        sl_err_set(err, rc, "%s: cannot write: %s", path, sl_strerror(rc));
    free(path);
    return rc;
}

/* The folder must be missing or empty, so that no file of the user's is overwritten. */
static int check_folder(const char *folder, struct sl_err *err)
{
    DIR *dir = opendir(folder);
    struct dirent *entry;

    if (!dir)
        return errno == ENOENT ? 0 : sl_err_set(err, -errno, "%s: %s", folder, sl_strerror(errno));
    while ((entry = readdir(dir)) && (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")))
        continue;
    closedir(dir);
    return entry ? sl_err_set(err, -ENOTEMPTY, "%s: the folder is not empty", folder) : 0;
}

/* `part` is the temporary folder on the same file system; messages name `folder`, which it will
 * become. */
static int check_space(const char *part, const char *folder, uint64_t wanted_bytes,
                       struct sl_err *err)
{
    char wanted[SL_SIZE_TEXT_BYTES], there[SL_SIZE_TEXT_BYTES];
    struct statvfs space;
    uint64_t free_bytes;

    if (statvfs(part, &space) < 0)
        return sl_err_set(err, -errno, "%s: %s", folder, sl_strerror(errno));
    free_bytes = (uint64_t)space.f_bavail * space.f_frsize;
    if (free_bytes < wanted_bytes)
        return sl_err_set(err, -ENOSPC, "%s: %s are needed, %s are free", folder,
                          sl_size_format(wanted_bytes, wanted), sl_size_format(free_bytes, there));
    return 0;
}

static void remove_folder(const char *folder)
{
    DIR *dir = opendir(folder);
    struct dirent *entry;

    while (dir && (entry = readdir(dir)))
        unlinkat(dirfd(dir), entry->d_name, 0); /* refuses "." and ".." */
    if (dir)
        closedir(dir);
    rmdir(folder);
}

/* The checkpoint's contents, all made before anything is written. */
struct checkpoint {
    struct sl_config config;
    struct sl_synth_tables tables;
    struct sl_synth_plan *plan;
    char *config_text;
    char *tokenizer_text;
};

static int write_checkpoint(const struct checkpoint *checkpoint, const char *part,
                            const char *folder, struct sl_err *err)
{
    struct sl_progress progress = sl_progress_start(stderr, "writing", NULL);
    const struct sl_synth_plan *plan = checkpoint->plan;
    char size[SL_SIZE_TEXT_BYTES], written[SL_SIZE_TEXT_BYTES];
    bool shared = plan->write_bytes < plan->file_bytes;
    double seconds;
    int rc;

    /* There are more threads than processors, so that some write while the others make data. */
    rc = sl_synth_write(plan, &checkpoint->tables, part, sl_cpu_count() + 1, sl_interrupt_stop(),
                        sl_progress_show, &progress, err);
    sl_progress_end(&progress);
    if (rc < 0 || (rc = write_text(part, "model.safetensors.index.json", plan->index, err)) < 0 ||
        (rc = write_text(part, "tokenizer.json", checkpoint->tokenizer_text, err)) < 0 ||
        (rc = write_text(part, "config.json", checkpoint->config_text, err)) < 0)
        return rc;
    sl_output_folder(NULL);
    if (rename(part, folder) < 0)
        return sl_err_set(err, -errno, "%s: cannot rename it to %s: %s", part, folder,
                          sl_strerror(errno));
    seconds = (double)(sl_clock_ns() - progress.start_ns) * 1e-9;
    printf("%s: %u shard%s, %s%s%s in %.1f s (%.2f GB/s)\n", folder, plan->n_shards,
           sl_plural(plan->n_shards), sl_size_format(plan->file_bytes, size),
           shared ? ", written " : "", shared ? sl_size_format(plan->write_bytes, written) : "",
           seconds, (double)plan->write_bytes * 1e-9 / seconds);
    return 0;
}

static int synth(const struct arguments *arguments, struct sl_err *err)
{
    struct checkpoint checkpoint = {0};
    uint32_t share_layers = arguments->wishes.share_layers;
    char *folder = strdup(arguments->folder), *part = NULL;
    int rc;

    if (!folder)
        return sl_err_set(err, -ENOMEM, "out of memory");
    for (size_t n = strlen(folder); n > 1 && folder[n - 1] == '/'; n--)
        folder[n - 1] = '\0';
    sl_synth_tables_init(&checkpoint.tables);
    if ((rc = read_config(arguments, &checkpoint.config, &checkpoint.config_text, err)) < 0 ||
        (rc = check_folder(folder, err)) < 0)
        goto out;
    rc = sl_synth_tokenizer(checkpoint.config.vocab_size, &checkpoint.tokenizer_text, err);
    if (rc < 0) {
        sl_err_prefix(err, rc, "%s", arguments->config_path);
        goto out;
    }
    rc = sl_synth_plan_create(&checkpoint.plan, &checkpoint.config, &checkpoint.tables,
                              &arguments->wishes, err);
    if (rc == 0 && share_layers) {
        rc = sl_synth_share(checkpoint.plan, share_layers);
        if (rc < 0)
            sl_err_set(err, rc, "out of memory for the list of shared layers");
    }
    if (rc < 0)
        goto out;
    if (asprintf(&part, "%s.part.%d", folder, (int)getpid()) < 0) {
        part = NULL;
        rc = sl_err_set(err, -ENOMEM, "out of memory");
        goto out;
    }
    sl_interrupt_defer(); /* from here on there is something to remove */
    if (mkdir(part, 0777) < 0) {
        rc = sl_err_set(err, -errno, "%s: cannot create: %s", part, sl_strerror(errno));
        goto out;
    }
    sl_output_folder(part); /* for a second signal */
    rc = check_space(part, folder, checkpoint.plan->write_bytes, err);
    if (rc == 0 && share_layers) {
        rc = sl_synth_check_sharing(part, err);
        if (rc < 0)
            sl_err_prefix(err, rc, "%s", folder);
    }
    if (rc == 0)
        rc = write_checkpoint(&checkpoint, part, folder, err);
    if (rc < 0)
        remove_folder(part);
    sl_output_folder(NULL);
out:
    sl_synth_plan_destroy(checkpoint.plan);
    free(checkpoint.config_text);
    free(checkpoint.tokenizer_text);
    free(part);
    free(folder);
    return rc;
}

int sl_cmd_synth(int argc, char **argv)
{
    struct arguments arguments = {.wishes = {.seed = 1, .skew = 0.1f}};
    struct sl_err err;
    int rc;

    sl_command_parse(&parser, argc, argv, &arguments);
    rc = synth(&arguments, &err);
    return sl_command_status(rc, &err);
}
