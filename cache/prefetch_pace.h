/* When a prediction of experts pays: learnt as it runs.
 *
 * Whether to predict at all is tried. A visit of a layer is predicted for or not, by chance; how
 * long visits of either kind take tells what predictions gain, all that they cost included: the
 * time of computing them, and the drives, cores and memory that their reads keep from others. The
 * layer's mean is taken out of each time first, and what the number of missing experts explains of
 * it. Beside that, the slots that are kept empty for predictions cost what they would have held: of
 * n_slots slots that find n_found experts a visit, each finds n_found / n_slots at most.
 * Predictions are made while they gain beyond the error of the means; else one in so many visits
 * tries again.
 *
 * Which experts to read is reckoned. A predicted expert is read in the time between two demands in
 * which the drives would have had nothing to do. What of it has been asked of them when the demand
 * comes was gained if the demand names the expert. If not, the demand has lost the time of what is
 * in flight just then. So of an expert that is foreseen with probability p, of which `bytes` can be
 * read in that time,
 *
 *     gain = p * bytes - (1 - p) * bytes in flight
 *
 * and it is read where that is positive.
 *
 * Pure: no clock, no threads. Times are nanoseconds. */
#ifndef SL_CACHE_PREFETCH_PACE_H
#define SL_CACHE_PREFETCH_PACE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/arena.h"

/* Places in the list of predicted experts, best first, whose precision is learnt apart. */
#define SL_PACE_RANKS 8u

/* At most this share of the slots is kept empty for predictions. */
#define SL_PACE_SPARE_SHARE 32u

struct sl_pace_layer {
    double idle_ns;              /* before its demands; negative: not known yet */
    double visit_ns, n_missing;  /* of a visit, in the mean; negative: not known yet */
    double named[SL_PACE_RANKS]; /* predicted experts that were missing, */
    double right[SL_PACE_RANKS]; /* and of these, those demanded */
};

/* Visits that were predicted for, or were not. */
struct sl_pace_kind {
    double n, mean_ns; /* beyond what is expected of a visit */
};

struct sl_prefetch_pace {
    uint32_t n_layers;
    uint32_t n_slots; /* of the cache; its owner changes it */
    uint64_t expert_bytes;
    double bytes_per_ns; /* of the drives while a demand waits for them; 0: not known yet */
    double idle_ns;      /* before a demand, over all layers */
    double n_found;      /* experts of a demand that were resident */
    double missing_missing, missing_ns; /* how the number of missing experts varies, and time
                                         * with it */
    double variance_ns;                 /* of the times, in their square */
    struct sl_pace_kind kinds[2];       /* not predicted for, predicted for */
    uint64_t random;
    struct sl_pace_layer *layers;
};

/* Takes memory for n_layers, which is set, as expert_bytes is. With a mapped arena, start()
 * follows. */
void sl_pace_carve(struct sl_prefetch_pace *pace, struct sl_arena *arena);
void sl_pace_start(struct sl_prefetch_pace *pace);

/* Returns whether to compute a prediction for the visit that comes next. */
bool sl_pace_wants(struct sl_prefetch_pace *pace);

/* Returns how many slots a prediction may fill; they stay empty for the next one while it is_on(),
 * which says that predictions have been found to pay. */
uint32_t sl_pace_spare_slots(const struct sl_prefetch_pace *pace);
bool sl_pace_is_on(const struct sl_prefetch_pace *pace);

/* Returns whether it pays to begin reading an expert that was predicted for the layer at this rank,
 * where begun_bytes of others have been asked of the drives already. */
bool sl_pace_pays(const struct sl_prefetch_pace *pace, uint32_t layer_index, uint32_t rank,
                  uint64_t begun_bytes);

/* Returns how many bytes may be in flight for predictions. */
uint64_t sl_pace_flight_bytes(const struct sl_prefetch_pace *pace);

/* The drives took elapsed_ns for so many bytes that a demand waited for. */
void sl_pace_read(struct sl_prefetch_pace *pace, uint64_t size_bytes, uint64_t elapsed_ns);

/* The demand has come that a prediction was meant for: the drives had idle_ns until then. */
void sl_pace_idled(struct sl_prefetch_pace *pace, uint32_t layer_index, uint64_t idle_ns);

/* Whether the demand named an expert that was predicted at this rank and not resident. */
void sl_pace_judge(struct sl_prefetch_pace *pace, uint32_t layer_index, uint32_t rank,
                   bool is_right);

struct sl_pace_visit {
    uint32_t layer_index;
    bool is_predicted;
    double n_missing;    /* experts that it may have waited for; those that its prediction brought
                          * are counted too */
    uint32_t n_found;    /* the demand's others */
    uint64_t elapsed_ns; /* from wants() to the demand's end */
};
void sl_pace_visited(struct sl_prefetch_pace *pace, const struct sl_pace_visit *visit);

#endif
