#include "daemon/engine/generation.h"

#include <errno.h>
#include <stdlib.h>

#include "core/base/assert.h"
#include "core/text/logprobs.h"

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
    uint32_t step_end;  /* no span of the prompt goes beyond this length of the sequence; 0: any */
    int32_t last_token; /* made by the latest step behind the prompt, not yet seen by the model */
    bool in_step;       /* a step with a span of this text is under way */
    uint32_t n_span_tokens; /* length of that span */
    bool is_sampled;        /* `next` was sampled from this step's logits */
    struct sl_generated next;
    struct sl_generation_output output;
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
    g = calloc(1, sizeof(*g));
    if (!g)
        return sl_err_set(err, -ENOMEM, "generation: out of memory");
    rc = sl_completion_create(&g->completion, tok, &options->rules, err);
    if (rc < 0) {
        free(g);
        return rc;
    }
    g->options = *options;
    g->n_vocab = n_vocab;
    g->next.n_top = options->n_top_logprobs < n_vocab ? options->n_top_logprobs : n_vocab;
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
    g->output = (struct sl_generation_output){.token = NULL};
    sl_completion_begin(g->completion, kv->n_tokens + n_tokens - n_made);
}

static void push(struct sl_generation *g)
{
    g->output.token = &g->next;
    sl_completion_push(g->completion, g->next.id, &g->output.text, &g->output.length);
}

void sl_generation_replay(struct sl_generation *g, const struct sl_generated *made)
{
    sl_assert(!g->in_step && sl_completion_finish(g->completion) == SL_FINISH_NONE);
    g->next = *made;
    g->output = (struct sl_generation_output){.token = NULL};
    push(g);
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

struct sl_span sl_generation_next_span(struct sl_generation *g, uint32_t n_tokens)
{
    const uint32_t n_left = prompt_left(g);

    sl_assert(!g->in_step && n_tokens >= 1 && n_tokens <= sl_generation_tokens_left(g));
    g->in_step = true;
    g->is_sampled = false;
    g->n_span_tokens = n_tokens;
    return (struct sl_span){
        .kv = g->kv,
        .tokens = n_left > 0 ? g->prompt + (g->n_prompt - n_left) : &g->last_token,
        .n_tokens = n_tokens,
        .logits = n_tokens < n_left ? SL_LOGITS_NONE : SL_LOGITS_LAST,
    };
}

static void note_logprobs(struct sl_generation *g, const float *logits)
{
    const double sum = sl_log_sum_exp(logits, g->n_vocab);
    struct sl_generated *next = &g->next;

    next->logprob = (double)logits[next->id] - sum;
    sl_most_probable(logits, g->n_vocab, next->n_top, next->top_ids);
    for (uint32_t i = 0; i < next->n_top; i++)
        next->top_logprobs[i] = (double)logits[next->top_ids[i]] - sum;
}

int sl_generation_take_logits(struct sl_generation *g, const float *logits,
                              struct sl_candidate *scratch, struct sl_err *err)
{
    const uint64_t position = (uint64_t)g->kv->n_tokens + g->n_span_tokens;
    int rc;

    sl_assert(g->in_step && !g->is_sampled);
    rc = sl_sampler_sample(&g->sampler, position, logits, g->n_vocab, scratch, &g->next.id, err);
    if (rc < 0)
        return rc;
    if (g->options.with_logprobs)
        note_logprobs(g, logits);
    g->is_sampled = true;
    return 0;
}

void sl_generation_step_ended(struct sl_generation *g, int rc)
{
    sl_assert(g->in_step);
    g->in_step = false;
    g->output = (struct sl_generation_output){.token = NULL};
    if (rc < 0)
        return;
    sl_assert(g->is_sampled == (prompt_left(g) == 0));
    if (!g->is_sampled)
        return;
    g->last_token = (int32_t)g->next.id;
    push(g);
    if (g->next.id == g->options.rules.eos_token_id)
        g->output.token = NULL;
}

void sl_generation_cancel(struct sl_generation *g)
{
    sl_assert(!g->in_step);
    g->output = (struct sl_generation_output){.token = NULL};
    g->output.text = sl_completion_interrupt(g->completion, &g->output.length);
}

/* ---- what came of it ---------------------------------------------------------------------------
 */

struct sl_generation_output sl_generation_output(const struct sl_generation *g)
{
    return g->output;
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
