#include "daemon/engine/generation.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/text/logprobs.h"

#define ROWS_MAX (1 + SL_DRAFTS_MAX)

/* A row of the step's logits. */
struct row {
    bool is_sampled;
    struct sl_generated token;
};

struct sl_generation {
    struct sl_generation_options options;
    uint32_t n_vocab;
    struct sl_completion *completion;

    /* The text at hand. */
    struct sl_sampler sampler;
    struct sl_kv_cache *kv;
    const int32_t *prompt; /* (n_prompt) */
    uint32_t n_before;     /* tokens that the sequence had seen before the prompt */
    uint32_t n_prompt;
    uint32_t step_end; /* no span of the prompt goes beyond this length of the sequence; 0: any */
    int32_t last_tokens[ROWS_MAX]; /* made by the latest step behind the prompt, not yet seen by
                                      the model; then guesses of what follows */
    uint32_t n_drafts;             /* guesses among them */

    bool in_step;                          /* a step with a span of this text is under way: */
    uint32_t n_span_tokens, n_span_drafts; /* of that span; the drafts come behind the tokens */
    bool makes_tokens;                     /* the span asks for logits */
    struct row rows[ROWS_MAX];             /* of the last of its tokens, and of each draft */
    uint32_t n_kept;

    struct sl_generation_output outputs[ROWS_MAX];
    uint32_t n_outputs;
    size_t n_text_bytes;
    char text[]; /* of the outputs */
};

int sl_generation_create(struct sl_generation **ret_generation,
                         const struct sl_generation_options *options,
                         const struct sl_tokenizer *tok, uint32_t n_vocab, struct sl_err *err)
{
    struct sl_generation *g;
    int rc = sl_sampler_check(&options->sampler, err);

    sl_assert(options->n_top_logprobs <= SL_TOP_LOGPROBS_MAX);
    if (rc < 0)
        return rc;
    g = calloc(1, sizeof(*g) + ROWS_MAX * sl_completion_text_bytes_max(tok));
    if (!g)
        return sl_err_set(err, -ENOMEM, "generation: out of memory");
    rc = sl_completion_create(&g->completion, tok, &options->rules, err);
    if (rc < 0) {
        free(g);
        return rc;
    }
    g->options = *options;
    g->n_vocab = n_vocab;
    for (uint32_t i = 0; i < ROWS_MAX; i++)
        g->rows[i].token.n_top =
            options->n_top_logprobs < n_vocab ? options->n_top_logprobs : n_vocab;
    *ret_generation = g;
    return 0;
}

void sl_generation_destroy(struct sl_generation *g)
{
    if (!g)
        return;
    sl_completion_destroy(g->completion);
    free(g);
}

void sl_generation_begin(struct sl_generation *g, struct sl_kv_cache *kv, const int32_t *tokens,
                         uint32_t n_tokens, uint64_t seed)
{
    sl_generation_begin_again(g, kv, tokens, n_tokens, 0, seed);
}

/* The tokens that were made are taken in like a prompt. A draw depends on seed and position alone,
 * so what follows them is what would have followed. */
void sl_generation_begin_again(struct sl_generation *g, struct sl_kv_cache *kv,
                               const int32_t *tokens, uint32_t n_tokens, uint32_t n_made,
                               uint64_t seed)
{
    sl_assert(n_tokens >= 1 && !g->in_step);
    sl_assert(kv->n_tokens + n_tokens > n_made);
    sl_assert(n_tokens <= kv->capacity_tokens - kv->n_tokens);
    g->sampler = g->options.sampler;
    g->sampler.seed = seed;
    g->kv = kv;
    g->prompt = tokens;
    g->n_before = kv->n_tokens;
    g->n_prompt = n_tokens;
    g->step_end = 0;
    g->n_drafts = g->n_span_drafts = g->n_outputs = g->n_kept = 0;
    sl_completion_begin(g->completion, kv->n_tokens + n_tokens - n_made);
}

static void clear_outputs(struct sl_generation *g)
{
    g->n_outputs = 0;
    g->n_text_bytes = 0;
}

/* The completion's text is good until it gets the next token, so it is copied. */
static void add_output(struct sl_generation *g, const struct sl_generated *token, const char *text,
                       size_t length)
{
    char *copy = g->text + g->n_text_bytes;

    if (length > 0)
        memcpy(copy, text, length);
    g->n_text_bytes += length;
    g->outputs[g->n_outputs++] = (struct sl_generation_output){token, copy, length};
}

static void push(struct sl_generation *g, const struct sl_generated *token)
{
    const char *text;
    size_t length;

    sl_completion_push(g->completion, token->id, &text, &length);
    add_output(g, token, text, length);
}

void sl_generation_replay(struct sl_generation *g, const struct sl_generated *made)
{
    sl_assert(!g->in_step && sl_completion_finish(g->completion) == SL_FINISH_NONE);
    clear_outputs(g);
    g->rows[0].token = *made;
    push(g, &g->rows[0].token);
}

/* ---- steps -------------------------------------------------------------------------------------
 */

/* Counts the tokens of the prompt that the sequence has not seen. */
static uint32_t prompt_left(const struct sl_generation *g)
{
    const uint32_t n_seen = g->kv->n_tokens - g->n_before;

    return n_seen < g->n_prompt ? g->n_prompt - n_seen : 0;
}

void sl_generation_end_step_at(struct sl_generation *g, uint32_t n_tokens)
{
    g->step_end = n_tokens;
}

uint32_t sl_generation_tokens_left(const struct sl_generation *g)
{
    const uint32_t n_left = prompt_left(g), n_seen = g->kv->n_tokens;

    if (sl_completion_finish(g->completion) != SL_FINISH_NONE)
        return 0;
    if (n_left == 0)
        return 1;
    return n_seen < g->step_end && g->step_end - n_seen < n_left ? g->step_end - n_seen : n_left;
}

struct sl_span sl_generation_next_span(struct sl_generation *g, uint32_t n_tokens,
                                       uint32_t n_drafts)
{
    const uint32_t n_left = prompt_left(g);

    sl_assert(!g->in_step && n_tokens >= 1 && n_tokens <= sl_generation_tokens_left(g));
    sl_assert(n_drafts <= sl_generation_draft_count(g));
    g->in_step = true;
    g->n_span_tokens = n_tokens;
    g->n_span_drafts = n_drafts;
    g->makes_tokens = n_tokens >= n_left;
    for (uint32_t i = 0; i < ROWS_MAX; i++)
        g->rows[i].is_sampled = false;
    return (struct sl_span){
        .kv = g->kv,
        .tokens = n_left > 0 ? g->prompt + (g->n_prompt - n_left) : g->last_tokens,
        .n_tokens = n_tokens + n_drafts,
        .logits = !g->makes_tokens ? SL_LOGITS_NONE
                  : n_drafts > 0   ? SL_LOGITS_ALL
                                   : SL_LOGITS_LAST,
    };
}

static void note_logprobs(const struct sl_generation *g, const float *logits,
                          struct sl_generated *token)
{
    const double sum = sl_log_sum_exp(logits, g->n_vocab);

    token->logprob = (double)logits[token->id] - sum;
    sl_most_probable(logits, g->n_vocab, token->n_top, token->top_ids);
    for (uint32_t i = 0; i < token->n_top; i++)
        token->top_logprobs[i] = (double)logits[token->top_ids[i]] - sum;
}

int sl_generation_take_logits(struct sl_generation *g, uint32_t token_index, const float *logits,
                              struct sl_candidate *scratch, struct sl_err *err)
{
    struct row *row = &g->rows[token_index + 1 - g->n_span_tokens];
    int rc;

    sl_assert(g->in_step && token_index + 1 - g->n_span_tokens <= g->n_span_drafts);
    rc = sl_sampler_sample(&g->sampler, (uint64_t)g->kv->n_tokens + token_index + 1, logits,
                           g->n_vocab, scratch, &row->token.id, err);
    if (rc < 0)
        return rc;
    if (g->options.with_logprobs)
        note_logprobs(g, logits, &row->token);
    row->is_sampled = true;
    return 0;
}

/* Tokens up to the first guess that was wrong, that the text ends before, or that leads to logits
 * which allow no choice: these will come again. */
uint32_t sl_generation_settle(struct sl_generation *g)
{
    uint32_t n = 0;

    sl_assert(g->in_step);
    clear_outputs(g);
    g->n_drafts = 0;
    g->n_kept = g->n_span_tokens;
    if (!g->makes_tokens)
        return g->n_kept;
    if (!g->rows[0].is_sampled)
        return g->n_kept = 0;
    do
        push(g, &g->rows[n].token);
    while (n++ < g->n_span_drafts && sl_completion_finish(g->completion) == SL_FINISH_NONE &&
           g->rows[n].is_sampled && (int32_t)g->rows[n - 1].token.id == g->last_tokens[n]);
    g->n_kept += n - 1;
    if (g->rows[n - 1].token.id == g->options.rules.eos_token_id)
        g->outputs[n - 1].token = NULL;
    g->last_tokens[0] = (int32_t)g->rows[n - 1].token.id;
    return g->n_kept;
}

void sl_generation_step_ended(struct sl_generation *g, int rc)
{
    sl_assert(g->in_step);
    g->in_step = false;
    if (rc == 0)
        return;
    clear_outputs(g);
    g->n_drafts = g->n_kept = 0;
}

void sl_generation_cancel(struct sl_generation *g)
{
    const char *text;
    size_t length;

    sl_assert(!g->in_step);
    clear_outputs(g);
    text = sl_completion_interrupt(g->completion, &length);
    add_output(g, NULL, text, length);
}

/* ---- drafts ------------------------------------------------------------------------------------
 */

struct sl_kv_cache *sl_generation_sequence(const struct sl_generation *g)
{
    return g->kv;
}

uint32_t sl_generation_followers(const struct sl_generation *g, uint32_t n_max, int32_t *ret_ids)
{
    const uint32_t n_prompt = g->n_before + g->n_prompt, n_seen = g->kv->n_tokens;
    const uint32_t n_left = prompt_left(g);
    uint32_t n = g->n_kept < n_max ? g->n_kept : n_max;

    if (n_left >= n_max)
        return 0;
    n = n < n_max - n_left ? n : n_max - n_left;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t place = n_seen - n + 1 + i; /* in the sequence */

        ret_ids[i] = place < n_prompt
                         ? g->prompt[place - g->n_before]
                         : (int32_t)g->rows[place - (n_seen + 1 - g->n_outputs)].token.id;
    }
    return n;
}

uint32_t sl_generation_drafts_max(const struct sl_generation *g)
{
    const struct sl_completion_rules *rules = &g->options.rules;
    const uint32_t n_tokens = g->kv->n_tokens + 1, n_new = sl_completion_token_count(g->completion);
    uint32_t n = SL_DRAFTS_MAX;

    if (prompt_left(g) > 0 || sl_completion_finish(g->completion) != SL_FINISH_NONE)
        return 0;
    if (rules->n_new_max > 0 && rules->n_new_max - n_new - 1 < n)
        n = rules->n_new_max - n_new - 1;
    if (rules->context_tokens - n_tokens - 1 < n)
        n = rules->context_tokens - n_tokens - 1;
    return g->kv->capacity_tokens - n_tokens < n ? g->kv->capacity_tokens - n_tokens : n;
}

uint32_t sl_generation_draft_count(const struct sl_generation *g)
{
    return g->n_drafts;
}

int32_t sl_generation_guess(struct sl_generation *g, const float *logits,
                            struct sl_candidate *scratch)
{
    const uint64_t position = (uint64_t)g->kv->n_tokens + 1 + g->n_drafts;
    uint32_t id;

    sl_assert(g->n_drafts < SL_DRAFTS_MAX);
    if (sl_sampler_sample(&g->sampler, position, logits, g->n_vocab, scratch, &id, NULL) < 0)
        id = 0; /* any guess will do */
    g->last_tokens[1 + g->n_drafts++] = (int32_t)id;
    return (int32_t)id;
}

/* ---- what came of it ---------------------------------------------------------------------------
 */

uint32_t sl_generation_output_count(const struct sl_generation *g)
{
    return g->n_outputs;
}

struct sl_generation_output sl_generation_output(const struct sl_generation *g,
                                                 uint32_t output_index)
{
    sl_assert(output_index < g->n_outputs);
    return g->outputs[output_index];
}

uint32_t sl_generation_drafts_tried(const struct sl_generation *g)
{
    return g->n_kept > 0 ? g->n_span_drafts : 0;
}

uint32_t sl_generation_drafts_right(const struct sl_generation *g)
{
    return g->n_kept > g->n_span_tokens ? g->n_kept - g->n_span_tokens : 0;
}

enum sl_finish sl_generation_finish(const struct sl_generation *g)
{
    return sl_completion_finish(g->completion);
}

const char *sl_generation_stop_string(const struct sl_generation *g)
{
    return sl_completion_stop_string(g->completion);
}

uint32_t sl_generation_token_count(const struct sl_generation *g)
{
    return sl_completion_token_count(g->completion);
}

uint32_t sl_generation_prompt_count(const struct sl_generation *g)
{
    return g->n_prompt - prompt_left(g);
}
