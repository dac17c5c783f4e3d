/* The part of `sluice plan` about batches: how many documents at a time, and when they are done. */
#ifndef SL_TOOLS_PLAN_PLAN_NIGHT_H
#define SL_TOOLS_PLAN_PLAN_NIGHT_H

#include <stdbool.h>

#include "tools/plan/night.h"
#include "tools/plan/plan_sizes.h"

/* Documents at a time that are tried at most: what a scheduler of today is tried with. */
#define SL_PLAN_AT_ONCE_MAX 1024u

struct sl_plan_night {
    const struct sl_config *config;
    const struct sl_dense_cost *dense;
    const struct sl_machine_speeds *speeds;
    struct sl_memory_case memory; /* context, sequences and, unless given, kv_bytes are chosen */
    uint64_t kv_disk_bytes;       /* of KV caches that may be on disk; 0: none */
    bool even, json;
    const struct sl_night_document *documents; /* (n_documents) */
    uint32_t n_documents;
    const char *until; /* how a time is named, or NULL; and when that is */
    double until_ns;
};

/* Tries numbers of documents at a time, and prints the plan that is through first. Where not even
 * one document fits, says so; that is no failure. Fails with -ENOMEM. */
int sl_plan_night_print(const struct sl_plan_night *night, struct sl_err *err);

#endif
