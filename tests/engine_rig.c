#include "tests/engine_rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/base/assert.h"
#include "core/base/size.h"
#include "storage/checkpoint/checkpoint.h"
#include "storage/pack/store_write.h"
#include "tests/kv_rig.h"
#include "tests/store_rig.h"
#include "core/kernels/dispatch.h"

#define SHARD "model-00001-of-00001.safetensors"
#define TOKENS ENGINE_RIG_TOKENS

/* ---- the model on disk -------------------------------------------------------------------------
 */

static void write_config(const struct sl_config *c, const char *folder)
{
    char text[4096];
    int length = snprintf(
        text, sizeof(text),
        "{\"model_type\":\"deepseek_v4\",\"vocab_size\":%u,\"bos_token_id\":%u,\"eos_token_id\":%u,"
        "\"hidden_size\":%u,"
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
    length += snprintf(text + length, sizeof(text) - (size_t)length, "]");
    if (c->dspark.block_size > 0)
        length += snprintf(text + length, sizeof(text) - (size_t)length,
                           ",\"dspark_block_size\":%u,\"dspark_noise_token_id\":%u,"
                           "\"dspark_markov_rank\":%u,\"dspark_target_layer_ids\":[%u,%u,%u]",
                           c->dspark.block_size, c->dspark.noise_token_id, c->dspark.markov_rank,
                           c->dspark.target_layer_ids[0], c->dspark.target_layer_ids[1],
                           c->dspark.target_layer_ids[2]);
    length += snprintf(text + length, sizeof(text) - (size_t)length, "}");
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

static bool has_dspark(const struct engine_rig *m)
{
    return m->config.dspark.block_size > 0;
}

/* The stages of DSpark have a shard of their own. */
static bool is_in_draft_shard(const struct engine_rig *m, const char *tensor_name)
{
    return has_dspark(m) && strncmp(tensor_name, "mtp.", 4) == 0;
}

static void add_experts(const struct engine_rig *m, struct fixture_list *list, const char *block)
{
    const struct sl_config *c = &m->config;

    if (c->expert_dtype == SL_EXPERT_FP8)
        fixture_add_fp8_experts(list, block, c->n_routed_experts, c->hidden_size,
                                c->moe_intermediate_size, SL_DTYPE_F32);
    else
        fixture_add_experts(list, block, c->n_routed_experts, c->hidden_size,
                            c->moe_intermediate_size);
}

/* Headers first, with holes for data. */
static void write_headers(const struct engine_rig *m)
{
    struct fixture_list list = {0}, draft = {0};
    char block[32];
    FILE *index;

    for (uint32_t i = 0; i < m->source.count; i++) {
        const struct fixture_weight *weight = &m->source.list[i];
        bool matrix = weight->info.n_dims == 2;

        fixture_add(is_in_draft_shard(m, weight->name) ? &draft : &list, weight->info.dtype,
                    weight->info.shape[0], matrix ? weight->info.shape[1] : 0, "%s", weight->name);
    }
    for (uint32_t i = 0; i < m->experts.n_layers; i++) {
        block_of(&m->config, i, block);
        add_experts(m, is_in_draft_shard(m, block) ? &draft : &list, block);
    }
    fixture_write_shard(m->folder, SHARD, &list, true);
    if (draft.count > 0)
        fixture_write_shard(m->folder, ENGINE_RIG_DRAFT_SHARD, &draft, true);
    index = fixture_index_begin(m->folder);
    fixture_index_add(index, &list, SHARD);
    fixture_index_add(index, &draft, ENGINE_RIG_DRAFT_SHARD);
    fixture_index_end(index);
    fixture_fini(&list);
    fixture_fini(&draft);
}

/* The checkpoint whose shards are being filled. */
struct filling {
    const struct engine_rig *m;
    struct sl_checkpoint *checkpoint;
    int fd, draft_fd;
};

static int open_shard(const struct engine_rig *m, const char *name)
{
    char path[FIXTURE_PATH_BYTES + sizeof(ENGINE_RIG_DRAFT_SHARD)];

    snprintf(path, sizeof(path), "%s/%s", m->folder, name);
    return open(path, O_WRONLY);
}

static void write_tensor(const struct filling *to, const char *name, const void *data)
{
    const struct sl_checkpoint_tensor *tensor = sl_checkpoint_find(to->checkpoint, name);
    const int fd = is_in_draft_shard(to->m, name) ? to->draft_fd : to->fd;

    sl_assert(tensor);
    sl_assert(pwrite(fd, data, tensor->info.size_bytes, (off_t)tensor->offset_bytes) ==
              (ssize_t)tensor->info.size_bytes);
}

static void write_expert(const struct filling *to, struct sl_expert_key key)
{
    const struct engine_rig *m = to->m;
    uint8_t codes[128 * 128], scales[128 * 128 / 32];
    char block[32], name[96];

    sl_assert(m->config.hidden_size == 128 && m->config.moe_intermediate_size == 128);
    for (int matrix = 0; matrix < SL_EXPERT_MATRICES; matrix++) {
        fixture_experts_raw(&m->experts, key, matrix, codes, scales);
        snprintf(name, sizeof(name), "%s.ffn.experts.%u.w%d.weight",
                 block_of(&m->config, key.layer_index, block), key.expert_index, matrix + 1);
        write_tensor(to, name, codes);
        snprintf(name, sizeof(name), "%s.ffn.experts.%u.w%d.scale", block, key.expert_index,
                 matrix + 1);
        write_tensor(to, name, scales);
    }
}

static void write_checkpoint(const struct engine_rig *m)
{
    struct filling to = {.m = m, .draft_fd = -1};
    int rc;

    write_config(&m->config, m->folder);
    write_headers(m);
    rc = sl_checkpoint_open(&to.checkpoint, m->folder, NULL);
    sl_assert(rc == 0);
    to.fd = open_shard(m, SHARD);
    if (has_dspark(m))
        to.draft_fd = open_shard(m, ENGINE_RIG_DRAFT_SHARD);
    for (uint32_t i = 0; i < m->source.count; i++)
        write_tensor(&to, m->source.list[i].name, m->source.list[i].data);
    for (uint16_t layer = 0; layer < m->experts.n_layers; layer++)
        for (uint16_t expert = 0; expert < m->config.n_routed_experts; expert++)
            write_expert(&to, (struct sl_expert_key){layer, expert});
    close(to.fd);
    if (to.draft_fd >= 0)
        close(to.draft_fd);
    sl_checkpoint_close(to.checkpoint);
}

/* ---- its logits
 * -----------------------------------------------------------------------------------
 */

void engine_rig_keep_rows(void *context, const struct sl_logits_row *rows, uint32_t n_rows)
{
    struct engine_rig_rows *kept = context;

    for (uint32_t i = 0; i < n_rows; i++) {
        memcpy(kept->to, rows[i].logits, kept->row_bytes);
        kept->to += kept->row_bytes / sizeof(float);
    }
}

void engine_rig_run(const struct engine_rig *m, struct sl_forward *forward, struct sl_kv_cache *kv,
                    uint32_t at_once, float *logits, float *mtp_logits)
{
    struct engine_rig_rows rows = {logits, m->row_bytes}, mtp = {mtp_logits, m->row_bytes};

    for (uint32_t i = 0; i < TOKENS; i += at_once) {
        uint32_t n = TOKENS - i < at_once ? TOKENS - i : at_once;
        struct sl_span span = {kv, m->tokens + i, n, SL_LOGITS_ALL};
        struct sl_step_request request = {.spans = &span,
                                          .n_spans = 1,
                                          .on_logits = engine_rig_keep_rows,
                                          .on_logits_context = &rows};

        assert_int_equal(sl_forward_step(forward, &request, NULL), 0);
        if (!mtp_logits)
            continue;
        span.tokens++;
        span.n_tokens -= i + n == TOKENS;
        request.on_logits_context = &mtp;
        assert_int_equal(sl_forward_mtp(forward, &request, NULL), 0);
    }
}

static void answer(struct engine_rig *m)
{
    struct sl_kernels kernels;
    struct sl_compute compute = {.kernels = &kernels};
    struct sl_kv_pool kv_pool;
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
    assert_int_equal(fixture_weights_load(&m->source, &weights, &m->config, m->draft,
                                          &sl_weights_all_resident, compute.pool, NULL),
                     0);
    assert_int_equal(sl_forward_create(&forward, &params, NULL), 0);
    kv_rig_pool(&kv_pool, &m->config, m->experts.n_layers, SL_NUMERICS_NATIVE, 1, TOKENS);
    assert_int_equal(sl_kv_cache_init(&kv, &kv_pool, TOKENS, NULL), 0);
    engine_rig_run(m, forward, &kv, TOKENS, m->logits, m->draft ? m->mtp_logits : NULL);
    sl_kv_cache_fini(&kv);
    sl_kv_pool_fini(&kv_pool);
    sl_forward_destroy(forward);
    sl_weights_fini(&weights);
    sl_pool_destroy(compute.pool);
}

static int create(void **state, bool dspark, enum sl_expert_dtype expert_dtype)
{
    struct engine_rig *m = calloc(1, sizeof(*m));
    uint64_t random = 17;

    sl_assert(m);
    fixture_config(&m->config);
    m->config.expert_dtype = expert_dtype;
    if (dspark)
        fixture_config_dspark(&m->config);
    m->draft = dspark ? NULL : &fixture_mtp;
    fixture_weights_init(&m->source, &m->config, 41);
    fixture_experts_init(&m->experts, &m->config, m->config.n_routed_experts, 42);
    for (uint32_t i = 0; i < TOKENS; i++)
        m->tokens[i] = (int32_t)fixture_below(&random, m->config.vocab_size);
    fixture_folder_create(m->folder);
    write_checkpoint(m);
    m->slot_bytes = sl_packed_expert_bytes(&m->experts.shape);
    m->row_bytes = m->config.vocab_size * sizeof(float);
    m->logits_bytes = TOKENS * m->row_bytes;
    m->logits = calloc(1, m->logits_bytes);
    m->mtp_logits = calloc(1, m->logits_bytes);
    sl_assert(m->logits && m->mtp_logits);
    answer(m);
    *state = m;
    return 0;
}

int engine_rig_create(void **state)
{
    return create(state, false, SL_EXPERT_FP4);
}

int engine_rig_create_dspark(void **state)
{
    return create(state, true, SL_EXPERT_FP4);
}

int engine_rig_create_fp8(void **state)
{
    return create(state, false, SL_EXPERT_FP8);
}

int engine_rig_destroy(void **state)
{
    struct engine_rig *m = *state;

    store_rig_remove(m->folder);
    fixture_weights_fini(&m->source);
    fixture_experts_fini(&m->experts);
    free(m->logits);
    free(m->mtp_logits);
    free(m);
    return 0;
}

struct sl_engine_options engine_rig_options(const struct engine_rig *m)
{
    return (struct sl_engine_options){
        .model = m->folder,
        .ram_bytes = UINT64_C(1) << 30,
        .cache_min = true,
        .affinity = {.n_threads = 2},
        .segment_tokens = 16,
        .context_tokens = TOKENS,
        .n_sequences = 2,
        .io = sl_io_threads_open,
        .reader = {.piece_bytes = 1 << 20, .depth = 4}, /* a thread for each of these */
        .draft = m->draft ? m->draft->kind : SL_DRAFT_NONE,
    };
}

struct sl_kv_cache *engine_rig_kv(struct sl_engine *engine, uint32_t sequence_index)
{
    const struct sl_link *link = &engine->sequences;

    for (uint32_t i = 0; i <= sequence_index; i++) {
        struct sl_kv_cache *kv;

        if (link->next == &engine->sequences)
            assert_int_equal(
                sl_engine_sequence_create(engine, engine->options.context_tokens, &kv, NULL), 0);
        link = link->next;
    }
    return &sl_engine_sequence_of(link)->kv;
}

/* ---- stores ------------------------------------------------------------------------------------
 */

void engine_rig_pack(const struct engine_rig *m, const char *name, uint32_t n_stripes,
                     bool compress, char ret_folder[FIXTURE_PATH_BYTES])
{
    static const uint64_t weights[] = {1, 1, 1};
    const struct sl_expert_shape shape = m->experts.shape;
    const char **names = calloc(m->source.count, sizeof(*names));
    char stripes[2][FIXTURE_PATH_BYTES + 8];
    const char *const stripe_folders[] = {stripes[0], stripes[1]};
    struct sl_pack_options options = {.store_folder = ret_folder,
                                      .checkpoint_folder = m->folder,
                                      .tensors = names,
                                      .n_tensors = m->source.count,
                                      .stripe_folders = stripe_folders,
                                      .weights = weights,
                                      .n_stripes = n_stripes,
                                      .compress = compress,
                                      .writer = sl_file_writer(),
                                      .batch_bytes = 1 << 20};
    struct sl_pack_result result;
    struct sl_checkpoint *checkpoint;
    struct sl_expert_map *experts;

    assert_non_null(names);
    sl_assert(n_stripes <= 2);
    for (uint32_t i = 0; i < m->source.count; i++)
        names[i] = m->source.list[i].name;
    assert_true(snprintf(ret_folder, FIXTURE_PATH_BYTES, "%s/%s", m->folder, name) <
                FIXTURE_PATH_BYTES);
    for (uint32_t i = 0; i < n_stripes; i++) {
        snprintf(stripes[i], sizeof(stripes[i]), "%s.%u", ret_folder, i);
        assert_int_equal(mkdir(stripes[i], 0700), 0);
    }
    assert_int_equal(sl_checkpoint_open(&checkpoint, m->folder, NULL), 0);
    assert_int_equal(sl_expert_map_of_checkpoint(&experts, checkpoint, &shape, NULL), 0);
    assert_int_equal(sl_pool_create(&options.pool, 1, NULL), 0);
    options.checkpoint = checkpoint;
    options.experts = experts;
    assert_int_equal(sl_store_pack(&options, &result, NULL), 0);
    /* Two blocks of each, zeros between the matrices most of it. */
    assert_int_equal(result.saved_bytes, compress ? ENGINE_RIG_EXPERTS * 2 * SL_BLOCK_BYTES : 0);
    sl_pool_destroy(options.pool);
    sl_expert_map_close(experts);
    sl_checkpoint_close(checkpoint);
    free(names);
}

/* ---- faults ------------------------------------------------------------------------------------
 */

static struct sl_io *faulty;

static int open_faulty(struct sl_io **ret_io, const char *const *paths, uint32_t n_files,
                       uint32_t depth, struct sl_err *err)
{
    struct sl_io *io;
    int rc = sl_io_choose(NULL)(&io, paths, n_files, depth, err);

    if (rc == 0)
        *ret_io = faulty = io_fault_wrap(io);
    return rc;
}

static uint64_t faulty_clock_ns(void *context)
{
    (void)context;
    return io_fault_clock_ns(faulty);
}

void engine_rig_make_faulty(struct sl_engine_options *options)
{
    options->io = open_faulty;
    options->reader.clock_ns = faulty_clock_ns;
}

struct sl_io *engine_rig_faulty(void)
{
    return faulty;
}

uint32_t engine_rig_open_file_count(void)
{
    DIR *folder = opendir("/proc/self/fd");
    uint32_t n = 0;

    assert_non_null(folder);
    while (readdir(folder))
        n++;
    closedir(folder);
    return n;
}
