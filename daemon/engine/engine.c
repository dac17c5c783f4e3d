#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/process.h"
#include "core/base/size.h"
#include "core/kernels/dispatch.h"
#include "core/model/kv_rollback.h"
#include "daemon/engine/drive_probe.h"
#include "daemon/engine/engine_internal.h"
#include "daemon/engine/memory_room.h"
#include "daemon/engine/node_note.h"
#include "storage/io/io_probe.h"

#define MTP_DRAFTS_MAX 3u

/* ---- notes -------------------------------------------------------------------------------------
 */

void sl_engine_add_note(struct sl_engine *e, const char *format, ...)
{
    va_list arguments;
    int length;

    sl_assert(e->n_notes < SL_ENGINE_NOTES_MAX);
    va_start(arguments, format);
    length = vasprintf(&e->notes[e->n_notes], format, arguments);
    va_end(arguments);
    if (length < 0) /* a note is not worth an error */
        return;
    e->n_notes++;
}

const char *sl_engine_note(const struct sl_engine *e, uint32_t note_index)
{
    return note_index < e->n_notes ? e->notes[note_index] : NULL;
}

/* ---- opening -----------------------------------------------------------------------------------
 */

static void begin_stage(const struct sl_engine *e, const char *doing)
{
    if (e->options.on_stage)
        e->options.on_stage(e->options.on_stage_context, doing);
}

/* Scratch for each thread, since many rows of logits are sampled at once. */
static void carve_sampling(struct sl_engine *e, struct sl_arena *arena)
{
    const uint32_t n_threads = e->options.affinity.n_threads;
    struct sl_candidate **scratch = sl_arena_take(arena, n_threads, sizeof(*scratch));

    for (uint32_t i = 0; i < n_threads; i++) {
        struct sl_candidate *one = sl_sampler_carve_scratch(arena, e->config.vocab_size);

        if (scratch)
            scratch[i] = one;
    }
    e->sampling = scratch;
}

static uint64_t sampling_bytes(struct sl_engine *e)
{
    struct sl_arena measure;

    sl_arena_init_measure(&measure);
    carve_sampling(e, &measure);
    return measure.used_bytes;
}

/* *ret_verdict, with its line in `err`, says whether it fits. */
static int plan_memory(struct sl_engine *e, int *ret_verdict, struct sl_err *err)
{
    const struct sl_engine_options *o = &e->options;
    const uint32_t inflight_max = sl_expert_cache_inflight_default(e->config.num_experts_per_tok);
    struct sl_process_memory process;
    struct sl_weight_sizes dense;
    struct sl_memory_room room;
    struct sl_memory_case what = {
        .ram_given = o->ram_bytes != 0,
        .cache_bytes = o->cache_bytes,
        .cache_min = o->cache_min,
        .dense = &dense,
        .draft = sl_engine_loaded_draft(e),
        .dense_mode = o->dense,
        .refuse_slow = o->refuse_slow,
        .staging_bytes = sl_expert_cache_staging_bytes(e->store, inflight_max),
        .table_bytes =
            sl_expert_cache_table_bytes(e->store, inflight_max, o->policy, o->affinity.n_threads),
        .numerics = o->numerics,
        .n_threads = o->affinity.n_threads,
        .segment_tokens = o->segment_tokens,
        .small_step_tokens = o->small_step_tokens,
        .context_tokens = o->context_tokens,
        .n_sequences = o->n_sequences,
        .kv_bytes = o->kv_bytes,
        .kv_share = o->kv_share,
        .with_images = o->images != NULL,
        .n_draft_blocks = e->draft.n_blocks,
        .kv_disk_bytes = o->kv_disk_bytes,
    };
    int rc = sl_weights_measure(&e->config, e->source, sl_engine_loaded_draft(e), &dense, err);

    if (rc < 0)
        return rc;
    process = sl_process_memory();
    what.program_bytes = process.bytes +
                         sl_memory_run_bytes(o->affinity.n_threads, sampling_bytes(e)) +
                         o->other_bytes;
    sl_memory_room_read("", &room);
    what.ram_bytes = what.ram_given ? o->ram_bytes : room.default_bytes + process.own_bytes;
    *ret_verdict =
        sl_memory_plan_make(&e->plan, &e->config, sl_expert_map_shape(e->store), &what, err);
    e->plan.total_bytes = room.total_bytes;
    e->n_weight_slots = sl_weights_slot_count(&dense, &e->plan.dense);
    if (*ret_verdict == 0)
        *ret_verdict = sl_memory_room_check(&room, e->plan.budget_bytes,
                                            sl_memory_plan_bytes(&e->plan) - process.bytes, err);
    return 0;
}

/* The first token needs as many slots as it has experts, so the threads see to their memory while
 * they wait for dense weights. The slots of the least cache are left: the plan counts on it that
 * loading has their memory. */
static bool fill_cache(void *context)
{
    const struct sl_engine *e = context;
    const uint64_t n = sl_expert_cache_slot_count(e->cache) - e->plan.slots_least;

    return sl_expert_cache_fill_ahead(e->cache,
                                      (uint32_t)(n < e->plan.slots_min ? n : e->plan.slots_min));
}

static int load_weights(struct sl_engine *e, struct sl_err *err)
{
    struct sl_weight_loading loading = {.source = e->source,
                                        .pool = e->pool,
                                        .on_progress = e->options.on_load,
                                        .on_progress_context = e->options.on_load_context,
                                        .on_wait = fill_cache,
                                        .on_wait_context = e};
    int rc = sl_dense_reader_create(&e->dense_reader, &e->files, e->reader, e->n_weight_slots,
                                    e->options.verify, err);

    if (rc < 0)
        return rc;
    loading.reader = sl_dense_reader_weights(e->dense_reader);
    rc = sl_weights_load(&e->weights, &e->config, &loading, sl_engine_loaded_draft(e),
                         &e->plan.dense, err);
    if (rc < 0)
        return rc;
    e->loading = sl_reader_counters(e->reader, SL_READS_OF_DENSE);
    sl_weights_start(&e->weights, e->source, loading.reader, e->pool);
    return 0;
}

/* Adds a note where memory that the threads share out among their nodes does not fit there. */
static void look_at_nodes(struct sl_engine *e)
{
    const uint32_t n_layers = sl_engine_layer_count(e);
    struct sl_placement dense = {0};
    char text[SL_NODE_NOTE_BYTES];

    sl_weights_look(&e->weights, n_layers, e->pool, SL_HUGE_PAGE_BYTES, &dense);
    if (sl_node_note(e->pool, &dense, e->plan.need_bytes[SL_MEMORY_CACHE], text))
        sl_engine_add_note(e, "%s", text);
}

static void choose_io(struct sl_engine *e)
{
    struct sl_err why;

    if (e->options.io)
        return;
    e->options.io = sl_io_choose(&why);
    if (why.code < 0)
        sl_engine_add_note(e, "%s; reads go through threads", why.message);
}

/* Opens the model's files, and behind them one for KV caches, if there is to be one. */
static int open_io(struct sl_engine *e, struct sl_err *err)
{
    const uint32_t depth =
        e->options.reader.depth ? e->options.reader.depth : SL_IO_PROBE_DEPTH_MAX;
    const uint32_t n_files = sl_expert_map_file_count(e->store);
    const char **model_paths = sl_expert_map_file_paths(e->store);
    const char **paths = model_paths ? calloc(n_files + 1, sizeof(*paths)) : NULL;
    int rc;

    if (paths) {
        memcpy(paths, model_paths, n_files * sizeof(*paths));
        if (e->page_file)
            paths[n_files] = sl_page_file_path(e->page_file);
        rc = e->options.io(&e->io, paths, n_files + (e->page_file != NULL), depth, err);
    } else {
        rc = sl_err_set(err, -ENOMEM, "%s: out of memory", e->options.model);
    }
    free(model_paths);
    free(paths);
    return rc;
}

static int start_reader(struct sl_engine *e, struct sl_err *err)
{
    const char *kept_in;
    int rc;

    choose_io(e);
    /* The probe's result holds for the default back end alone. */
    kept_in = e->files.store && e->options.io == sl_io_uring_open ? e->options.model : NULL;
    rc = open_io(e, err);
    if (rc < 0)
        return rc;
    if (!e->io->direct)
        sl_engine_add_note(e,
                           "no direct I/O in blocks of 4 KiB here, so the page cache takes part");
    if (!sl_drive_probe_recall(&e->options.reader, e->io, kept_in, &e->drive_bytes_per_s)) {
        begin_stage(e, "measuring which reads suit the drive");
        rc = sl_drive_probe_run(&e->options.reader, e->io, kept_in, &e->drive_bytes_per_s, err);
    }
    /* The probe is of the model's files alone, whatever else is on drives. */
    if (rc == 0 && e->options.kv_disk_bytes > 0) {
        e->io->ops->close(e->io);
        e->io = NULL;
        if ((rc = sl_engine_pages_create(e, err)) == 0)
            rc = open_io(e, err);
    }
    if (rc == 0)
        rc = sl_reader_create(&e->reader, e->io, &e->options.reader, err);
    if (rc == 0 && e->page_file)
        rc = sl_page_file_start(e->page_file, e->reader, sl_expert_map_file_count(e->store),
                                SL_KV_READS_MAX, err);
    return rc;
}

/* Reads on for experts and dense weights alike, beside the forward pass. */
static void background(void *context)
{
    struct sl_engine *e = context;

    sl_expert_cache_background(e->cache);
    sl_weights_background(&e->weights);
    for (int size = 0; size < SL_STEP_SIZES; size++)
        if (e->forwards[size])
            sl_forward_background(e->forwards[size]);
}

static int start_cache(struct sl_engine *e, struct sl_err *err)
{
    struct sl_expert_cache_options options = {
        .slab_bytes = e->plan.need_bytes[SL_MEMORY_CACHE],
        .num_experts_per_tok = e->config.num_experts_per_tok,
        .slots_min = (uint32_t)e->plan.slots_least,
        .inflight_max = sl_expert_cache_inflight_default(e->config.num_experts_per_tok),
        .verify = e->options.verify,
        .prefetch_layers = e->options.prefetch != SL_PREFETCH_OFF,
        .paced = e->options.prefetch == SL_PREFETCH_AUTO,
        .policy = e->options.policy,
    };
    int rc = sl_expert_cache_create(&e->cache, e->store, e->reader, e->pool, &options, err);

    if (rc < 0)
        return rc;
    e->compute.background = (struct sl_background){background, e};
    if (!sl_expert_cache_is_attached(e->cache))
        sl_engine_add_note(
            e, "the expert cache could not be registered with io_uring (see ulimit -l), so "
               "reads cost more processor time");
    return 0;
}

struct sl_forward_params sl_engine_forward_params(struct sl_engine *e, enum sl_step_size size)
{
    return (struct sl_forward_params){
        .config = &e->config,
        .weights = &e->weights,
        .compute = &e->compute,
        .source = sl_expert_cache_source(e->cache),
        .tokens_max = sl_engine_step_tokens_max(e, size),
        .context_max = e->options.context_tokens,
        .spans_max = e->options.n_sequences,
        .prefetch = e->options.prefetch,
    };
}

static int start_kv_pool(struct sl_engine *e, struct sl_err *err)
{
    const struct sl_node_mask nodes = sl_pool_nodes(e->pool);
    int rc = sl_kv_pool_init(&e->kv_pool, &e->config, sl_engine_layer_count(e), e->options.numerics,
                             e->plan.need_bytes[SL_MEMORY_KV], err);

    /* Which entries a thread reads changes with every token, so no node has a claim to them. */
    if (rc == 0)
        sl_nodes_spread(e->kv_pool.arena.base, e->kv_pool.arena.size_bytes, &nodes);
    if (rc == 0 && e->page_file)
        rc = sl_engine_pages_start(e, err);
    return rc;
}

static int start_forwards(struct sl_engine *e, struct sl_err *err)
{
    int rc = 0;

    for (int size = 0; rc == 0 && size < SL_STEP_SIZES; size++) {
        const struct sl_forward_params params =
            sl_engine_forward_params(e, (enum sl_step_size)size);

        if (params.tokens_max > 0)
            rc = sl_forward_create(&e->forwards[size], &params, err);
    }
    return rc;
}

static int start_sampling(struct sl_engine *e, struct sl_err *err)
{
    int rc = sl_arena_reserve(&e->sampling_arena, sampling_bytes(e), "samplers", err);

    if (rc == 0)
        carve_sampling(e, &e->sampling_arena);
    return rc;
}

/* A folder that cannot be had costs time alone. */
static int start_images(struct sl_engine *e, struct sl_err *err)
{
    struct sl_err why;
    int rc = e->options.images ? sl_engine_images_open(e, &why) : 0;

    if (rc < 0 && e->options.images_optional) {
        sl_engine_add_note(e, "%s; no images are kept", why.message);
        return 0;
    }
    if (rc < 0 && err)
        *err = why;
    return rc;
}

/* ---- all together ------------------------------------------------------------------------------
 */

static int check_options(const struct sl_engine *e, struct sl_err *err)
{
    const struct sl_engine_options *o = &e->options;

    sl_assert(o->n_sequences >= 1 && o->context_tokens >= 1);
    if (o->context_tokens > e->config.max_position_embeddings)
        return sl_err_set(err, -SL_EBUDGET,
                          "a context of %u tokens exceeds the model's max_position_embeddings, %u",
                          o->context_tokens, e->config.max_position_embeddings);
    if (o->kv_disk_bytes > 0 && !o->images)
        return sl_err_set(err, -EINVAL,
                          "KV caches go to disk in the folder of images, but none are kept "
                          "(--kv-disk needs --images)");
    return 0;
}

/* Returns NULL when out of memory. */
static struct sl_engine *create(const struct sl_engine_options *options)
{
    struct sl_engine *e = calloc(1, sizeof(*e));

    if (!e)
        return NULL;
    e->options = *options;
    sl_list_init(&e->sequences);
    return e;
}

int sl_engine_open(struct sl_engine **ret_engine, const struct sl_engine_options *options,
                   struct sl_memory_plan *ret_plan, struct sl_err *err)
{
    char slow[SL_SLOW_TEXT_BYTES];
    struct sl_engine *e = NULL;
    int rc, verdict;

    if (ret_plan)
        ret_plan->budget_bytes = 0;
    e = create(options);
    if (!e)
        return sl_err_set(err, -ENOMEM, "engine: out of memory");
    begin_stage(e, "reading the headers");
    if ((rc = sl_engine_open_model(e, err)) < 0 || (rc = check_options(e, err)) < 0 ||
        (rc = sl_kernels_select(&e->kernels, options->isa, err)) < 0 ||
        (rc = plan_memory(e, &verdict, err)) < 0)
        goto out;
    rc = verdict;
    if (ret_plan)
        *ret_plan = e->plan;
    /* Reader and images start before this thread is tied to a processor, since their threads
     * inherit that. */
    if (rc < 0 || (rc = start_reader(e, err)) < 0 || (rc = start_images(e, err)) < 0 ||
        (rc = sl_pool_create(&e->pool, options->affinity.n_threads, err)) < 0)
        goto out;
    sl_pool_pin(e->pool, &options->affinity);
    e->compute =
        (struct sl_compute){.kernels = &e->kernels, .pool = e->pool, .numerics = options->numerics};
    if ((rc = start_cache(e, err)) < 0)
        goto out;
    begin_stage(e, SL_STAGE_WEIGHTS);
    if ((rc = load_weights(e, err)) < 0)
        goto out;
    begin_stage(e, "making room for context and activations");
    if ((rc = start_kv_pool(e, err)) < 0 || (rc = start_forwards(e, err)) < 0 ||
        (rc = start_sampling(e, err)) < 0)
        goto out;
    look_at_nodes(e);
    if (sl_memory_plan_is_slow(&e->plan))
        sl_engine_add_note(e, "%s", sl_memory_plan_tell_slow(&e->plan, e->drive_bytes_per_s, slow));
    if (!e->weights.arena.locked)
        sl_engine_add_note(e,
                           "memory could not be locked (see ulimit -l), so it may be swapped out");
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
    if ((rc = sl_engine_open_model(e, err)) == 0 && (rc = check_options(e, err)) == 0 &&
        (rc = plan_memory(e, ret_verdict, err)) == 0)
        *ret_plan = e->plan;
    sl_engine_close(e);
    return rc;
}

void sl_engine_close(struct sl_engine *engine)
{
    bool drained;

    if (!engine)
        return;
    sl_images_close(engine->images); /* while the reader, which it watches, is there */
    sl_arena_fini(&engine->image_ids);
    for (int size = 0; size < SL_STEP_SIZES; size++)
        sl_forward_destroy(engine->forwards[size]);
    while (!sl_list_is_empty(&engine->sequences))
        sl_engine_sequence_destroy(engine, &sl_engine_sequence_of(engine->sequences.next)->kv);
    sl_kv_pager_destroy(engine->kv_pool.pager);
    sl_kv_pool_fini(&engine->kv_pool);
    sl_arena_fini(&engine->sampling_arena);
    if (engine->dense_reader)
        sl_weights_stop(&engine->weights);
    sl_expert_cache_destroy(engine->cache);
    /* A drive that never answered may still write to memory, which is then not unmapped. */
    drained = !engine->reader || sl_reader_drain(engine->reader);
    sl_dense_reader_destroy(engine->dense_reader);
    sl_reader_destroy(engine->reader);
    sl_page_file_destroy(engine->page_file);
    if (engine->io)
        engine->io->ops->close(engine->io);
    if (drained)
        sl_weights_fini(&engine->weights); /* zeroed if they were not loaded */
    sl_pool_destroy(engine->pool);
    sl_expert_map_close(engine->store);
    sl_model_files_close(&engine->files);
    for (uint32_t i = 0; i < engine->n_notes; i++)
        free(engine->notes[i]);
    free(engine);
}

int sl_engine_resize_cache(struct sl_engine *engine, uint64_t cache_bytes, struct sl_err *err)
{
    return sl_expert_cache_resize(engine->cache, cache_bytes, err);
}

const struct sl_config *sl_engine_config(const struct sl_engine *engine)
{
    return &engine->config;
}

const char *sl_engine_isa(const struct sl_engine *engine)
{
    return engine->kernels.isa;
}

const char **sl_engine_expert_paths(const struct sl_engine *engine, uint32_t *ret_n_paths)
{
    *ret_n_paths = sl_expert_map_file_count(engine->store);
    return sl_expert_map_file_paths(engine->store);
}

/* ---- steps -------------------------------------------------------------------------------------
 */

struct sl_forward *sl_engine_forward(struct sl_engine *engine, enum sl_step_size size)
{
    return engine->forwards[size];
}

uint32_t sl_engine_step_tokens_max(const struct sl_engine *engine, enum sl_step_size size)
{
    return size == SL_STEP_SMALL ? engine->plan.small_step_tokens : engine->plan.segment_tokens;
}

uint32_t sl_engine_spans_max(const struct sl_engine *engine)
{
    return engine->options.n_sequences;
}

/* Wrong guesses are taken back, and that has a limit. The MTP block guesses nothing useful
 * further than three tokens ahead. */
uint32_t sl_engine_drafts_max(const struct sl_engine *e)
{
    const uint32_t kind_max =
        e->draft.kind == SL_DRAFT_DSPARK ? e->config.dspark.block_size : MTP_DRAFTS_MAX;
    const uint32_t wanted = e->options.drafts == SL_DRAFTS_AUTO ? kind_max : e->options.drafts;
    const uint32_t limits[] = {kind_max, SL_DRAFTS_MAX, sl_kv_rollback_tokens_max(&e->config) - 1};
    uint32_t n = wanted;

    for (size_t i = 0; i < SL_ARRAY_LEN(limits); i++)
        n = limits[i] < n ? limits[i] : n;
    return n;
}

bool sl_engine_drafts_are_chosen(const struct sl_engine *e)
{
    return e->options.drafts == SL_DRAFTS_AUTO;
}

int sl_engine_step(struct sl_engine *engine, const struct sl_step_request *request,
                   struct sl_err *err)
{
    return sl_forward_step(engine->forwards[SL_STEP_LARGE], request, err);
}
