#include "daemon/batch/batch_estimate.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SAMPLE_S 0.5

/* Measurements fade to 1 / e in a third of the time that there were any, and in no less than that:
 * costs of tokens change with the cache, with the lengths of texts and with who else is served, and
 * a cold start is to be forgotten, but steps may take minutes, and users come and go. */
#define FADE_S_MIN 60.0
#define RATE_FADE_S 60.0

/* Items that are dealt out one by one; of more, the end matters little. Who is the last to end is
 * chance, so it is done several times. */
#define DEALT_PER_PLACE 4u
#define DEALS 8u
#define PLACES_MAX 4096u

/* Multiples of these, without their whole parts, are spread evenly, also in pairs: powers of the
 * root of x^3 = x + 1 (Roberts, "The Unreasonable Effectiveness of Quasirandom Sequences"). */
#define SPREAD_1 0.7548776662466927
#define SPREAD_2 0.5698402909980532

/* Each sample counts a little as one whose steps had no tokens, which decides where nothing else
 * does. */
#define EMPTY_SHARE 0.05

enum { STEPS, PROMPT, MADE, PASTS, SECONDS, SUMS };

/* ---- costs -------------------------------------------------------------------------------------
 */

/* A long sample is worth as much as its seconds, not the square of them. */
static void add_sample(struct sl_batch_estimate *e, const struct sl_estimate_sample *s,
                       const double now[SUMS])
{
    const double wait_s = fmin(s->wait_seconds - e->last.wait_seconds, now[SECONDS]);
    const double empty_steps = EMPTY_SHARE * now[STEPS] / now[SECONDS];
    const double fade = exp(-now[SECONDS] / fmax(e->elapsed_s / 3, FADE_S_MIN));
    const double rate_fade = exp(-now[SECONDS] / RATE_FADE_S);
    const double n_decoding = (e->last.n_decoding + s->n_decoding) / 2.0;
    const bool is_full = e->last.items_wait && s->items_wait;

    for (int i = 0; i < SUMS; i++) {
        e->totals[i] = fade * e->totals[i] + now[i];
        for (int k = 0; k < SUMS; k++)
            e->products[i][k] = fade * e->products[i][k] + now[i] * now[k] / now[SECONDS];
    }
    e->products[STEPS][STEPS] += empty_steps * now[STEPS];
    e->products[STEPS][SECONDS] += empty_steps * wait_s;
    e->recent_s = rate_fade * e->recent_s + now[SECONDS];
    e->recent_tokens = rate_fade * e->recent_tokens + now[PROMPT] + now[MADE];
    e->elapsed_s += now[SECONDS];
    if (is_full)
        e->places = fmax(fade * e->places, s->n_begun);
    e->decode_steps = fade * e->decode_steps + n_decoding * now[STEPS];
    e->rows = fade * e->rows + s->prompt_rows * now[STEPS];
}

void sl_batch_estimate_note(struct sl_batch_estimate *e, const struct sl_estimate_sample *s)
{
    const double now[SUMS] = {s->steps - e->last.steps, s->prompt_tokens - e->last.prompt_tokens,
                              s->made_tokens - e->last.made_tokens, s->pasts - e->last.pasts,
                              s->seconds - e->last.seconds};

    if (e->has_last && (now[SECONDS] < SAMPLE_S || now[STEPS] < 1))
        return;
    if (e->has_last)
        add_sample(e, s, now);
    e->last = *s;
    e->has_last = true;
}

void sl_batch_estimate_pause(struct sl_batch_estimate *e)
{
    e->has_last = false;
}

double sl_batch_estimate_rate(const struct sl_batch_estimate *e)
{
    return e->recent_s > 0 ? e->recent_tokens / e->recent_s : 0;
}

/* Solves the normal equations of the unknowns in `mask`, by elimination. Returns false where they
 * cannot be told apart. */
static bool solve(const struct sl_batch_estimate *e, unsigned mask, double costs[SECONDS])
{
    double m[SECONDS][SUMS] = {{0}};
    int used[SECONDS], n = 0;

    for (int i = 0; i < SECONDS; i++)
        if (mask & 1u << i)
            used[n++] = i;
    for (int i = 0; i < n; i++) {
        for (int k = 0; k < n; k++)
            m[i][k] = e->products[used[i]][used[k]];
        m[i][SECONDS] = e->products[used[i]][SECONDS];
    }
    for (int i = 0; i < n; i++) {
        if (m[i][i] <= 1e-9 * e->products[used[i]][used[i]] || m[i][i] <= 0)
            return false;
        for (int k = 0; k < n; k++) {
            const double factor = k == i ? 0 : m[k][i] / m[i][i];

            for (int j = i; j < SUMS; j++)
                m[k][j] -= factor * m[i][j];
        }
    }
    memset(costs, 0, SECONDS * sizeof(*costs));
    for (int i = 0; i < n; i++)
        costs[used[i]] = m[i][SECONDS] / m[i][i];
    return true;
}

/* The sum of squares that is left, less what all have in common. */
static double residue(const struct sl_batch_estimate *e, const double costs[SECONDS])
{
    double sum = 0;

    for (int i = 0; i < SECONDS; i++) {
        sum -= 2 * costs[i] * e->products[i][SECONDS];
        for (int k = 0; k < SECONDS; k++)
            sum += costs[i] * costs[k] * e->products[i][k];
    }
    return sum;
}

/* Fifteen fits, of which the best without a negative cost counts; it tells one kind of work from
 * another. How fast they are together is known better. */
static bool fit(const struct sl_batch_estimate *e, double best[SECONDS])
{
    double least = INFINITY, sum = 0;

    for (unsigned mask = 1; mask < 1u << SECONDS; mask++) {
        double costs[SECONDS], left;
        bool is_sound = solve(e, mask, costs);

        for (int i = 0; is_sound && i < SECONDS; i++)
            is_sound = costs[i] >= 0;
        if (!is_sound)
            continue;
        left = residue(e, costs);
        if (left >= least)
            continue;
        least = left;
        memcpy(best, costs, sizeof(costs));
    }
    if (least == INFINITY)
        return false;
    for (int i = 0; i < SECONDS; i++)
        sum += best[i] * e->totals[i];
    for (int i = 0; i < SECONDS && sum > 0; i++)
        best[i] *= e->totals[SECONDS] / sum;
    return sum > 0;
}

/* ---- lengths of answers ------------------------------------------------------------------------
 */

void sl_answer_lengths_add(struct sl_answer_lengths *lengths, uint32_t n_tokens, bool is_cut)
{
    lengths->ended[lengths->n++ % SL_ANSWER_LENGTHS_MAX] =
        (struct sl_answer_length){n_tokens, is_cut};
}

static int compare_lengths(const void *a, const void *b)
{
    const struct sl_answer_length *x = a, *y = b;

    if (x->n_tokens != y->n_tokens)
        return x->n_tokens < y->n_tokens ? -1 : 1;
    return (int)x->is_cut - (int)y->is_cut;
}

/* A length at which an answer ended, or beyond which nobody has watched it yet. */
struct point {
    double length;
    double survives; /* the share of answers that are longer */
    double area;     /* of survival up to the length: the mean of answers that are cut there */
};

/* The lengths of a batch's answers, with those that are under way. Nobody was watched beyond the
 * last point; from there on, answers end as often as they have on the whole. */
struct lengths {
    struct point *points; /* (n) ascending */
    uint32_t n;
    double per_end; /* tokens that were made for each end; 0: none has ended */
};

static void survive(struct lengths *l, const struct sl_answer_length *all)
{
    struct point before = {0, 1, 0};
    double n_tokens = 0;
    uint32_t n_ends = 0;

    for (uint32_t i = 0; i < l->n; i++) {
        struct point *at = &l->points[i];

        at->length = all[i].n_tokens;
        at->area = before.area + before.survives * (at->length - before.length);
        at->survives = before.survives * (all[i].is_cut ? 1 : 1 - 1.0 / (l->n - i));
        n_tokens += at->length;
        n_ends += !all[i].is_cut;
        before = *at;
    }
    l->per_end = n_ends > 0 ? n_tokens / n_ends : 0;
}

/* Fails with -ENOMEM. */
static int collect(struct lengths *l, const struct sl_estimate_batch *batch)
{
    const uint32_t n_ended =
        batch->lengths->n < SL_ANSWER_LENGTHS_MAX ? batch->lengths->n : SL_ANSWER_LENGTHS_MAX;
    const size_t n_max = (size_t)n_ended + batch->n_running + 1;
    struct sl_answer_length *all = malloc(n_max * sizeof(*all));

    l->points = malloc(n_max * sizeof(*l->points));
    if (!all || !l->points) {
        free(all);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < n_ended; i++)
        all[l->n++] = batch->lengths->ended[i];
    for (uint32_t i = 0; i < batch->n_running; i++)
        if (batch->running[i].n_made > 0)
            all[l->n++] = (struct sl_answer_length){batch->running[i].n_made, true};
    qsort(all, l->n, sizeof(*all), compare_lengths);
    survive(l, all);
    free(all);
    return 0;
}

/* Whether anything is known of answers with this limit. */
static bool is_known(const struct lengths *l, uint64_t n_new_max)
{
    return l->per_end > 0 || n_new_max > 0;
}

/* Returns the last point at or before a length. */
static struct point point_before(const struct lengths *l, double length)
{
    uint32_t low = 0, high = l->n;

    while (low < high) {
        const uint32_t middle = (low + high) / 2;

        if (l->points[middle].length <= length)
            low = middle + 1;
        else
            high = middle;
    }
    return low > 0 ? l->points[low - 1] : (struct point){0, 1, 0};
}

static struct point point_at(const struct lengths *l, double length)
{
    struct point point = point_before(l, length);
    const double more = length - point.length;

    if (l->per_end > 0 && (l->n == 0 || length > l->points[l->n - 1].length)) {
        const double share = exp(-more / l->per_end);

        point.area += point.survives * l->per_end * (1 - share);
        point.survives *= share;
    } else if (more > 0) {
        point.area += point.survives * more;
    }
    point.length = length;
    return point;
}

/* Returns how many tokens an answer will have beyond the first n_made, on average. */
static double mean_beyond(const struct lengths *l, uint32_t n_made, double limit)
{
    const struct point from = point_at(l, n_made);

    if (from.survives <= 0 || limit <= n_made)
        return 1;
    return fmax((point_at(l, limit).area - from.area) / from.survives, 1);
}

/* Returns how many an answer has that is longer than this share of its like. */
static double long_beyond(const struct lengths *l, uint32_t n_made, double limit, double share)
{
    const double survives = point_at(l, n_made).survives * (1 - share);
    uint32_t low = 0, high = l->n;
    double length;

    while (low < high) {
        const uint32_t middle = (low + high) / 2;

        if (l->points[middle].survives > survives)
            low = middle + 1;
        else
            high = middle;
    }
    if (low < l->n)
        length = l->points[low].length;
    else if (l->per_end > 0 && survives > 0)
        length = (l->n > 0 ? l->points[l->n - 1].length : 0) +
                 l->per_end * log((l->n > 0 ? l->points[l->n - 1].survives : 1) / survives);
    else
        length = INFINITY;
    return fmax(fmin(length, limit) - n_made, 1);
}

static double limit_of(uint64_t n_new_max)
{
    return n_new_max > 0 ? (double)n_new_max : INFINITY;
}

/* ---- what waits --------------------------------------------------------------------------------
 */

void sl_estimate_waiting_add(struct sl_estimate_waiting *w, const struct sl_estimate_item *item,
                             int n)
{
    uint32_t class = 0;

    while (class < SL_ESTIMATE_LIMITS - 1 && item->n_new_max >> class > 0)
        class ++;
    w->prompt_tokens += item->prompt_tokens * (uint64_t)n;
    w->pasts += item->pasts * (uint64_t)n;
    w->n_texts += item->n_texts * (uint64_t)n;
    w->n_items += (uint32_t)n;
    w->limits[class].n_items += (uint64_t)n;
    w->limits[class].n_new_max += item->n_new_max * (uint64_t)n;
}

/* Returns the mean limit of a class that is not empty; 0: none is known. */
static uint64_t limit_in(const struct sl_estimate_waiting *w, uint32_t class)
{
    return w->limits[class].n_new_max / w->limits[class].n_items;
}

/* Returns the limit of the item that has so large a share of all before it. */
static uint64_t limit_at(const struct sl_estimate_waiting *w, double share)
{
    double before = 0;
    uint32_t last = 0;

    for (uint32_t class = 0; class < SL_ESTIMATE_LIMITS; class ++) {
        if (w->limits[class].n_items == 0)
            continue;
        before += (double)w->limits[class].n_items;
        last = class;
        if (before > share * w->n_items)
            break;
    }
    return limit_in(w, last);
}

static double fraction(double x)
{
    return x - floor(x);
}

/* ---- dealing -----------------------------------------------------------------------------------
 * Times are steps from now on. Prompts are taken in one after the other, as many tokens in a step
 * as there were on average, and then each text makes its tokens beside all others.
 */

struct deal {
    double *free_at; /* (n_places) a heap: the first place is free first */
    uint32_t n_places;
    double rows;       /* of prompts in a step */
    double pace;       /* tokens that a text makes in a step */
    double prompts_at; /* all prompts before are taken in */
    uint32_t n_taken, n_drawn;
};

/* Returns when an item ends. */
static double take(struct deal *d, double start, double prompt_tokens, double n_new)
{
    double at = start;

    if (prompt_tokens > 0) {
        d->prompts_at = fmax(d->prompts_at, start) + prompt_tokens / d->rows;
        at = fmax(d->prompts_at, start + 1);
    }
    return at + n_new / d->pace;
}

/* The first place is free at another time now. */
static void sift_down(struct deal *d)
{
    const double time = d->free_at[0];
    uint32_t i = 0, child;

    while ((child = 2 * i + 1) < d->n_places) {
        if (child + 1 < d->n_places && d->free_at[child + 1] < d->free_at[child])
            child++;
        if (d->free_at[child] >= time)
            break;
        d->free_at[i] = d->free_at[child];
        i = child;
    }
    d->free_at[i] = time;
}

/* Draws how many tokens an answer has beyond those made. */
static double draw(struct deal *d, const struct lengths *l, uint32_t n_made, double limit)
{
    return long_beyond(l, n_made, limit, fraction((d->n_drawn++ + 0.5) * SPREAD_1));
}

/* Returns when the last one ends. */
static double deal_running(struct deal *d, const struct sl_estimate_batch *batch,
                           const struct lengths *l)
{
    double last = 0;

    for (uint32_t i = 0; i < batch->n_running; i++) {
        const struct sl_estimate_item *item = &batch->running[i];
        const double n_new = draw(d, l, item->n_made, limit_of(item->n_new_max));
        const double end = take(d, 0, (double)item->prompt_tokens, n_new);

        last = fmax(last, end);
        if (d->n_taken++ < d->n_places) {
            d->free_at[0] = end;
            sift_down(d);
        }
    }
    return last;
}

/* Returns how many tokens an answer of those that wait will have, on average. */
static double mean_answer(const struct sl_estimate_waiting *w, const struct lengths *l)
{
    double sum = 0;

    for (uint32_t class = 0; class < SL_ESTIMATE_LIMITS; class ++)
        if (w->limits[class].n_items > 0)
            sum +=
                (double)w->limits[class].n_items * mean_beyond(l, 0, limit_of(limit_in(w, class)));
    return sum / w->n_items;
}

/* The first ones keep all places busy, or their prompts do. Returns when the last one ends. */
static double deal_waiting(struct deal *d, const struct sl_estimate_waiting *w,
                           const struct lengths *l)
{
    const uint64_t n_dealt_max = (uint64_t)DEALT_PER_PLACE * d->n_places;
    const uint32_t n_dealt = w->n_items < n_dealt_max ? w->n_items : (uint32_t)n_dealt_max;
    const double prompt = (double)w->prompt_tokens / w->n_items, intake = prompt / d->rows;
    const double place_steps = fmax(intake, 1) + mean_answer(w, l) / d->pace;
    const double busy = (w->n_items - n_dealt) * fmax(intake, place_steps / d->n_places);
    double last = 0;

    for (uint32_t i = 0; i < d->n_places; i++)
        d->free_at[i] += busy;
    d->prompts_at += busy;
    for (uint32_t i = 0; i < n_dealt; i++) {
        const double limit = limit_of(limit_at(w, fraction((d->n_drawn + 0.5) * SPREAD_2)));

        d->free_at[0] = take(d, d->free_at[0], prompt, draw(d, l, 0, limit));
        last = fmax(last, d->free_at[0]);
        sift_down(d);
    }
    return last;
}

static bool can_tell(const struct sl_estimate_batch *batch, const struct lengths *l)
{
    for (uint32_t i = 0; i < batch->n_running; i++)
        if (!is_known(l, batch->running[i].n_new_max))
            return false;
    return batch->waiting.limits[0].n_items == 0 || is_known(l, 0);
}

/* All that is under way goes on, and then the batches come one after the other. `ends` (n_batches)
 * tells when each has ended. */
static void deal(struct deal *d, const struct sl_estimate_batch *batches,
                 const struct lengths *lengths, uint32_t n_batches, double *ends)
{
    memset(d->free_at, 0, d->n_places * sizeof(*d->free_at));
    d->prompts_at = 0;
    d->n_taken = 0;
    for (uint32_t i = 0; i < n_batches; i++)
        ends[i] = deal_running(d, &batches[i], &lengths[i]);
    for (uint32_t i = 0; i < n_batches; i++)
        if (batches[i].waiting.n_items > 0)
            ends[i] = fmax(ends[i], deal_waiting(d, &batches[i].waiting, &lengths[i]));
}

/* Returns the seconds that the tokens of a batch take. */
static double token_seconds(const double costs[SECONDS], const struct sl_estimate_batch *batch,
                            const struct lengths *l)
{
    const struct sl_estimate_waiting *w = &batch->waiting;
    double prompt = (double)w->prompt_tokens, pasts = (double)w->pasts, made = 0;

    if (w->n_items > 0)
        made = (double)w->n_texts * mean_answer(w, l);
    for (uint32_t i = 0; i < batch->n_running; i++) {
        const struct sl_estimate_item *item = &batch->running[i];

        prompt += (double)item->prompt_tokens;
        pasts += (double)item->pasts;
        made += item->n_texts * mean_beyond(l, item->n_made, limit_of(item->n_new_max));
    }
    return costs[PROMPT] * prompt + costs[MADE] * made + costs[PASTS] * pasts;
}

static double quotient(double a, double b, double otherwise)
{
    return a > 0 && b > 0 ? a / b : otherwise;
}

/* Where nobody can tell of a batch, nobody can tell of those behind it. */
static void tell(const struct sl_batch_estimate *e, struct deal *d, const double costs[SECONDS],
                 const struct sl_estimate_batch *batches, const struct lengths *lengths,
                 uint32_t n_batches, double *ends, double *left)
{
    double before_s = 0;
    uint32_t n = 0;

    while (n < n_batches && can_tell(&batches[n], &lengths[n])) {
        before_s += token_seconds(costs, &batches[n], &lengths[n]);
        left[n++] = before_s;
    }
    d->rows = quotient(e->rows, e->totals[STEPS], INFINITY);
    d->pace = quotient(e->totals[MADE], e->decode_steps, 1);
    for (uint32_t i = 0; i < DEALS; i++) {
        deal(d, batches, lengths, n, ends);
        for (uint32_t k = 0; k < n; k++)
            left[k] += costs[STEPS] * ends[k] / DEALS;
    }
}

void sl_batch_estimate_left(const struct sl_batch_estimate *e,
                            const struct sl_estimate_batch *batches, uint32_t n_batches,
                            uint32_t n_places, double *ret_left)
{
    const double places = e->places > 0 ? fmin(round(e->places), n_places) : n_places;
    struct deal d = {.n_places = (uint32_t)fmax(fmin(places, PLACES_MAX), 1)};
    struct lengths *lengths = calloc((size_t)n_batches + 1, sizeof(*lengths));
    double *ends = calloc((size_t)n_batches + 1, sizeof(*ends)), costs[SECONDS] = {0};
    bool is_told = fit(e, costs) && lengths && ends;

    for (uint32_t i = 0; i < n_batches; i++) {
        ret_left[i] = -1;
        is_told = is_told && collect(&lengths[i], &batches[i]) == 0;
    }
    d.free_at = calloc(d.n_places, sizeof(*d.free_at));
    if (is_told && d.free_at)
        tell(e, &d, costs, batches, lengths, n_batches, ends, ret_left);
    free(d.free_at);
    for (uint32_t i = 0; lengths && i < n_batches; i++)
        free(lengths[i].points);
    free(lengths);
    free(ends);
}
