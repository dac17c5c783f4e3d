/* The memory plan: who needs how much memory. It is computed before anything large is allocated,
 * and printed by `inspect` and whenever a model does not fit. */
#ifndef SL_DAEMON_ENGINE_MEMORY_PLAN_H
#define SL_DAEMON_ENGINE_MEMORY_PLAN_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "core/base/err.h"
#include "core/model/config.h"
#include "core/model/compute.h"
#include "core/model/weights.h"
#include "storage/experts/expert_map.h"

enum sl_memory_user {
    SL_MEMORY_PROGRAM, /* code, headers, tokenizer, prompt, stacks, buffers */
    SL_MEMORY_WEIGHTS,
    SL_MEMORY_KV,
    SL_MEMORY_ACTIVATIONS,
    SL_MEMORY_SMALL_STEPS, /* activations of a forward for small steps, where one is wanted */
    SL_MEMORY_DRAFT,       /* where one is loaded: its dense weights, and what its steps take */
    SL_MEMORY_IMAGES,      /* one as it goes to disk, where images are kept */
    SL_MEMORY_PAGES,       /* what KV caches on disk take in memory */
    SL_MEMORY_STAGING,
    SL_MEMORY_CACHE,
    SL_MEMORY_TABLES, /* the cache's tables, and the system's page tables */
    SL_MEMORY_USERS,
};

struct sl_memory_plan {
    uint64_t budget_bytes;
    uint64_t total_bytes; /* memory of the machine or its control group; 0: not known */
    bool budget_given;    /* by the user; otherwise what is available less a reserve */
    uint64_t need_bytes[SL_MEMORY_USERS];
    uint64_t table_bytes;       /* the cache's part of SL_MEMORY_TABLES */
    uint64_t slot_bytes;        /* of one expert in the cache */
    uint64_t slots_min;         /* one token's working set */
    uint64_t slots_least;       /* fewer are refused */
    uint64_t slots_max;         /* all experts of the model */
    uint32_t segment_tokens;    /* most of one step */
    uint32_t small_step_tokens; /* most of a small one; 0: there are none */
    uint32_t context_tokens;    /* most of one sequence */
    uint32_t n_sequences;
    uint64_t kv_one_bytes; /* of one sequence as long as that, the least for KV caches */
    bool kv_is_full;       /* they have memory for n_sequences as long as that */
    bool kv_given;         /* by the user */
    struct sl_weight_residency dense;
    uint32_t n_layers;
    uint64_t streamed_bytes;      /* of dense weights, that each step reads */
    uint64_t draft_working_bytes; /* the part of SL_MEMORY_DRAFT that is no weights */
};

/* Which dense weights stay in memory. */
enum sl_dense_mode {
    SL_DENSE_AUTO,     /* as many layers as fit beside the smallest cache: a byte of them is read in
                        * every step, one of an expert in few */
    SL_DENSE_RESIDENT, /* all, or the plan does not fit */
    SL_DENSE_STREAM,   /* no layer, and no embedding */
};

/* The sizes that a plan depends on beside the model's. */
struct sl_memory_case {
    uint64_t ram_bytes;   /* the budget, */
    bool ram_given;       /* as the user gave it; else struct sl_memory_room's default */
    uint64_t cache_bytes; /* for experts; 0: what the budget leaves */
    bool cache_min;       /* one token's working set instead */
    uint64_t program_bytes;
    uint64_t staging_bytes;
    uint64_t table_bytes;                /* of the expert cache */
    const struct sl_weight_sizes *dense; /* those of the draft among them, if one is loaded */
    const struct sl_draft *draft;        /* which it is, or NULL */
    enum sl_dense_mode dense_mode;
    bool refuse_slow; /* a plan is to read no dense weights, and to cache one token's working set */
    enum sl_numerics numerics;
    uint32_t n_threads;
    uint32_t segment_tokens;    /* of one step; 0: as many as memory allows */
    uint32_t small_step_tokens; /* of another forward's; 0: there is none */
    uint32_t context_tokens;    /* of each sequence */
    uint32_t n_sequences;
    uint64_t kv_bytes; /* for KV caches; 0: for n_sequences of context_tokens each, */
    bool with_images;
    uint32_t n_draft_blocks; /* of the model's draft, loaded or not: images may hold their rows */
    uint64_t kv_disk_bytes;  /* of a file for pages of KV caches */
    bool kv_share;           /* or no more than a share, in which sequences grow as they can */
};

/* Fills a plan. Where the dense weights fit beside a cache of one token's working set, all of them
 * stay, and the cache gets what is left. Otherwise, unless it is to be refused, the cache gets what
 * a step takes at once (sl_expert_cache_slots_least()), as many layers stay as fit then, and the
 * cache gets what is left after that.
 *
 * Each step reads an expert once for all of its tokens, so longer steps read less in
 * total. Where segment_tokens is 0, the activations get one part in SL_SEGMENT_SHARE of the memory
 * that weights and KV cache leave, as far as that leaves room for the cache that is asked for, or
 * the least one; but a step is never longer than what the sequences hold. With kv_share, the KV
 * caches get at most one part in SL_KV_SHARE of what weights and the least cache leave, but room
 * for one sequence of context_tokens in any case. Fails with -SL_EBUDGET, the figures and a filled
 * plan as sl_memory_plan_cache() does, and where kv_bytes does not hold one sequence; or with
 * -ENOMEM. */
#define SL_SEGMENT_SHARE 8u
#define SL_KV_SHARE 4u
int sl_memory_plan_make(struct sl_memory_plan *plan, const struct sl_config *config,
                        const struct sl_expert_shape *experts, const struct sl_memory_case *what,
                        struct sl_err *err);

/* Fills need_bytes[SL_MEMORY_CACHE] and [SL_MEMORY_TABLES] from the rest of the budget, cache_bytes
 * and cache_min as in struct sl_memory_case: at most the whole model. Fails with -SL_EBUDGET and
 * the figures when the parts do not fit or the cache would have fewer than slots_least. */
int sl_memory_plan_cache(struct sl_memory_plan *plan, uint64_t cache_bytes, bool cache_min,
                         struct sl_err *err);

/* Whether each token will read dense weights, or experts that a larger cache would still have; and
 * the line that tells, with the price at bytes_per_s of all drives together, if that is not 0. */
bool sl_memory_plan_is_slow(const struct sl_memory_plan *plan);
#define SL_SLOW_TEXT_BYTES 320
const char *sl_memory_plan_tell_slow(const struct sl_memory_plan *plan, uint64_t bytes_per_s,
                                     char text[SL_SLOW_TEXT_BYTES]);

/* Returns the part of the program's bytes that a run adds to what the process has before: stacks,
 * the samplers' scratch and small things. */
uint64_t sl_memory_run_bytes(uint32_t n_threads, uint64_t sampling_bytes);

/* Sums all needs. */
uint64_t sl_memory_plan_bytes(const struct sl_memory_plan *plan);

/* Returns the name to print, such as "dense weights". */
const char *sl_memory_user_name(enum sl_memory_user user);

void sl_memory_plan_print(const struct sl_memory_plan *plan, FILE *out);

#endif
