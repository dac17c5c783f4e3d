/* Computes the cost of a step for `sluice plan`: bytes from the drive and from RAM,
 * multiplications, and the time that a machine of given speeds takes for them.
 *
 * It ignores barriers, rounding up to tiles, and the growth of the context. Time adds up as in the
 * engine: in each layer, missing experts are read after the router has chosen, while resident ones
 * are multiplied; attention, shared experts and head come before or after that. So
 *
 *     step = max(all that the drive reads, dense work + max(reading experts, work on experts))
 *     work = max(reading from RAM, multiplying)
 *
 * Dense weights that stream are read ahead, also while there is dense work; and so are the experts
 * that a sweep prefetches: all, where a layer is demanded whole.
 *
 * Each token chooses for itself, but some experts are chosen more often: as the curve of what
 * caches find for one text has it, a cache holding those that are chosen most. So the 5.5 % of the
 * experts that serve 40 % of the requests are each chosen 7.3 times as often as the average one.
 * All steps, of one token or of thousands, go by that alone: how many experts they ask for, and how
 * many of those a cache has. It takes the texts of a batch to like the same experts; those that do
 * not are between this and even routing, in which all are chosen alike. Each expert is read at most
 * once in a step.
 *
 * Pure functions, for any thread. Rates are in 10^9 a second, which is one a nanosecond. */
#ifndef SL_TOOLS_PLAN_COST_H
#define SL_TOOLS_PLAN_COST_H

#include <stdbool.h>
#include <stdint.h>

#include "core/model/config.h"
#include "core/model/weight_source.h"

/* Multiplications by the kind of instruction that does them: FP4 experts and the indexer; FP8 and
 * BF16 weights, FP8 experts and attention; mHC. */
struct sl_multiplications {
    double int8, bf16, f32;
};

struct sl_machine_speeds {
    double drive;                       /* bytes */
    double memory;                      /* bytes read, all cores together */
    struct sl_multiplications multiply; /* that linears do with many tokens, likewise */
};

/* The dense weights that one token needs. Zeroed stands for none. */
struct sl_dense_cost {
    double read_bytes, head_bytes; /* the head is not in read_bytes */
    struct sl_multiplications multiplied;
    double head_multiplied; /* in BF16 */
};

/* Adds a dense tensor, named as in the checkpoint. */
void sl_cost_add_dense(struct sl_dense_cost *cost, const char *name,
                       const struct sl_tensor_info *info);

/* Sequences that are alike. */
struct sl_cost_part {
    uint32_t n_sequences;
    uint32_t n_tokens;    /* of each */
    uint32_t past_tokens; /* of each, before the step */
};

struct sl_cost_case {
    uint32_t n_sequences; /* these three as in a part */
    uint32_t n_tokens;
    uint32_t past_tokens;
    double hit_rate;                   /* of distinct experts: found in the cache */
    uint64_t streamed_bytes;           /* of dense weights, that the step reads from the drive */
    bool even;                         /* routing */
    const struct sl_cost_part *others; /* (n_others) further sequences */
    uint32_t n_others;
};

enum sl_cost_limit { SL_COST_DRIVE, SL_COST_MEMORY, SL_COST_MULTIPLY, SL_COST_LIMITS };

struct sl_cost {
    double n_experts;   /* distinct, over all layers */
    double drive_bytes; /* read from the drive: experts, and dense weights that stream */
    double memory_bytes;
    struct sl_multiplications multiplied;
    double drive_ns, memory_ns, multiply_ns; /* what each would take on its own */
    double compute_ns;                       /* with nothing to read from the drive */
    double step_ns;
    enum sl_cost_limit limit; /* the largest of the three */
};

void sl_cost_predict(const struct sl_config *config, const struct sl_dense_cost *dense,
                     const struct sl_cost_case *step, const struct sl_machine_speeds *speeds,
                     struct sl_cost *ret_cost);

/* Returns how many experts of a layer n_tokens ask for. */
double sl_cost_demanded(const struct sl_config *config, double n_tokens, bool even);

/* Returns the share of them that a cache of n_slots finds. It holds the experts that are chosen
 * most: the same share of each layer, which in a sweep is what is pinned. */
double sl_cost_found(const struct sl_config *config, uint64_t n_slots, double n_tokens, bool even);

/* Returns the share of requests that a cache of `share` (0 to 1) of all experts serves when one
 * text is decoded, as published for V4-Flash: 40 % at 5.5 %, 59 % at 11 %, 74 % at 22 %, 87 % at 44
 * %. Other shares are interpolated in straight lines, from 0 at 0 to 1 at 1. */
double sl_cost_flash_hit_rate(double share);

/* Returns the bytes of one packed expert. */
uint64_t sl_cost_expert_bytes(const struct sl_config *config);

#endif
