#include "core/base/phase.h"

const char *sl_phase_name(enum sl_phase phase)
{
    static const char *const names[SL_PHASES] = {
        [SL_PHASE_OUTSIDE] = "outside",
        [SL_PHASE_ATTENTION_LINEARS] = "attention projections",
        [SL_PHASE_SHARED_LINEARS] = "shared expert",
        [SL_PHASE_ROUTED_LINEARS] = "routed experts",
        [SL_PHASE_HEAD] = "head",
        [SL_PHASE_ATTENTION] = "attention",
        [SL_PHASE_INDEXER] = "indexer",
        [SL_PHASE_COMPRESSOR] = "compressor",
        [SL_PHASE_HYPER_CONNECTION] = "mHC",
        [SL_PHASE_ROUTER] = "router",
        [SL_PHASE_QUANTISE] = "quantise",
        [SL_PHASE_DRIVE] = "waiting for the drive",
        [SL_PHASE_REPACK] = "repacking",
        [SL_PHASE_REST] = "rest",
    };

    return names[phase];
}

struct sl_phase_counters sl_phase_difference(const struct sl_phase_counters *from,
                                             const struct sl_phase_counters *to)
{
    struct sl_phase_counters d;

    for (int i = 0; i < SL_PHASES; i++) {
        d.of[i].work_ns = to->of[i].work_ns - from->of[i].work_ns;
        d.of[i].wait_ns = to->of[i].wait_ns - from->of[i].wait_ns;
        d.of[i].read_bytes = to->of[i].read_bytes - from->of[i].read_bytes;
        d.of[i].multiplications = to->of[i].multiplications - from->of[i].multiplications;
        d.of[i].n_barriers = to->of[i].n_barriers - from->of[i].n_barriers;
    }
    return d;
}
