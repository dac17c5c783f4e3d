#include "tools/cli/engine_options.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/size.h"
#include "tools/cli/command_line.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/progress.h"
#include "tools/cli/start_report.h"
#include "tools/cli/watch.h"
#include "core/kernels/dispatch.h"

enum {
    OPTION_RAM = 512, /* apart from the commands' own */
    OPTION_CACHE,
    OPTION_DENSE,
    OPTION_REFUSE_SLOW,
    OPTION_THREADS,
    OPTION_SEGMENT,
    OPTION_CONTEXT,
    OPTION_KV,
    OPTION_IO,
    OPTION_IO_PIECE,
    OPTION_IO_DEPTH,
    OPTION_IO_STALL,
    OPTION_VERIFY,
    OPTION_POLICY,
    OPTION_PREFETCH,
    OPTION_ISA,
    OPTION_NUMERICS,
    OPTION_ANY_MODEL_TYPE,
    OPTION_IMAGES,
    OPTION_IMAGES_MAX,
    OPTION_IMAGES_EVERY,
    OPTION_DRAFT,
    OPTION_KV_DISK,
};

static const struct argp_option options[] = {
    {"ram", OPTION_RAM, "SIZE", 0, "memory for everything together (default: what is available)",
     0},
    {"cache", OPTION_CACHE, "SIZE|min", 0,
     "memory for experts (default: what is left; min: one token's working set)", 0},
    {"dense", OPTION_DENSE, "resident|stream|auto", 0,
     "dense weights: all stay in memory, or each layer is read again in each step, or as many stay "
     "as fit (default auto)",
     0},
    {"refuse-slow", OPTION_REFUSE_SLOW, NULL, 0,
     "refuse to run where memory does not hold all dense weights and one token's experts", 0},
    {"threads", OPTION_THREADS, "N", 0, "compute threads (default: one per physical core)", 0},
    {"segment", OPTION_SEGMENT, "TOKENS", 0,
     "most tokens of one pass (default: as many as memory allows)", 0},
    {"context", OPTION_CONTEXT, "TOKENS", 0,
     "tokens that a sequence can hold (default: what the command needs)", 0},
    {"kv", OPTION_KV, "SIZE", 0,
     "memory for KV caches (default: for all sequences at their longest)", 0},
    {"io", OPTION_IO, "uring|threads", 0,
     "how experts are read (default uring, or threads where io_uring is not available)", 0},
    {"io-piece", OPTION_IO_PIECE, "SIZE", 0,
     "pieces that reads are cut into (default: what a short probe of the drive finds)", 0},
    {"io-depth", OPTION_IO_DEPTH, "N", 0,
     "pieces in flight on each drive (default: what the probe finds)", 0},
    {"io-stall", OPTION_IO_STALL, "SECONDS", 0,
     "time after which a piece counts as stalled; after four times as long its read fails (default "
     "30)",
     0},
    {"verify", OPTION_VERIFY, "first|always|never", 0,
     "when an expert of a store is compared with its checksums: the first time in a run "
     "(default), each time, or not at all",
     0},
    {"policy", OPTION_POLICY, "frequency|lru", 0, "which expert makes room (default frequency)", 0},
    {"prefetch", OPTION_PREFETCH, "off|hash|auto|gate", 0,
     "experts that are read before they are asked for: those of the layers that route by token id "
     "(hash), or also those predicted for the next layer, where that pays (auto, the default) or "
     "always (gate)",
     0},
    {"isa", OPTION_ISA, "ref|avx2|avx512|amx|neon", 0,
     "instruction set (default: $SLUICE_ISA, or the best there is)", 0},
    {"numerics", OPTION_NUMERICS, "native|exact", 0,
     "exact rounds nothing and is slow: for tests (default native)", 0},
    {"any-model-type", OPTION_ANY_MODEL_TYPE, NULL, 0,
     "run MODEL also if its config.json names another kind of model", 0},
    {0}};

struct sl_affinity sl_choose_affinity(uint32_t n_threads)
{
    struct sl_topology topology;
    struct sl_affinity affinity;

    sl_topology_read(&topology);
    sl_affinity_choose(&affinity, &topology, n_threads);
    return affinity;
}

uint32_t sl_parse_piece(struct argp_state *state, const char *option, const char *text)
{
    uint64_t bytes;

    if (sl_size_parse(text, &bytes) < 0 || bytes == 0 || bytes % SL_BLOCK_BYTES != 0 ||
        bytes > SL_IO_PIECE_BYTES_MAX)
        argp_error(state, "%s takes a multiple of 4K up to 64M, not \"%s\"", option, text);
    return (uint32_t)bytes;
}

sl_io_open_fn *sl_parse_io(struct argp_state *state, const char *text)
{
    static const struct sl_word words[] = {{"uring", 0}, {"threads", 1}, {0}};

    return sl_parse_word(state, "--io", text, words) ? sl_io_threads_open : sl_io_uring_open;
}

sl_io_open_fn *sl_choose_io(sl_io_open_fn *wanted)
{
    sl_io_open_fn *chosen;
    struct sl_err why;

    if (wanted)
        return wanted;
    chosen = sl_io_choose(&why);
    if (why.code < 0)
        fprintf(stderr, "note: %s; reads go through threads\n", why.message);
    return chosen;
}

static void set_cache(struct argp_state *state, const char *value)
{
    struct sl_engine_options *o = state->input;

    o->cache_min = strcmp(value, "min") == 0;
    if (!o->cache_min)
        o->cache_bytes = sl_parse_size(state, "--cache", value);
}

static void set_stall(struct argp_state *state, const char *value)
{
    struct sl_engine_options *o = state->input;

    o->reader.stall_ns = sl_parse_count(state, "--io-stall", value, 86400) * UINT64_C(1000000000);
    sl_watch_set_stall(o->reader.stall_ns);
}

const char *sl_parse_isa(struct argp_state *state, const char *source, const char *name)
{
    struct sl_kernels kernels;

    if (sl_kernels_select(&kernels, name, NULL) == -EINVAL)
        argp_error(state, "%s takes ref, avx2, avx512, amx or neon, not \"%s\"", source, name);
    return name;
}

/* ---- options that take one of a few words ------------------------------------------------------
 */

static const struct sl_word verify_words[] = {
    {"first", SL_VERIFY_FIRST}, {"always", SL_VERIFY_ALWAYS}, {"never", SL_VERIFY_NEVER}, {0}};
static const struct sl_word dense_words[] = {
    {"resident", SL_DENSE_RESIDENT}, {"stream", SL_DENSE_STREAM}, {"auto", SL_DENSE_AUTO}, {0}};

enum sl_dense_mode sl_parse_dense(struct argp_state *state, const char *text)
{
    return (enum sl_dense_mode)sl_parse_word(state, "--dense", text, dense_words);
}
static const struct sl_word prefetch_words[] = {{"auto", SL_PREFETCH_AUTO},
                                                {"off", SL_PREFETCH_OFF},
                                                {"hash", SL_PREFETCH_HASH},
                                                {"gate", SL_PREFETCH_GATE},
                                                {0}};
static const struct sl_word numerics_words[] = {
    {"native", SL_NUMERICS_NATIVE}, {"exact", SL_NUMERICS_EXACT}, {0}};

static error_t parse_word(int key, char *value, struct argp_state *state)
{
    struct sl_engine_options *o = state->input;

    switch (key) {
    case OPTION_DENSE:
        o->dense = sl_parse_dense(state, value);
        return 0;
    case OPTION_VERIFY:
        o->verify = (enum sl_verify)sl_parse_word(state, "--verify", value, verify_words);
        return 0;
    case OPTION_PREFETCH:
        o->prefetch = (enum sl_prefetch)sl_parse_word(state, "--prefetch", value, prefetch_words);
        return 0;
    case OPTION_NUMERICS:
        o->numerics = (enum sl_numerics)sl_parse_word(state, "--numerics", value, numerics_words);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* ---- all options -------------------------------------------------------------------------------
 */

/* The options that share the memory out. */
static error_t parse_memory_option(int key, char *value, struct argp_state *state)
{
    struct sl_engine_options *o = state->input;

    switch (key) {
    case OPTION_RAM:
        o->ram_bytes = sl_parse_size(state, "--ram", value);
        return 0;
    case OPTION_CACHE:
        set_cache(state, value);
        return 0;
    case OPTION_SEGMENT:
        o->segment_tokens = sl_parse_count(state, "--segment", value, 1u << 20);
        return 0;
    case OPTION_CONTEXT:
        o->context_tokens = sl_parse_count(state, "--context", value, 1u << 24);
        return 0;
    case OPTION_KV:
        o->kv_bytes = sl_parse_size(state, "--kv", value);
        return 0;
    case OPTION_REFUSE_SLOW:
        o->refuse_slow = true;
        return 0;
    default:
        return parse_word(key, value, state);
    }
}

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct sl_engine_options *o = state->input;
    const char *isa = getenv("SLUICE_ISA");

    switch (key) {
    case ARGP_KEY_INIT:
        *o = (struct sl_engine_options){.affinity = sl_choose_affinity(0),
                                        .n_sequences = 1,
                                        .prefetch = SL_PREFETCH_AUTO,
                                        .images = o->images};
        return 0;
    case OPTION_THREADS:
        o->affinity =
            sl_choose_affinity(sl_parse_count(state, "--threads", value, SL_POOL_THREADS_MAX));
        return 0;
    case OPTION_IO:
        o->io = sl_parse_io(state, value);
        return 0;
    case OPTION_IO_PIECE:
        o->reader.piece_bytes = sl_parse_piece(state, "--io-piece", value);
        return 0;
    case OPTION_IO_DEPTH:
        o->reader.depth = sl_parse_count(state, "--io-depth", value, SL_IO_DEPTH_MAX);
        return 0;
    case OPTION_IO_STALL:
        set_stall(state, value);
        return 0;
    case OPTION_POLICY:
        if (sl_policy_find(&o->policy, value, NULL) < 0)
            argp_error(state, "--policy takes one of " SL_POLICY_NAMES ", not \"%s\"", value);
        return 0;
    case OPTION_ISA:
        o->isa = sl_parse_isa(state, "--isa", value);
        return 0;
    case OPTION_ANY_MODEL_TYPE:
        o->any_model_type = true;
        return 0;
    case ARGP_KEY_ARG:
        if (o->model)
            argp_error(state, "one MODEL, not \"%s\" as well", value);
        o->model = sl_parse_model(value);
        return 0;
    case ARGP_KEY_END:
        if (!o->model)
            argp_error(state, "MODEL is missing");
        if (o->refuse_slow && o->dense == SL_DENSE_STREAM)
            argp_error(state, "--refuse-slow and --dense stream exclude each other");
        if (!o->isa && isa && *isa)
            o->isa = sl_parse_isa(state, "SLUICE_ISA", isa);
        return 0;
    default:
        return parse_memory_option(key, value, state);
    }
}

const struct argp sl_engine_argp = {.options = options, .parser = parse_option};

/* ---- images ------------------------------------------------------------------------------------
 */

#define IMAGES_BYTES_DEFAULT (UINT64_C(32) << 30)

static const struct argp_option images_options[] = {
    {"images", OPTION_IMAGES, "DIR|none", 0,
     "keep what the model has seen in DIR, and begin with the longest part of a text that is there",
     0},
    {"images-max", OPTION_IMAGES_MAX, "SIZE", 0,
     "most bytes of all images in DIR, of which those unused the longest go first (default 32G)",
     0},
    {"images-every", OPTION_IMAGES_EVERY, "TOKENS", 0,
     "of a long text, between two images: a kill costs no more, and one pass (default 8192)", 0},
    {0}};

static error_t parse_images_option(int key, char *value, struct argp_state *state)
{
    struct sl_engine_options *o = state->input;

    switch (key) {
    case OPTION_IMAGES:
        o->images = strcmp(value, "none") == 0 ? NULL : value;
        return 0;
    case OPTION_IMAGES_MAX:
        o->images_bytes_max = sl_parse_size(state, "--images-max", value);
        return 0;
    case OPTION_IMAGES_EVERY:
        o->images_every = sl_parse_count(state, "--images-every", value, 1u << 24);
        return 0;
    case ARGP_KEY_END:
        if (o->images_bytes_max > 0 && !o->images)
            argp_error(state, "--images-max needs --images");
        if (o->images_every > 0 && !o->images)
            argp_error(state, "--images-every needs --images");
        if (o->images_bytes_max == 0)
            o->images_bytes_max = IMAGES_BYTES_DEFAULT;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

const struct argp sl_images_argp = {.options = images_options, .parser = parse_images_option};

static const struct argp_option draft_options[] = {
    {"draft", OPTION_DRAFT, "off|auto|N", 0,
     "let the model's draft guess up to N tokens ahead (1 to 5), which a step checks at once: the "
     "same text, faster where guesses are right; auto: as many as pay (default off)",
     0},
    {0}};

static error_t parse_draft_option(int key, char *value, struct argp_state *state)
{
    struct sl_engine_options *o = state->input;

    if (key != OPTION_DRAFT)
        return ARGP_ERR_UNKNOWN;
    if (strcmp(value, "off") == 0)
        o->drafts = 0;
    else if (strcmp(value, "auto") == 0)
        o->drafts = SL_DRAFTS_AUTO;
    else
        o->drafts = sl_parse_count(state, "--draft, besides off and auto,", value, SL_DRAFTS_MAX);
    return 0;
}

const struct argp sl_draft_argp = {.options = draft_options, .parser = parse_draft_option};

static const struct argp_option pages_options[] = {
    {"kv-disk", OPTION_KV_DISK, "SIZE", 0,
     "let KV caches of batch texts that memory has no room for go to a file of up to SIZE in the "
     "folder of images, where more texts at a time pay",
     0},
    {0}};

static error_t parse_pages_option(int key, char *value, struct argp_state *state)
{
    struct sl_engine_options *o = state->input;

    if (key != OPTION_KV_DISK)
        return ARGP_ERR_UNKNOWN;
    o->kv_disk_bytes = sl_parse_size(state, "--kv-disk", value);
    return 0;
}

const struct argp sl_pages_argp = {.options = pages_options, .parser = parse_pages_option};

/* ---- opening -----------------------------------------------------------------------------------
 */

/* State while an engine is being opened. */
struct opening {
    struct sl_start_report report;
    struct sl_progress progress; /* of the dense weights */
    struct sl_memory_plan plan;
};

/* The default budget may take most of a machine, so it is told before memory is taken. */
#define MUCH_SHARE 4u

static void tell_memory(const struct sl_memory_plan *plan)
{
    char all[SL_SIZE_TEXT_BYTES], total[SL_SIZE_TEXT_BYTES], cache[SL_SIZE_TEXT_BYTES];

    if (plan->budget_given || sl_memory_plan_bytes(plan) < plan->total_bytes / MUCH_SHARE)
        return;
    fprintf(stderr,
            "memory: takes and locks up to %s of %s as it is used, %s of it for experts; --ram and "
            "--cache set other sizes\n",
            sl_size_format(sl_memory_plan_bytes(plan), all),
            sl_size_format(plan->total_bytes, total),
            sl_size_format(plan->need_bytes[SL_MEMORY_CACHE], cache));
}

/* An sl_stage_fn. Where the progress of loading the weights is redrawn, it needs no line here. */
static void on_stage(void *context, const char *doing)
{
    struct opening *opening = context;
    const bool is_weights = strcmp(doing, SL_STAGE_WEIGHTS) == 0;

    if (is_weights) {
        tell_memory(&opening->plan);
        opening->progress = sl_progress_start(stderr, doing, NULL);
        sl_progress_announce(&opening->progress);
    }
    sl_start_report_doing(&opening->report, is_weights && opening->progress.redrawn ? NULL : doing);
}

int sl_open_engine(struct sl_engine **ret_engine, const struct sl_engine_options *engine_options,
                   struct sl_err *err)
{
    struct opening opening = {.progress = sl_progress_start(stderr, SL_STAGE_WEIGHTS, NULL)};
    struct sl_engine_options reporting = *engine_options;
    int rc;

    reporting.on_stage = on_stage;
    reporting.on_stage_context = &opening;
    reporting.on_load = sl_progress_show;
    reporting.on_load_context = &opening.progress;
    sl_start_report_begin(&opening.report, stderr, "opening", engine_options->model);
    rc = sl_engine_open(ret_engine, &reporting, &opening.plan, err);
    sl_start_report_end(&opening.report);
    sl_progress_end(&opening.progress);
    if (rc == -SL_EBUDGET && opening.plan.budget_bytes > 0)
        sl_memory_plan_print(&opening.plan, stderr);
    if (rc < 0)
        return rc;
    for (uint32_t i = 0; sl_engine_note(*ret_engine, i); i++)
        fprintf(stderr, "note: %s\n", sl_engine_note(*ret_engine, i));
    sl_interrupt_defer();
    return 0;
}

int sl_keep_off_experts(const struct sl_output_file *out, const struct sl_engine *engine,
                        struct sl_err *err)
{
    uint32_t n_paths;
    const char **paths = sl_engine_expert_paths(engine, &n_paths);
    int rc = paths ? 0 : sl_err_set(err, -ENOMEM, "list of files: out of memory");

    for (uint32_t i = 0; rc == 0 && i < n_paths; i++)
        rc = sl_output_keep_off(out, paths[i], err);
    free(paths);
    return rc;
}

void sl_print_resources(const struct sl_engine *engine, const struct sl_affinity *affinity,
                        FILE *out)
{
    struct sl_engine_area areas[SL_ENGINE_AREAS];
    char text[SL_SIZE_TEXT_BYTES];

    fprintf(out, "compute  ");
    sl_affinity_print(affinity, out);
    fprintf(out, "\nmemory   in huge pages");
    sl_engine_areas(engine, areas);
    for (uint32_t i = 0; i < SL_ENGINE_AREAS; i++)
        fprintf(out, "%s %s %.0f %% of %s", i ? "," : ":", areas[i].name,
                areas[i].resident_bytes
                    ? 100 * (double)areas[i].huge_bytes / (double)areas[i].resident_bytes
                    : 0,
                sl_size_format(areas[i].resident_bytes, text));
    fputc('\n', out);
}
