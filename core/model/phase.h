/* The kinds of work that a step's time goes to: the phases of the pool's account, by name.
 *
 * Whoever runs a job names its phase (sl_pool_run(), sl_linear_run()). What a step does between
 * its jobs belongs to the rest. */
#ifndef SL_MODEL_PHASE_H
#define SL_MODEL_PHASE_H

#include "core/base/account.h"

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

_Static_assert(SL_PHASES <= SL_ACCOUNT_PHASES, "the account has room for each");

/* "attention projections" and so on. */
const char *sl_phase_name(enum sl_phase phase);

#endif
