/* The engine: what it joins gives the bytes that the forward pass gives over sources in memory, its
 * plan is what it takes, and what cannot be opened leaves nothing behind. The tiny model is written
 * as a checkpoint; then options are refused, every allocation while opening fails in turn, and
 * every read of a request. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "cache/cache_replay.h"
#include "core/base/assert.h"
#include "daemon/engine.h"
#include "storage/checkpoint.h"
#include "storage/store_write.h"
#include "tests/fault_alloc.h"
#include "tests/fixture_checkpoint.h"
#include "tests/fixture_model.h"
#include "tests/io_fault.h"
#include "tests/store_rig.h"

#define SHARD "model-00001-of-00001.safetensors"
#define TOKENS 40u

struct model {
    char folder[FIXTURE_PATH_BYTES];
    struct sl_config config;
    struct fixture_weights source;
    struct fixture_experts experts;
    int32_t tokens[TOKENS];
    float *logits, *mtp_logits; /* (TOKENS, vocab_size), over sources in memory */
};

/* ---- the model on disk -------------------------------------------------------------------------
 */

static void write_config(const struct sl_config *c, const char *folder)
{
    char text[4096];
    int length = snprintf(
        text, sizeof(text),
        "{\"vocab_size\":%u,\"bos_token_id\":%u,\"eos_token_id\":%u,\"hidden_size\":%u,"
        "\"num_hidden_layers\":%u,\"num_hash_layers\":%u,\"num_nextn_predict_layers\":%u,"
        "\"num_attention_heads\":%u,\"head_dim\":%u,\"qk_rope_head_dim\":%u,\"q_lora_rank\":%u,"
        "\"o_groups\":%u,\"o_lora_rank\":%u,\"index_n_heads\":%u,\"index_head_dim\":%u,"
        "\"index_topk\":%u,\"sliding_window\":%u,\"n_routed_experts\":%u,"
        "\"num_experts_per_tok\":%u,\"moe_intermediate_size\":%u,\"hc_mult\":%u,"
        "\"hc_sinkhorn_iters\":%u,\"max_position_embeddings\":%u,\"routed_scaling_factor\":%.9g,"
        "\"swiglu_limit\":%.9g,\"hc_eps\":%.9g,\"rms_norm_eps\":%.9g,\"rope_theta\":%.9g,"
        "\"compress_rope_theta\":%.9g,\"rope_scaling\":{\"factor\":%.9g,\"beta_fast\":%.9g,"
        "\"beta_slow\":%.9g,\"original_max_position_embeddings\":%u},\"compress_ratios\":[",
        c->vocab_size, c->bos_token_id, c->eos_token_id, c->hidden_size, c->num_hidden_layers,
        c->num_hash_layers, c->num_nextn_predict_layers, c->num_attention_heads, c->head_dim,
        c->qk_rope_head_dim, c->q_lora_rank, c->o_groups, c->o_lora_rank, c->index_n_heads,
        c->index_head_dim, c->index_topk, c->sliding_window, c->n_routed_experts,
        c->num_experts_per_tok, c->moe_intermediate_size, c->hc_mult, c->hc_sinkhorn_iters,
        c->max_position_embeddings, (double)c->routed_scaling_factor, (double)c->swiglu_limit,
        (double)c->hc_eps, (double)c->rms_norm_eps, c->rope_theta, c->compress_rope_theta,
        c->rope_scaling.factor, c->rope_scaling.beta_fast, c->rope_scaling.beta_slow,
        c->rope_scaling.original_max_position_embeddings);

    for (uint32_t i = 0; i < c->num_hidden_layers + c->num_nextn_predict_layers; i++)
        length += snprintf(text + length, sizeof(text) - (size_t)length, "%s%u", i ? "," : "",
                           c->compress_ratios[i]);
    length += snprintf(text + length, sizeof(text) - (size_t)length, "]}");
    sl_assert((size_t)length < sizeof(text));
    fixture_write_text(folder, "config.json", text);
}

static const char *block_of(const struct sl_config *c, uint32_t layer_index, char name[32])
{
    if (layer_index < c->num_hidden_layers)
        snprintf(name, 32, "layers.%u", layer_index);
    else
        snprintf(name, 32, "mtp.%u", layer_index - c->num_hidden_layers);
    return name;
}

/* Headers first, with holes for data. */
static void write_headers(const struct model *m)
{
    struct fixture_list list = {0};
    char block[32];
    FILE *index;

    for (uint32_t i = 0; i < m->source.count; i++) {
        const struct fixture_weight *weight = &m->source.list[i];
        bool matrix = weight->info.n_dims == 2;

        fixture_add(&list, weight->info.dtype, weight->info.shape[0],
                    matrix ? weight->info.shape[1] : 0, "%s", weight->name);
    }
    for (uint32_t i = 0; i < m->experts.n_layers; i++)
        fixture_add_experts(&list, block_of(&m->config, i, block), m->config.n_routed_experts,
                            m->config.hidden_size, m->config.moe_intermediate_size);
    fixture_write_shard(m->folder, SHARD, &list, true);
    index = fixture_index_begin(m->folder);
    fixture_index_add(index, &list, SHARD);
    fixture_index_end(index);
    fixture_fini(&list);
}

static void write_tensor(const struct sl_checkpoint *checkpoint, int fd, const char *name,
                         const void *data)
{
    const struct sl_checkpoint_tensor *tensor = sl_checkpoint_find(checkpoint, name);

    sl_assert(tensor);
    sl_assert(pwrite(fd, data, tensor->info.size_bytes, (off_t)tensor->offset_bytes) ==
              (ssize_t)tensor->info.size_bytes);
}

static void write_expert(const struct model *m, const struct sl_checkpoint *checkpoint, int fd,
                         struct sl_expert_key key)
{
    uint8_t codes[128 * 128 / 2], scales[128 * 128 / 32];
    char block[32], name[96];

    sl_assert(m->config.hidden_size == 128 && m->config.moe_intermediate_size == 128);
    for (int matrix = 0; matrix < SL_EXPERT_MATRICES; matrix++) {
        fixture_experts_raw(&m->experts, &m->config, key, matrix, codes, scales);
        snprintf(name, sizeof(name), "%s.ffn.experts.%u.w%d.weight",
                 block_of(&m->config, key.layer_index, block), key.expert_index, matrix + 1);
        write_tensor(checkpoint, fd, name, codes);
        snprintf(name, sizeof(name), "%s.ffn.experts.%u.w%d.scale", block, key.expert_index,
                 matrix + 1);
        write_tensor(checkpoint, fd, name, scales);
    }
}

static void write_checkpoint(const struct model *m)
{
    struct sl_checkpoint *checkpoint;
    int rc, fd;

    write_config(&m->config, m->folder);
    write_headers(m);
    rc = sl_checkpoint_open(&checkpoint, m->folder, NULL);
    sl_assert(rc == 0);
    fd = open(sl_checkpoint_file_path(checkpoint, 0), O_WRONLY);
    sl_assert(fd >= 0);
    for (uint32_t i = 0; i < m->source.count; i++)
        write_tensor(checkpoint, fd, m->source.list[i].name, m->source.list[i].data);
    for (uint16_t layer = 0; layer < m->experts.n_layers; layer++)
        for (uint16_t expert = 0; expert < m->config.n_routed_experts; expert++)
            write_expert(m, checkpoint, fd, (struct sl_expert_key){layer, expert});
    close(fd);
    sl_checkpoint_close(checkpoint);
}

/* ---- answers -----------------------------------------------------------------------------------
 */

struct rows {
    float *to;
    size_t vocab_size;
};

static void keep_row(void *context, uint32_t span_index, uint32_t token_index, const float *logits)
{
    struct rows *rows = context;

    (void)span_index;
    (void)token_index;
    memcpy(rows->to, logits, rows->vocab_size * sizeof(float));
    rows->to += rows->vocab_size;
}

/* All rows of the model's tokens, `at_once` at a time. */
static void run(const struct model *m, struct sl_forward *forward, struct sl_kv_cache *kv,
                uint32_t at_once, float *logits, float *mtp_logits)
{
    struct rows rows = {logits, m->config.vocab_size}, mtp = {mtp_logits, m->config.vocab_size};

    for (uint32_t i = 0; i < TOKENS; i += at_once) {
        uint32_t n = TOKENS - i < at_once ? TOKENS - i : at_once;
        struct sl_span span = {kv, m->tokens + i, n, SL_LOGITS_ALL};

        assert_int_equal(sl_forward_step(forward, &span, 1, keep_row, &rows, NULL), 0);
        span.tokens++;
        span.n_tokens -= i + n == TOKENS;
        assert_int_equal(sl_forward_mtp(forward, &span, 1, keep_row, &mtp, NULL), 0);
    }
}

static void answer(struct model *m)
{
    struct sl_kernels kernels;
    struct sl_compute compute = {.kernels = &kernels};
    struct sl_kv_cache kv;
    struct sl_weights weights;
    struct sl_forward_params params = {.config = &m->config,
                                       .weights = &weights,
                                       .compute = &compute,
                                       .source = &m->experts.source,
                                       .tokens_max = TOKENS,
                                       .context_max = TOKENS,
                                       .spans_max = 1};
    struct sl_forward *forward;

    assert_int_equal(sl_pool_create(&compute.pool, 1, NULL), 0);
    assert_int_equal(sl_kernels_select(&kernels, "ref", NULL), 0);
    assert_int_equal(
        sl_weights_load(&weights, &m->config, &m->source.source, true, compute.pool, NULL), 0);
    assert_int_equal(sl_forward_create(&forward, &params, NULL), 0);
    assert_int_equal(
        sl_kv_cache_init(&kv, &m->config, m->experts.n_layers, TOKENS, SL_NUMERICS_NATIVE, NULL),
        0);
    run(m, forward, &kv, TOKENS, m->logits, m->mtp_logits);
    sl_kv_cache_fini(&kv);
    sl_forward_destroy(forward);
    sl_weights_fini(&weights);
    sl_pool_destroy(compute.pool);
}

static int model_create(void **state)
{
    struct model *m = calloc(1, sizeof(*m));
    uint64_t random = 17;

    sl_assert(m);
    fixture_config(&m->config);
    fixture_weights_init(&m->source, &m->config, 41);
    fixture_experts_init(&m->experts, &m->config, m->config.n_routed_experts, 42);
    for (uint32_t i = 0; i < TOKENS; i++)
        m->tokens[i] = (int32_t)fixture_below(&random, m->config.vocab_size);
    fixture_folder_create(m->folder);
    write_checkpoint(m);
    m->logits = calloc(TOKENS * m->config.vocab_size, sizeof(float));
    m->mtp_logits = calloc(TOKENS * m->config.vocab_size, sizeof(float));
    sl_assert(m->logits && m->mtp_logits);
    answer(m);
    *state = m;
    return 0;
}

static int model_destroy(void **state)
{
    struct model *m = *state;

    fixture_folder_remove(m->folder);
    fixture_weights_fini(&m->source);
    fixture_experts_fini(&m->experts);
    free(m->logits);
    free(m->mtp_logits);
    free(m);
    return 0;
}

/* ---- the engine --------------------------------------------------------------------------------
 */

static struct sl_engine_options options_of(const struct model *m)
{
    return (struct sl_engine_options){
        .model = m->folder,
        .ram_bytes = UINT64_C(1) << 30,
        .cache_min = true,
        .placement = {.n_threads = 2},
        .segment_tokens = 16,
        .context_tokens = TOKENS,
        .n_sequences = 2,
        .io = sl_io_threads_open,
        .reader = {.depth = 4}, /* a thread for each */
        .with_mtp = true,
    };
}

static void test_bytes_are_those_of_the_forward(void **state)
{
    const struct model *m = *state;
    const size_t size_bytes = (size_t)TOKENS * m->config.vocab_size * sizeof(float);
    float *logits = calloc(1, size_bytes), *mtp_logits = calloc(1, size_bytes);

    assert_non_null(logits);
    assert_non_null(mtp_logits);
    for (int round = 0; round < 2; round++) {
        struct sl_engine_options options = options_of(m);
        struct sl_expert_cache_counters counters;
        struct sl_engine *engine;

        options.cache_min = round == 0;
        assert_int_equal(sl_engine_open(&engine, &options, NULL, NULL), 0);
        assert_int_equal(sl_engine_config(engine)->vocab_size, m->config.vocab_size);
        for (uint32_t s = 0; s < 2; s++) {
            run(m, sl_engine_forward(engine), sl_engine_kv(engine, s), s ? 1 : 16, logits,
                mtp_logits);
            assert_memory_equal(logits, m->logits, size_bytes);
            assert_memory_equal(mtp_logits, m->mtp_logits, size_bytes);
        }
        counters = sl_engine_counters(engine);
        assert_true(counters.n_requests > 0 && counters.n_hits > 0);
        /* The whole model fits the second time, and is read once. */
        assert_true(round == 0 ? counters.n_evictions > 0 : counters.n_evictions == 0);
        assert_true(round == 0 || counters.n_loads <= 40);
        sl_engine_close(engine);
    }
    free(logits);
    free(mtp_logits);
}

static void keep_route(void *context, uint32_t layer_index, uint32_t n_tokens,
                       const uint16_t *experts)
{
    sl_trace_writer_add(context, layer_index, n_tokens, experts);
}

/* A run with n_slots slots and its recorded trace: the replay counts what the cache counted. */
static void check_replay(const struct model *m, const struct sl_policy_ops *policy,
                         uint32_t n_slots, uint32_t at_once)
{
    struct sl_engine_options options = options_of(m);
    const struct sl_trace_shape shape = {
        m->config.num_hidden_layers,   m->config.num_hash_layers, m->config.n_routed_experts,
        m->config.num_experts_per_tok, m->config.hidden_size,     m->config.moe_intermediate_size};
    struct sl_expert_cache_counters counted;
    struct sl_slot_counters replayed;
    struct sl_trace_writer *writer;
    struct sl_replay_plan *plan;
    struct sl_engine *engine;
    struct sl_trace trace;
    char path[FIXTURE_PATH_BYTES + 8];

    snprintf(path, sizeof(path), "%s/trace", m->folder);
    assert_int_equal(sl_trace_writer_open(&writer, path, &shape, NULL), 0);
    options.with_mtp = false;
    options.cache_min = false;
    options.cache_bytes = n_slots * UINT64_C(3) * 12288; /* matrices of 8,704 bytes */
    options.policy = policy;
    options.on_route = keep_route;
    options.on_route_context = writer;
    assert_int_equal(sl_engine_open(&engine, &options, NULL, NULL), 0);
    assert_int_equal(sl_engine_slot_count(engine), n_slots);
    for (uint32_t i = 0; i < 2 * TOKENS; i += at_once) {
        struct sl_span span = {sl_engine_kv(engine, i / TOKENS), m->tokens + i % TOKENS, at_once,
                               SL_LOGITS_NONE};

        assert_int_equal(sl_forward_step(sl_engine_forward(engine), &span, 1, NULL, NULL, NULL), 0);
    }
    counted = sl_engine_counters(engine);
    sl_engine_close(engine);
    assert_int_equal(sl_trace_writer_close(writer, NULL), 0);
    assert_int_equal(sl_trace_read(&trace, path, NULL), 0);
    assert_int_equal(trace.n_steps, 2 * TOKENS / at_once);
    assert_int_equal(sl_replay_plan_create(&plan, &trace, 0, NULL), 0);
    assert_int_equal(sl_replay_run(plan, policy, n_slots, &replayed, NULL), 0);
    assert_int_equal(replayed.n_requests, counted.n_requests);
    assert_int_equal(replayed.n_hits, counted.n_hits);
    assert_int_equal(replayed.n_hinted_hits, counted.n_hinted_hits);
    assert_int_equal(replayed.n_loads, counted.n_loads);
    assert_int_equal(replayed.n_evictions, counted.n_evictions);
    assert_true(counted.n_hits > 0 && counted.n_evictions > 0);
    sl_replay_plan_destroy(plan);
    sl_trace_fini(&trace);
}

static void test_replay_counts_what_the_run_counted(void **state)
{
    static const struct sl_policy_ops *const policies[] = {&sl_policy_frequency, &sl_policy_lru};
    const struct model *m = *state;
    const uint32_t slots_min = m->config.num_hidden_layers * m->config.num_experts_per_tok;

    for (uint32_t i = 0; i < 12; i++)
        check_replay(m, policies[i % 2], slots_min + i, i % 3 ? 1 : 2);
}

/* The cache shrinks and grows between steps: the answer stays, and the sizes are as asked for. */
static void test_resizing_changes_no_answer(void **state)
{
    const struct model *m = *state;
    const size_t row_bytes = m->config.vocab_size * sizeof(float);
    float *logits = calloc(TOKENS, row_bytes);
    struct sl_engine_options options = options_of(m);
    struct rows rows = {logits, m->config.vocab_size};
    const uint64_t slot_bytes = 3 * 12288;
    struct sl_engine *engine;
    struct sl_err err;
    uint64_t random = 3;

    assert_non_null(logits);
    options.cache_min = false;
    options.n_sequences = 1;
    assert_int_equal(sl_engine_open(&engine, &options, NULL, NULL), 0);
    assert_int_equal(sl_engine_slot_count(engine), 40);
    for (uint32_t i = 0; i < TOKENS; i++) {
        struct sl_span span = {sl_engine_kv(engine, 0), m->tokens + i, 1, SL_LOGITS_ALL};
        uint32_t n_slots = 15 + fixture_below(&random, 30);

        assert_int_equal(sl_engine_resize_cache(engine, n_slots * slot_bytes, NULL), 0);
        assert_int_equal(sl_engine_slot_count(engine), n_slots < 40 ? n_slots : 40);
        assert_int_equal(
            sl_forward_step(sl_engine_forward(engine), &span, 1, keep_row, &rows, NULL), 0);
    }
    assert_memory_equal(logits, m->logits, TOKENS * row_bytes);
    assert_int_equal(sl_engine_resize_cache(engine, 15 * slot_bytes - 1, &err), -SL_EBUDGET);
    assert_non_null(strstr(err.message, "15 experts"));
    sl_engine_close(engine);
    free(logits);
}

/* A store of the model, in a folder below its own. */
static void pack(const struct model *m, char store_folder[FIXTURE_PATH_BYTES])
{
    static const uint64_t weight = 1;
    const char **names = calloc(m->source.count, sizeof(*names));
    struct sl_pack_options options = {.store_folder = store_folder,
                                      .checkpoint_folder = m->folder,
                                      .tensors = names,
                                      .n_tensors = m->source.count,
                                      .weights = &weight,
                                      .writer = sl_file_writer(),
                                      .batch_bytes = 1 << 20};
    const struct sl_expert_shape shape = {.num_hidden_layers = m->config.num_hidden_layers,
                                          .n_mtp_layers = 1,
                                          .n_routed_experts = m->config.n_routed_experts,
                                          .hidden_size = m->config.hidden_size,
                                          .moe_intermediate_size = m->config.moe_intermediate_size};
    struct sl_checkpoint *checkpoint;
    struct sl_expert_store *experts;

    assert_non_null(names);
    for (uint32_t i = 0; i < m->source.count; i++)
        names[i] = m->source.list[i].name;
    assert_true(snprintf(store_folder, FIXTURE_PATH_BYTES, "%s/store", m->folder) <
                FIXTURE_PATH_BYTES);
    assert_int_equal(sl_checkpoint_open(&checkpoint, m->folder, NULL), 0);
    assert_int_equal(sl_expert_store_open(&experts, checkpoint, &shape, NULL), 0);
    assert_int_equal(sl_pool_create(&options.pool, 1, NULL), 0);
    options.checkpoint = checkpoint;
    options.experts = experts;
    assert_int_equal(sl_store_pack(&options, NULL, NULL), 0);
    sl_pool_destroy(options.pool);
    sl_expert_store_close(experts);
    sl_checkpoint_close(checkpoint);
    free(names);
}

static void count_up_to_15(void *context, uint64_t done, uint64_t total)
{
    uint64_t *last = context;

    assert_int_equal(done, ++*last);
    assert_int_equal(total, 15);
}

/* What was hot in one run is there before the next one begins, and the answer stays. A list that
 * makes no sense, or cannot be kept, is an error that stops nobody. */
static void test_store_remembers_what_was_hot(void **state)
{
    static const uint64_t preloads[] = {0, 15, 15, 15, 0, 0};
    const struct model *m = *state;
    const size_t size_bytes = (size_t)TOKENS * m->config.vocab_size * sizeof(float);
    float *logits = calloc(1, size_bytes), *mtp_logits = calloc(1, size_bytes);
    struct sl_engine_options options = options_of(m);
    char store_folder[FIXTURE_PATH_BYTES], moved[FIXTURE_PATH_BYTES + 8];
    atomic_bool stop = false;

    assert_non_null(logits);
    assert_non_null(mtp_logits);
    pack(m, store_folder);
    snprintf(moved, sizeof(moved), "%s.moved", store_folder);
    options.model = store_folder;
    options.stop = &stop;
    for (int round = 0; round < 6; round++) {
        struct sl_expert_cache_counters counters;
        struct sl_engine *engine;
        uint64_t last = 0;
        struct sl_err err;

        if (round == 4)
            store_rig_put(store_folder, "hot", "?", 1);
        if (round == 5)
            options.model = m->folder;  /* a checkpoint remembers nothing */
        options.cache_min = round != 2; /* else there is room for more than the list has */
        options.io = round == 3 ? sl_io_uring_open : sl_io_threads_open;
        assert_int_equal(sl_engine_open(&engine, &options, NULL, NULL), 0);
        assert_int_equal(sl_engine_slot_count(engine), options.cache_min ? 15 : 40);
        stop = round == 1;
        assert_int_equal(sl_engine_load_hot_list(engine, count_up_to_15, &last, &err),
                         round == 4 ? -SL_ECORRUPT : 0);
        if (round == 1) { /* stopped: nothing is loaded, until it is asked for again */
            assert_int_equal(sl_engine_counters(engine).n_loads, 0);
            stop = false;
            assert_int_equal(sl_engine_load_hot_list(engine, count_up_to_15, &last, &err), 0);
        }
        counters = sl_engine_counters(engine);
        assert_int_equal(counters.n_preloads, preloads[round]);
        assert_int_equal(counters.n_loads, preloads[round]);
        assert_int_equal(last, preloads[round]);
        run(m, sl_engine_forward(engine), sl_engine_kv(engine, 0), 1, logits, mtp_logits);
        assert_memory_equal(logits, m->logits, size_bytes);
        assert_memory_equal(mtp_logits, m->mtp_logits, size_bytes);
        if (round == 4) {
            assert_int_equal(rename(store_folder, moved), 0);
            assert_int_equal(sl_engine_save_hot_list(engine, &err), -ENOENT);
            assert_non_null(strstr(err.message, store_folder));
            assert_int_equal(rename(moved, store_folder), 0);
        }
        if (round != 1 && round != 2)
            assert_int_equal(sl_engine_save_hot_list(engine, NULL), 0);
        sl_engine_close(engine);
    }
    store_rig_remove(store_folder);
    free(logits);
    free(mtp_logits);
}

static void count_up(void *context, uint64_t done, uint64_t total)
{
    uint64_t *last = context;

    assert_int_equal(done, ++*last);
    assert_int_equal(total, 40);
}

static void test_all_experts_can_be_loaded(void **state)
{
    const struct model *m = *state;
    const size_t size_bytes = (size_t)TOKENS * m->config.vocab_size * sizeof(float);
    float *logits = calloc(1, size_bytes), *mtp_logits = calloc(1, size_bytes);
    struct sl_engine_options options = options_of(m);
    struct sl_expert_cache_counters counters;
    struct sl_engine *engine;
    uint64_t last = 0;

    assert_non_null(logits);
    assert_non_null(mtp_logits);
    options.cache_min = false;
    assert_int_equal(sl_engine_open(&engine, &options, NULL, NULL), 0);
    assert_int_equal(sl_engine_slot_count(engine), 40);
    assert_int_equal(sl_engine_load_experts(engine, count_up, &last, NULL), 1);
    assert_int_equal(last, 40);
    assert_int_equal(sl_engine_counters(engine).n_loads, 40);
    run(m, sl_engine_forward(engine), sl_engine_kv(engine, 0), 16, logits, mtp_logits);
    assert_memory_equal(logits, m->logits, size_bytes);
    counters = sl_engine_counters(engine);
    assert_int_equal(counters.n_loads, 40);
    sl_engine_close(engine);

    options.cache_min = true; /* there is no room, and nothing is done */
    assert_int_equal(sl_engine_open(&engine, &options, NULL, NULL), 0);
    assert_int_equal(sl_engine_load_experts(engine, NULL, NULL, NULL), 0);
    assert_int_equal(sl_engine_counters(engine).n_requests, 0);
    sl_engine_close(engine);
    free(logits);
    free(mtp_logits);
}

static void test_areas_are_what_was_planned(void **state)
{
    const struct model *m = *state;
    struct sl_engine_options options = options_of(m);
    struct sl_engine_area areas[SL_ENGINE_AREAS];
    struct sl_memory_plan plan;
    struct sl_engine *engine;

    assert_int_equal(sl_engine_open(&engine, &options, &plan, NULL), 0);
    sl_engine_areas(engine, areas);
    assert_string_equal(areas[0].name, "dense weights");
    assert_true(areas[0].size_bytes >= plan.need_bytes[SL_MEMORY_WEIGHTS]);
    assert_true(areas[1].size_bytes >= plan.need_bytes[SL_MEMORY_KV]);
    assert_true(areas[2].size_bytes >= plan.need_bytes[SL_MEMORY_ACTIVATIONS]);
    assert_true(areas[3].size_bytes >=
                plan.need_bytes[SL_MEMORY_CACHE] + plan.need_bytes[SL_MEMORY_STAGING]);
    for (uint32_t i = 0; i < SL_ENGINE_AREAS; i++)
        assert_true(areas[i].huge_bytes <= areas[i].size_bytes);
    sl_engine_close(engine);
}

static void test_plan_is_what_it_takes(void **state)
{
    struct model *m = *state;
    struct sl_engine_options options = options_of(m);
    struct sl_memory_plan plan, opened;
    struct sl_engine *engine;
    uint64_t weights_bytes;
    int verdict;

    assert_int_equal(sl_engine_plan(&options, &plan, &verdict, NULL), 0);
    assert_int_equal(verdict, 0);
    assert_int_equal(sl_engine_open(&engine, &options, &opened, NULL), 0);
    assert_memory_equal(&plan, &opened, sizeof(plan));
    assert_int_equal(sl_weights_measure(&m->config, &m->source.source, true, &weights_bytes, NULL),
                     0);
    assert_int_equal(plan.need_bytes[SL_MEMORY_WEIGHTS], weights_bytes);
    assert_int_equal(plan.need_bytes[SL_MEMORY_KV], 2 * sl_engine_kv(engine, 0)->arena.used_bytes);
    assert_int_equal(plan.need_bytes[SL_MEMORY_ACTIVATIONS],
                     sl_forward_measure(&m->config, SL_NUMERICS_NATIVE, 2, 16, TOKENS, 2));
    assert_true(plan.slot_bytes >= m->experts.offset_bytes[SL_EXPERT_MATRICES]);
    assert_int_equal(plan.slots_min, 5 * 3);
    assert_int_equal(plan.slots_max, 5 * 8);
    assert_int_equal(plan.need_bytes[SL_MEMORY_CACHE], 15 * plan.slot_bytes);
    sl_engine_close(engine);
    /* Without the MTP block all of it is less. */
    options.with_mtp = false;
    assert_int_equal(sl_engine_plan(&options, &opened, &verdict, NULL), 0);
    assert_int_equal(opened.slots_max, 4 * 8);
    assert_true(opened.need_bytes[SL_MEMORY_WEIGHTS] < weights_bytes);
    assert_true(opened.need_bytes[SL_MEMORY_KV] < plan.need_bytes[SL_MEMORY_KV]);
}

static void expect_refusal(const struct sl_engine_options *options, int rc, const char *says,
                           bool with_plan)
{
    struct sl_memory_plan plan;
    struct sl_engine *engine;
    struct sl_err err;

    assert_int_equal(sl_engine_open(&engine, options, &plan, &err), rc);
    assert_int_equal(err.code, rc);
    if (!strstr(err.message, says))
        fail_msg("\"%s\" does not say \"%s\"", err.message, says);
    assert_int_equal(plan.budget_bytes != 0, with_plan);
}

static void test_refusals(void **state)
{
    const struct model *m = *state;
    struct sl_engine_options options = options_of(m), right = options;
    struct sl_memory_plan plan;
    struct sl_err err;
    int verdict;

    options.ram_bytes = 1 << 20;
    expect_refusal(&options, -SL_EBUDGET, "the budget is 1.00 MiB (--ram)", true);
    assert_int_equal(sl_engine_plan(&options, &plan, &verdict, &err), 0);
    assert_int_equal(verdict, -SL_EBUDGET);
    assert_int_equal(err.code, -SL_EBUDGET);
    options = right;
    options.cache_min = false;
    options.cache_bytes = 1;
    expect_refusal(&options, -SL_EBUDGET, "working set (15 experts", true);
    options = right;
    options.context_tokens = 4097;
    expect_refusal(&options, -SL_EBUDGET, "max_position_embeddings, 4096", false);
    options = right;
    options.isa = "z80";
    expect_refusal(&options, -EINVAL, "\"z80\"", false);
    options = right;
    options.model = "/nowhere/at/all";
    expect_refusal(&options, -ENOENT, "/nowhere/at/all", false);
}

/* ---- what fails on the way ---------------------------------------------------------------------
 */

static uint32_t open_file_count(void)
{
    DIR *folder = opendir("/proc/self/fd");
    uint32_t n = 0;

    assert_non_null(folder);
    while (readdir(folder))
        n++;
    closedir(folder);
    return n;
}

/* The first hundred allocations one by one, then ever fewer. */
static void test_failing_allocations(void **state)
{
    const struct model *m = *state;
    const struct sl_engine_options options = options_of(m);
    struct sl_engine *engine = NULL;
    bool happened = true;

    if (!fault_alloc_works())
        skip();
    for (uint64_t nth = 1; happened; nth += 1 + nth / 100) {
        uint32_t n_files = open_file_count();
        int64_t live_count = fault_alloc_live_count();
        struct sl_err err = {0};
        int rc;

        fault_alloc_set(nth, false);
        rc = sl_engine_open(&engine, &options, NULL, &err);
        happened = fault_alloc_happened();
        fault_alloc_set(0, false);
        /* Or another error: the JSON parser does not say why it gave up. Or none: without a buffer
         * stdio goes on. */
        assert_true(rc == 0 ? engine != NULL : happened && err.code == rc && err.message[0]);
        sl_engine_close(engine);
        engine = NULL;
        assert_int_equal(fault_alloc_live_count(), live_count);
        assert_int_equal(open_file_count(), n_files);
    }
}

/* What the engine reads through. */
static struct sl_io *faulty;

static int open_faulty(struct sl_io **ret_io, const char *const *paths, uint32_t n_files,
                       uint32_t depth, struct sl_err *err)
{
    struct sl_io *io;
    int rc = sl_io_uring_open(&io, paths, n_files, depth, err);

    if (rc == 0)
        *ret_io = faulty = io_fault_wrap(io);
    return rc;
}

static uint64_t faulty_clock_ns(void *context)
{
    (void)context;
    return io_fault_clock_ns(faulty);
}

#define REQUEST_TOKENS 2u

static int request(const struct model *m, struct sl_engine *engine, struct sl_err *err)
{
    const size_t size_bytes = (size_t)REQUEST_TOKENS * m->config.vocab_size * sizeof(float);
    struct sl_span span = {sl_engine_kv(engine, 0), m->tokens, REQUEST_TOKENS, SL_LOGITS_ALL};
    float *logits = calloc(1, size_bytes);
    struct rows rows = {logits, m->config.vocab_size};
    int rc;

    assert_non_null(logits);
    sl_kv_cache_clear(span.kv);
    rc = sl_forward_step(sl_engine_forward(engine), &span, 1, keep_row, &rows, err);
    if (rc == 0)
        assert_memory_equal(logits, m->logits, size_bytes);
    free(logits);
    return rc;
}

/* The nth read of a request goes wrong. Returns false if there was none. */
static bool nth_read(const struct model *m, const struct io_fault_plan *plan)
{
    const bool never = plan->late_ns == IO_FAULT_NEVER;
    struct sl_engine_options options = options_of(m);
    struct sl_engine *engine;
    struct sl_err err;
    bool happened;
    int rc;

    options.io = open_faulty;
    options.reader.clock_ns = faulty_clock_ns;
    options.reader.piece_bytes = 4096;
    assert_int_equal(sl_engine_open(&engine, &options, NULL, NULL), 0);
    io_fault_set(faulty, plan);
    rc = request(m, engine, &err);
    happened = io_fault_read_count(faulty) >= plan->fail_nth;
    if (rc < 0) { /* what was hinted is read again when it is demanded, and may then be there */
        assert_true(happened);
        assert_true(never ? rc == -ETIMEDOUT : plan->fail_for_good && rc == plan->fail_code);
        assert_non_null(strstr(err.message, "layer "));
        assert_non_null(strstr(err.message, "expert "));
        assert_non_null(strstr(err.message, m->folder));
        assert_null(strchr(err.message, '\n'));
    }
    assert_true(rc < 0 || !happened || !plan->fail_for_good);
    if (happened && plan->late_ns > 0)
        assert_int_equal(sl_engine_counters(engine).n_stalls, 1);
    io_fault_heal(faulty);
    assert_int_equal(request(m, engine, NULL), 0);
    sl_engine_close(engine);
    return happened;
}

static void test_failing_reads(void **state)
{
    static const struct io_fault_plan plans[] = {
        {.fail_code = -EIO},
        {.fail_code = -EIO, .fail_for_good = true},
        {.fail_kind = IO_FAULT_SHORT},
        {.fail_kind = IO_FAULT_LATE, .late_ns = 2 * SL_READER_STALL_NS},
        {.fail_kind = IO_FAULT_LATE, .late_ns = IO_FAULT_NEVER},
    };
    const struct model *m = *state;
    const uint32_t n_files = open_file_count();

    for (uint32_t i = 0; i < sizeof(plans) / sizeof(plans[0]); i++) {
        struct io_fault_plan plan = plans[i];

        do
            plan.fail_nth += 1 + plan.fail_nth / 8;
        while (nth_read(m, &plan));
        assert_true(plan.fail_nth > 40);
        assert_int_equal(open_file_count(), n_files);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes_are_those_of_the_forward),
        cmocka_unit_test(test_replay_counts_what_the_run_counted),
        cmocka_unit_test(test_resizing_changes_no_answer),
        cmocka_unit_test(test_store_remembers_what_was_hot),
        cmocka_unit_test(test_all_experts_can_be_loaded),
        cmocka_unit_test(test_areas_are_what_was_planned),
        cmocka_unit_test(test_plan_is_what_it_takes),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_failing_allocations),
        cmocka_unit_test(test_failing_reads),
    };

    return cmocka_run_group_tests_name("engine", tests, model_create, model_destroy);
}
