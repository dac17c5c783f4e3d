#include "core/text/sampler.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/size.h"

struct sl_candidate {
    double weight; /* probability over that of the best token */
    float logit;
    uint32_t id;
};

/* One step of splitmix64's counter, and its mix of a number's bits into all others. */
#define COUNTER_STEP UINT64_C(0x9E3779B97F4A7C15)

static uint64_t mix(uint64_t z)
{
    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    return z ^ z >> 31;
}

/* A number of 53 bits from 0 up to but not including 1: splitmix64 with the position for its
 * counter. The seed is mixed first, so that neighbouring seeds are far apart on the counter. */
static double draw(uint64_t seed, uint64_t position)
{
    return (double)(mix(mix(seed + COUNTER_STEP) + (position + 1) * COUNTER_STEP) >> 11) * 0x1p-53;
}

/* exp(x) for x <= 0, within 2e-16: 2^k times a polynomial in what is left, at most ln(2)/2 in
 * size. libm's would differ in the last bit from machine to machine. */
static double exp_of_negative(double x)
{
    static const double ln2_high = 0x1.62e42feep-1, ln2_low = 0x1.a39ef35793c76p-33;
    static const double factors[] = {/* 1/12! to 1/0! */
                                     1.0 / 479001600,
                                     1.0 / 39916800,
                                     1.0 / 3628800,
                                     1.0 / 362880,
                                     1.0 / 40320,
                                     1.0 / 5040,
                                     1.0 / 720,
                                     1.0 / 120,
                                     1.0 / 24,
                                     1.0 / 6,
                                     1.0 / 2,
                                     1.0,
                                     1.0};
    double r, sum = 1.0 / 6227020800; /* 1/13! */
    uint64_t bits;
    int64_t k;

    if (!(x > -700.0)) /* below 1e-304: no draw of 53 bits can tell it from 0 */
        return 0.0;
    k = (int64_t)(x * 0x1.71547652b82fep+0 - 0.5); /* nearest, since x <= 0 and casts cut off */
    r = (x - (double)k * ln2_high) - (double)k * ln2_low;
    for (size_t i = 0; i < SL_ARRAY_LEN(factors); i++)
        sum = sum * r + factors[i];
    bits = (uint64_t)(k + 1023) << 52;
    memcpy(&r, &bits, sizeof(r));
    return sum * r;
}

static int check_param(const char *name, double value, double min, double max, struct sl_err *err)
{
    if (value >= min && value <= max)
        return 0;
    return sl_err_set(err, -EINVAL, "%s is %g, expected %g to %g", name, value, min, max);
}

int sl_sampler_check(const struct sl_sampler *sampler, struct sl_err *err)
{
    int rc = check_param("temperature", sampler->temperature, 0, 1e6, err);

    if (rc == 0)
        rc = check_param("top-p", sampler->top_p, 1e-9, 1, err);
    return rc < 0 ? rc : check_param("min-p", sampler->min_p, 0, 1, err);
}

struct sl_candidate *sl_sampler_carve_scratch(struct sl_arena *arena, uint32_t n_vocab)
{
    return sl_arena_take(arena, n_vocab, sizeof(struct sl_candidate));
}

/* Whether a comes before b. */
static bool better(const struct sl_candidate *a, const struct sl_candidate *b)
{
    return a->logit > b->logit || (a->logit == b->logit && a->id < b->id);
}

/* Puts `item` at place i of a heap of n whose best is at 0, moving down from there. */
static void sift_down(struct sl_candidate *heap, uint32_t n, uint32_t i, struct sl_candidate item)
{
    uint32_t child;

    while ((child = 2 * i + 1) < n) {
        if (child + 1 < n && better(&heap[child + 1], &heap[child]))
            child++;
        if (!better(&heap[child], &item))
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = item;
}

/* Moves the best of a heap of n to its last place, heap[n - 1], leaving a heap of n - 1. */
static void pop_to_end(struct sl_candidate *heap, uint32_t n)
{
    struct sl_candidate last = heap[n - 1];

    heap[n - 1] = heap[0];
    if (n > 1)
        sift_down(heap, n - 1, 0, last);
}

/* Brings the best of n candidates, one by one, to the end of the array, as far as top-k and top-p
 * want them. Returns how many: they lie best last. A heap does this without sorting all. */
static uint32_t select_best(const struct sl_sampler *sampler, struct sl_candidate *heap, uint32_t n,
                            double total)
{
    uint32_t limit = sampler->top_k, kept;
    double top_p = sampler->top_p, sum = 0;
    bool cut = limit > 0 && limit < n;

    if (!cut)
        limit = n;
    for (uint32_t i = n / 2; i-- > 0;)
        sift_down(heap, n, i, heap[i]);
    if (cut) {
        total = 0; /* top-p is a share of what top-k leaves */
        for (uint32_t i = 0; i < limit; i++) {
            pop_to_end(heap, n - i);
            total += heap[n - i - 1].weight;
        }
    }
    if (top_p == 1)
        return limit;
    for (kept = 0; kept < limit && sum < top_p * total; kept++) {
        if (!cut)
            pop_to_end(heap, n - kept);
        sum += heap[n - kept - 1].weight;
    }
    return kept;
}

/* Fills the candidates in order of id, leaving out those without weight. */
static uint32_t weigh(double temperature, const float *logits, uint32_t n_vocab, float best,
                      struct sl_candidate *candidates, double *ret_total)
{
    double total = 0, weight;
    uint32_t n = 0;

    for (uint32_t id = 0; id < n_vocab; id++) {
        weight = exp_of_negative(((double)logits[id] - best) / temperature);
        if (weight == 0)
            continue;
        candidates[n++] = (struct sl_candidate){.weight = weight, .logit = logits[id], .id = id};
        total += weight;
    }
    *ret_total = total;
    return n;
}

/* Chooses the candidate below whose sum of weights `share` of the total lies. */
static uint32_t choose(const struct sl_sampler *sampler, const struct sl_candidate *first,
                       uint32_t n_kept, double share)
{
    double total = 0, target, sum = 0;
    uint32_t id = 0;

    for (uint32_t i = 0; i < n_kept; i++)
        if (first[i].weight >= sampler->min_p)
            total += first[i].weight;
    target = share * total;
    /* Rounding may leave the sum a hair short of the target: then the last candidate it is. */
    for (uint32_t i = 0; i < n_kept && sum <= target; i++) {
        if (first[i].weight < sampler->min_p)
            continue;
        sum += first[i].weight;
        id = first[i].id;
    }
    return id;
}

int sl_sampler_sample(const struct sl_sampler *sampler, uint64_t position, const float *logits,
                      uint32_t n_vocab, struct sl_candidate *scratch, uint32_t *ret_id,
                      struct sl_err *err)
{
    uint32_t best = 0, n, n_kept;
    double total;

    for (uint32_t id = 0; id < n_vocab; id++) {
        if (!(logits[id] < INFINITY))
            return sl_err_set(err, -SL_ECORRUPT, "the logit of token %u is %g, expected a number",
                              id, (double)logits[id]);
        if (logits[id] > logits[best])
            best = id;
    }
    if (logits[best] == -INFINITY)
        return sl_err_set(err, -SL_ECORRUPT, "all logits are minus infinity: no token to choose");
    if (sampler->temperature == 0) {
        *ret_id = best;
        return 0;
    }
    n = n_kept = weigh(sampler->temperature, logits, n_vocab, logits[best], scratch, &total);
    if ((sampler->top_k > 0 && sampler->top_k < n) || sampler->top_p < 1)
        n_kept = select_best(sampler, scratch, n, total);
    *ret_id = choose(sampler, scratch + n - n_kept, n_kept, draw(sampler->seed, position));
    return 0;
}
