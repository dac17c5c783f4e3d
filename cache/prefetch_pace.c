#include "cache/prefetch_pace.h"

#include "core/base/assert.h"

/* Weight of the newest value in a running mean, and of the past in counts. */
#define NEWEST (1.0 / 16)
#define KEPT (1 - NEWEST / 4)

/* Predictions that are passed over for each that is made where they do not pay. */
#define SKIPPED 31u

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
    pace->bytes_per_ns = 0;
    for (uint32_t i = 0; i < pace->n_layers; i++) {
        pace->layers[i] = (struct sl_pace_layer){.idle_ns = -1};
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

bool sl_pace_wants(struct sl_prefetch_pace *pace, uint32_t layer_index)
{
    struct sl_pace_layer *layer = &pace->layers[layer_index];

    sl_assert(layer_index < pace->n_layers);
    if (pace->bytes_per_ns == 0) /* nothing has been missing yet */
        return false;
    if (layer->idle_ns >= 0 && layer->gain_ns <= layer->cost_ns && layer->n_skipped < SKIPPED) {
        layer->n_skipped++;
        return false;
    }
    layer->n_skipped = 0;
    return true;
}

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

void sl_pace_predicted(struct sl_prefetch_pace *pace, uint32_t layer_index, uint64_t idle_ns,
                       uint64_t cost_ns, uint64_t right_bytes, uint64_t wasted_bytes)
{
    struct sl_pace_layer *layer = &pace->layers[layer_index];
    double gain_ns;

    if (pace->bytes_per_ns == 0) /* nothing was read for it */
        return;
    gain_ns = ((double)right_bytes - (double)wasted_bytes) / pace->bytes_per_ns;
    if (layer->idle_ns < 0) {
        layer->idle_ns = (double)idle_ns;
        layer->gain_ns = gain_ns;
        layer->cost_ns = (double)cost_ns;
        return;
    }
    mean(&layer->idle_ns, (double)idle_ns);
    mean(&layer->gain_ns, gain_ns);
    mean(&layer->cost_ns, (double)cost_ns);
}

void sl_pace_judge(struct sl_prefetch_pace *pace, uint32_t layer_index, uint32_t rank,
                   bool is_right)
{
    struct sl_pace_layer *layer = &pace->layers[layer_index];
    double *named = &layer->named[rank_of(rank)], *right = &layer->right[rank_of(rank)];

    *named = *named * KEPT + 1;
    *right = *right * KEPT + is_right;
}
