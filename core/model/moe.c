/* A pair is a token and one of its experts. Pairs are sorted by expert, then token, so that an
 * expert's pairs are neighbours: its outputs are the rows of one matrix product. Groups of rows go
 * through their linears as chains of jobs. */
#include "core/model/moe.h"

#include <errno.h>
#include <string.h>

#include "core/model/hyper_connection.h"
#include "core/model/linear.h"

#define PINS_MAX 64u /* experts whose linears run as one job */

/* (token, expert) pairs that do. The threads meet once for each batch, and wait for its last groups
 * alone. */
#define ROWS_MAX (4 * SL_CHUNK_TOKENS)

/* Groups that a batch is cut into, each of whole experts: so many that most of what threads would
 * wait for at the end of one group is done beside the next. Reading an expert takes about as long
 * as multiplying so many rows; groups with less to do than two experts are too short. */
#define GROUPS_MAX 8u
#define EXPERT_ROWS 32u
#define GROUP_ROWS_MIN (2 * EXPERT_ROWS)
#define GROUP_JOBS 4u /* gather, up, activate, down */

/* The shared expert's groups: its weights are expanded anew for each. */
#define SHARED_ROWS SL_CHUNK_TOKENS
_Static_assert(ROWS_MAX / SHARED_ROWS <= GROUPS_MAX, "groups of a batch of the shared expert");
_Static_assert(GROUPS_MAX *GROUP_JOBS <= SL_POOL_LINE_MAX, "a batch is one call");

/* Chunks that go through the router as chains. Between these a step can be stopped. */
#define ROUTER_CHUNKS 4u
#define ROUTER_JOBS (SL_HC_BEFORE_JOBS + 2)

/* More tokens name most of a layer's experts between them, and little is left to predict. */
#define PREDICT_TOKENS_MAX 8u

struct pair {
    uint32_t token;
    float weight;
};

/* Pairs first .. first + n of one pinned expert, in rows batch_row .. of a batch. */
struct part {
    struct sl_expert_pin pin;
    struct sl_matrix w[SL_EXPERT_MATRICES];
    uint32_t first;
    uint32_t n;
    uint32_t batch_row;
    bool releases_pin; /* no further part follows */
};

struct sl_moe {
    uint32_t rows_max; /* of a batch */

    struct sl_act_buffer x;        /* (tokens_max, hidden_size) the layer's normed input */
    struct sl_hc_mix mix;          /* (tokens_max) */
    float *scores;                 /* (tokens_max, n_routed_experts rounded up to 16) */
    uint16_t *picked;              /* (tokens_max, K) experts, ascending */
    float *picked_weight;          /* (tokens_max, K) */
    uint32_t *picked_pair;         /* (tokens_max, K) where the pair was sorted to */
    struct pair *pairs;            /* (tokens_max * K) */
    uint32_t *pair_first;          /* (n_routed_experts + 1) first pair of each expert */
    uint16_t *wanted;              /* (n_routed_experts) distinct experts, ascending */
    struct sl_expert_key *certain; /* (n_routed_experts) */
    float *pair_out;               /* (tokens_max * K, hidden_size) */
    float *shared_out;             /* (tokens_max, hidden_size); then the layer's output */

    /* A batch of rows on its way through an expert. */
    struct sl_act_buffer in; /* (rows_max, hidden_size) */
    float *gate, *up;        /* (rows_max, moe_intermediate_size) */
    struct sl_act_buffer h;  /* (rows_max, moe_intermediate_size) */
    float *row_weight;       /* (rows_max) */
    struct part parts[PINS_MAX];
    uint32_t n_parts;
    uint32_t n_rows;

    bool *is_computed; /* (tokens_max * K) pairs whose row of pair_out is there */

    /* The prediction of the next layer's experts uses its own. */
    float *next_streams;         /* (PREDICT_TOKENS_MAX, hc_mult, hidden_size) */
    float *next_out;             /* (PREDICT_TOKENS_MAX, hidden_size) */
    struct sl_act_buffer next_x; /* (PREDICT_TOKENS_MAX, hidden_size) */
    struct sl_hc_mix next_mix;
    float *next_scores;
};

struct sl_moe *sl_moe_carve(struct sl_arena *arena, const struct sl_config *config,
                            enum sl_numerics numerics, uint32_t tokens_max)
{
    struct sl_moe *moe = sl_arena_take(arena, 1, sizeof(*moe));
    struct sl_moe m = {0};
    const uint64_t hidden = config->hidden_size, experts = config->n_routed_experts;
    const uint64_t tokens = tokens_max, pairs = tokens * config->num_experts_per_tok;
    /* Router and shared expert read BF16 in any case. */
    const unsigned routed = config->expert_dtype == SL_EXPERT_FP8 ? SL_ACT_BF16 : SL_ACT_INT8;

    m.rows_max = pairs < ROWS_MAX ? (uint32_t)pairs : ROWS_MAX;
    m.x = sl_act_buffer_carve(arena, tokens, config->hidden_size, SL_ACT_BF16 | routed, numerics);
    m.mix = sl_hc_mix_carve(arena, config, tokens, ROUTER_CHUNKS * SL_CHUNK_TOKENS);
    m.scores = sl_arena_take(arena, tokens * sl_r16_padded_rows(experts), sizeof(float));
    m.picked = sl_arena_take(arena, pairs, sizeof(*m.picked));
    m.picked_weight = sl_arena_take(arena, pairs, sizeof(float));
    m.picked_pair = sl_arena_take(arena, pairs, sizeof(*m.picked_pair));
    m.pairs = sl_arena_take(arena, pairs, sizeof(*m.pairs));
    m.pair_first = sl_arena_take(arena, experts + 1, sizeof(*m.pair_first));
    m.wanted = sl_arena_take(arena, experts, sizeof(*m.wanted));
    m.certain = sl_arena_take(arena, experts, sizeof(*m.certain));
    m.pair_out = sl_arena_take(arena, pairs * hidden, sizeof(float));
    m.shared_out = sl_arena_take(arena, tokens * hidden, sizeof(float));
    m.in = sl_act_buffer_carve(arena, m.rows_max, config->hidden_size,
                               routed | SL_ACT_ROUNDED_ALONE, numerics);
    m.gate = sl_arena_take(arena, (uint64_t)m.rows_max * config->moe_intermediate_size, 4);
    m.up = sl_arena_take(arena, (uint64_t)m.rows_max * config->moe_intermediate_size, 4);
    m.h = sl_act_buffer_carve(arena, m.rows_max, config->moe_intermediate_size,
                              SL_ACT_BF16 | routed, numerics);
    m.row_weight = sl_arena_take(arena, m.rows_max, sizeof(float));
    m.is_computed = sl_arena_take(arena, pairs, sizeof(*m.is_computed));
    m.next_streams =
        sl_arena_take(arena, PREDICT_TOKENS_MAX * config->hc_mult * hidden, sizeof(float));
    m.next_out = sl_arena_take(arena, PREDICT_TOKENS_MAX * hidden, sizeof(float));
    m.next_x =
        sl_act_buffer_carve(arena, PREDICT_TOKENS_MAX, config->hidden_size, SL_ACT_BF16, numerics);
    m.next_mix = sl_hc_mix_carve(arena, config, PREDICT_TOKENS_MAX, PREDICT_TOKENS_MAX);
    m.next_scores =
        sl_arena_take(arena, PREDICT_TOKENS_MAX * sl_r16_padded_rows(experts), sizeof(float));
    if (moe)
        *moe = m;
    return moe;
}

void sl_moe_prefetch(struct sl_moe *moe, const struct sl_step *step,
                     const struct sl_layer_weights *layers, struct sl_expert_source *source)
{
    const struct sl_config *config = step->config;
    const uint32_t k = config->num_experts_per_tok;

    for (uint32_t layer = 0; layer < config->num_hash_layers; layer++) {
        uint32_t n = 0;

        memset(moe->wanted, 0, config->n_routed_experts * sizeof(*moe->wanted));
        for (uint32_t i = 0; i < step->n_tokens; i++)
            for (uint32_t s = 0; s < k; s++)
                moe->wanted[layers[layer].tid2eid[(size_t)step->tokens[i].id * k + s]] = 1;
        for (uint32_t e = 0; e < config->n_routed_experts; e++)
            if (moe->wanted[e])
                moe->certain[n++] = (struct sl_expert_key){(uint16_t)layer, (uint16_t)e};
        source->ops->prefetch(source, SL_PREFETCH_CERTAIN, moe->certain, n);
    }
}

struct run {
    struct sl_moe *m;
    const struct sl_step *step;
    const struct sl_layer_weights *weights, *next;
    struct sl_expert_source *source;
    uint32_t layer_index;
};

/* ---- router ------------------------------------------------------------------------------------
 */

/* The K experts of highest score plus bias; of equal ones the lower number. */
static void pick_top(const struct sl_config *config, const float *scores, const float *bias,
                     uint16_t *picked)
{
    const uint32_t k = config->num_experts_per_tok;
    float best[SL_EXPERTS_PER_TOKEN_MAX];
    uint32_t n = 0;

    for (uint32_t e = 0; e < config->n_routed_experts; e++) {
        float score = scores[e] + bias[e];
        uint32_t at = n;

        while (at > 0 && score > best[at - 1])
            at--;
        if (at == k)
            continue;
        if (n < k)
            n++;
        for (uint32_t i = n - 1; i > at; i--) {
            best[i] = best[i - 1];
            picked[i] = picked[i - 1];
        }
        best[at] = score;
        picked[at] = (uint16_t)e;
    }
}

static void sort_ascending(uint16_t *values, uint32_t n)
{
    for (uint32_t i = 1; i < n; i++) {
        uint16_t value = values[i];
        uint32_t at = i;

        for (; at > 0 && values[at - 1] > value; at--)
            values[at] = values[at - 1];
        values[at] = value;
    }
}

/* A chunk on its way through the router. */
struct router_chunk {
    const struct run *in;
    struct sl_hc_before before;
    struct sl_linear_job gate;
    struct sl_linear_shares gate_shares;
};

/* Scores to each token's experts and their weights. Items are tokens of the chunk. */
static void route(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct router_chunk *chunk = context;
    const struct run *in = chunk->in;
    const struct sl_config *config = in->step->config;
    const uint32_t k = config->num_experts_per_tok, experts = config->n_routed_experts;

    (void)thread_index;
    for (size_t i = chunk->before.first + first; i < chunk->before.first + end; i++) {
        float *scores = in->m->scores + i * sl_r16_padded_rows(experts), sum = 0;
        uint16_t *picked = in->m->picked + i * k;

        in->step->compute->kernels->sqrt_softplus(experts, scores, scores);
        if (in->weights->tid2eid)
            memcpy(picked, in->weights->tid2eid + (size_t)in->step->tokens[i].id * k,
                   k * sizeof(*picked));
        else
            pick_top(config, scores, in->weights->gate_bias, picked);
        sort_ascending(picked, k);
        for (uint32_t s = 0; s < k; s++)
            sum += scores[picked[s]];
        for (uint32_t s = 0; s < k; s++)
            in->m->picked_weight[i * k + s] =
                scores[picked[s]] / sum * config->routed_scaling_factor;
    }
}

/* Sets up the chunk from token `first` to `end`, of some of which `begin` is the first token. */
static void add_router_chunk(const struct run *in, uint32_t begin, uint32_t first, uint32_t end,
                             struct router_chunk *chunk, struct sl_chain_job jobs[ROUTER_JOBS])
{
    const struct sl_step *step = in->step;
    const size_t stride = sl_r16_padded_rows(step->config->n_routed_experts);

    chunk->in = in;
    chunk->before = (struct sl_hc_before){
        .step = step,
        .hc = &in->weights->hc_ffn,
        .norm = in->weights->ffn_norm,
        .first = first,
        .n_tokens = end - first,
        .mix = sl_hc_mix_from(&in->m->mix, step->config, first, first - begin),
        .x = sl_act_buffer_from(&in->m->x, first),
    };
    chunk->gate = (struct sl_linear_job){&in->weights->gate,
                                         sl_act_buffer_rows(&in->m->x, first),
                                         in->m->scores + first * stride,
                                         stride,
                                         end - first,
                                         0};
    sl_hc_before_jobs(&chunk->before, jobs);
    jobs[SL_HC_BEFORE_JOBS] =
        sl_linear_chain(&chunk->gate_shares, step->compute, SL_PHASE_ROUTER, &chunk->gate, 1);
    jobs[SL_HC_BEFORE_JOBS + 1] = (struct sl_chain_job){.fn = route,
                                                        .context = chunk,
                                                        .n_items = end - first,
                                                        .grain = 4,
                                                        .phase = SL_PHASE_ROUTER};
}

/* The layer's input and each token's experts, some chunks at a time. Returns 0 or -ECANCELED. */
static int run_router(const struct run *in)
{
    struct router_chunk chunks[ROUTER_CHUNKS];
    struct sl_chain_job jobs[ROUTER_CHUNKS * ROUTER_JOBS];
    uint32_t first = 0;

    while (first < in->step->n_tokens) {
        const uint32_t begin = first;
        uint32_t n = 0;

        if (sl_step_is_stopped(in->step))
            return -ECANCELED;
        for (; n < ROUTER_CHUNKS && first < in->step->n_tokens; n++) {
            const uint32_t end = sl_step_chunk_end(in->step, first);

            add_router_chunk(in, begin, first, end, &chunks[n], &jobs[(size_t)n * ROUTER_JOBS]);
            first = end;
        }
        sl_chains_run(in->step->compute, jobs, n, ROUTER_JOBS);
    }
    return 0;
}

/* Sorts pairs by expert, then token (a counting sort), and lists the distinct experts. */
static uint32_t sort_pairs(const struct run *in)
{
    struct sl_moe *m = in->m;
    const uint32_t k = in->step->config->num_experts_per_tok;
    const uint32_t experts = in->step->config->n_routed_experts;
    const uint32_t n_pairs = in->step->n_tokens * k;
    uint32_t n_wanted = 0, total = 0;

    memset(m->pair_first, 0, (experts + 1) * sizeof(*m->pair_first));
    for (uint32_t i = 0; i < n_pairs; i++)
        m->pair_first[m->picked[i]]++;
    for (uint32_t e = 0; e <= experts; e++) {
        uint32_t count = m->pair_first[e];

        if (e < experts && count > 0)
            m->wanted[n_wanted++] = (uint16_t)e;
        m->pair_first[e] = total;
        total += count;
    }
    for (uint32_t i = 0; i < n_pairs; i++) {
        uint32_t at = m->pair_first[m->picked[i]]++;

        m->pairs[at] = (struct pair){i / k, m->picked_weight[i]};
        m->picked_pair[i] = at;
    }
    for (uint32_t e = experts; e > 0; e--) /* each was moved to the next one's first */
        m->pair_first[e] = m->pair_first[e - 1];
    m->pair_first[0] = 0;
    return n_wanted;
}

/* Adds a key to a list of n, if it is not there yet; returns how many there are then. */
static uint32_t add_key(struct sl_expert_key *keys, uint32_t n, struct sl_expert_key key)
{
    for (uint32_t i = 0; i < n; i++)
        if (keys[i].expert_index == key.expert_index)
            return n;
    keys[n] = key;
    return n + 1;
}

struct prediction {
    const struct run *in;
    uint16_t (*picked)[SL_EXPERTS_PER_TOKEN_MAX];
};

/* The layer's output as far as it is known: the shared expert's, and those of routed experts that
 * have been computed. Items are tokens. */
static void sum_computed(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct run *in = context;
    const struct sl_moe *m = in->m;
    const uint32_t k = in->step->config->num_experts_per_tok;
    const size_t hidden = in->step->config->hidden_size;

    (void)thread_index;
    for (size_t i = first; i < end; i++) {
        float *out = m->next_out + i * hidden;

        memcpy(out, m->shared_out + i * hidden, hidden * sizeof(*out));
        for (uint32_t s = 0; s < k; s++) {
            const uint32_t pair = m->picked_pair[i * k + s];

            for (size_t c = 0; m->is_computed[pair] && c < hidden; c++)
                out[c] += m->pair_out[pair * hidden + c];
        }
    }
}

/* Picks each token's experts of the next layer. Items are tokens. */
static void pick_predicted(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct prediction *prediction = context;
    const struct run *in = prediction->in;
    const struct sl_config *config = in->step->config;
    const uint32_t experts = config->n_routed_experts;

    (void)thread_index;
    for (size_t i = first; i < end; i++) {
        float *scores = in->m->next_scores + i * sl_r16_padded_rows(experts);

        in->step->compute->kernels->sqrt_softplus(experts, scores, scores);
        pick_top(config, scores, in->next->gate_bias, prediction->picked[i]);
    }
}

#define PREDICT_JOBS (SL_HC_BEFORE_JOBS + 4)

/* Predicts the next layer's experts: its mHC mix, norm and router applied to the streams plus what
 * is known of this layer's output (other routed experts and the next attention are still missing).
 * Most predictions hold. All tokens' first choices go first. */
static void predict_next(const struct run *in)
{
    struct sl_moe *m = in->m;
    struct sl_step ahead = *in->step;
    const struct sl_config *config = ahead.config;
    const uint16_t next_index = (uint16_t)(in->layer_index + 1);
    const size_t stride = sl_r16_padded_rows(config->n_routed_experts);
    uint16_t picked[PREDICT_TOKENS_MAX][SL_EXPERTS_PER_TOKEN_MAX];
    struct prediction prediction = {in, picked};
    struct sl_expert_key keys[SL_PREDICTED_MAX];
    struct sl_linear_job gate = {&in->next->gate, sl_act_buffer_rows(&m->next_x, 0),
                                 m->next_scores,  stride,
                                 ahead.n_tokens,  0};
    const struct sl_hc_after after = {.step = &ahead,
                                      .n_tokens = ahead.n_tokens,
                                      .mix = m->mix,
                                      .out = m->next_out,
                                      .out_stride = config->hidden_size};
    const struct sl_hc_before before = {.step = &ahead,
                                        .hc = &in->next->hc_ffn,
                                        .norm = in->next->ffn_norm,
                                        .n_tokens = ahead.n_tokens,
                                        .mix = m->next_mix,
                                        .x = m->next_x};
    struct sl_linear_shares gate_shares;
    struct sl_chain_job jobs[PREDICT_JOBS];
    uint32_t n_keys = 0;

    ahead.streams = m->next_streams;
    memcpy(ahead.streams, in->step->streams,
           (size_t)ahead.n_tokens * config->hc_mult * config->hidden_size * sizeof(float));
    jobs[0] =
        (struct sl_chain_job){sum_computed, (void *)in, ahead.n_tokens, 1, SL_PHASE_ROUTER, 0, 0};
    jobs[1] = sl_hc_after_job(&after);
    sl_hc_before_jobs(&before, &jobs[2]);
    jobs[PREDICT_JOBS - 2] =
        sl_linear_chain(&gate_shares, ahead.compute, SL_PHASE_ROUTER, &gate, 1);
    jobs[PREDICT_JOBS - 1] = (struct sl_chain_job){
        pick_predicted, &prediction, ahead.n_tokens, 4, SL_PHASE_ROUTER, 0, 0};
    sl_chains_run(ahead.compute, jobs, 1, PREDICT_JOBS);
    for (uint32_t rank = 0; rank < config->num_experts_per_tok; rank++)
        for (uint32_t i = 0; i < ahead.n_tokens && n_keys < SL_PREDICTED_MAX; i++)
            n_keys = add_key(keys, n_keys, (struct sl_expert_key){next_index, picked[i][rank]});
    in->source->ops->prefetch(in->source, SL_PREFETCH_PREDICTED, keys, n_keys);
}

/* Returns whether the next layer's experts can be predicted, and the source wants it now. */
static bool wants_prediction(const struct run *in)
{
    const struct sl_expert_source_ops *ops = in->source->ops;

    return in->next && !in->next->tid2eid && in->step->n_tokens <= PREDICT_TOKENS_MAX &&
           (!ops->wants_prediction ||
            ops->wants_prediction(in->source, (uint16_t)(in->layer_index + 1)));
}

/* ---- experts -----------------------------------------------------------------------------------
 */

/* Rows of the batch that go through their linears together. */
struct group {
    const struct run *in;
    uint32_t first_row, n_rows;
    const struct part *parts; /* (n_parts) whose rows they are; none of the shared expert's */
    uint32_t n_parts;
    struct sl_linear_shares up, down;
};

/* Brings the tokens of a group's pairs together. Items are its rows. */
static void gather_rows(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct group *group = context;
    const struct sl_moe *m = group->in->m;
    const size_t cols = group->in->step->config->hidden_size, groups = cols / SL_FP4_GROUP_COLS;
    const struct part *part = group->parts;

    (void)thread_index;
    for (size_t row = group->first_row + first; row < group->first_row + end; row++) {
        const struct pair *pair;

        while (row >= part->batch_row + part->n)
            part++;
        pair = &m->pairs[part->first + (row - part->batch_row)];
        m->row_weight[row] = pair->weight;
        if (m->in.bf16) {
            memcpy(m->in.bf16 + row * m->in.bf16_stride, m->x.bf16 + pair->token * m->x.bf16_stride,
                   cols * sizeof(*m->in.bf16));
        } else if (m->in.int8) {
            memcpy(m->in.int8 + row * cols, m->x.int8 + pair->token * cols, cols);
            memcpy(m->in.int8_scale + row * groups, m->x.int8_scale + pair->token * groups,
                   groups * sizeof(float));
        } else {
            memcpy(m->in.f32 + row * cols, m->x.f32 + pair->token * cols, cols * sizeof(float));
        }
    }
}

/* silu(gate) * up * weight of a group's rows, rounded for w2. Items are rows. */
static void activate(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct group *group = context;
    const struct sl_moe *m = group->in->m;
    const struct sl_compute *compute = group->in->step->compute;
    const struct sl_config *config = group->in->step->config;
    const size_t cols = config->moe_intermediate_size;

    for (size_t row = group->first_row + first; row < group->first_row + end; row++) {
        compute->kernels->swiglu(cols, m->gate + row * cols, m->up + row * cols,
                                 config->swiglu_limit, m->row_weight[row], m->h.f32 + row * cols);
        sl_act_buffer_round(&m->h, compute, thread_index, row);
    }
}

/* Sets up the jobs of a group, whose linears are named. */
static void add_group(struct group *group, enum sl_phase linears, const struct sl_linear_job *up,
                      size_t n_up, const struct sl_linear_job *down, size_t n_down,
                      struct sl_chain_job jobs[GROUP_JOBS])
{
    const struct sl_compute *compute = group->in->step->compute;

    jobs[0] = (struct sl_chain_job){
        gather_rows, group, group->n_parts ? group->n_rows : 0, 1, SL_PHASE_REST, 0, 0};
    jobs[1] = sl_linear_chain(&group->up, compute, linears, up, n_up);
    jobs[2] = (struct sl_chain_job){activate, group, group->n_rows, 1, SL_PHASE_REST, 0, 0};
    jobs[3] = sl_linear_chain(&group->down, compute, linears, down, n_down);
}

/* The shared expert over all tokens, a batch at a time. Returns 0 or -ECANCELED. */
static int run_shared(const struct run *in)
{
    struct sl_moe *m = in->m;
    const struct sl_config *config = in->step->config;
    const size_t hidden = config->hidden_size, inner = config->moe_intermediate_size;
    struct sl_linear_job up[GROUPS_MAX][2], down[GROUPS_MAX];
    struct sl_chain_job jobs[GROUPS_MAX * GROUP_JOBS];
    struct group groups[GROUPS_MAX];
    uint32_t first = 0;

    for (uint32_t row = 0; row < m->rows_max; row++)
        m->row_weight[row] = 1.0f;
    while (first < in->step->n_tokens) {
        uint32_t n_groups = 0;

        if (sl_step_is_stopped(in->step))
            return -ECANCELED;
        for (uint32_t row = 0; row < m->rows_max && first < in->step->n_tokens; n_groups++) {
            const uint32_t room = m->rows_max - row, left = in->step->n_tokens - first;
            const uint32_t most = room < SHARED_ROWS ? room : SHARED_ROWS;
            const uint32_t n = left < most ? left : most;
            const struct sl_act x = sl_act_buffer_rows(&m->x, first);
            const struct sl_act h = sl_act_buffer_rows(&m->h, row);
            const size_t at = row * inner;

            up[n_groups][0] =
                (struct sl_linear_job){&in->weights->shared_w1, x, m->gate + at, inner, n, 0};
            up[n_groups][1] =
                (struct sl_linear_job){&in->weights->shared_w3, x, m->up + at, inner, n, 0};
            down[n_groups] = (struct sl_linear_job){
                &in->weights->shared_w2, h, m->shared_out + first * hidden, hidden, n, 0};
            groups[n_groups] = (struct group){.in = in, .first_row = row, .n_rows = n};
            add_group(&groups[n_groups], SL_PHASE_SHARED_LINEARS, up[n_groups], 2, &down[n_groups],
                      1, &jobs[(size_t)n_groups * GROUP_JOBS]);
            row += n;
            first += n;
        }
        sl_chains_run(in->step->compute, jobs, n_groups, GROUP_JOBS);
    }
    return 0;
}

/* Empties the batch. */
static void drop_batch(const struct run *in)
{
    struct sl_moe *m = in->m;

    for (uint32_t p = 0; p < m->n_parts; p++)
        if (m->parts[p].releases_pin)
            in->source->ops->release(in->source, &m->parts[p].pin);
    m->n_parts = 0;
    m->n_rows = 0;
}

/* Waits for what is missing of the batch's experts. */
static int complete_batch(const struct run *in, struct sl_err *err)
{
    const struct sl_moe *m = in->m;
    int rc = 0;

    for (uint32_t p = 0; p < m->n_parts && rc == 0; p++)
        if (m->parts[p].pin.partial)
            rc = in->source->ops->complete(in->source, &m->parts[p].pin, err);
    return rc;
}

static bool is_partial(const struct sl_moe *m)
{
    bool partial = false;

    for (uint32_t p = 0; p < m->n_parts; p++)
        partial = partial || m->parts[p].pin.partial;
    return partial;
}

/* The parts of the group that begins with part `first`: at least one, and as many as make it about
 * as large as the batch's other groups. */
static uint32_t group_end(const struct sl_moe *m, uint32_t first)
{
    const uint32_t all = m->n_rows + m->n_parts * EXPERT_ROWS;
    const uint32_t share = (all + GROUPS_MAX - 1) / GROUPS_MAX;
    const uint32_t least = share > GROUP_ROWS_MIN ? share : GROUP_ROWS_MIN;
    uint32_t end = first, size = 0;

    while (end < m->n_parts && size < least)
        size += m->parts[end++].n + EXPERT_ROWS;
    return end;
}

static void set_linears(const struct run *in, const struct part *part, struct sl_linear_job up[2],
                        struct sl_linear_job *down)
{
    struct sl_moe *m = in->m;
    const size_t hidden = in->step->config->hidden_size;
    const size_t inner = in->step->config->moe_intermediate_size;
    const struct sl_act x = sl_act_buffer_rows(&m->in, part->batch_row);
    const struct sl_act h = sl_act_buffer_rows(&m->h, part->batch_row);
    const size_t at = part->batch_row * inner;

    up[0] = (struct sl_linear_job){&part->w[SL_EXPERT_W1], x, m->gate + at, inner, part->n, 0};
    up[1] = (struct sl_linear_job){&part->w[SL_EXPERT_W3], x, m->up + at, inner, part->n, 0};
    *down = (struct sl_linear_job){
        &part->w[SL_EXPERT_W2], h, m->pair_out + part->first * hidden, hidden, part->n, 0};
}

/* Runs the batch's parts through their experts and empties the batch. Fails as the source does. */
static int run_batch(const struct run *in, struct sl_err *err)
{
    struct sl_moe *m = in->m;
    struct sl_linear_job up[2 * PINS_MAX], down[PINS_MAX];
    struct sl_chain_job jobs[GROUPS_MAX * GROUP_JOBS], downs[GROUPS_MAX];
    struct group groups[GROUPS_MAX];
    const bool partial = is_partial(m);
    uint32_t n_groups = 0;
    int rc = 0;

    if (m->n_parts == 0)
        return 0;
    for (uint32_t p = 0, end; p < m->n_parts; p = end, n_groups++) {
        struct sl_chain_job *of_group = &jobs[(size_t)n_groups * GROUP_JOBS];
        struct group *group = &groups[n_groups];

        end = group_end(m, p);
        *group = (struct group){.in = in,
                                .first_row = m->parts[p].batch_row,
                                .parts = &m->parts[p],
                                .n_parts = end - p};
        for (uint32_t i = p; i < end; i++) {
            group->n_rows += m->parts[i].n;
            set_linears(in, &m->parts[i], &up[(size_t)2 * i], &down[i]);
        }
        add_group(group, SL_PHASE_ROUTED_LINEARS, &up[(size_t)2 * p], 2 * (size_t)group->n_parts,
                  &down[p], group->n_parts, of_group);
        downs[n_groups] = of_group[GROUP_JOBS - 1];
        if (partial)
            of_group[GROUP_JOBS - 1].n_items = 0;
    }
    sl_chains_run(in->step->compute, jobs, n_groups, GROUP_JOBS);
    if (partial) {
        rc = complete_batch(in, err);
        if (rc < 0)
            return rc;
        sl_chains_run(in->step->compute, downs, n_groups, 1);
    }
    for (uint32_t p = 0; p < m->n_parts; p++)
        memset(m->is_computed + m->parts[p].first, true, m->parts[p].n);
    drop_batch(in);
    return 0;
}

/* A matrix of a pinned expert, whose scales, if they are apart, follow the tiles. */
static struct sl_matrix pinned_matrix(const struct sl_config *config,
                                      const struct sl_expert_pin *pin, int matrix)
{
    const uint32_t hidden = config->hidden_size, inner = config->moe_intermediate_size;
    struct sl_matrix m = {
        .kind = config->expert_dtype == SL_EXPERT_FP8 ? SL_MATRIX_FP8_BLOCK : SL_MATRIX_FP4,
        .rows = matrix == SL_EXPERT_W2 ? hidden : inner,
        .cols = matrix == SL_EXPERT_W2 ? inner : hidden,
        .tiles = pin->w[matrix],
    };

    if (m.kind == SL_MATRIX_FP8_BLOCK)
        m.scales = (const float *)(const void *)(m.tiles + sl_r16_tile_count(m.rows) *
                                                               sl_matrix_tile_bytes(&m));
    return m;
}

/* Puts a pinned expert's pairs into the batch, running it whenever it is full. An expert has at
 * most one part in a batch, so that there are no more parts than pins. The batch with its last part
 * releases it. */
static int add_to_batch(const struct run *in, const struct sl_expert_pin *pin, struct sl_err *err)
{
    struct sl_moe *m = in->m;
    uint32_t next = m->pair_first[pin->key.expert_index];
    const uint32_t end = m->pair_first[pin->key.expert_index + 1];
    int rc = 0;

    while (next < end && rc == 0) {
        uint32_t room = m->rows_max - m->n_rows;
        struct part *part = &m->parts[m->n_parts++];

        *part = (struct part){
            .pin = *pin,
            .first = next,
            .n = end - next < room ? end - next : room,
            .batch_row = m->n_rows,
            .releases_pin = end - next <= room,
        };
        for (int matrix = 0; matrix < SL_EXPERT_MATRICES; matrix++)
            part->w[matrix] = pinned_matrix(in->step->config, pin, matrix);
        next += part->n;
        m->n_rows += part->n;
        if (m->n_rows == m->rows_max)
            rc = run_batch(in, err);
    }
    if (next < end) /* it failed, and no batch will have the last part */
        in->source->ops->release(in->source, pin);
    return rc;
}

/* Takes experts as they become ready: all that are ready now go into one batch. Before a batch is
 * the time to predict: the first one, or a later one that has to be waited for, as the source says.
 */
static int run_experts(const struct run *in, struct sl_err *err)
{
    struct sl_expert_source *source = in->source;
    const uint32_t pins_max = source->pins_max < PINS_MAX ? source->pins_max : PINS_MAX;
    struct sl_expert_pin pin;
    int acquired = 1, rc = 0;
    bool predicted = false;

    memset(in->m->is_computed, false,
           (size_t)in->step->n_tokens * in->step->config->num_experts_per_tok);
    while (rc == 0 && acquired != 0) {
        if (sl_step_is_stopped(in->step))
            return -ECANCELED;
        if (!predicted && in->m->n_parts == 0 && wants_prediction(in)) {
            predict_next(in);
            predicted = true;
        }
        acquired = source->ops->acquire(source, in->m->n_parts == 0, &pin, err);
        if (acquired < 0 && acquired != -EAGAIN)
            return acquired;
        if (acquired == 1)
            rc = add_to_batch(in, &pin, err);
        if (rc == 0 && (acquired != 1 || in->m->n_parts == pins_max))
            rc = run_batch(in, err);
    }
    return rc;
}

static int run_routed(const struct run *in, uint32_t n_wanted, struct sl_err *err)
{
    struct sl_expert_source *source = in->source;
    int rc = source->ops->demand(source, (uint16_t)in->layer_index, in->m->wanted, n_wanted, err);

    if (rc < 0)
        return rc;
    rc = run_shared(in); /* while the misses load */
    if (rc == 0)
        rc = run_experts(in, err);
    if (rc == -ECANCELED)
        source->ops->abandon(source);
    drop_batch(in); /* a failure may have left some */
    return rc;
}

struct finish {
    const struct run *in;
    struct sl_hc_after after;
};

/* Adds up a token's experts, ascending, then the shared one. */
static void sum_experts(const struct run *in, size_t token)
{
    struct sl_moe *m = in->m;
    const uint32_t k = in->step->config->num_experts_per_tok;
    const size_t hidden = in->step->config->hidden_size;
    float *sum = m->pair_out + m->picked_pair[token * k] * hidden;
    float *out = m->shared_out + token * hidden;

    for (uint32_t s = 1; s < k; s++) {
        const float *part = m->pair_out + m->picked_pair[token * k + s] * hidden;

        for (size_t c = 0; c < hidden; c++)
            sum[c] += part[c];
    }
    for (size_t c = 0; c < hidden; c++)
        out[c] = sum[c] + out[c];
}

/* Items are tokens: their streams get the layer's output. */
static void finish_tokens(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct finish *finish = context;

    for (size_t i = first; i < end; i++) {
        struct sl_pool *pool = finish->in->step->compute->pool;
        uint32_t phase = SL_PHASE_OUTSIDE;

        if (thread_index == 0)
            phase = sl_pool_phase(pool, SL_PHASE_REST);
        sum_experts(finish->in, i);
        if (thread_index == 0)
            sl_pool_phase(pool, phase);
        sl_hc_after_row(&finish->after, i);
    }
}

int sl_moe_run(struct sl_moe *moe, const struct sl_step *step, uint32_t layer_index,
               const struct sl_layer_weights *weights, const struct sl_layer_weights *next,
               struct sl_expert_source *source, struct sl_err *err)
{
    struct run in = {moe, step, weights, next, source, layer_index};
    struct finish finish = {&in,
                            {.step = step,
                             .n_tokens = step->n_tokens,
                             .mix = moe->mix,
                             .out = moe->shared_out,
                             .out_stride = step->config->hidden_size}};
    int rc;

    rc = run_router(&in);
    if (rc == 0)
        rc = run_routed(&in, sort_pairs(&in), err);
    if (rc < 0)
        return rc;
    sl_pool_run(step->compute->pool, SL_PHASE_HYPER_CONNECTION, step->n_tokens, 1, finish_tokens,
                &finish);
    sl_compute_background(step->compute);
    return 0;
}

const uint16_t *sl_moe_picked(const struct sl_moe *moe)
{
    return moe->picked;
}
