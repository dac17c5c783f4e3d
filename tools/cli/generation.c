#include "tools/cli/generation.h"

#include <errno.h>

#include "core/base/assert.h"
#include "core/base/clock.h"
#include "core/text/logprobs.h"
#include "tools/cli/interrupt.h"

int sl_generation_init(struct sl_generation *g, const struct sl_generation_options *options,
                       const struct sl_tokenizer *tok, const struct sl_config *config,
                       struct sl_err *err)
{
    struct sl_arena measure;
    int rc;

    sl_assert(options->n_top_logprobs <= SL_TOP_LOGPROBS_MAX);
    g->options = *options;
    if (g->options.n_top_logprobs > config->vocab_size)
        g->options.n_top_logprobs = config->vocab_size;
    if ((rc = sl_sampler_check(&options->sampler, err)) < 0 ||
        (rc = sl_completion_create(&g->completion, tok, &options->rules, err)) < 0)
        return rc;
    sl_arena_init_measure(&measure);
    sl_sampler_carve_scratch(&measure, config->vocab_size);
    rc = sl_arena_init(&g->arena, measure.used_bytes, "sampler", err);
    if (rc == 0)
        g->scratch = sl_sampler_carve_scratch(&g->arena, config->vocab_size);
    return rc;
}

void sl_generation_fini(struct sl_generation *g)
{
    sl_completion_destroy(g->completion);
    sl_arena_fini(&g->arena);
}

/* ---- steps -------------------------------------------------------------------------------------
 */

static void note_logprobs(struct sl_generation *g, const float *logits, uint32_t n_vocab)
{
    const double sum = sl_log_sum_exp(logits, n_vocab);
    struct sl_generated *next = &g->next;

    next->logprob = (double)logits[next->id] - sum;
    sl_most_probable(logits, n_vocab, g->options.n_top_logprobs, next->top_ids);
    for (uint32_t i = 0; i < g->options.n_top_logprobs; i++)
        next->top_logprobs[i] = (double)logits[next->top_ids[i]] - sum;
}

static void on_logits(void *context, const struct sl_logits_row *rows, uint32_t n_rows)
{
    struct sl_generation *g = context;
    const uint32_t n_vocab = sl_engine_config(g->engine)->vocab_size;

    sl_assert(n_rows == 1);
    g->sample_rc = sl_sampler_sample(&g->options.sampler, g->position, rows[0].logits, n_vocab,
                                     g->scratch, &g->next.id, &g->sample_err);
    if (g->sample_rc == 0 && g->options.with_logprobs)
        note_logprobs(g, rows[0].logits, n_vocab);
}

/* Fails with -ECANCELED where a signal came. */
static int step(struct sl_generation *g, const int32_t *tokens, uint32_t n_tokens, bool want_next,
                struct sl_err *err)
{
    struct sl_span span = {sl_engine_kv(g->engine, 0), tokens, n_tokens,
                           want_next ? SL_LOGITS_LAST : SL_LOGITS_NONE};
    const struct sl_step_request request = {
        .spans = &span,
        .n_spans = 1,
        .stop = sl_interrupt_stop(),
        .on_logits = on_logits,
        .on_logits_context = g,
        .on_route = sl_text_progress_route,
        .on_route_context = &g->progress,
    };
    int rc;

    g->sample_rc = 0;
    rc = sl_forward_step(sl_engine_forward(g->engine), &request, err);
    if (rc == 0 && g->sample_rc < 0) {
        rc = g->sample_rc;
        *err = g->sample_err;
    }
    return rc;
}

static int prefill(struct sl_generation *g, const struct sl_prompt *prompt, struct sl_err *err)
{
    struct sl_text_progress *text = &g->progress;
    uint32_t n_done = 0;
    int rc = 0;

    *text =
        (struct sl_text_progress){sl_progress_start(stderr, "prompt", "tokens"), prompt->n_tokens,
                                  0, sl_engine_config(g->engine)->num_hidden_layers};
    while (rc == 0 && n_done < prompt->n_tokens) {
        uint32_t left = prompt->n_tokens - n_done;
        uint32_t n = sl_engine_segment(g->engine, left);

        text->n_done = n_done;
        rc = step(g, prompt->tokens + n_done, n, n == left, err);
        n_done += rc == 0 ? n : 0;
    }
    sl_progress_end(&text->progress);
    text->n_tokens = 0; /* what is decoded shows itself */
    g->totals.n_prompt_tokens += n_done;
    g->totals.prefill_ns += sl_clock_ns() - text->progress.start_ns;
    return rc;
}

static int tell(const struct sl_generation *g, const char *text, size_t length, struct sl_err *err)
{
    return length > 0 ? g->options.on_text(g->options.context, text, length, err) : 0;
}

/* From the first new token, which the prompt's pass has chosen, to the end. */
static int decode(struct sl_generation *g, struct sl_err *err)
{
    const struct sl_expert_cache_counters before = sl_engine_counters(g->engine);
    const uint64_t start_ns = sl_clock_ns();
    enum sl_finish finish = SL_FINISH_NONE;
    struct sl_expert_cache_counters after;
    int rc = 0;

    while (rc == 0 && finish == SL_FINISH_NONE) {
        int32_t token = (int32_t)g->next.id;
        const char *text;
        size_t length;

        if (g->options.with_logprobs && g->next.id != g->options.rules.eos_token_id)
            rc = g->options.on_token(g->options.context, &g->next, err);
        finish = sl_completion_push(g->completion, g->next.id, &text, &length);
        if (rc == 0)
            rc = tell(g, text, length, err);
        g->position++;
        if (rc == 0 && finish == SL_FINISH_NONE)
            rc = step(g, &token, 1, true, err);
    }
    after = sl_engine_counters(g->engine);
    g->totals.n_decode_requests += after.n_requests - before.n_requests;
    g->totals.decode_read_bytes += after.read_bytes - before.read_bytes;
    g->totals.decode_ns += sl_clock_ns() - start_ns;
    return rc;
}

int sl_generation_run(struct sl_generation *g, const struct sl_prompt *prompt, struct sl_err *err)
{
    uint32_t n_new;
    int rc;

    sl_kv_cache_clear(sl_engine_kv(g->engine, 0));
    sl_completion_begin(g->completion, prompt->n_tokens);
    g->position = prompt->n_tokens;
    rc = prefill(g, prompt, err);
    if (rc == 0)
        rc = decode(g, err);
    if (rc == -ECANCELED) {
        size_t length;
        const char *text = sl_completion_interrupt(g->completion, &length);

        rc = tell(g, text, length, err);
    }
    n_new = sl_completion_token_count(g->completion);
    g->totals.n_texts++;
    g->totals.n_new_tokens += n_new;
    g->totals.n_decoded += n_new > 0 ? n_new - 1 : 0;
    return rc;
}
