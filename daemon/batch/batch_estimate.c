#include "daemon/batch/batch_estimate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"

#define SAMPLE_S 0.5

/* Measurements fade to 1 / e in so long: costs of tokens change with the cache and with the
 * lengths of texts. */
#define FADE_S 900.0
#define RATE_FADE_S 60.0

/* Items that are dealt out one by one; of more, the end matters little. */
#define DEALT_PER_SLOT 16u
#define SLOTS_MAX 4096u

enum { STEPS, PROMPT, MADE, SECONDS };

/* ---- costs -------------------------------------------------------------------------------------
 */

void sl_batch_estimate_note(struct sl_batch_estimate *e, const struct sl_estimate_sample *s)
{
    const double passed = s->seconds - e->last.seconds;
    const double now[4] = {s->steps - e->last.steps, s->prompt_tokens - e->last.prompt_tokens,
                           s->made_tokens - e->last.made_tokens, passed};
    double fade, rate_fade;

    if (e->has_last && passed < SAMPLE_S)
        return;
    if (e->has_last) {
        fade = exp(-passed / FADE_S);
        rate_fade = exp(-passed / RATE_FADE_S);
        for (int i = 0; i < 4; i++)
            for (int k = 0; k < 4; k++)
                e->sums[i][k] = fade * e->sums[i][k] + now[i] * now[k];
        e->recent_s = rate_fade * e->recent_s + passed;
        e->recent_tokens = rate_fade * e->recent_tokens + now[PROMPT] + now[MADE];
    }
    e->last = *s;
    e->has_last = true;
}

double sl_batch_estimate_rate(const struct sl_batch_estimate *e)
{
    return e->recent_s > 0 ? e->recent_tokens / e->recent_s : 0;
}

/* Solves the normal equations of the unknowns in `mask`, by elimination. Returns false where they
 * cannot be told apart. */
static bool solve(const struct sl_batch_estimate *e, unsigned mask, double costs[3])
{
    double m[3][4] = {{0}};
    int used[3], n = 0;

    for (int i = 0; i < 3; i++)
        if (mask & 1u << i)
            used[n++] = i;
    for (int i = 0; i < n; i++) {
        for (int k = 0; k < n; k++)
            m[i][k] = e->sums[used[i]][used[k]];
        m[i][3] = e->sums[used[i]][SECONDS];
    }
    for (int i = 0; i < n; i++) {
        if (m[i][i] <= 1e-9 * e->sums[used[i]][used[i]] || m[i][i] <= 0)
            return false;
        for (int k = 0; k < n; k++) {
            const double factor = k == i ? 0 : m[k][i] / m[i][i];

            for (int j = i; j < 4; j++)
                m[k][j] -= factor * m[i][j];
        }
    }
    memset(costs, 0, 3 * sizeof(*costs));
    for (int i = 0; i < n; i++)
        costs[used[i]] = m[i][3] / m[i][i];
    return true;
}

/* The sum of squares that is left, less what all have in common. */
static double residue(const struct sl_batch_estimate *e, const double costs[3])
{
    double sum = 0;

    for (int i = 0; i < 3; i++) {
        sum -= 2 * costs[i] * e->sums[i][SECONDS];
        for (int k = 0; k < 3; k++)
            sum += costs[i] * costs[k] * e->sums[i][k];
    }
    return sum;
}

/* Seven fits, of which the best without a negative cost counts. */
static bool fit(const struct sl_batch_estimate *e, double best[3])
{
    double least = INFINITY;

    for (unsigned mask = 1; mask < 8; mask++) {
        double costs[3], left;

        if (!solve(e, mask, costs) || costs[0] < 0 || costs[1] < 0 || costs[2] < 0)
            continue;
        left = residue(e, costs);
        if (left >= least)
            continue;
        least = left;
        memcpy(best, costs, sizeof(costs));
    }
    return least < INFINITY;
}

/* ---- lengths of answers ------------------------------------------------------------------------
 */

void sl_batch_estimate_answer(struct sl_batch_estimate *e, uint32_t n_tokens)
{
    e->answers[e->n_answers++ % SL_ESTIMATE_ANSWERS_MAX] = n_tokens;
}

struct observed {
    uint32_t n_tokens;
    bool has_ended;
};

static int compare_observed(const void *a, const void *b)
{
    const struct observed *x = a, *y = b;

    if (x->n_tokens != y->n_tokens)
        return x->n_tokens < y->n_tokens ? -1 : 1;
    return (int)y->has_ended - (int)x->has_ended;
}

struct lengths {
    struct observed *all; /* (n) ascending */
    uint32_t n;
};

/* Returns how many tokens an answer will have beyond the first n_made that it has. */
static double beyond(const struct lengths *l, uint32_t n_made)
{
    double survives = 1, sum = 0;
    uint32_t at = n_made;

    for (uint32_t i = 0; i < l->n; i++) {
        const uint32_t length = l->all[i].n_tokens;

        if (length < n_made || (length == n_made && n_made > 0))
            continue;
        sum += survives * (length - at);
        at = length;
        if (l->all[i].has_ended)
            survives *= 1 - 1.0 / (double)(l->n - i);
    }
    return sum > 0 ? sum : 1;
}

/* Returns how many tokens beyond n_made an answer has that is longer than a share of its like. */
static double longer_than(const struct lengths *l, uint32_t n_made, double share)
{
    double survives = 1;
    uint32_t longest = n_made;

    for (uint32_t i = 0; i < l->n && survives > 1 - share; i++) {
        if (l->all[i].n_tokens < n_made || (l->all[i].n_tokens == n_made && n_made > 0))
            continue;
        longest = l->all[i].n_tokens;
        if (l->all[i].has_ended)
            survives *= 1 - 1.0 / (double)(l->n - i);
    }
    return longest > n_made ? longest - n_made : 1;
}

/* Shares that are spread evenly, however many are taken: multiples of the golden ratio. */
static double share_of(uint32_t i)
{
    const double turns = (i + 0.5) * 0.6180339887498949;

    return turns - floor(turns);
}

/* ---- what is left ------------------------------------------------------------------------------
 */

/* Deals waiting items, as long as answers are, out to whoever is free first. Returns the steps
 * until the last one ends; *ret_made are the tokens. */
static double deal(const struct lengths *lengths, const struct sl_estimate_work *work,
                   double *slots, double *ret_made)
{
    const uint32_t n_slots = work->n_slots < SLOTS_MAX ? work->n_slots : SLOTS_MAX;
    const double each = beyond(lengths, 0);
    uint32_t n_dealt = work->n_waiting, n = 0;
    double start = 0, last = 0, made = 0;

    if (n_dealt > DEALT_PER_SLOT * n_slots)
        n_dealt = DEALT_PER_SLOT * n_slots;
    start = (work->n_waiting - n_dealt) * each / n_slots;
    for (uint32_t i = 0; i < work->n_running; i++) {
        made += beyond(lengths, work->made[i]);
        if (n < n_slots)
            slots[n++] = start + longer_than(lengths, work->made[i], share_of(i));
    }
    while (n < n_slots)
        slots[n++] = start;
    for (uint32_t i = 0; i < n_dealt; i++) {
        uint32_t first = 0;

        for (uint32_t k = 1; k < n_slots; k++)
            if (slots[k] < slots[first])
                first = k;
        slots[first] += longer_than(lengths, 0, share_of(work->n_running + i));
    }
    for (uint32_t i = 0; i < n_slots; i++)
        last = slots[i] > last ? slots[i] : last;
    *ret_made = made + work->n_waiting * each;
    return last;
}

double sl_batch_estimate_left(const struct sl_batch_estimate *e,
                              const struct sl_estimate_work *work)
{
    const uint32_t n_ended =
        e->n_answers < SL_ESTIMATE_ANSWERS_MAX ? e->n_answers : SL_ESTIMATE_ANSWERS_MAX;
    struct lengths lengths = {
        calloc((size_t)n_ended + work->n_running + 1, sizeof(struct observed)), 0};
    double *slots = calloc(SLOTS_MAX, sizeof(*slots));
    double costs[3] = {0}, steps, made, left = -1;

    sl_assert(work->n_slots > 0);
    if (lengths.all && slots && fit(e, costs) && (n_ended > 0 || work->answer_tokens_max > 0)) {
        for (uint32_t i = 0; i < n_ended; i++)
            lengths.all[lengths.n++] = (struct observed){e->answers[i], true};
        for (uint32_t i = 0; i < work->n_running; i++)
            if (work->made[i] > 0)
                lengths.all[lengths.n++] = (struct observed){work->made[i], false};
        if (work->answer_tokens_max > 0) /* nobody makes more */
            lengths.all[lengths.n++] = (struct observed){work->answer_tokens_max, true};
        qsort(lengths.all, lengths.n, sizeof(*lengths.all), compare_observed);
        steps = deal(&lengths, work, slots, &made);
        left =
            costs[STEPS] * steps + costs[PROMPT] * (double)work->prompt_tokens + costs[MADE] * made;
    }
    free(lengths.all);
    free(slots);
    return left;
}
