#include "cache/prefetch_pace.h"

#include <math.h>

#include "core/base/assert.h"

/* Weight of the newest value in a running mean, and of the past in counts. */
#define NEWEST (1.0 / 16)
#define KEPT (1 - NEWEST / 4)

/* Weight of the past among visits: what is compared are about the latest 128 of either kind. */
#define VISITS_KEPT (1 - 1.0 / 128)

/* Visits of either kind that must have been seen. */
#define TRIALS 8.0

/* One visit in so many is of the other kind: until predictions have been tried, while they pay,
 * while nothing is certain, and where they cost. */
#define TRY_FIRST 4u
#define TRY_WITHOUT 16u
#define TRY_UNSURE 32u
#define TRY_COSTLY 128u

/* Predictions that cost this many standard errors are certain to. */
#define ERRORS_COSTLY 2.0

/* Reads in flight when a demand comes keep it from the drives for about this time. */
#define FLIGHT_NS 400e3

/* Counts that a rank begins with, so that it is tried. */
#define NAMED_FIRST 2.0
#define RIGHT_FIRST 1.5

void sl_pace_carve(struct sl_prefetch_pace *pace, struct sl_arena *arena)
{
    pace->layers = sl_arena_take(arena, pace->n_layers, sizeof(*pace->layers));
}

void sl_pace_start(struct sl_prefetch_pace *pace)
{
    *pace = (struct sl_prefetch_pace){.n_layers = pace->n_layers,
                                      .n_slots = pace->n_slots,
                                      .expert_bytes = pace->expert_bytes,
                                      .idle_ns = -1,
                                      .layers = pace->layers};
    for (uint32_t i = 0; i < pace->n_layers; i++) {
        pace->layers[i] = (struct sl_pace_layer){.idle_ns = -1, .visit_ns = -1};
        for (uint32_t rank = 0; rank < SL_PACE_RANKS; rank++) {
            pace->layers[i].named[rank] = NAMED_FIRST;
            pace->layers[i].right[rank] = RIGHT_FIRST;
        }
    }
}

static uint32_t rank_of(uint32_t rank)
{
    return rank < SL_PACE_RANKS ? rank : SL_PACE_RANKS - 1;
}

static void mean(double *value, double newest)
{
    *value += (newest - *value) * NEWEST;
}

/* ---- whether to predict ------------------------------------------------------------------------
 */

static double expert_ns(const struct sl_prefetch_pace *pace)
{
    return (double)pace->expert_bytes / pace->bytes_per_ns;
}

/* Predictions that are tried take the place of others for a moment; those that are made all the
 * time keep slots from the cache. */
static double spare_cost_ns(const struct sl_prefetch_pace *pace)
{
    return sl_pace_spare_slots(pace) * pace->n_found / pace->n_slots * expert_ns(pace);
}

static bool is_tried(const struct sl_prefetch_pace *pace)
{
    return pace->kinds[0].n >= TRIALS && pace->kinds[1].n >= TRIALS;
}

/* Returns what a prediction costs, beside its spare slots, and the standard error of that. */
static double cost_ns(const struct sl_prefetch_pace *pace, double *ret_error_ns)
{
    *ret_error_ns = sqrt(pace->variance_ns * (1 / pace->kinds[0].n + 1 / pace->kinds[1].n));
    return pace->kinds[1].mean_ns - pace->kinds[0].mean_ns;
}

bool sl_pace_is_on(const struct sl_prefetch_pace *pace)
{
    double error_ns;

    return is_tried(pace) && cost_ns(pace, &error_ns) + spare_cost_ns(pace) + error_ns < 0;
}

static bool is_costly(const struct sl_prefetch_pace *pace)
{
    double error_ns, ns;

    if (!is_tried(pace))
        return false;
    ns = cost_ns(pace, &error_ns);
    return ns > ERRORS_COSTLY * error_ns;
}

/* Knuth's MMIX generator. */
static bool happens(struct sl_prefetch_pace *pace, uint32_t one_in)
{
    pace->random = pace->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (pace->random >> 32) % one_in == 0;
}

bool sl_pace_wants(struct sl_prefetch_pace *pace)
{
    if (pace->bytes_per_ns == 0 || sl_pace_spare_slots(pace) == 0)
        return false; /* nothing has been missing yet, or there is no room */
    if (sl_pace_is_on(pace))
        return !happens(pace, TRY_WITHOUT);
    return happens(pace, is_costly(pace)              ? TRY_COSTLY
                         : pace->kinds[1].n >= TRIALS ? TRY_UNSURE
                                                      : TRY_FIRST);
}

uint32_t sl_pace_spare_slots(const struct sl_prefetch_pace *pace)
{
    const uint32_t n_max = pace->n_slots / SL_PACE_SPARE_SHARE;
    const double n = pace->idle_ns > 0 ? ceil(pace->idle_ns / expert_ns(pace)) : 1;

    return n < 1 && n_max > 0 ? 1 : n < n_max ? (uint32_t)n : n_max;
}

/* Returns how much longer the visit took than visits of its layer do that are not predicted for and
 * miss as many experts. */
static double excess_ns(struct sl_prefetch_pace *pace, const struct sl_pace_visit *visit)
{
    struct sl_pace_layer *layer = &pace->layers[visit->layer_index];
    const double n_more = visit->n_missing - layer->n_missing, max_ns = layer->visit_ns;
    const double more_ns = (double)visit->elapsed_ns - layer->visit_ns;
    double slope_ns = 0, ns;

    if (pace->missing_missing > 0 && pace->missing_ns > 0)
        slope_ns = pace->missing_ns / pace->missing_missing;
    pace->missing_missing = pace->missing_missing * VISITS_KEPT + n_more * n_more;
    pace->missing_ns = pace->missing_ns * VISITS_KEPT + n_more * more_ns;
    /* Without what is known of predictions the mean would follow how many of them there are. */
    mean(&layer->visit_ns,
         (double)visit->elapsed_ns -
             (visit->is_predicted ? pace->kinds[1].mean_ns - pace->kinds[0].mean_ns : 0));
    mean(&layer->n_missing, visit->n_missing);
    ns = more_ns - slope_ns * n_more;
    /* More is an interruption. */
    return ns > max_ns ? max_ns : ns < -max_ns ? -max_ns : ns;
}

void sl_pace_visited(struct sl_prefetch_pace *pace, const struct sl_pace_visit *visit)
{
    struct sl_pace_layer *layer = &pace->layers[visit->layer_index];
    struct sl_pace_kind *kind = &pace->kinds[visit->is_predicted];
    double ns, more_ns;

    sl_assert(visit->layer_index < pace->n_layers);
    mean(&pace->n_found, visit->n_found);
    if (layer->visit_ns < 0) {
        layer->visit_ns = (double)visit->elapsed_ns;
        layer->n_missing = visit->n_missing;
        return;
    }
    ns = excess_ns(pace, visit);
    more_ns = ns - kind->mean_ns;
    kind->n = kind->n * VISITS_KEPT + 1;
    kind->mean_ns += more_ns / kind->n;
    pace->variance_ns += (more_ns * (ns - kind->mean_ns) - pace->variance_ns) /
                         (pace->kinds[0].n + pace->kinds[1].n);
}

/* ---- what to read ------------------------------------------------------------------------------
 */

uint64_t sl_pace_flight_bytes(const struct sl_prefetch_pace *pace)
{
    return (uint64_t)(pace->bytes_per_ns * FLIGHT_NS);
}

bool sl_pace_pays(const struct sl_prefetch_pace *pace, uint32_t layer_index, uint32_t rank,
                  uint64_t begun_bytes)
{
    const struct sl_pace_layer *layer = &pace->layers[layer_index];
    const double p = layer->right[rank_of(rank)] / layer->named[rank_of(rank)];
    double bytes = pace->bytes_per_ns > 0 ? (double)pace->expert_bytes : 0,
           flight_bytes = (double)sl_pace_flight_bytes(pace);

    if (layer->idle_ns >= 0) {
        const double left = layer->idle_ns * pace->bytes_per_ns - (double)begun_bytes;

        bytes = bytes < left ? bytes : left;
    }
    if (flight_bytes > (double)pace->expert_bytes)
        flight_bytes = (double)pace->expert_bytes;
    return p * bytes > (1 - p) * flight_bytes;
}

void sl_pace_read(struct sl_prefetch_pace *pace, uint64_t size_bytes, uint64_t elapsed_ns)
{
    const double rate = (double)size_bytes / (double)(elapsed_ns ? elapsed_ns : 1);

    if (pace->bytes_per_ns == 0)
        pace->bytes_per_ns = rate;
    else
        mean(&pace->bytes_per_ns, rate);
}

void sl_pace_idled(struct sl_prefetch_pace *pace, uint32_t layer_index, uint64_t idle_ns)
{
    struct sl_pace_layer *layer = &pace->layers[layer_index];

    if (layer->idle_ns < 0)
        layer->idle_ns = (double)idle_ns;
    if (pace->idle_ns < 0)
        pace->idle_ns = (double)idle_ns;
    mean(&layer->idle_ns, (double)idle_ns);
    mean(&pace->idle_ns, (double)idle_ns);
}

void sl_pace_judge(struct sl_prefetch_pace *pace, uint32_t layer_index, uint32_t rank,
                   bool is_right)
{
    struct sl_pace_layer *layer = &pace->layers[layer_index];
    double *named = &layer->named[rank_of(rank)], *right = &layer->right[rank_of(rank)];

    *named = *named * KEPT + 1;
    *right = *right * KEPT + is_right;
}
