/* What a step's time goes to.
 *
 * The thread pool keeps the account (core/base/pool.h), since whoever takes part in a step has it
 * at hand. Each moment of the thread that drives the pool belongs to one phase, as work or, where
 * the threads of a job waited for each other, as waiting: so both of all phases of a step add up to
 * its time on the clock. */
#ifndef SL_BASE_PHASE_H
#define SL_BASE_PHASE_H

#include <stdint.h>

enum sl_phase {
    SL_PHASE_OUTSIDE, /* no step is running, or the function that a step's caller passed is */
    SL_PHASE_ATTENTION_LINEARS, /* all projections of the attention half, indexer's included */
    SL_PHASE_SHARED_LINEARS,
    SL_PHASE_ROUTED_LINEARS,
    SL_PHASE_HEAD, /* and the projections in front of the MTP block */
    SL_PHASE_ATTENTION,
    SL_PHASE_INDEXER,
    SL_PHASE_COMPRESSOR,
    SL_PHASE_HYPER_CONNECTION,
    SL_PHASE_ROUTER,   /* with its linear */
    SL_PHASE_QUANTISE, /* activations, to what linears read */
    SL_PHASE_DRIVE,    /* waiting for it */
    SL_PHASE_REPACK,
    SL_PHASE_REST,
    SL_PHASES,
};

struct sl_phase_counters {
    struct {
        uint64_t work_ns;
        uint64_t wait_ns;         /* in barriers: the mean of the threads' */
        uint64_t read_bytes;      /* of weights, KV entries and indexer keys; each once a job */
        uint64_t multiplications; /* by them */
        uint64_t n_barriers;      /* jobs begun in this phase that took more than one thread */
    } of[SL_PHASES];
};

/* "attention projections" and so on. */
const char *sl_phase_name(enum sl_phase phase);

/* What was added between two readings. */
struct sl_phase_counters sl_phase_difference(const struct sl_phase_counters *from,
                                             const struct sl_phase_counters *to);

#endif
