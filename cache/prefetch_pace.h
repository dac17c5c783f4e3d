/* When a prediction of experts pays: learnt as it runs, for each layer.
 *
 * A predicted expert is read in the time between two demands in which the drives would have had
 * nothing to do. What of it has been asked of them when the demand comes was gained if the demand
 * names the expert. If not, the demand has lost the time of what is in flight just then. So of an
 * expert that is foreseen with probability p, of which `bytes` can be read in that time,
 *
 *     gain = p * bytes - (1 - p) * bytes in flight
 *
 * and it is read where that is positive. A prediction as a whole takes time to compute, which is
 * worth it where the layer's predictions have gained more. Where they have not, one in so many is
 * made all the same, to see whether things have changed.
 *
 * Pure: no clock, no threads. Times are nanoseconds. */
#ifndef SL_CACHE_PREFETCH_PACE_H
#define SL_CACHE_PREFETCH_PACE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/arena.h"

/* Places in the list of predicted experts, best first, whose precision is learnt apart. */
#define SL_PACE_RANKS 8u

struct sl_pace_layer {
    double idle_ns; /* before its demands; negative: not known yet */
    double gain_ns, cost_ns;
    double named[SL_PACE_RANKS], right[SL_PACE_RANKS]; /* predicted experts that were missing */
    uint32_t n_skipped;                                /* predictions since one was made */
};

struct sl_prefetch_pace {
    uint32_t n_layers;
    uint64_t expert_bytes;
    double bytes_per_ns; /* of the drives while a demand waits for them; 0: not known yet */
    struct sl_pace_layer *layers;
};

/* Takes memory for n_layers, which is set, as expert_bytes is. With a mapped arena, start()
 * follows. */
void sl_pace_carve(struct sl_prefetch_pace *pace, struct sl_arena *arena);
void sl_pace_start(struct sl_prefetch_pace *pace);

/* Returns whether to compute a prediction of the layer's experts. */
bool sl_pace_wants(struct sl_prefetch_pace *pace, uint32_t layer_index);

/* Returns whether it pays to begin reading an expert that was predicted for the layer at this rank,
 * where begun_bytes of others have been asked of the drives already. */
bool sl_pace_pays(const struct sl_prefetch_pace *pace, uint32_t layer_index, uint32_t rank,
                  uint64_t begun_bytes);

/* Returns how many bytes may be in flight for predictions. */
uint64_t sl_pace_flight_bytes(const struct sl_prefetch_pace *pace);

/* The drives took elapsed_ns for so many bytes that a demand waited for. */
void sl_pace_read(struct sl_prefetch_pace *pace, uint64_t size_bytes, uint64_t elapsed_ns);

/* The demand has come that a prediction was meant for: the drives had idle_ns until then; computing
 * it took cost_ns; right_bytes of experts that the demand named had been asked of the drives, and
 * wasted_bytes of others were in flight. */
void sl_pace_predicted(struct sl_prefetch_pace *pace, uint32_t layer_index, uint64_t idle_ns,
                       uint64_t cost_ns, uint64_t right_bytes, uint64_t wasted_bytes);

/* Whether the demand named an expert that was predicted at this rank and not resident. */
void sl_pace_judge(struct sl_prefetch_pace *pace, uint32_t layer_index, uint32_t rank,
                   bool is_right);

#endif
