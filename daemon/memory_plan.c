#include "daemon/memory_plan.h"

#include "cache/expert_cache.h"
#include "core/base/size.h"
#include "core/model/forward.h"

/* What --segment chooses among where nobody did: of fewer, each expert would be read for too few
 * tokens to be worth a larger cache; of more, multiplying takes longer than reading on any
 * machine of today. */
#define SEGMENT_TOKENS_MIN 512u
#define SEGMENT_TOKENS_MAX 65536u

static uint64_t fixed_bytes(const struct sl_memory_plan *plan)
{
    uint64_t sum = 0;

    for (int i = 0; i < SL_MEMORY_CACHE; i++)
        sum += plan->need_bytes[i];
    return sum;
}

static uint64_t activation_bytes(const struct sl_config *config, const struct sl_memory_case *what,
                                 uint32_t segment_tokens)
{
    return sl_forward_measure(config, what->numerics, what->n_threads, segment_tokens,
                              what->context_tokens, what->n_sequences);
}

/* The plan's other needs are known. */
static uint32_t choose_segment(const struct sl_memory_plan *plan, const struct sl_config *config,
                               const struct sl_memory_case *what)
{
    const uint64_t tokens_max = (uint64_t)what->context_tokens * what->n_sequences;
    const uint64_t fixed = fixed_bytes(plan), least = plan->slots_min * plan->slot_bytes;
    const uint64_t left = plan->budget_bytes > fixed ? plan->budget_bytes - fixed : 0;
    const uint64_t cache = what->cache_bytes && !what->cache_min ? what->cache_bytes : least;
    const uint64_t room = left > cache ? left - cache : 0;
    const uint64_t share = left / SL_SEGMENT_SHARE, allowed = room < share ? room : share;
    uint32_t low = SEGMENT_TOKENS_MIN, high = SEGMENT_TOKENS_MAX;

    if (what->segment_tokens)
        low = high = what->segment_tokens;
    while (low < high) {
        uint32_t middle = high - (high - low) / 2;

        if (activation_bytes(config, what, middle) <= allowed)
            low = middle;
        else
            high = middle - 1;
    }
    return low < tokens_max ? low : (uint32_t)tokens_max;
}

int sl_memory_plan_make(struct sl_memory_plan *plan, const struct sl_config *config,
                        const struct sl_expert_shape *experts, const struct sl_memory_case *what,
                        struct sl_err *err)
{
    const uint32_t n_layers = experts->num_hidden_layers + experts->n_mtp_layers;

    *plan = (struct sl_memory_plan){
        .budget_bytes = what->ram_bytes,
        .budget_given = what->ram_given,
        .need_bytes = {[SL_MEMORY_WEIGHTS] = what->dense_bytes,
                       [SL_MEMORY_KV] = what->n_sequences *
                                        sl_kv_cache_measure(config, n_layers, what->context_tokens,
                                                            what->numerics),
                       [SL_MEMORY_STAGING] = what->staging_bytes},
        .slot_bytes = sl_expert_cache_slot_bytes(experts),
        .slots_min = sl_expert_cache_slots_min(experts, config->num_experts_per_tok),
        .slots_max = (uint64_t)n_layers * experts->n_routed_experts,
        .context_tokens = what->context_tokens,
        .n_sequences = what->n_sequences,
    };
    plan->segment_tokens = choose_segment(plan, config, what);
    plan->need_bytes[SL_MEMORY_ACTIVATIONS] = activation_bytes(config, what, plan->segment_tokens);
    return sl_memory_plan_cache(plan, what->cache_bytes, what->cache_min, err);
}

static const char *budget_source(const struct sl_memory_plan *plan)
{
    return plan->budget_given ? "--ram" : "what is available less a reserve";
}

int sl_memory_plan_cache(struct sl_memory_plan *plan, uint64_t cache_bytes, bool cache_min,
                         struct sl_err *err)
{
    const uint64_t fixed = fixed_bytes(plan);
    const uint64_t left = plan->budget_bytes > fixed ? plan->budget_bytes - fixed : 0;
    char need[SL_SIZE_TEXT_BYTES], have[SL_SIZE_TEXT_BYTES], cache[SL_SIZE_TEXT_BYTES];
    uint64_t slots;

    if (cache_min)
        slots = plan->slots_min;
    else if (cache_bytes)
        slots = cache_bytes / plan->slot_bytes;
    else
        slots =
            left / plan->slot_bytes > plan->slots_min ? left / plan->slot_bytes : plan->slots_min;
    slots = slots < plan->slots_max ? slots : plan->slots_max;
    plan->need_bytes[SL_MEMORY_CACHE] = slots * plan->slot_bytes;
    if (slots < plan->slots_min)
        return sl_err_set(err, -SL_EBUDGET,
                          "an expert cache of %s is below one token's working set (%llu experts, "
                          "%s), where it would miss always; give --cache min, or more",
                          sl_size_format(cache_bytes, have), (unsigned long long)plan->slots_min,
                          sl_size_format(plan->slots_min * plan->slot_bytes, need));
    if (fixed + plan->need_bytes[SL_MEMORY_CACHE] > plan->budget_bytes)
        return sl_err_set(err, -SL_EBUDGET,
                          "needs %s of memory, of which %s for the expert cache, but the budget is "
                          "%s (%s); give a smaller --cache, --context or --segment, or more --ram",
                          sl_size_format(fixed + plan->need_bytes[SL_MEMORY_CACHE], need),
                          sl_size_format(plan->need_bytes[SL_MEMORY_CACHE], cache),
                          sl_size_format(plan->budget_bytes, have), budget_source(plan));
    return 0;
}

uint64_t sl_memory_plan_bytes(const struct sl_memory_plan *plan)
{
    return fixed_bytes(plan) + plan->need_bytes[SL_MEMORY_CACHE];
}

void sl_memory_plan_print(const struct sl_memory_plan *plan, FILE *out)
{
    static const char *const names[SL_MEMORY_USERS] = {
        [SL_MEMORY_WEIGHTS] = "dense weights",   [SL_MEMORY_KV] = "KV cache",
        [SL_MEMORY_ACTIVATIONS] = "activations", [SL_MEMORY_STAGING] = "reads in flight",
        [SL_MEMORY_CACHE] = "expert cache",
    };
    char text[SL_SIZE_TEXT_BYTES];

    fprintf(out, "memory\n");
    for (int i = 0; i < SL_MEMORY_USERS; i++) {
        fprintf(out, "  %-16s %10s", names[i], sl_size_format(plan->need_bytes[i], text));
        if (i == SL_MEMORY_KV)
            fprintf(out, "   %u x %u tokens", plan->n_sequences, plan->context_tokens);
        if (i == SL_MEMORY_ACTIVATIONS)
            fprintf(out, "   %u tokens at once", plan->segment_tokens);
        if (i == SL_MEMORY_CACHE)
            fprintf(out, "   %llu of %llu experts, %s each; one token needs %llu",
                    (unsigned long long)(plan->need_bytes[i] / plan->slot_bytes),
                    (unsigned long long)plan->slots_max, sl_size_format(plan->slot_bytes, text),
                    (unsigned long long)plan->slots_min);
        fputc('\n', out);
    }
    fprintf(out, "  %-16s %10s", "together", sl_size_format(sl_memory_plan_bytes(plan), text));
    fprintf(out, "   of %s (%s)\n", sl_size_format(plan->budget_bytes, text), budget_source(plan));
}
