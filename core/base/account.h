/* Where the time of the thread that drives the pool goes.
 *
 * Time is booked by phases, which are numbers here, and the pool keeps the account
 * (core/base/pool.h), since whoever takes part in a job has the pool at hand. What a phase stands
 * for is its user's to say: for the model's steps core/model/phase.h does. Each moment belongs to
 * one phase, as work or, where the threads of a job waited for each other, as waiting: both, added
 * up over all phases, make the time on the clock. */
#ifndef SL_BASE_ACCOUNT_H
#define SL_BASE_ACCOUNT_H

#include <stdint.h>

#define SL_ACCOUNT_PHASES 16u

struct sl_account {
    struct {
        uint64_t work_ns;
        uint64_t wait_ns;         /* in barriers: the mean of the threads' */
        uint64_t read_bytes;      /* of weights, KV entries and indexer keys; each once a job */
        uint64_t multiplications; /* by them */
        uint64_t n_barriers;      /* jobs of this phase that took more than one thread */
    } of[SL_ACCOUNT_PHASES];
};

/* Returns what was added between two readings. */
struct sl_account sl_account_difference(const struct sl_account *from, const struct sl_account *to);

#endif
