#include "tools/synth/synth_plan.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/json.h"
#include "core/base/size.h"
#include "core/kernels/r16.h"

/* The values follow tests/oracle/make_checkpoint.py: signals neither vanish nor explode, and
 * routing is varied. Its rows have magnitudes of their own, exp(N(0, 1/2)); here the blocks have,
 * and the mean square is the same: e^(1/2) over the number of columns. */
#define UNEVEN_MEAN_SQUARE 1.6487212707f
/* Each block's last linear has this gain, so that its output is small against the residual streams,
 * as in a trained model. */
#define OUTPUT_GAIN 0.1f
#define ROUTER_LOGIT_SPREAD 1.5f

struct planner {
    const struct sl_config *config;
    const struct sl_synth_tables *tables;
    struct sl_synth_plan *plan;
    struct sl_synth_shard *shard; /* the one that is being filled */
    const struct sl_synth_wishes *wishes;
    bool out_of_memory; /* sticky: later additions do nothing */
};

/* Begins the shard of one block, or of what belongs to none. */
static const char *begin_shard(struct planner *p, const char *kind, uint32_t index)
{
    p->shard = &p->plan->shards[p->plan->n_shards++];
    if (kind)
        snprintf(p->shard->block, sizeof(p->shard->block), "%s.%u", kind, index);
    return p->shard->block;
}

/* Hashes a name (FNV-1a), so that a tensor's values depend on its name and not on the rest of the
 * checkpoint. */
static uint64_t name_hash(const char *name)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);

    for (; *name; name++)
        hash = (hash ^ (uint8_t)*name) * UINT64_C(0x100000001b3);
    return hash;
}

/* Adds "prefix.suffix"; cols 0 makes it a vector of `rows`. Returns its values, to be completed, or
 * NULL when out of memory. */
static struct sl_synth_values *add(struct planner *p, const char *prefix, const char *suffix,
                                   enum sl_dtype dtype, uint64_t rows, uint64_t cols)
{
    struct sl_synth_shard *shard = p->shard;
    struct sl_synth_tensor *tensor;

    if (p->out_of_memory)
        return NULL;
    if (shard->n_tensors == shard->room) {
        uint32_t room = shard->room ? shard->room * 2 : 64;
        void *more = reallocarray(shard->tensors, room, sizeof(*shard->tensors));

        p->out_of_memory = !more;
        if (!more)
            return NULL;
        shard->tensors = more;
        shard->room = room;
    }
    tensor = &shard->tensors[shard->n_tensors];
    *tensor = (struct sl_synth_tensor){
        .info = {.dtype = dtype, .n_dims = cols ? 2 : 1, .shape = {rows, cols ? cols : 1, 1, 1}}};
    tensor->info.size_bytes = rows * tensor->info.shape[1] * sl_dtype_size_bytes(dtype);
    if (asprintf(&tensor->name, "%s%s", prefix, suffix) < 0) {
        p->out_of_memory = true;
        return NULL;
    }
    tensor->values.key = sl_synth_mix(p->wishes->seed, name_hash(tensor->name));
    shard->n_tensors++;
    return &tensor->values;
}

static void add_values(struct planner *p, const char *prefix, const char *suffix,
                       enum sl_dtype dtype, uint64_t rows, uint64_t cols,
                       struct sl_synth_values wanted)
{
    struct sl_synth_values *values = add(p, prefix, suffix, dtype, rows, cols);

    if (values) {
        wanted.key = values->key;
        *values = wanted;
    }
}

static void add_f32(struct planner *p, const char *prefix, const char *suffix, uint64_t rows,
                    uint64_t cols, float spread)
{
    add_values(p, prefix, suffix, SL_DTYPE_F32, rows, cols,
               (struct sl_synth_values){.kind = SL_SYNTH_F32, .spread = spread});
}

static void add_bf16(struct planner *p, const char *prefix, const char *suffix, uint64_t rows,
                     uint64_t cols, float spread)
{
    add_values(p, prefix, suffix, SL_DTYPE_BF16, rows, cols,
               (struct sl_synth_values){.kind = SL_SYNTH_BF16, .spread = spread});
}

/* Adds the weights of a norm. */
static void add_gain(struct planner *p, const char *prefix, const char *suffix, uint64_t rows)
{
    add_values(p, prefix, suffix, SL_DTYPE_BF16, rows, 0,
               (struct sl_synth_values){.kind = SL_SYNTH_BF16, .mean = 1, .spread = 0.1f});
}

static float uneven_spread(uint64_t cols)
{
    return sqrtf(UNEVEN_MEAN_SQUARE / (float)cols);
}

/* Float32 scales lie between a half and three halves of their mean, so that they are no powers of
 * two; the mean of their squares is `spread`^2. */
static struct sl_synth_values f32_scales(float spread)
{
    const float mean = spread / sqrtf(13.0f / 12);

    return (struct sl_synth_values){.kind = SL_SYNTH_UNIFORM, .mean = mean, .spread = mean / 2};
}

/* Adds a quantised linear: codes and scales. `gain` multiplies the usual magnitude. The base models
 * have FP8 alone, and float32 scales. */
static void add_linear(struct planner *p, const char *prefix, const char *name, bool fp4,
                       uint64_t rows, uint64_t cols, float gain)
{
    const bool base = p->config->expert_dtype == SL_EXPERT_FP8;
    const float spread =
        gain * uneven_spread(cols) / (fp4 ? p->tables->fp4_rms : p->tables->fp8_rms);
    struct sl_synth_values codes = {.kind = fp4 ? SL_SYNTH_FP4 : SL_SYNTH_FP8};
    struct sl_synth_values scales = {.kind = SL_SYNTH_SCALE, .spread = spread};
    char suffix[64];

    snprintf(suffix, sizeof(suffix), "%s.weight", name);
    add_values(p, prefix, suffix, fp4 ? SL_DTYPE_I8 : SL_DTYPE_F8_E4M3, rows, fp4 ? cols / 2 : cols,
               codes);
    snprintf(suffix, sizeof(suffix), "%s.scale", name);
    if (fp4)
        add_values(p, prefix, suffix, SL_DTYPE_F8_E8M0, rows, cols / SL_FP4_BLOCK_COLS, scales);
    else
        add_values(p, prefix, suffix, base ? SL_DTYPE_F32 : SL_DTYPE_F8_E8M0,
                   (rows + SL_FP8_BLOCK - 1) / SL_FP8_BLOCK,
                   (cols + SL_FP8_BLOCK - 1) / SL_FP8_BLOCK, base ? f32_scales(spread) : scales);
}

static void add_hyper(struct planner *p, const char *prefix, const char *name, uint64_t rows,
                      uint64_t scales)
{
    uint64_t cols = (uint64_t)p->config->hc_mult * p->config->hidden_size;
    char suffix[64];

    snprintf(suffix, sizeof(suffix), "%s_fn", name);
    add_f32(p, prefix, suffix, rows, cols, 1 / sqrtf((float)cols));
    snprintf(suffix, sizeof(suffix), "%s_base", name);
    add_f32(p, prefix, suffix, rows, 0, 0.5f);
    snprintf(suffix, sizeof(suffix), "%s_scale", name);
    add_values(p, prefix, suffix, SL_DTYPE_F32, scales, 0,
               (struct sl_synth_values){.kind = SL_SYNTH_UNIFORM, .mean = 1, .spread = 0.5f});
}

static void add_compressor(struct planner *p, const char *prefix, uint32_t ratio, uint32_t dim)
{
    uint64_t width = (uint64_t)dim * (ratio == SL_CSA_RATIO ? 2 : 1);
    uint64_t hidden = p->config->hidden_size;

    add_f32(p, prefix, ".ape", ratio, width, 0.5f);
    add_bf16(p, prefix, ".wkv.weight", width, hidden, uneven_spread(hidden));
    add_bf16(p, prefix, ".wgate.weight", width, hidden, uneven_spread(hidden));
    add_gain(p, prefix, ".norm.weight", dim);
}

static void add_attention(struct planner *p, const char *block, uint32_t ratio)
{
    const struct sl_config *c = p->config;
    uint64_t heads_cols = (uint64_t)c->num_attention_heads * c->head_dim;
    uint64_t o_rows = (uint64_t)c->o_groups * c->o_lora_rank;
    char prefix[64];

    snprintf(prefix, sizeof(prefix), "%s.attn", block);
    add_linear(p, prefix, ".wq_a", false, c->q_lora_rank, c->hidden_size, 1);
    add_gain(p, prefix, ".q_norm.weight", c->q_lora_rank);
    add_linear(p, prefix, ".wq_b", false, heads_cols, c->q_lora_rank, 1);
    add_linear(p, prefix, ".wkv", false, c->head_dim, c->hidden_size, 1);
    add_gain(p, prefix, ".kv_norm.weight", c->head_dim);
    add_linear(p, prefix, ".wo_a", false, o_rows, heads_cols / c->o_groups, 1);
    add_linear(p, prefix, ".wo_b", false, c->hidden_size, o_rows, OUTPUT_GAIN);
    add_f32(p, prefix, ".attn_sink", c->num_attention_heads, 0, 1);
    if (ratio > 0) {
        snprintf(prefix, sizeof(prefix), "%s.attn.compressor", block);
        add_compressor(p, prefix, ratio, c->head_dim);
    }
    if (ratio == SL_CSA_RATIO) {
        snprintf(prefix, sizeof(prefix), "%s.attn.indexer", block);
        add_linear(p, prefix, ".wq_b", false, (uint64_t)c->index_n_heads * c->index_head_dim,
                   c->q_lora_rank, 1);
        add_bf16(p, prefix, ".weights_proj.weight", c->index_n_heads, c->hidden_size,
                 uneven_spread(c->hidden_size));
        snprintf(prefix, sizeof(prefix), "%s.attn.indexer.compressor", block);
        add_compressor(p, prefix, ratio, c->index_head_dim);
    }
}

struct scored_expert {
    float score;
    uint32_t expert_index;
};

/* Draws the experts of one token: those with the highest sum of a random score and popularity, as
 * the router of a later layer picks them. They are inserted into a short descending list. */
static void draw_experts(const float *score_table, const float *popularity,
                         const struct sl_config *c, uint64_t key, int64_t *ret_experts)
{
    struct scored_expert best[SL_EXPERTS_PER_TOKEN_MAX];
    uint32_t k = c->num_experts_per_tok;
    uint64_t random = 0;

    for (uint32_t i = 0; i < k; i++)
        best[i] = (struct scored_expert){-INFINITY, 0};
    for (uint32_t e = 0; e < c->n_routed_experts; e++) {
        float score;
        uint32_t at;

        random = e % 4 == 0 ? sl_synth_mix(key, e) : random >> 16;
        score = score_table[random % SL_SYNTH_NORMALS] + popularity[e];
        if (score <= best[k - 1].score)
            continue;
        for (at = k - 1; at > 0 && score > best[at - 1].score; at--)
            best[at] = best[at - 1];
        best[at] = (struct scored_expert){score, e};
    }
    for (uint32_t i = 0; i < k; i++)
        ret_experts[i] = best[i].expert_index;
}

/* Adds tid2eid (vocab_size, num_experts_per_tok), whose bytes are made here, since they are drawn
 * row by row. */
static void add_hash_table(struct planner *p, const char *prefix)
{
    const struct sl_config *c = p->config;
    const float *normal = p->tables->normal;
    float score_table[SL_SYNTH_NORMALS];
    struct sl_synth_values *values;
    float *popularity = calloc(c->n_routed_experts, sizeof(*popularity));
    int64_t *table = calloc((size_t)c->vocab_size * c->num_experts_per_tok, sizeof(*table));

    values = add(p, prefix, ".gate.tid2eid", SL_DTYPE_I64, c->vocab_size, c->num_experts_per_tok);
    if (p->wishes->sizes_of_dense) {
        free(table);
        goto out;
    }
    if (!popularity || !table || !values) {
        p->out_of_memory = true;
        free(table);
        goto out;
    }
    for (uint32_t i = 0; i < SL_SYNTH_NORMALS; i++)
        score_table[i] = sqrtf(log1pf(expf(ROUTER_LOGIT_SPREAD * normal[i])));
    for (uint32_t e = 0; e < c->n_routed_experts; e++)
        popularity[e] = p->wishes->skew * normal[sl_synth_mix(values->key, e) % SL_SYNTH_NORMALS];
    for (uint32_t id = 0; id < c->vocab_size; id++)
        draw_experts(score_table, popularity, c,
                     sl_synth_mix(values->key, (uint64_t)id + c->n_routed_experts),
                     table + (size_t)id * c->num_experts_per_tok);
    values->kind = SL_SYNTH_BYTES;
    values->bytes = (const uint8_t *)table;
out:
    free(popularity);
}

static void add_mlp(struct planner *p, const char *prefix, bool fp4)
{
    uint64_t hidden = p->config->hidden_size, inter = p->config->moe_intermediate_size;

    add_linear(p, prefix, ".w1", fp4, inter, hidden, 1);
    add_linear(p, prefix, ".w2", fp4, hidden, inter, OUTPUT_GAIN);
    add_linear(p, prefix, ".w3", fp4, inter, hidden, 1);
}

static void add_block(struct planner *p, const char *block, uint32_t layer_index)
{
    const struct sl_config *c = p->config;
    uint32_t hc = c->hc_mult;
    char prefix[64];

    add_attention(p, block, c->compress_ratios[layer_index]);
    add_gain(p, block, ".attn_norm.weight", c->hidden_size);
    add_gain(p, block, ".ffn_norm.weight", c->hidden_size);
    add_hyper(p, block, ".hc_attn", (2 + hc) * hc, 3);
    add_hyper(p, block, ".hc_ffn", (2 + hc) * hc, 3);
    snprintf(prefix, sizeof(prefix), "%s.ffn", block);
    add_bf16(p, prefix, ".gate.weight", c->n_routed_experts, c->hidden_size,
             ROUTER_LOGIT_SPREAD / sqrtf((float)c->hidden_size));
    if (layer_index < c->num_hash_layers)
        add_hash_table(p, prefix);
    else
        add_f32(p, prefix, ".gate.bias", c->n_routed_experts, 0, p->wishes->skew);
    snprintf(prefix, sizeof(prefix), "%s.ffn.shared_experts", block);
    add_mlp(p, prefix, false);
    for (uint32_t e = 0; e < c->n_routed_experts && !p->wishes->sizes_of_dense; e++) {
        snprintf(prefix, sizeof(prefix), "%s.ffn.experts.%u", block, e);
        add_mlp(p, prefix, c->expert_dtype == SL_EXPERT_FP4);
    }
}

static void add_mtp(struct planner *p, uint32_t mtp_index)
{
    const struct sl_config *c = p->config;
    const char *block = begin_shard(p, "mtp", mtp_index);

    add_linear(p, block, ".e_proj", false, c->hidden_size, c->hidden_size, 1);
    add_linear(p, block, ".h_proj", false, c->hidden_size, c->hidden_size, 1);
    add_gain(p, block, ".enorm.weight", c->hidden_size);
    add_gain(p, block, ".hnorm.weight", c->hidden_size);
    add_gain(p, block, ".norm.weight", c->hidden_size);
    add_hyper(p, block, ".hc_head", c->hc_mult, 1);
    add_block(p, block, c->num_hidden_layers + mtp_index);
}

/* A stage of DSpark, with what else the first and the last have. */
static void add_stage(struct planner *p, uint32_t stage, uint32_t n_stages)
{
    const struct sl_config *c = p->config;
    const uint64_t hidden = c->hidden_size, rank = c->dspark.markov_rank;
    const char *block = begin_shard(p, "mtp", stage);

    if (stage == 0) {
        add_linear(p, block, ".main_proj", false, hidden, c->dspark.n_targets * hidden, 1);
        add_gain(p, block, ".main_norm.weight", hidden);
    }
    add_block(p, block, c->num_hidden_layers + stage);
    if (stage + 1 < n_stages)
        return;
    add_gain(p, block, ".norm.weight", hidden);
    add_hyper(p, block, ".hc_head", c->hc_mult, 1);
    add_bf16(p, block, ".markov_head.markov_w1.weight", c->vocab_size, rank, 1);
    add_bf16(p, block, ".markov_head.markov_w2.weight", c->vocab_size, rank,
             1 / sqrtf((float)rank));
    add_bf16(p, block, ".confidence_head.proj.weight", 1, hidden + rank,
             1 / sqrtf((float)(hidden + rank)));
}

/* The blocks mtp.0 ... of the model. */
static uint32_t draft_blocks(const struct sl_config *c)
{
    return c->dspark.n_targets > 0 ? c->dspark.n_targets : c->num_nextn_predict_layers;
}

/* Adds all shards: one for the embedding, one for each layer, one for the head, and one for each
 * MTP block, or a stage of DSpark for each layer that the draft reads. */
static void add_all(struct planner *p)
{
    const struct sl_config *c = p->config;

    begin_shard(p, NULL, 0);
    add_bf16(p, "", "embed.weight", c->vocab_size, c->hidden_size, 1);
    for (uint32_t i = 0; i < c->num_hidden_layers; i++)
        add_block(p, begin_shard(p, "layers", i), i);
    begin_shard(p, NULL, 0);
    add_gain(p, "", "norm.weight", c->hidden_size);
    add_bf16(p, "", "head.weight", c->vocab_size, c->hidden_size, 2 / sqrtf((float)c->hidden_size));
    add_hyper(p, "", "hc_head", c->hc_mult, 1);
    for (uint32_t i = 0; i < draft_blocks(c); i++)
        c->dspark.n_targets > 0 ? add_stage(p, i, draft_blocks(c)) : add_mtp(p, i);
}

/* Orders tensors by dtype, then by name, as in the release's files. */
static int compare_tensors(const void *a, const void *b)
{
    static const uint8_t rank[SL_DTYPE_COUNT] = {
        [SL_DTYPE_I64] = 0,     [SL_DTYPE_F32] = 1,     [SL_DTYPE_BF16] = 2,
        [SL_DTYPE_F8_E8M0] = 3, [SL_DTYPE_F8_E4M3] = 4, [SL_DTYPE_I8] = 5,
    };
    const struct sl_synth_tensor *x = a, *y = b;
    int by_dtype = rank[x->info.dtype] - rank[y->info.dtype];

    return by_dtype ? by_dtype : strcmp(x->name, y->name);
}

static json_t *describe_tensor(const struct sl_synth_tensor *tensor)
{
    json_t *shape = json_array();

    for (uint32_t i = 0; i < tensor->info.n_dims; i++)
        json_array_append_new(shape, json_integer((json_int_t)tensor->info.shape[i]));
    return json_pack("{s:s, s:o, s:[I,I]}", "dtype", sl_dtype_name(tensor->info.dtype), "shape",
                     shape, "data_offsets", (json_int_t)tensor->offset_bytes,
                     (json_int_t)(tensor->offset_bytes + tensor->info.size_bytes));
}

/* Returns the length of a shard's header. Blanks at its end move the data: where layers share
 * blocks, such that the file ends with one. Layers of different kinds differ in their small
 * tensors, which come first; what comes last then lies alike in all of them. */
static uint64_t header_length(const struct planner *p, uint64_t text_bytes, uint64_t data_bytes)
{
    uint64_t end = sizeof(uint64_t) + sl_round_up(text_bytes, 8) + data_bytes;
    uint64_t length = sl_round_up(text_bytes, 8);

    return p->wishes->share_layers ? length + sl_round_up(end, SL_SYNTH_BLOCK_BYTES) - end : length;
}

/* Places a shard's tensors, writes its header and enters it into the index. */
static int finish_shard(struct planner *p, uint32_t shard_index, json_t *weight_map)
{
    struct sl_synth_shard *shard = &p->plan->shards[shard_index];
    json_t *header = json_object();
    uint64_t at = 0, length;
    char *text;

    snprintf(shard->file_name, sizeof(shard->file_name), "model-%05u-of-%05u.safetensors",
             shard_index + 1, p->plan->n_shards);
    qsort(shard->tensors, shard->n_tensors, sizeof(*shard->tensors), compare_tensors);
    for (uint32_t i = 0; i < shard->n_tensors; i++) {
        struct sl_synth_tensor *tensor = &shard->tensors[i];

        tensor->offset_bytes = at;
        at += tensor->info.size_bytes;
        if (json_object_set_new(header, tensor->name, describe_tensor(tensor)) < 0 ||
            json_object_set_new(weight_map, tensor->name, json_string(shard->file_name)) < 0) {
            json_decref(header);
            return -ENOMEM;
        }
    }
    text = json_dumps(header, JSON_COMPACT);
    json_decref(header);
    if (!text)
        return -ENOMEM;
    length = header_length(p, strlen(text), at);
    shard->header_bytes = sizeof(length) + length;
    shard->header = malloc(shard->header_bytes + 1);
    if (shard->header) {
        memcpy(shard->header, &length, sizeof(length)); /* little-endian, as we are */
        snprintf(shard->header + sizeof(length), length + 1, "%-*s", (int)length, text);
    }
    free(text);
    shard->file_bytes = shard->header_bytes + at;
    p->plan->file_bytes += shard->file_bytes;
    return shard->header ? 0 : -ENOMEM;
}

static int finish(struct planner *p)
{
    json_t *weight_map = json_object(), *index;
    uint64_t total_bytes = 0;

    for (uint32_t i = 0; i < p->plan->n_shards; i++) {
        int rc = finish_shard(p, i, weight_map);

        if (rc < 0) {
            json_decref(weight_map);
            return rc;
        }
        total_bytes += p->plan->shards[i].file_bytes - p->plan->shards[i].header_bytes;
    }
    index = json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)total_bytes,
                      "weight_map", weight_map);
    p->plan->write_bytes = p->plan->file_bytes;
    p->plan->index = json_dumps(index, JSON_INDENT(1));
    json_decref(index);
    return p->plan->index ? 0 : -ENOMEM;
}

int sl_synth_plan_create(struct sl_synth_plan **ret_plan, const struct sl_config *config,
                         const struct sl_synth_tables *tables, const struct sl_synth_wishes *wishes,
                         struct sl_err *err)
{
    struct planner p = {.config = config, .tables = tables, .wishes = wishes};

    /* add_all() says which shards there are. */
    p.plan = calloc(1, sizeof(*p.plan));
    if (p.plan)
        p.plan->shards =
            calloc(2u + config->num_hidden_layers + draft_blocks(config), sizeof(*p.plan->shards));
    if (!p.plan || !p.plan->shards)
        goto out_of_memory;
    add_all(&p);
    if (p.out_of_memory || finish(&p) < 0)
        goto out_of_memory;
    *ret_plan = p.plan;
    return 0;
out_of_memory:
    sl_synth_plan_destroy(p.plan);
    return sl_err_set(err, -ENOMEM, "out of memory for the list of tensors");
}

void sl_synth_plan_destroy(struct sl_synth_plan *plan)
{
    if (!plan)
        return;
    for (uint32_t i = 0; i < plan->n_shards; i++) {
        struct sl_synth_shard *shard = &plan->shards[i];

        for (uint32_t t = 0; t < shard->n_tensors; t++) {
            free(shard->tensors[t].name);
            free((void *)shard->tensors[t].values.bytes);
        }
        free(shard->tensors);
        free(shard->runs);
        free(shard->header);
    }
    free(plan->shards);
    free(plan->index);
    free(plan);
}
