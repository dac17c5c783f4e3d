/* sluice verify: compares a store with its checksums, and can repair damaged parts. Checkpoints are
 * checked by tools/cmd/verify_checkpoint.c. */
#include "tools/cli/commands.h"

#include <argp.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/size.h"
#include "core/model/model_folder.h"
#include "storage/store/store_copies.h"
#include "storage/pack/store_identity.h"
#include "storage/store/store_layout.h"
#include "storage/pack/store_relocate.h"
#include "storage/pack/store_rebuild.h"
#include "storage/pack/store_repair.h"
#include "storage/pack/store_verify.h"
#include "tools/cli/command_line.h"
#include "tools/cli/engine_options.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/json_lines.h"
#include "tools/cli/pack_source.h"
#include "tools/cli/progress.h"
#include "tools/cmd/verify_checkpoint.h"

#define BAD_SHOWN_MAX 100u

struct arguments {
    const char *store;
    const char *source; /* NULL: no repair, but of the catalog where that is asked for */
    bool repair_catalog;
    sl_io_open_fn *open_io; /* NULL: the machine's */
    const char *stripe_folders[SL_STRIPES_MAX];
    uint32_t n_stripes;
    const char *sha256; /* a list, for a checkpoint */
    bool json;
};

/* The damaged items that were found. */
struct damage {
    bool json; /* how it is printed */
    struct sl_store_item *items;
    uint32_t n_items;
    uint32_t n_small; /* of these, those that the store can repair from its own copies */
    bool no_memory;
};

enum {
    OPTION_REPAIR = 0x100,
    OPTION_REPAIR_CATALOG,
    OPTION_IO,
    OPTION_STRIPE,
    OPTION_SHA256,
    OPTION_JSON
};

static const struct argp_option options[] = {
    {"repair", OPTION_REPAIR, "SOURCE", 0,
     "make what is damaged again, from the checkpoint that was packed or another store of it", 0},
    {"repair-catalog", OPTION_REPAIR_CATALOG, NULL, 0,
     "repair the catalog from another copy of it; needs no SOURCE", 0},
    {"stripe", OPTION_STRIPE, "DIR", 0,
     "parts of the store were moved to this folder: write that into the catalog; with --repair, a "
     "part that is lost is made again there; may be given several times",
     0},
    {"io", OPTION_IO, "uring|threads", 0,
     "how data are read (default uring, or threads where io_uring is not available)", 0},
    {"sha256", OPTION_SHA256, "FILE", 0,
     "a checkpoint's files and their SHA-256, as sha256sum writes them; - is standard input", 0},
    {"json", OPTION_JSON, NULL, 0, "one JSON object a line", 0},
    {0},
};

static error_t parse_option(int key, char *text, struct argp_state *state)
{
    struct arguments *arguments = state->input;

    switch (key) {
    case OPTION_REPAIR:
        arguments->source = sl_parse_model(text);
        arguments->repair_catalog = true;
        return 0;
    case OPTION_REPAIR_CATALOG:
        arguments->repair_catalog = true;
        return 0;
    case OPTION_IO:
        arguments->open_io = sl_parse_io(state, text);
        return 0;
    case OPTION_STRIPE:
        if (arguments->n_stripes == SL_STRIPES_MAX)
            argp_error(state, "--stripe: at most %u folders", SL_STRIPES_MAX);
        arguments->stripe_folders[arguments->n_stripes++] = text;
        return 0;
    case OPTION_SHA256:
        arguments->sha256 = text;
        return 0;
    case OPTION_JSON:
        arguments->json = true;
        return 0;
    case ARGP_KEY_ARG:
        if (arguments->store)
            return ARGP_ERR_UNKNOWN;
        arguments->store = sl_parse_model(text);
        return 0;
    case ARGP_KEY_END:
        if (!arguments->store)
            argp_error(state, "MODEL is missing: a store or a checkpoint");
        if (arguments->sha256 && (arguments->repair_catalog || arguments->n_stripes > 0))
            argp_error(state, "--sha256 is for checkpoints, --repair and --stripe for stores");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp parser = {
    .options = options,
    .parser = parse_option,
    .args_doc = "MODEL",
    .doc = "Reads all of a store and compares it with the checksums in its catalog; or all of a "
           "checkpoint, which must be as long as its headers say, have no scale that is no number, "
           "and the SHA-256 that are known of its files: by a list, by the names in Hugging Face's "
           "cache, or by what hf download has noted. Prints a line for everything that is damaged.",
};

static void on_bad(void *context, const struct sl_store_item *item, const char *message)
{
    struct damage *damage = context;
    struct sl_store_item *items;

    if (damage->json)
        sl_json_line_print(json_pack("{s:s}", "damaged", message));
    else if (damage->n_items < BAD_SHOWN_MAX)
        printf("damaged: %s\n", message);
    else if (damage->n_items == BAD_SHOWN_MAX)
        printf("damaged: more than is shown here\n");
    if ((damage->n_items & (damage->n_items + 1)) == 0) { /* full: room for 0, 1, 3, 7, ... */
        items = realloc(damage->items, (2 * (size_t)damage->n_items + 1) * sizeof(*items));
        damage->no_memory |= !items;
        if (items)
            damage->items = items;
    }
    if (!damage->no_memory) {
        damage->items[damage->n_items++] = *item;
        damage->n_small += item->kind == SL_STORE_COPY || item->kind == SL_STORE_TAIL;
    }
}

/* ---- repairing ----------------------------------------------------------------------------------
 */

/* Writes all of the store's data again from the source, since without a catalog nothing tells which
 * of them are sound. */
static int rebuild(const struct arguments *arguments, const struct sl_pack_source *source,
                   struct sl_err *err)
{
    struct sl_progress progress = sl_progress_start(stderr, "packing anew", NULL);
    struct sl_pack_options pack_options = {
        .stripe_folders = arguments->stripe_folders,
        .n_stripes = arguments->n_stripes,
        .store_folder = arguments->store,
        .checkpoint_folder = arguments->source,
        .checkpoint = source->checkpoint,
        .from = source->store,
        .experts = source->experts,
        .tensors = (const char *const *)source->tensors.names,
        .n_tensors = source->tensors.n_names,
        .writer = sl_file_writer(),
        .batch_bytes = SL_PACK_BATCH_BYTES,
        .on_progress = sl_progress_show,
        .progress_context = &progress,
        .stop = sl_interrupt_stop(),
    };
    int rc = sl_pool_create(&pack_options.pool, 1, err);

    if (rc < 0)
        return rc;
    sl_interrupt_defer();
    rc = sl_store_rebuild(&pack_options, err);
    sl_pool_destroy(pack_options.pool);
    sl_progress_end(&progress);
    if (rc == 0 && arguments->json)
        sl_json_line_print(json_pack("{s:s}", "packed_anew_from", arguments->source));
    else if (rc == 0)
        printf("no copy of the catalog was left: packed anew from %s\n", arguments->source);
    return rc;
}

static void print_repaired(const struct arguments *arguments, const char *name)
{
    if (arguments->json)
        sl_json_line_print(json_pack("{s:s}", "repaired", name));
    else
        printf("repaired %s/%s\n", arguments->store, name);
}

/* Repairs the catalog, before the store can be opened. */
static int repair_catalog(const struct arguments *arguments, const struct sl_pack_source *source,
                          struct sl_err *err)
{
    int lock_fd = sl_store_lock(arguments->store, err), rc;

    if (lock_fd < 0)
        return lock_fd;
    rc = sl_store_copies_repair(arguments->store, arguments->stripe_folders, arguments->n_stripes,
                                sl_file_writer(), err);
    close(lock_fd);
    if (rc > 0 && rc & SL_STORE_REPAIRED_CATALOG)
        print_repaired(arguments, SL_STORE_CATALOG_FILE);
    if (rc > 0 && rc & SL_STORE_REPAIRED_SEALED)
        print_repaired(arguments, SL_STORE_SEALED_FILE);
    if (rc == -SL_ECORRUPT && arguments->source)
        return rebuild(arguments, source, err);
    return rc < 0 ? rc : 0;
}

static int repair(const struct sl_store *store, const struct arguments *arguments,
                  const struct sl_pack_source *source, const struct damage *damage,
                  struct sl_err *err)
{
    const struct sl_repair_options repair_options = {
        .store = store,
        .checkpoint_folder = arguments->source,
        .checkpoint = source->checkpoint,
        .from = source->store,
        .experts = source->experts,
        .stripe_folders = arguments->stripe_folders,
        .n_stripes = arguments->n_stripes,
        .writer = sl_file_writer(),
        .stop = sl_interrupt_stop(),
    };

    return sl_store_repair(&repair_options, damage->items, damage->n_items, err);
}

/* ---- verifying --------------------------------------------------------------------------------
 */

static void print_result(const struct arguments *arguments, const struct sl_verify_result *result,
                         bool complete, double seconds)
{
    char text[SL_SIZE_TEXT_BYTES];

    if (arguments->json)
        sl_json_line_print(json_pack("{s:b, s:I, s:f, s:I, s:I}", "complete", complete,
                                     "verified_bytes", (json_int_t)result->read_bytes, "seconds",
                                     seconds, "parts", (json_int_t)result->n_items, "damaged_parts",
                                     (json_int_t)result->n_bad));
    else
        printf("verified %s%s in %.1f s, %.2f GB/s: %llu of %llu parts damaged\n",
               sl_size_format(result->read_bytes, text), complete ? "" : " before it was stopped,",
               seconds, (double)result->read_bytes * 1e-9 / seconds,
               (unsigned long long)result->n_bad, (unsigned long long)result->n_items);
}

/* Verifies the store, and lists the damaged items in *damage. */
static int verify(const struct sl_store *store, const struct arguments *arguments,
                  struct damage *damage, struct sl_err *err)
{
    struct sl_progress progress = sl_progress_start(stderr, "verifying", NULL);
    struct sl_verify_options verify_options = {
        .open_io = sl_choose_io(arguments->open_io),
        .on_bad = on_bad,
        .bad_context = damage,
        .on_progress = sl_progress_show,
        .progress_context = &progress,
        .stop = sl_interrupt_stop(),
    };
    struct sl_verify_result result;
    uint64_t start_ns = sl_clock_ns();
    int rc;

    sl_interrupt_defer();
    rc = sl_store_verify(store, &verify_options, &result, err);
    sl_progress_end(&progress);
    if (rc == 0 && damage->no_memory)
        rc = sl_err_set(err, -ENOMEM, "list of damage: out of memory");
    if (rc == 0 || rc == -ECANCELED)
        print_result(arguments, &result, rc == 0, (double)(sl_clock_ns() - start_ns) * 1e-9);
    return rc;
}

/* Writes the folders that the user names into the catalog, and makes lost files again where that is
 * asked for. */
static int relocate(const struct arguments *arguments, struct sl_err *err)
{
    const struct sl_store_relocation relocation = {
        .folders = arguments->stripe_folders,
        .n_folders = arguments->n_stripes,
        .make_lost = arguments->source,
        .writer = sl_file_writer(),
    };

    return arguments->n_stripes > 0 || arguments->source
               ? sl_store_relocate(arguments->store, &relocation, err)
               : 0;
}

static int verify_and_repair(const struct sl_store *store, const struct arguments *arguments,
                             const struct sl_pack_source *source, struct damage *damage,
                             struct sl_err *err)
{
    int rc = verify(store, arguments, damage, err);
    uint32_t n_repaired = arguments->source           ? damage->n_items
                          : arguments->repair_catalog ? damage->n_small
                                                      : 0;

    if (rc == 0 && n_repaired > 0)
        rc = repair(store, arguments, source, damage, err);
    if (rc == 0 && n_repaired > 0 && arguments->json)
        sl_json_line_print(json_pack("{s:i}", "repaired_parts", (int)n_repaired));
    else if (rc == 0 && n_repaired > 0)
        printf("repaired %u part%s\n", n_repaired, sl_plural(n_repaired));
    if (rc == 0 && n_repaired < damage->n_items)
        rc = sl_err_set(
            err, -SL_ECORRUPT, "%s: damaged; sluice verify %s can repair it", arguments->store,
            damage->n_small == damage->n_items ? "--repair-catalog" : "--repair SOURCE");
    return rc;
}

static int run_checkpoint(const struct arguments *arguments, struct sl_err *err)
{
    const struct sl_verify_checkpoint_options checkpoint_options = {
        .folder = arguments->store,
        .list_path = arguments->sha256,
        .open_io = sl_choose_io(arguments->open_io),
        .json = arguments->json,
    };

    if (arguments->repair_catalog || arguments->n_stripes > 0)
        return sl_err_set(err, -SL_EFORMAT,
                          "%s: a checkpoint; --repair and --stripe take a store that sluice pack "
                          "made",
                          arguments->store);
    return sl_verify_checkpoint(&checkpoint_options, err);
}

/* Also one whose shards are all missing. */
static bool is_checkpoint(const char *folder)
{
    char index[PATH_MAX];

    snprintf(index, sizeof(index), "%s/" SL_CHECKPOINT_INDEX, folder);
    return !sl_store_is(folder) && (access(index, F_OK) == 0 || sl_model_folder_has_shards(folder));
}

static int run(const struct arguments *arguments, struct damage *damage, struct sl_err *err)
{
    struct sl_pack_source source = {0};
    struct sl_store *store = NULL;
    int rc = 0;

    if (is_checkpoint(arguments->store))
        return run_checkpoint(arguments, err);
    if (!sl_store_is(arguments->store) && !arguments->repair_catalog)
        rc = sl_model_folder_explain(arguments->store, -SL_EFORMAT, err);
    else if (arguments->sha256)
        rc = sl_err_set(err, -SL_EFORMAT,
                        "%s: a store, which has checksums of its own; --sha256 is "
                        "for checkpoints",
                        arguments->store);
    if (rc == 0 && arguments->source)
        rc = sl_pack_source_open(&source, arguments->source, true, err);
    if (rc == 0 && arguments->repair_catalog)
        rc = repair_catalog(arguments, &source, err);
    if (rc == 0 && (rc = relocate(arguments, err)) == 0 &&
        (rc = sl_store_open(&store, arguments->store, SL_STORE_REPAIR, err)) == 0)
        rc = verify_and_repair(store, arguments, &source, damage, err);
    sl_store_close(store);
    sl_pack_source_close(&source);
    return rc;
}

int sl_cmd_verify(int argc, char **argv)
{
    struct arguments arguments = {0};
    struct damage damage = {0};
    struct sl_err err = {0};
    int rc;

    sl_command_parse(&parser, argc, argv, &arguments);
    damage.json = arguments.json;
    rc = run(&arguments, &damage, &err);
    free(damage.items);
    return sl_command_status(rc, &err);
}
