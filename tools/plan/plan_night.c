#include "tools/plan/plan_night.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>

#include "core/base/json.h"
#include "core/base/size.h"
#include "core/model/kv_cache.h"
#include "daemon/engine/paging_gain.h"
#include "tools/cli/json_lines.h"

#define NS_PER_HOUR 3.6e12

/* A number of documents at a time, and what comes of it. */
struct trial {
    uint32_t n_at_once;
    struct sl_memory_plan plan;
    uint64_t kv_read_bytes; /* of KV caches on disk, by a sweep */
    struct sl_night night;
};

/* KV caches of so many documents take this, of the average length, at least the longest one's: all
 * of it; and in memory, when full pages are on disk. */
struct kv_sizes {
    uint64_t all_bytes, least_bytes;
};

static uint64_t tokens_of(const struct sl_night_document *document)
{
    return (uint64_t)document->n_prompt + document->n_answer;
}

/* Documents share the pages of what they share. */
static uint64_t own_tokens_of(const struct sl_night_document *document)
{
    return tokens_of(document) - document->n_shared;
}

static uint32_t longest(const struct sl_plan_night *n)
{
    uint64_t most = 0;

    for (uint32_t i = 0; i < n->n_documents; i++)
        most = tokens_of(&n->documents[i]) > most ? tokens_of(&n->documents[i]) : most;
    return (uint32_t)most;
}

static uint64_t most_of(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* Fails with -ENOMEM. */
static int measure_kv(const struct sl_plan_night *n, uint32_t n_at_once, struct kv_sizes *ret_sizes,
                      struct sl_err *err)
{
    struct sl_kv_layout layout;
    uint64_t one, mean, stays, sum = 0;
    int rc = sl_kv_layout_init(&layout, n->config, n->config->num_hidden_layers, n->memory.numerics,
                               err);

    if (rc < 0)
        return rc;
    for (uint32_t i = 0; i < n->n_documents; i++)
        sum += own_tokens_of(&n->documents[i]);
    one = sl_kv_cache_measure(&layout, longest(n));
    sl_paging_measure(&layout, (uint32_t)(sum / n->n_documents), &mean, &stays);
    sl_kv_layout_fini(&layout);
    ret_sizes->all_bytes = most_of(n_at_once * mean, one);
    ret_sizes->least_bytes = most_of(n_at_once * stays, one);
    return 0;
}

static void night_case(const struct sl_plan_night *n, const struct trial *trial,
                       struct sl_night_case *ret_case)
{
    const struct sl_memory_plan *plan = &trial->plan;

    *ret_case = (struct sl_night_case){
        .config = n->config,
        .dense = n->dense,
        .speeds = n->speeds,
        .documents = n->documents,
        .n_documents = n->n_documents,
        .n_at_once = trial->n_at_once,
        .rows_max = plan->segment_tokens,
        .n_slots = plan->need_bytes[SL_MEMORY_CACHE] / plan->slot_bytes,
        .even = n->even,
        .streamed_bytes = plan->streamed_bytes + trial->kv_read_bytes,
    };
}

/* Plans memory with so much for KV caches, of which the rest is on disk. */
static int fit_kv(const struct sl_plan_night *n, const struct sl_memory_case *memory,
                  const struct kv_sizes *sizes, struct trial *trial, struct sl_err *ret_why)
{
    const uint64_t far_bytes =
        sizes->all_bytes > memory->kv_bytes ? sizes->all_bytes - memory->kv_bytes : 0;
    const uint64_t least_bytes = n->kv_disk_bytes > 0 ? sizes->least_bytes : sizes->all_bytes;
    int rc;

    if (least_bytes > memory->kv_bytes)
        return sl_err_set(ret_why, -SL_EBUDGET, "KV caches of %u documents take more than --kv",
                          trial->n_at_once);
    if (far_bytes > n->kv_disk_bytes)
        return sl_err_set(ret_why, -SL_EBUDGET,
                          "KV caches of %u documents take more than --kv-disk", trial->n_at_once);
    rc = sl_plan_memory(n->config, memory, &trial->plan, ret_why);
    trial->kv_read_bytes = far_bytes;
    return rc;
}

/* Plans memory for so many documents at a time, and lets trial->night be. Returns 1, or 0 with the
 * reason in *ret_why where so many do not fit. */
static int fit(const struct sl_plan_night *n, struct trial *trial, struct sl_err *ret_why,
               struct sl_err *err)
{
    struct sl_memory_case memory = n->memory;
    struct kv_sizes sizes;
    int rc = measure_kv(n, trial->n_at_once, &sizes, err);

    if (rc < 0)
        return rc;
    memory.context_tokens = longest(n);
    memory.n_sequences = trial->n_at_once;
    memory.kv_disk_bytes = n->kv_disk_bytes;
    if (n->memory.kv_bytes == 0)
        memory.kv_bytes = sizes.all_bytes;
    rc = fit_kv(n, &memory, &sizes, trial, ret_why);
    if (rc == -SL_EBUDGET && n->memory.kv_bytes == 0 && n->kv_disk_bytes > 0) {
        memory.kv_bytes = sizes.least_bytes;
        rc = fit_kv(n, &memory, &sizes, trial, ret_why);
    }
    return rc == 0 ? 1 : rc == -ENOMEM ? rc : 0;
}

/* Finds the number of documents at a time that is through first: from the most that fit downwards,
 * until fewer take longer. Returns as fit() does. */
static int choose(const struct sl_plan_night *n, struct trial *ret_best, struct sl_err *ret_why,
                  struct sl_err *err)
{
    uint32_t count = n->n_documents < SL_PLAN_AT_ONCE_MAX ? n->n_documents : SL_PLAN_AT_ONCE_MAX;
    bool found = false, is_worse = false;

    for (; count >= 1 && !is_worse; count = count / 2) {
        struct trial trial = {.n_at_once = count};
        struct sl_night_case what;
        int rc = fit(n, &trial, ret_why, err);

        if (rc < 0)
            return rc;
        if (rc == 0)
            continue;
        night_case(n, &trial, &what);
        rc = sl_night_run(&what, found ? ret_best->night.ns : INFINITY, &trial.night, err);
        if (rc < 0)
            return rc;
        is_worse = trial.night.n_documents < n->n_documents;
        if (!is_worse)
            *ret_best = trial;
        found = true;
    }
    return found;
}

/* Where KV caches on disk are not faster than fewer documents in memory, these are chosen. */
static int choose_where(const struct sl_plan_night *n, struct trial *ret_best,
                        struct sl_err *ret_why, struct sl_err *err)
{
    struct sl_plan_night in_memory = *n;
    struct trial other;
    int rc = choose(n, ret_best, ret_why, err);

    if (rc <= 0 || ret_best->kv_read_bytes == 0)
        return rc;
    in_memory.kv_disk_bytes = 0;
    rc = choose(&in_memory, &other, ret_why, err);
    if (rc > 0 && other.night.ns <= ret_best->night.ns)
        *ret_best = other;
    return rc < 0 ? rc : 1;
}

/* ---- figures -----------------------------------------------------------------------------------
 */

static json_t *done_object(const struct sl_night *night)
{
    return json_pack("{s:f, s:i, s:I, s:I, s:I, s:I}", "seconds", night->ns * 1e-9, "documents",
                     (int)night->n_documents, "sweeps", (json_int_t)night->n_sweeps,
                     "prompt_tokens", (json_int_t)night->n_prompt_tokens, "shared_tokens",
                     (json_int_t)night->n_shared_tokens, "answer_tokens",
                     (json_int_t)night->n_answer_tokens);
}

static void print_json(const struct sl_plan_night *n, const struct trial *t,
                       const struct sl_night *by)
{
    const struct sl_night *night = &t->night;
    json_t *object = done_object(night);

    json_object_update_new(
        object, json_pack("{s:s, s:b, s:i, s:I, s:I, s:I, s:i, s:f, s:f, s:f, s:f}", "what",
                          "night", "fits", 1, "at_once", (int)t->n_at_once, "cache_bytes",
                          (json_int_t)t->plan.need_bytes[SL_MEMORY_CACHE], "kv_bytes",
                          (json_int_t)t->plan.need_bytes[SL_MEMORY_KV], "kv_read_bytes",
                          (json_int_t)t->kv_read_bytes, "rows_max", (int)t->plan.segment_tokens,
                          "drive_bytes", night->drive_bytes, "drive_share",
                          night->bound_ns[SL_COST_DRIVE] / night->ns, "memory_share",
                          night->bound_ns[SL_COST_MEMORY] / night->ns, "multiply_share",
                          night->bound_ns[SL_COST_MULTIPLY] / night->ns));
    if (n->until)
        json_object_set_new(object, "done", done_object(by));
    sl_json_line_print(object);
}

static void print_text(const struct sl_plan_night *n, const struct trial *t,
                       const struct sl_night *by)
{
    const struct sl_night *night = &t->night;
    const double n_rows =
        (double)(night->n_prompt_tokens - night->n_shared_tokens + night->n_answer_tokens);
    char cache[SL_SIZE_TEXT_BYTES], kv[SL_SIZE_TEXT_BYTES], read[SL_SIZE_TEXT_BYTES];

    printf("\nbatch of %u documents, %u at a time: cache %s, KV caches %s, steps of up to %u "
           "tokens\n",
           n->n_documents, t->n_at_once, sl_size_format(t->plan.need_bytes[SL_MEMORY_CACHE], cache),
           sl_size_format(t->plan.need_bytes[SL_MEMORY_KV], kv), t->plan.segment_tokens);
    printf("  %llu sweeps of %.0f tokens and %.2f s on average: %.2f hours, %s read\n",
           (unsigned long long)night->n_sweeps, n_rows / (double)night->n_sweeps,
           night->ns * 1e-9 / (double)night->n_sweeps, night->ns / NS_PER_HOUR,
           sl_size_format((uint64_t)night->drive_bytes, read));
    printf("  %llu tokens in, %llu of them shared, %llu out; bound by the drive %.0f %% of the "
           "time, by memory %.0f %%, by multiplication %.0f %%\n",
           (unsigned long long)night->n_prompt_tokens, (unsigned long long)night->n_shared_tokens,
           (unsigned long long)night->n_answer_tokens,
           100 * night->bound_ns[SL_COST_DRIVE] / night->ns,
           100 * night->bound_ns[SL_COST_MEMORY] / night->ns,
           100 * night->bound_ns[SL_COST_MULTIPLY] / night->ns);
    if (t->kv_read_bytes > 0)
        printf("  KV caches beyond memory: a sweep reads %s of them from disk, which pays\n",
               sl_size_format(t->kv_read_bytes, kv));
    if (n->until)
        printf("  by %s, in %.2f hours: %u documents, %llu tokens in, %llu out\n", n->until,
               n->until_ns / NS_PER_HOUR, by->n_documents, (unsigned long long)by->n_prompt_tokens,
               (unsigned long long)by->n_answer_tokens);
}

int sl_plan_night_print(const struct sl_plan_night *n, struct sl_err *err)
{
    struct sl_night by = {0};
    struct sl_night_case what;
    struct trial best;
    struct sl_err why;
    int rc = choose_where(n, &best, &why, err);

    if (rc == 0) {
        if (n->json)
            sl_json_line_print(
                json_pack("{s:s, s:b, s:s}", "what", "night", "fits", 0, "why", why.message));
        else
            printf("\nbatch of %u documents does not fit: %s\n", n->n_documents, why.message);
        return 0;
    }
    if (rc > 0 && n->until) {
        night_case(n, &best, &what);
        rc = sl_night_run(&what, n->until_ns, &by, err);
    }
    if (rc < 0)
        return rc;
    if (n->json)
        print_json(n, &best, &by);
    else
        print_text(n, &best, &by);
    return 0;
}
