/* Computes how a batch of documents goes through a machine, for `sluice plan`.
 *
 * The scheduler that a daemon runs (daemon/scheduler) fills the steps here too, and its estimate of
 * rows is told what the cost of each step (tools/plan/cost.h) is predicted to be. So what is
 * planned is what is run, as far as the predictions hold.
 *
 * Pure but for working memory; any thread. */
#ifndef SL_TOOLS_PLAN_NIGHT_H
#define SL_TOOLS_PLAN_NIGHT_H

#include "core/base/err.h"
#include "tools/plan/cost.h"

struct sl_night_document {
    uint32_t n_prompt, n_answer; /* tokens, each at least 1 */
    uint32_t n_shared; /* of the prompt, fewer than all: the document before begins with them too */
};

struct sl_night_case {
    const struct sl_config *config;
    const struct sl_dense_cost *dense;
    const struct sl_machine_speeds *speeds;
    const struct sl_night_document *documents; /* (n_documents) in the order of their coming */
    uint32_t n_documents;
    uint32_t n_at_once; /* at most */
    uint32_t rows_max;  /* of a step */
    uint64_t n_slots;   /* of the expert cache */
    bool even;          /* as for sl_cost_found() */
    uint64_t streamed_bytes;
};

/* Everything that was done by some time. */
struct sl_night {
    double ns;
    double bound_ns[SL_COST_LIMITS]; /* of it, by what binds */
    double drive_bytes, compute_ns;
    uint64_t n_sweeps;
    uint64_t n_prompt_tokens, n_shared_tokens, n_answer_tokens; /* those shared are of prompts */
    uint32_t n_documents;                                       /* that are through */
};

/* Runs all of it, or as long as until_ns. Fails with -ENOMEM. */
int sl_night_run(const struct sl_night_case *what, double until_ns, struct sl_night *ret_night,
                 struct sl_err *err);

#endif
