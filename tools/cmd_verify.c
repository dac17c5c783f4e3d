/* sluice verify: a store against its checksums; what is damaged can be made again. */
#include "tools/commands.h"

#include <argp.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/clock.h"
#include "core/base/size.h"
#include "core/model/model_folder.h"
#include "storage/store_layout.h"
#include "storage/store_places.h"
#include "storage/store_repair.h"
#include "storage/store_verify.h"
#include "tools/command_line.h"
#include "tools/engine_options.h"
#include "tools/interrupt.h"
#include "tools/json_lines.h"
#include "tools/pack_source.h"
#include "tools/progress.h"

struct arguments {
    const char *store;
    const char *checkpoint; /* NULL: no repair */
    sl_io_open_fn *open_io; /* NULL: the machine's */
    const char *stripe_folders[SL_STRIPES_MAX];
    uint32_t n_stripes;
    bool json;
};

/* What was found damaged. */
struct damage {
    bool json; /* how it is printed */
    struct sl_store_item *items;
    uint32_t n_items;
    bool no_memory;
};

enum { OPTION_REPAIR = 0x100, OPTION_IO, OPTION_STRIPE, OPTION_JSON };

static const struct argp_option options[] = {
    {"repair", OPTION_REPAIR, "CHECKPOINT", 0,
     "make what is damaged again, from the checkpoint that was packed", 0},
    {"stripe", OPTION_STRIPE, "DIR", 0,
     "parts of the store were moved to this folder: write that into the catalog; may be given "
     "several times",
     0},
    {"io", OPTION_IO, "uring|threads", 0,
     "how data are read (default uring, or threads where io_uring is not available)", 0},
    {"json", OPTION_JSON, NULL, 0, "one JSON object a line", 0},
    {0},
};

static error_t parse_option(int key, char *text, struct argp_state *state)
{
    struct arguments *arguments = state->input;

    switch (key) {
    case OPTION_REPAIR:
        arguments->checkpoint = text;
        return 0;
    case OPTION_IO:
        arguments->open_io = sl_parse_io(state, text);
        return 0;
    case OPTION_STRIPE:
        if (arguments->n_stripes == SL_STRIPES_MAX)
            argp_error(state, "--stripe: at most %u folders", SL_STRIPES_MAX);
        arguments->stripe_folders[arguments->n_stripes++] = text;
        return 0;
    case OPTION_JSON:
        arguments->json = true;
        return 0;
    case ARGP_KEY_ARG:
        if (arguments->store)
            return ARGP_ERR_UNKNOWN;
        arguments->store = text;
        return 0;
    case ARGP_KEY_END:
        if (!arguments->store)
            argp_error(state, "STORE is missing");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp parser = {
    .options = options,
    .parser = parse_option,
    .args_doc = "STORE",
    .doc = "Reads all of a store and holds it against the checksums in its catalog. Prints a line "
           "for everything that is damaged.",
};

static void on_bad(void *context, const struct sl_store_item *item, const char *message)
{
    struct damage *damage = context;
    struct sl_store_item *items;

    if (damage->json)
        sl_json_line_print(json_pack("{s:s}", "damaged", message));
    else
        printf("damaged: %s\n", message);
    if ((damage->n_items & (damage->n_items + 1)) == 0) { /* full: room for 0, 1, 3, 7, ... */
        items = realloc(damage->items, (2 * (size_t)damage->n_items + 1) * sizeof(*items));
        damage->no_memory |= !items;
        if (items)
            damage->items = items;
    }
    if (!damage->no_memory)
        damage->items[damage->n_items++] = *item;
}

static int repair(const struct sl_store *store, const char *folder, const struct damage *damage,
                  struct sl_err *err)
{
    struct sl_pack_source source = {0};
    struct sl_repair_options repair_options = {
        .store = store, .checkpoint_folder = folder, .writer = sl_file_writer()};
    int rc = sl_store_is(folder)
                 ? sl_err_set(err, -SL_EFORMAT, "%s: a store, expected a checkpoint", folder)
                 : sl_pack_source_open(&source, folder, true, err);

    if (rc == 0) {
        repair_options.checkpoint = source.checkpoint;
        repair_options.experts = source.experts;
        rc = sl_store_repair(&repair_options, damage->items, damage->n_items, err);
    }
    sl_pack_source_close(&source);
    return rc;
}

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

/* What is damaged is in *damage then. */
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

static int no_store(const char *folder, struct sl_err *err)
{
    if (sl_model_folder_has_shards(folder))
        return sl_err_set(err, -SL_EFORMAT,
                          "%s: a checkpoint, which has no checksums to be held against; verify "
                          "takes a store that sluice pack made",
                          folder);
    return sl_model_folder_explain(folder, -SL_EFORMAT, err);
}

static int run(const struct arguments *arguments, struct damage *damage, struct sl_err *err)
{
    struct sl_store *store;
    int rc = 0;

    if (!sl_store_is(arguments->store))
        return no_store(arguments->store, err);
    if (arguments->n_stripes > 0)
        rc = sl_store_set_places(arguments->store, arguments->stripe_folders, arguments->n_stripes,
                                 err);
    if (rc < 0 || (rc = sl_store_open(&store, arguments->store, SL_STORE_MEND, err)) < 0)
        return rc;
    rc = verify(store, arguments, damage, err);
    if (rc == 0 && damage->n_items > 0 && !arguments->checkpoint)
        rc = sl_err_set(err, -SL_ECORRUPT,
                        "%s: damaged; sluice verify --repair CHECKPOINT can mend it",
                        arguments->store);
    else if (rc == 0 && damage->n_items > 0)
        rc = repair(store, arguments->checkpoint, damage, err);
    if (rc == 0 && damage->n_items > 0 && arguments->json)
        sl_json_line_print(json_pack("{s:i}", "repaired_parts", (int)damage->n_items));
    else if (rc == 0 && damage->n_items > 0)
        printf("repaired %u part%s\n", damage->n_items, sl_plural(damage->n_items));
    sl_store_close(store);
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
