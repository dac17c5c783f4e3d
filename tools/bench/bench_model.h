/* The runs that `sluice bench decode` and `prefill` measure, and their figures. */
#ifndef SL_TOOLS_BENCH_BENCH_MODEL_H
#define SL_TOOLS_BENCH_BENCH_MODEL_H

#include "daemon/engine/engine.h"
#include "tools/bench/bench.h"
#include "tools/bench/bench_run.h"

/* One kind of steps, and the runs that were made of them. */
struct sl_bench_level {
    const struct sl_engine *engine; /* these are borrowed */
    const struct sl_bench *bench;
    bool prefill;
    bool resident; /* all experts are */
    bool cold;
    uint32_t n_tokens;    /* of one run, and of each text in it */
    uint32_t n_texts;     /* in lockstep */
    uint32_t prompt_rows; /* of another text, in each step */
    uint32_t position;    /* as it was asked for; 0: it was not */
    struct sl_bench_run runs[SL_BENCH_RUNS];
    uint32_t n_runs;                            /* at least 1 */
    struct sl_expert_cache_counters begin, end; /* around the runs */
};

/* Prints tokens a second, where the time went, how fast each kind of work ran, and what the drives
 * and the cache had to do with it. */
void sl_bench_level_print(const struct sl_bench_level *level);

#endif
