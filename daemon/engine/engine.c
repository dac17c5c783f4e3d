#include "daemon/engine/engine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/process.h"
#include "daemon/engine/memory_room.h"
#include "daemon/engine/model_check.h"
#include "storage/store/hot_list.h"
#include "storage/io/io_probe.h"
#include "storage/experts/model_files.h"
#include "storage/store/probe_memory.h"
#include "storage/store/store_format.h"
#include "core/kernels/dispatch.h"

struct sl_engine {
    struct sl_engine_options options;
    struct sl_memory_plan plan;
    struct sl_config config;
    struct sl_model_files files;
    struct sl_weight_source *source; /* of files */
    struct sl_expert_map *store;
    struct sl_pool *pool;
    struct sl_kernels kernels;
    struct sl_compute compute;
    struct sl_weights weights;
    struct sl_io *io;
    struct sl_reader *reader;
    struct sl_expert_cache *cache;
    struct sl_forward *forward;
    struct sl_kv_cache *kv; /* (n_sequences) */
    char note[512];
};

static uint32_t n_layers(const struct sl_engine *e)
{
    return e->config.num_hidden_layers + e->options.with_mtp;
}

static void add_note(struct sl_engine *e, const char *text)
{
    size_t length = strlen(e->note);

    snprintf(e->note + length, sizeof(e->note) - length, "%s%s", length ? "; " : "", text);
}

static int read_config(struct sl_engine *e, struct sl_err *err)
{
    char text[sizeof(e->config.unknown_keys) + 80];
    int rc = sl_config_read(&e->config, e->options.model, err);

    if (rc == 0 && !e->options.any_model_type)
        rc = sl_config_check_model_type(&e->config, e->options.model, err);
    if (rc < 0 || !e->config.unknown_keys[0])
        return rc;
    snprintf(text, sizeof(text), "config.json has keys that are not known and have no effect: %s",
             e->config.unknown_keys);
    add_note(e, text);
    return 0;
}

/* What the files hold besides what is loaded. */
static int check_tensors(struct sl_engine *e, struct sl_err *err)
{
    struct sl_unused_tensors unused;
    struct sl_dense_list dense;
    char text[256];
    int rc = sl_dense_list_make(&dense, &e->config, e->source, e->options.with_mtp, err);

    if (rc < 0)
        return rc;
    rc = sl_model_check(&e->files, &e->config, &dense, &unused, err);
    sl_dense_list_fini(&dense);
    if (rc < 0 || unused.n == 0)
        return rc;
    snprintf(text, sizeof(text), "%u tensor%s not used, such as %s", unused.n,
             unused.n == 1 ? " is" : "s are", unused.first);
    add_note(e, text);
    return 0;
}

static void begin_stage(const struct sl_engine *e, const char *doing)
{
    if (e->options.on_stage)
        e->options.on_stage(e->options.on_stage_context, doing);
}

/* Opens what tells the sizes: config, headers, and where the experts lie. */
static int open_model(struct sl_engine *e, struct sl_err *err)
{
    struct sl_expert_shape shape;
    bool mtp_known;
    int rc;

    if ((rc = read_config(e, err)) < 0 ||
        (rc = sl_model_files_open(&e->files, e->options.model, err)) < 0)
        return rc;
    e->source = sl_model_files_weights(&e->files, e->options.verify != SL_VERIFY_NEVER);
    mtp_known = sl_weights_mtp_known(&e->config, e->source);
    if (e->options.with_mtp && !mtp_known)
        return sl_err_set(err, -SL_EUNSUPPORTED,
                          "%s: no MTP block of a kind that this engine knows", e->options.model);
    if (e->config.num_nextn_predict_layers > 0 && !mtp_known)
        add_note(e, "MTP blocks of an unknown generation were left aside");
    shape = sl_expert_shape_of(&e->config, e->options.with_mtp);
    rc = sl_model_files_experts(&e->files, &shape, &e->store, err);
    return rc < 0 ? rc : check_tensors(e, err);
}

/* What a run comes to take of memory on top of what the process has before the weights are read:
 * its stacks as far as they are used; and rings, lists and figures, which came to a third of this
 * with the largest of both back ends. */
#define STACK_USED_BYTES (UINT64_C(448) << 10)
#define SMALL_THINGS_BYTES (UINT64_C(3) << 20)

/* *ret_verdict, with its line in `err`, says whether it fits. */
static int plan_memory(struct sl_engine *e, int *ret_verdict, struct sl_err *err)
{
    const struct sl_engine_options *o = &e->options;
    const uint32_t inflight_max = sl_expert_cache_inflight_default(e->config.num_experts_per_tok);
    struct sl_process_memory process;
    struct sl_memory_room room;
    struct sl_memory_case what = {
        .ram_given = o->ram_bytes != 0,
        .cache_bytes = o->cache_bytes,
        .cache_min = o->cache_min,
        .staging_bytes = sl_expert_cache_staging_bytes(e->store, inflight_max),
        .table_bytes =
            sl_expert_cache_table_bytes(e->store, inflight_max, o->policy, o->placement.n_threads),
        .numerics = o->numerics,
        .n_threads = o->placement.n_threads,
        .segment_tokens = o->segment_tokens,
        .context_tokens = o->context_tokens,
        .n_sequences = o->n_sequences,
    };
    int rc = sl_weights_measure(&e->config, e->source, o->with_mtp, &what.dense_bytes, err);

    if (rc < 0)
        return rc;
    process = sl_process_memory();
    what.program_bytes =
        process.bytes + o->placement.n_threads * STACK_USED_BYTES + SMALL_THINGS_BYTES;
    what.loading_bytes =
        what.dense_bytes < SL_WEIGHTS_LOADING_BYTES ? what.dense_bytes : SL_WEIGHTS_LOADING_BYTES;
    sl_memory_room_read("", &room);
    what.ram_bytes = what.ram_given ? o->ram_bytes : room.default_bytes + process.own_bytes;
    *ret_verdict =
        sl_memory_plan_make(&e->plan, &e->config, sl_expert_map_shape(e->store), &what, err);
    e->plan.total_bytes = room.total_bytes;
    if (*ret_verdict == 0)
        *ret_verdict = sl_memory_room_check(&room, e->plan.budget_bytes,
                                            sl_memory_plan_bytes(&e->plan) - process.bytes, err);
    return 0;
}

/* The model's tensors, with every read reported. */
struct reporting_source {
    struct sl_weight_source source; /* first */
    struct sl_weight_source *inner;
    const struct sl_engine *engine;
    uint64_t read_bytes;
};

static int reporting_find(struct sl_weight_source *source, const char *name,
                          struct sl_tensor_info *ret_info)
{
    struct sl_weight_source *inner = ((struct reporting_source *)source)->inner;

    return inner->ops->find(inner, name, ret_info);
}

static int reporting_read(struct sl_weight_source *source, const char *name, uint64_t offset_bytes,
                          uint64_t size_bytes, void *dst, struct sl_err *err)
{
    struct reporting_source *in = (struct reporting_source *)source;
    const struct sl_engine *e = in->engine;
    int rc = in->inner->ops->read(in->inner, name, offset_bytes, size_bytes, dst, err);

    in->read_bytes += size_bytes;
    if (e->options.on_load)
        e->options.on_load(e->options.on_load_context, in->read_bytes,
                           e->plan.need_bytes[SL_MEMORY_WEIGHTS]);
    return rc;
}

static const char *reporting_where(struct sl_weight_source *source, const char *name)
{
    struct sl_weight_source *inner = ((struct reporting_source *)source)->inner;

    return inner->ops->where(inner, name);
}

static int load_weights(struct sl_engine *e, struct sl_err *err)
{
    static const struct sl_weight_source_ops ops = {reporting_find, reporting_read,
                                                    reporting_where};
    struct reporting_source source = {{&ops}, e->source, e, 0};

    return sl_weights_load(&e->weights, &e->config, &source.source, e->options.with_mtp, e->pool,
                           err);
}

/* A store remembers; that it cannot be written to is no more than a third of a second. What is
 * found with another back end, or with a depth that was given, is of no use the next time. */
static int probe(const struct sl_engine *e, struct sl_io_probe *ret_probe, struct sl_err *err)
{
    const struct sl_engine_options *o = &e->options;
    const char *store = e->files.store && o->io == sl_io_uring_open ? o->model : NULL;
    int rc;

    if (store && sl_probe_recall(store, e->io, ret_probe))
        return 0;
    begin_stage(e, "trying how the drive is read best");
    rc = sl_io_probe(e->io, o->reader.stall_ns, ret_probe, err);
    if (rc < 0)
        return rc;
    if (store && ret_probe->bytes_per_s > 0 && o->reader.piece_bytes == 0 && o->reader.depth == 0)
        sl_probe_remember(store, e->io, ret_probe, NULL);
    return 0;
}

/* Pieces and depth, as far as the options leave them open. */
static int choose_reader(struct sl_engine *e, struct sl_err *err)
{
    struct sl_reader_options *options = &e->options.reader;
    struct sl_io_probe found;
    int rc;

    if (options->piece_bytes && options->depth)
        return 0;
    rc = probe(e, &found, err);
    if (rc < 0)
        return rc;
    if (options->piece_bytes == 0)
        options->piece_bytes = found.piece_bytes;
    if (options->depth == 0)
        options->depth = found.depth;
    return 0;
}

static void choose_io(struct sl_engine *e)
{
    struct sl_err why;

    if (e->options.io)
        return;
    e->options.io = sl_io_choose(&why);
    if (why.code < 0) {
        add_note(e, why.message);
        add_note(e, "reads go through threads");
    }
}

static int start_reader(struct sl_engine *e, struct sl_err *err)
{
    const uint32_t depth =
        e->options.reader.depth ? e->options.reader.depth : SL_IO_PROBE_DEPTH_MAX;
    const char **paths = sl_expert_map_file_paths(e->store);
    int rc;

    if (!paths)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", e->options.model);
    choose_io(e);
    rc = e->options.io(&e->io, paths, sl_expert_map_file_count(e->store), depth, err);
    free(paths);
    if (rc < 0)
        return rc;
    if (!e->io->direct)
        add_note(e, "no direct I/O in blocks of 4 KiB here, so the page cache takes part");
    rc = choose_reader(e, err);
    return rc < 0 ? rc : sl_reader_create(&e->reader, e->io, &e->options.reader, err);
}

static int start_cache(struct sl_engine *e, struct sl_err *err)
{
    struct sl_expert_cache_options options = {
        .slab_bytes = e->plan.need_bytes[SL_MEMORY_CACHE],
        .num_experts_per_tok = e->config.num_experts_per_tok,
        .slots_min = (uint32_t)e->plan.slots_min,
        .inflight_max = sl_expert_cache_inflight_default(e->config.num_experts_per_tok),
        .verify = e->options.verify,
        .read_ahead = e->options.prefetch != SL_PREFETCH_OFF,
        .policy = e->options.policy,
    };
    int rc = sl_expert_cache_create(&e->cache, e->store, e->reader, e->pool, &options, err);

    if (rc < 0)
        return rc;
    if (!sl_expert_cache_is_attached(e->cache))
        add_note(e, "the expert cache could not be registered with io_uring (see ulimit -l), so "
                    "reads cost more processor time");
    return 0;
}

static int make_sequences(struct sl_engine *e, struct sl_err *err)
{
    int rc = 0;

    e->kv = calloc(e->options.n_sequences, sizeof(*e->kv));
    if (!e->kv)
        return sl_err_set(err, -ENOMEM, "KV caches: out of memory");
    for (uint32_t i = 0; i < e->options.n_sequences && rc == 0; i++)
        rc = sl_kv_cache_init(&e->kv[i], &e->config, n_layers(e), e->options.context_tokens,
                              e->options.numerics, err);
    return rc;
}

struct sl_forward_params sl_engine_forward_params(const struct sl_engine *e)
{
    return (struct sl_forward_params){
        .config = &e->config,
        .weights = &e->weights,
        .compute = &e->compute,
        .source = sl_expert_cache_source(e->cache),
        .tokens_max = e->plan.segment_tokens,
        .context_max = e->options.context_tokens,
        .spans_max = e->options.n_sequences,
        .prefetch = e->options.prefetch,
    };
}

static int start_forward(struct sl_engine *e, struct sl_err *err)
{
    const struct sl_forward_params params = sl_engine_forward_params(e);

    return sl_forward_create(&e->forward, &params, err);
}

static int check_options(const struct sl_engine *e, struct sl_err *err)
{
    const struct sl_engine_options *o = &e->options;

    sl_assert(o->n_sequences >= 1 && o->context_tokens >= 1);
    if (o->context_tokens > e->config.max_position_embeddings)
        return sl_err_set(err, -SL_EBUDGET,
                          "a context of %u tokens exceeds the model's max_position_embeddings, %u",
                          o->context_tokens, e->config.max_position_embeddings);
    return 0;
}

/* NULL when out of memory. */
static struct sl_engine *create(const struct sl_engine_options *options)
{
    struct sl_engine *e = calloc(1, sizeof(*e));

    if (e)
        e->options = *options;
    return e;
}

int sl_engine_open(struct sl_engine **ret_engine, const struct sl_engine_options *options,
                   struct sl_memory_plan *ret_plan, struct sl_err *err)
{
    struct sl_engine *e = NULL;
    int rc, verdict;

    if (ret_plan)
        ret_plan->budget_bytes = 0;
    e = create(options);
    if (!e)
        return sl_err_set(err, -ENOMEM, "engine: out of memory");
    begin_stage(e, "reading the headers");
    if ((rc = open_model(e, err)) < 0 || (rc = check_options(e, err)) < 0 ||
        (rc = sl_kernels_select(&e->kernels, options->isa, err)) < 0 ||
        (rc = plan_memory(e, &verdict, err)) < 0)
        goto out;
    rc = verdict;
    if (ret_plan)
        *ret_plan = e->plan;
    /* The reader first: its threads may run anywhere. */
    if (rc < 0 || (rc = start_reader(e, err)) < 0 ||
        (rc = sl_pool_create(&e->pool, options->placement.n_threads, err)) < 0)
        goto out;
    sl_pool_pin(e->pool, &options->placement);
    e->compute = (struct sl_compute){&e->kernels, e->pool, options->numerics};
    begin_stage(e, SL_STAGE_WEIGHTS);
    rc = load_weights(e, err);
    if (rc < 0)
        goto out;
    begin_stage(e, "making room for experts, context and activations");
    if ((rc = start_cache(e, err)) < 0 || (rc = make_sequences(e, err)) < 0 ||
        (rc = start_forward(e, err)) < 0)
        goto out;
    if (!e->weights.arena.locked)
        add_note(e, "memory could not be locked (see ulimit -l), so it may be swapped out");
    *ret_engine = e;
    e = NULL;
out:
    sl_engine_close(e);
    return rc;
}

int sl_engine_plan(const struct sl_engine_options *options, struct sl_memory_plan *ret_plan,
                   int *ret_verdict, struct sl_err *err)
{
    struct sl_engine *e;
    int rc;

    e = create(options);
    if (!e)
        return sl_err_set(err, -ENOMEM, "engine: out of memory");
    if ((rc = open_model(e, err)) == 0 && (rc = check_options(e, err)) == 0 &&
        (rc = plan_memory(e, ret_verdict, err)) == 0)
        *ret_plan = e->plan;
    sl_engine_close(e);
    return rc;
}

void sl_engine_close(struct sl_engine *engine)
{
    if (!engine)
        return;
    sl_forward_destroy(engine->forward);
    for (uint32_t i = 0; engine->kv && i < engine->options.n_sequences; i++)
        sl_kv_cache_fini(&engine->kv[i]);
    free(engine->kv);
    sl_expert_cache_destroy(engine->cache);
    sl_reader_destroy(engine->reader);
    if (engine->io)
        engine->io->ops->close(engine->io);
    sl_weights_fini(&engine->weights); /* zeroed if they were not loaded */
    sl_pool_destroy(engine->pool);
    sl_expert_map_close(engine->store);
    sl_model_files_close(&engine->files);
    free(engine);
}

int sl_engine_load_experts(struct sl_engine *e, sl_progress_fn *on_progress, void *context,
                           struct sl_err *err)
{
    struct sl_expert_source *source = sl_expert_cache_source(e->cache);
    const uint32_t n_experts = e->config.n_routed_experts;
    const uint64_t total = (uint64_t)n_layers(e) * n_experts;
    struct sl_expert_loan loan;
    uint16_t *experts;
    uint64_t done = 0;
    int rc = 0;

    if (sl_expert_cache_slot_count(e->cache) < total)
        return 0;
    experts = calloc(n_experts, sizeof(*experts));
    if (!experts)
        return sl_err_set(err, -ENOMEM, "list of experts: out of memory");
    for (uint32_t i = 0; i < n_experts; i++)
        experts[i] = (uint16_t)i;
    for (uint32_t layer = 0; layer < n_layers(e) && rc >= 0; layer++) {
        rc = source->ops->demand(source, (uint16_t)layer, experts, n_experts, err);
        while (rc >= 0 && (rc = source->ops->next(source, true, &loan, err)) == 1) {
            if (loan.partial)
                rc = source->ops->complete(source, &loan, err);
            source->ops->release(source, &loan);
            if (rc >= 0 && on_progress)
                on_progress(context, ++done, total);
        }
    }
    free(experts);
    return rc < 0 ? rc : 1;
}

/* As many as the cache has slots for. NULL when out of memory. */
static struct sl_expert_key *make_hot_list(const struct sl_engine *e, uint32_t *ret_n_max,
                                           struct sl_err *err)
{
    uint32_t n_slots = sl_expert_cache_slot_count(e->cache);
    struct sl_expert_key *keys;

    *ret_n_max = n_slots < SL_STORE_HOT_MAX ? n_slots : SL_STORE_HOT_MAX;
    keys = calloc(*ret_n_max, sizeof(*keys));
    if (!keys)
        sl_err_set(err, -ENOMEM, "hot list: out of memory");
    return keys;
}

int sl_engine_load_hot_list(struct sl_engine *e, const atomic_bool *stop,
                            sl_progress_fn *on_progress, void *context, struct sl_err *err)
{
    struct sl_expert_key *keys;
    uint32_t n_max, n = 0;
    int rc;

    if (!e->files.store)
        return 0;
    keys = make_hot_list(e, &n_max, err);
    if (!keys)
        return -ENOMEM;
    rc = sl_hot_list_read(e->options.model, keys, n_max, &n, err);
    if (rc == 0)
        sl_expert_cache_preload(e->cache, keys, n, stop, on_progress, context);
    free(keys);
    return rc;
}

int sl_engine_save_hot_list(struct sl_engine *e, struct sl_err *err)
{
    struct sl_expert_key *keys;
    uint32_t n_max;
    int rc;

    if (!e->files.store)
        return 0;
    keys = make_hot_list(e, &n_max, err);
    if (!keys)
        return -ENOMEM;
    rc = sl_hot_list_write(e->options.model, keys, sl_expert_cache_hot_list(e->cache, keys, n_max),
                           err);
    free(keys);
    return rc;
}

int sl_engine_resize_cache(struct sl_engine *engine, uint64_t cache_bytes, struct sl_err *err)
{
    return sl_expert_cache_resize(engine->cache, cache_bytes, err);
}

int sl_engine_empty_cache(struct sl_engine *engine, struct sl_err *err)
{
    return sl_expert_cache_empty(engine->cache, err);
}

const struct sl_expert_map *sl_engine_experts(const struct sl_engine *engine)
{
    return engine->store;
}

struct sl_reader_options sl_engine_reader_options(const struct sl_engine *engine)
{
    return engine->options.reader;
}

const struct sl_compute *sl_engine_compute(const struct sl_engine *engine)
{
    return &engine->compute;
}

const struct sl_config *sl_engine_config(const struct sl_engine *engine)
{
    return &engine->config;
}

struct sl_forward *sl_engine_forward(struct sl_engine *engine)
{
    return engine->forward;
}

struct sl_kv_cache *sl_engine_kv(struct sl_engine *engine, uint32_t sequence_index)
{
    sl_assert(sequence_index < engine->options.n_sequences);
    return &engine->kv[sequence_index];
}

uint32_t sl_engine_segment(const struct sl_engine *engine, uint32_t n_tokens)
{
    return n_tokens < engine->plan.segment_tokens ? n_tokens : engine->plan.segment_tokens;
}

uint32_t sl_engine_slot_count(const struct sl_engine *engine)
{
    return sl_expert_cache_slot_count(engine->cache);
}

struct sl_expert_cache_counters sl_engine_counters(const struct sl_engine *engine)
{
    return sl_expert_cache_counters(engine->cache);
}

static void add_area(struct sl_engine_area *area, const char *name, const struct sl_arena *arena)
{
    const struct sl_arena_pages pages = sl_arena_pages(arena);

    area->name = name;
    area->size_bytes += arena->size_bytes;
    area->resident_bytes += pages.resident_bytes;
    area->huge_bytes += pages.huge_bytes;
}

void sl_engine_areas(const struct sl_engine *e, struct sl_engine_area ret_areas[SL_ENGINE_AREAS])
{
    memset(ret_areas, 0, SL_ENGINE_AREAS * sizeof(*ret_areas));
    add_area(&ret_areas[0], "dense weights", &e->weights.arena);
    for (uint32_t i = 0; i < e->options.n_sequences; i++)
        add_area(&ret_areas[1], "KV cache", &e->kv[i].arena);
    add_area(&ret_areas[2], "activations", sl_forward_arena(e->forward));
    add_area(&ret_areas[3], "expert cache", sl_expert_cache_arena(e->cache));
}

const char *sl_engine_note(const struct sl_engine *engine)
{
    return engine->note;
}
