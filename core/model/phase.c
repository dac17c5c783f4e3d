#include "core/model/phase.h"

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
