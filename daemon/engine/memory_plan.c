#include "daemon/engine/memory_plan.h"

#include "cache/expert_cache.h"
#include "core/base/arena.h"
#include "core/base/size.h"
#include "core/model/forward.h"
#include "core/model/kv_cache.h"

/* Bounds of the segment that is chosen without --segment. With fewer tokens, each expert would be
 * read for too few of them to be worth a larger cache; with more, multiplying takes longer than
 * reading on any machine of today. */
#define SEGMENT_TOKENS_MIN 512u
#define SEGMENT_TOKENS_MAX 65536u

/* The system takes memory for page tables and counts it as the process's: if all pages are small, 8
 * bytes to map each, and 16 more where io_uring holds it for reads. */
#define SMALL_PAGE_BYTES 4096u
#define MAP_ENTRY_BYTES 8u
#define HOLD_ENTRY_BYTES 16u

#define ADVICE_BYTES 80

/* Sums all needs but the cache's and those that depend on its size. */
static uint64_t fixed_bytes(const struct sl_memory_plan *plan)
{
    uint64_t sum = 0;

    for (int i = 0; i < SL_MEMORY_CACHE; i++)
        sum += plan->need_bytes[i];
    return sum;
}

static uint64_t map_bytes(uint64_t bytes)
{
    return bytes / SMALL_PAGE_BYTES * MAP_ENTRY_BYTES;
}

/* Computes SL_MEMORY_TABLES for a cache of this size. Reads go to the staging buffers, if there are
 * any, so the system holds those pages instead of the cache's. */
static uint64_t table_bytes(const struct sl_memory_plan *plan, uint64_t cache_bytes)
{
    const uint64_t staging = plan->need_bytes[SL_MEMORY_STAGING];
    const uint64_t mapped = fixed_bytes(plan) + cache_bytes;
    const uint64_t held = staging ? staging : cache_bytes;

    return plan->table_bytes + map_bytes(mapped) + held / SMALL_PAGE_BYTES * HOLD_ENTRY_BYTES;
}

static uint64_t activation_bytes(const struct sl_config *config, const struct sl_memory_case *what,
                                 uint32_t segment_tokens)
{
    return sl_arena_mapped_bytes(sl_forward_measure(config, what->numerics, what->n_threads,
                                                    segment_tokens, what->context_tokens,
                                                    what->n_sequences));
}

/* Chooses the segment; the plan's other needs must be known. */
static uint32_t choose_segment(const struct sl_memory_plan *plan, const struct sl_config *config,
                               const struct sl_memory_case *what)
{
    const uint64_t tokens_max = (uint64_t)what->context_tokens * what->n_sequences;
    const uint64_t fixed = fixed_bytes(plan), least = plan->slots_min * plan->slot_bytes;
    const uint64_t left = plan->budget_bytes > fixed ? plan->budget_bytes - fixed : 0;
    const uint64_t cache = what->cache_bytes && !what->cache_min ? what->cache_bytes : least;
    const uint64_t taken = cache + table_bytes(plan, cache);
    const uint64_t room = left > taken ? left - taken : 0;
    const uint64_t share = left / SL_SEGMENT_SHARE;
    uint32_t low = SEGMENT_TOKENS_MIN, high = SEGMENT_TOKENS_MAX;

    if (what->segment_tokens)
        low = high = what->segment_tokens;
    while (low < high) {
        uint32_t middle = high - (high - low) / 2;
        uint64_t bytes = activation_bytes(config, what, middle);

        if (bytes <= share && bytes + map_bytes(bytes) <= room)
            low = middle;
        else
            high = middle - 1;
    }
    return low < tokens_max ? low : (uint32_t)tokens_max;
}

/* Fills in what the KV caches get; the plan's parts that no option changes must be known. Fails
 * with -ENOMEM. */
static int plan_kv(struct sl_memory_plan *plan, const struct sl_config *config, uint32_t n_layers,
                   const struct sl_memory_case *what, struct sl_err *err)
{
    const uint64_t taken = fixed_bytes(plan) + plan->slots_min * plan->slot_bytes;
    const uint64_t left = plan->budget_bytes > taken ? plan->budget_bytes - taken : 0;
    struct sl_kv_layout layout;
    uint64_t one, all, share;
    int rc = sl_kv_layout_init(&layout, config, n_layers, what->numerics, err);

    if (rc < 0)
        return rc;
    one = sl_kv_cache_measure(&layout, what->context_tokens);
    sl_kv_layout_fini(&layout);
    all = one * what->n_sequences;
    share = left / SL_KV_SHARE > one ? left / SL_KV_SHARE : one;
    if (what->kv_bytes)
        all = what->kv_bytes;
    else if (what->kv_share && share < all)
        all = share;
    plan->need_bytes[SL_MEMORY_KV] = sl_arena_mapped_bytes(all);
    plan->kv_one_bytes = one;
    plan->kv_is_full = all >= one * what->n_sequences;
    plan->kv_given = what->kv_bytes > 0;
    return 0;
}

static int check_kv(const struct sl_memory_plan *plan, const struct sl_memory_case *what,
                    struct sl_err *err)
{
    char have[SL_SIZE_TEXT_BYTES], need[SL_SIZE_TEXT_BYTES];

    if (!plan->kv_given || what->kv_bytes >= plan->kv_one_bytes)
        return 0;
    return sl_err_set(err, -SL_EBUDGET,
                      "one sequence of %u tokens takes %s, more than --kv %s; give more, or a "
                      "smaller --context",
                      plan->context_tokens, sl_size_format(plan->kv_one_bytes, need),
                      sl_size_format(what->kv_bytes, have));
}

/* Loading takes memory that is free again before caches and activations are touched. So only what
 * it takes beyond the least size of these is added to the plan. */
static uint64_t loading_excess(const struct sl_memory_plan *plan, uint64_t loading_bytes)
{
    const uint64_t later = plan->need_bytes[SL_MEMORY_KV] +
                           plan->need_bytes[SL_MEMORY_ACTIVATIONS] +
                           plan->need_bytes[SL_MEMORY_SMALL_STEPS] +
                           plan->need_bytes[SL_MEMORY_STAGING] + plan->slots_min * plan->slot_bytes;

    return loading_bytes > later ? loading_bytes - later : 0;
}

int sl_memory_plan_make(struct sl_memory_plan *plan, const struct sl_config *config,
                        const struct sl_expert_shape *experts, const struct sl_memory_case *what,
                        struct sl_err *err)
{
    const uint32_t n_layers = experts->num_hidden_layers + experts->n_mtp_layers;
    int rc;

    *plan = (struct sl_memory_plan){
        .budget_bytes = what->ram_bytes,
        .budget_given = what->ram_given,
        .need_bytes = {[SL_MEMORY_PROGRAM] = what->program_bytes,
                       [SL_MEMORY_WEIGHTS] = sl_arena_mapped_bytes(what->dense_bytes),
                       [SL_MEMORY_STAGING] = what->staging_bytes},
        .table_bytes = what->table_bytes,
        .slot_bytes = sl_expert_cache_slot_bytes(experts),
        .slots_min = sl_expert_cache_slots_min(experts, config->num_experts_per_tok),
        .slots_max = (uint64_t)n_layers * experts->n_routed_experts,
        .small_step_tokens = what->small_step_tokens,
        .context_tokens = what->context_tokens,
        .n_sequences = what->n_sequences,
    };
    rc = plan_kv(plan, config, n_layers, what, err);
    if (rc < 0)
        return rc;
    if (what->small_step_tokens > 0)
        plan->need_bytes[SL_MEMORY_SMALL_STEPS] =
            activation_bytes(config, what, what->small_step_tokens);
    plan->segment_tokens = choose_segment(plan, config, what);
    plan->need_bytes[SL_MEMORY_ACTIVATIONS] = activation_bytes(config, what, plan->segment_tokens);
    plan->need_bytes[SL_MEMORY_PROGRAM] += loading_excess(plan, what->loading_bytes);
    rc = sl_memory_plan_cache(plan, what->cache_bytes, what->cache_min, err);
    return rc < 0 ? rc : check_kv(plan, what, err);
}

static const char *budget_source(const struct sl_memory_plan *plan)
{
    return plan->budget_given ? "--ram" : "what is available less a reserve";
}

/* Says which options would make a plan fit. It leaves out options that are at their least already,
 * and names none where the parts that no option changes and the least cache are too much on their
 * own. */
static const char *advice(const struct sl_memory_plan *plan, char text[ADVICE_BYTES])
{
    const uint64_t cache_min_bytes = plan->slots_min * plan->slot_bytes;
    const uint64_t least_bytes = fixed_bytes(plan) - plan->need_bytes[SL_MEMORY_KV] -
                                 plan->need_bytes[SL_MEMORY_ACTIVATIONS] + cache_min_bytes +
                                 plan->table_bytes;
    const bool helps[] = {plan->need_bytes[SL_MEMORY_CACHE] > cache_min_bytes,
                          plan->kv_given && plan->need_bytes[SL_MEMORY_KV] > plan->kv_one_bytes,
                          plan->context_tokens > 1, plan->segment_tokens > 1};
    static const char *const options[] = {"--cache", "--kv", "--context", "--segment"};
    const char *before = "give a smaller ";
    size_t used = 0;

    for (size_t i = 0; i < SL_ARRAY_LEN(helps) && least_bytes <= plan->budget_bytes; i++) {
        if (!helps[i])
            continue;
        used += (size_t)snprintf(text + used, ADVICE_BYTES - used, "%s%s", before, options[i]);
        before = " or ";
    }
    snprintf(text + used, ADVICE_BYTES - used, "%smore --ram", used ? ", or " : "it takes ");
    return text;
}

/* Returns how many slots the budget has room for. */
static uint64_t slots_that_fit(const struct sl_memory_plan *plan)
{
    const uint64_t fixed = fixed_bytes(plan);
    const uint64_t left = plan->budget_bytes > fixed ? plan->budget_bytes - fixed : 0;
    uint64_t slots = left / plan->slot_bytes;

    slots = slots < plan->slots_max ? slots : plan->slots_max;
    while (slots > 0 &&
           slots * plan->slot_bytes + table_bytes(plan, slots * plan->slot_bytes) > left)
        slots--;
    return slots;
}

int sl_memory_plan_cache(struct sl_memory_plan *plan, uint64_t cache_bytes, bool cache_min,
                         struct sl_err *err)
{
    char need[SL_SIZE_TEXT_BYTES], have[SL_SIZE_TEXT_BYTES], cache[SL_SIZE_TEXT_BYTES];
    char text[ADVICE_BYTES];
    uint64_t slots;

    if (cache_min)
        slots = plan->slots_min;
    else if (cache_bytes)
        slots = cache_bytes / plan->slot_bytes;
    else
        slots = slots_that_fit(plan) > plan->slots_min ? slots_that_fit(plan) : plan->slots_min;
    slots = slots < plan->slots_max ? slots : plan->slots_max;
    plan->need_bytes[SL_MEMORY_CACHE] = slots * plan->slot_bytes;
    plan->need_bytes[SL_MEMORY_TABLES] = table_bytes(plan, slots * plan->slot_bytes);
    if (slots < plan->slots_min)
        return sl_err_set(
            err, -SL_EBUDGET,
            "an expert cache of %s is below one token's working set (%llu experts, "
            "%s), so each expert would be read again for each token; give --cache min, or more",
            sl_size_format(cache_bytes, have), (unsigned long long)plan->slots_min,
            sl_size_format(plan->slots_min * plan->slot_bytes, need));
    if (sl_memory_plan_bytes(plan) > plan->budget_bytes)
        return sl_err_set(err, -SL_EBUDGET,
                          "needs %s of memory, of which %s for the expert cache, but the budget is "
                          "%s (%s); %s",
                          sl_size_format(sl_memory_plan_bytes(plan), need),
                          sl_size_format(plan->need_bytes[SL_MEMORY_CACHE], cache),
                          sl_size_format(plan->budget_bytes, have), budget_source(plan),
                          advice(plan, text));
    return 0;
}

uint64_t sl_memory_plan_bytes(const struct sl_memory_plan *plan)
{
    return fixed_bytes(plan) + plan->need_bytes[SL_MEMORY_CACHE] +
           plan->need_bytes[SL_MEMORY_TABLES];
}

const char *sl_memory_user_name(enum sl_memory_user user)
{
    static const char *const names[SL_MEMORY_USERS] = {
        [SL_MEMORY_PROGRAM] = "program",
        [SL_MEMORY_WEIGHTS] = "dense weights",
        [SL_MEMORY_KV] = "KV cache",
        [SL_MEMORY_ACTIVATIONS] = "activations",
        [SL_MEMORY_SMALL_STEPS] = "small steps",
        [SL_MEMORY_STAGING] = "reads in flight",
        [SL_MEMORY_CACHE] = "expert cache",
        [SL_MEMORY_TABLES] = "tables",
    };

    return names[user];
}

void sl_memory_plan_print(const struct sl_memory_plan *plan, FILE *out)
{
    char text[SL_SIZE_TEXT_BYTES];

    fprintf(out, "memory\n");
    for (int i = 0; i < SL_MEMORY_USERS; i++) {
        if (i == SL_MEMORY_SMALL_STEPS && plan->small_step_tokens == 0)
            continue;
        fprintf(out, "  %-16s %10s", sl_memory_user_name((enum sl_memory_user)i),
                sl_size_format(plan->need_bytes[i], text));
        if (i == SL_MEMORY_PROGRAM)
            fprintf(out, "   code, headers, tokenizer, prompt, stacks, buffers");
        if (i == SL_MEMORY_KV && plan->kv_is_full)
            fprintf(out, "   %u x %u tokens", plan->n_sequences, plan->context_tokens);
        if (i == SL_MEMORY_KV && !plan->kv_is_full)
            fprintf(out, "   sequences of up to %u tokens, each taking what it holds",
                    plan->context_tokens);
        if (i == SL_MEMORY_ACTIVATIONS)
            fprintf(out, "   %u tokens at once", plan->segment_tokens);
        if (i == SL_MEMORY_SMALL_STEPS)
            fprintf(out, "   %u tokens at once", plan->small_step_tokens);
        if (i == SL_MEMORY_CACHE)
            fprintf(out, "   %llu of %llu experts, %s each; one token needs %llu",
                    (unsigned long long)(plan->need_bytes[i] / plan->slot_bytes),
                    (unsigned long long)plan->slots_max, sl_size_format(plan->slot_bytes, text),
                    (unsigned long long)plan->slots_min);
        if (i == SL_MEMORY_TABLES)
            fprintf(out, "   the cache's, and the system's page tables");
        fputc('\n', out);
    }
    fprintf(out, "  %-16s %10s", "together", sl_size_format(sl_memory_plan_bytes(plan), text));
    fprintf(out, "   of %s (%s)\n", sl_size_format(plan->budget_bytes, text), budget_source(plan));
}
