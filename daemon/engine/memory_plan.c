#include "daemon/engine/memory_plan.h"

#include "cache/expert_cache.h"
#include "core/base/arena.h"
#include "core/base/size.h"
#include "core/model/forward.h"
#include "core/model/kv_cache.h"
#include "core/model/kv_mark.h"
#include "core/model/kv_pager.h"
#include "daemon/engine/image_sizes.h"

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

/* A run takes this much memory on top of what the process has before the weights are read: for the
 * used part of its stacks, which is little more than the largest frame that the Makefile allows to
 * a kernel (FRAME_BYTES); and for rings, lists and figures, which came to a third of this with the
 * larger of both back ends. */
#define STACK_USED_BYTES (UINT64_C(800) << 10)
#define SMALL_THINGS_BYTES (UINT64_C(3) << 20)

#define ADVICE_BYTES 80

uint64_t sl_memory_run_bytes(uint32_t n_threads, uint64_t sampling_bytes)
{
    return n_threads * STACK_USED_BYTES + SMALL_THINGS_BYTES +
           sl_arena_mapped_bytes(sampling_bytes);
}

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

static uint64_t forward_bytes(const struct sl_config *config, const struct sl_memory_case *what,
                              const struct sl_draft *draft, uint32_t segment_tokens)
{
    return sl_forward_measure(config, draft, what->numerics, what->n_threads, segment_tokens,
                              what->context_tokens, what->n_sequences);
}

/* Books the activations of a forward: what they take for the draft is its own. */
static void book_activations(struct sl_memory_plan *plan, const struct sl_config *config,
                             const struct sl_memory_case *what, enum sl_memory_user user,
                             uint32_t segment_tokens)
{
    const uint64_t all = forward_bytes(config, what, what->draft, segment_tokens);
    const uint64_t draft = all - forward_bytes(config, what, NULL, segment_tokens);

    plan->need_bytes[user] = sl_arena_mapped_bytes(all) - draft;
    plan->draft_working_bytes += draft;
    plan->need_bytes[SL_MEMORY_DRAFT] += draft;
}

/* Chooses the segment; the plan's other needs must be known. */
static uint32_t choose_segment(const struct sl_memory_plan *plan, const struct sl_config *config,
                               const struct sl_memory_case *what)
{
    const uint64_t tokens_max = (uint64_t)what->context_tokens * what->n_sequences;
    const uint64_t fixed = fixed_bytes(plan), least = plan->slots_least * plan->slot_bytes;
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
        uint64_t bytes = sl_arena_mapped_bytes(forward_bytes(config, what, what->draft, middle));

        if (bytes <= share && bytes + map_bytes(bytes) <= room)
            low = middle;
        else
            high = middle - 1;
    }
    return low < tokens_max ? low : (uint32_t)tokens_max;
}

/* Measures the KV cache of one sequence, and what images take. Fails with -ENOMEM. */
static int measure_kv(struct sl_memory_plan *plan, const struct sl_config *config,
                      uint32_t n_layers, const struct sl_memory_case *what, struct sl_err *err)
{
    struct sl_image_sizes images;
    struct sl_kv_layout layout;
    int rc = sl_image_sizes_make(&images, config, what->numerics, what->n_draft_blocks,
                                 what->context_tokens, err);

    if (rc == 0)
        rc = sl_kv_layout_init(&layout, config, n_layers, what->numerics, err);
    if (rc < 0)
        return rc;
    plan->kv_one_bytes = sl_kv_cache_measure(&layout, what->context_tokens);
    if (what->with_images) { /* each image is of a mark */
        plan->kv_one_bytes += sl_kv_mark_measure(&layout);
        plan->need_bytes[SL_MEMORY_IMAGES] = images.memory_bytes;
    }
    if (what->kv_disk_bytes > 0)
        plan->need_bytes[SL_MEMORY_PAGES] =
            sl_arena_mapped_bytes(sl_kv_pager_measure(layout.page_bytes, what->kv_disk_bytes));
    sl_kv_layout_fini(&layout);
    return 0;
}

/* Gives the KV caches their share of what dense weights and the least cache leave, as far as what
 * was asked for does not settle it. */
static void share_kv(struct sl_memory_plan *plan, const struct sl_memory_case *what)
{
    const uint64_t taken = fixed_bytes(plan) + plan->slots_least * plan->slot_bytes;
    const uint64_t left = plan->budget_bytes > taken ? plan->budget_bytes - taken : 0;
    const uint64_t one = plan->kv_one_bytes;
    const uint64_t share = left / SL_KV_SHARE > one ? left / SL_KV_SHARE : one;
    uint64_t all = one * what->n_sequences;

    if (what->kv_bytes)
        all = what->kv_bytes;
    else if (what->kv_share && share < all)
        all = share;
    plan->need_bytes[SL_MEMORY_KV] = sl_arena_mapped_bytes(all);
    plan->kv_is_full = all >= one * what->n_sequences;
    plan->kv_given = what->kv_bytes > 0;
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
    const uint64_t later =
        plan->need_bytes[SL_MEMORY_KV] + plan->need_bytes[SL_MEMORY_ACTIVATIONS] +
        plan->need_bytes[SL_MEMORY_SMALL_STEPS] + plan->need_bytes[SL_MEMORY_STAGING] +
        plan->slots_least * plan->slot_bytes;

    return loading_bytes > later ? loading_bytes - later : 0;
}

/* Sets where the dense weights are. */
static void place(struct sl_memory_plan *plan, const struct sl_memory_case *what,
                  const struct sl_weight_residency *residency)
{
    plan->dense = *residency;
    plan->streamed_bytes = sl_weights_streamed_bytes(what->dense, residency);
    plan->need_bytes[SL_MEMORY_DRAFT] =
        sl_weights_draft_bytes(what->dense, residency) + plan->draft_working_bytes;
    plan->need_bytes[SL_MEMORY_WEIGHTS] =
        sl_arena_mapped_bytes(sl_weights_bytes(what->dense, residency)) -
        sl_weights_draft_bytes(what->dense, residency);
}

/* Fills what comes last: the cache, and what loading takes. */
static int finish(struct sl_memory_plan *plan, const struct sl_memory_case *what,
                  struct sl_err *err)
{
    int rc;

    plan->need_bytes[SL_MEMORY_PROGRAM] =
        what->program_bytes + loading_excess(plan, sl_weight_loading_bytes(&what->dense->loading));
    rc = sl_memory_plan_cache(plan, what->cache_bytes, what->cache_min, err);
    return rc < 0 ? rc : check_kv(plan, what, err);
}

/* Fills all that depends on where the dense weights are, and on the least cache. */
static int fill(struct sl_memory_plan *plan, const struct sl_config *config,
                const struct sl_memory_case *what, uint64_t slots_least, struct sl_err *err)
{
    plan->slots_least = slots_least;
    plan->need_bytes[SL_MEMORY_PROGRAM] = what->program_bytes;
    plan->need_bytes[SL_MEMORY_KV] = plan->need_bytes[SL_MEMORY_ACTIVATIONS] =
        plan->need_bytes[SL_MEMORY_SMALL_STEPS] = 0;
    plan->need_bytes[SL_MEMORY_DRAFT] -= plan->draft_working_bytes;
    plan->draft_working_bytes = 0;
    share_kv(plan, what);
    if (what->small_step_tokens > 0)
        book_activations(plan, config, what, SL_MEMORY_SMALL_STEPS, what->small_step_tokens);
    plan->segment_tokens = choose_segment(plan, config, what);
    book_activations(plan, config, what, SL_MEMORY_ACTIVATIONS, plan->segment_tokens);
    return finish(plan, what, err);
}

static uint32_t windows_for(uint32_t n_streamed, uint32_t n_max)
{
    return n_streamed == 0 ? 0 : n_streamed < n_max ? SL_WINDOWS_MIN : n_max;
}

/* Lets as many layers stay as a plan leaves room for that has been filled for none; of the others
 * two are read ahead, or one where two leave no room. */
static int keep_layers(struct sl_memory_plan *plan, const struct sl_memory_case *what,
                       struct sl_err *err)
{
    const uint32_t n_layers = plan->n_layers, windows_max = plan->dense.n_windows;

    for (uint32_t n = 0; n < n_layers; n++) {
        const struct sl_weight_residency residency = {.n_streamed = n,
                                                      .n_windows = windows_for(n, windows_max)};

        place(plan, what, &residency);
        if (finish(plan, what, NULL) == 0)
            return 0;
    }
    place(plan, what,
          &(struct sl_weight_residency){.n_streamed = n_layers, .n_windows = windows_max});
    return finish(plan, what, err);
}

/* Fills a plan whose weights do not all stay. */
static int fill_streaming(struct sl_memory_plan *plan, const struct sl_config *config,
                          const struct sl_memory_case *what, uint64_t slots_least,
                          struct sl_err *err)
{
    struct sl_weight_residency residency = {.n_streamed = plan->n_layers};
    int rc = -SL_EBUDGET;

    for (uint32_t n = SL_WINDOWS_MAX; rc < 0 && n >= SL_WINDOWS_MIN; n--) {
        residency.n_windows = windows_for(plan->n_layers, n);
        place(plan, what, &residency);
        rc = fill(plan, config, what, slots_least, err);
    }
    if (rc < 0 || what->dense_mode == SL_DENSE_STREAM)
        return rc;
    return keep_layers(plan, what, err);
}

int sl_memory_plan_make(struct sl_memory_plan *plan, const struct sl_config *config,
                        const struct sl_expert_shape *experts, const struct sl_memory_case *what,
                        struct sl_err *err)
{
    const uint32_t n_layers = experts->num_hidden_layers + experts->n_mtp_layers;
    uint64_t slots_least;
    int rc;

    *plan = (struct sl_memory_plan){
        .budget_bytes = what->ram_bytes,
        .budget_given = what->ram_given,
        .need_bytes = {[SL_MEMORY_STAGING] = what->staging_bytes},
        .table_bytes = what->table_bytes,
        .slot_bytes = sl_expert_cache_slot_bytes(experts),
        .slots_min = sl_expert_cache_slots_min(experts, config->num_experts_per_tok),
        .slots_max = (uint64_t)n_layers * experts->n_routed_experts,
        .small_step_tokens = what->small_step_tokens,
        .context_tokens = what->context_tokens,
        .n_sequences = what->n_sequences,
        .n_layers = what->dense->n_layers,
    };
    rc = measure_kv(plan, config, n_layers, what, err);
    if (rc < 0)
        return rc;
    slots_least = what->cache_min || what->refuse_slow
                      ? plan->slots_min
                      : sl_expert_cache_slots_least(experts, config->num_experts_per_tok);
    if (what->dense_mode == SL_DENSE_STREAM)
        return fill_streaming(plan, config, what, slots_least, err);
    place(plan, what, &sl_weights_all_resident);
    rc = fill(plan, config, what, what->cache_bytes ? slots_least : plan->slots_min, err);
    if (rc == 0 || what->refuse_slow)
        return rc;
    if (what->dense_mode == SL_DENSE_RESIDENT)
        return fill(plan, config, what, slots_least, err);
    return fill_streaming(plan, config, what, slots_least, err);
}

/* ---- what it costs -----------------------------------------------------------------------------
 */

static uint64_t slots(const struct sl_memory_plan *plan)
{
    return plan->need_bytes[SL_MEMORY_CACHE] / plan->slot_bytes;
}

bool sl_memory_plan_is_slow(const struct sl_memory_plan *plan)
{
    return plan->dense.n_streamed > 0 || slots(plan) < plan->slots_min;
}

const char *sl_memory_plan_tell_slow(const struct sl_memory_plan *plan, uint64_t bytes_per_s,
                                     char text[SL_SLOW_TEXT_BYTES])
{
    const uint64_t expert_bytes =
        slots(plan) < plan->slots_min ? plan->slots_min * plan->slot_bytes : 0;
    const uint64_t bytes = plan->streamed_bytes + expert_bytes;
    char read[SL_SIZE_TEXT_BYTES];
    int used = snprintf(text, SL_SLOW_TEXT_BYTES, "memory holds");

    if (plan->dense.n_streamed > 0)
        used += snprintf(text + used, SL_SLOW_TEXT_BYTES - (size_t)used,
                         " the dense weights of %u of %u layers",
                         plan->n_layers - plan->dense.n_streamed, plan->n_layers);
    if (expert_bytes > 0)
        used += snprintf(text + used, SL_SLOW_TEXT_BYTES - (size_t)used,
                         "%s %llu of the %llu experts that a token takes",
                         plan->dense.n_streamed > 0 ? " and" : "", (unsigned long long)slots(plan),
                         (unsigned long long)plan->slots_min);
    used += snprintf(text + used, SL_SLOW_TEXT_BYTES - (size_t)used,
                     ", so each token, or each step of a prompt, reads the rest again: up to %s a "
                     "token",
                     sl_size_format(bytes, read));
    if (bytes_per_s > 0)
        snprintf(text + used, SL_SLOW_TEXT_BYTES - (size_t)used,
                 ", %.3g s at the drives' %.2f GB/s", (double)bytes / (double)bytes_per_s,
                 (double)bytes_per_s / 1e9);
    return text;
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
    const uint64_t cache_min_bytes = plan->slots_least * plan->slot_bytes;
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
    uint64_t n = left / plan->slot_bytes;

    n = n < plan->slots_max ? n : plan->slots_max;
    while (n > 0 && n * plan->slot_bytes + table_bytes(plan, n * plan->slot_bytes) > left)
        n--;
    return n;
}

/* The cache would have fewer slots than are allowed. */
static int too_small(const struct sl_memory_plan *plan, uint64_t cache_bytes, struct sl_err *err)
{
    const unsigned long long least = plan->slots_least;
    char need[SL_SIZE_TEXT_BYTES], have[SL_SIZE_TEXT_BYTES];

    sl_size_format(plan->slots_least * plan->slot_bytes, need);
    sl_size_format(cache_bytes, have);
    if (plan->slots_least == plan->slots_min)
        return sl_err_set(
            err, -SL_EBUDGET,
            "an expert cache of %s is below one token's working set (%llu experts, "
            "%s), so each expert would be read again for each token; give --cache min, or more",
            have, least, need);
    return sl_err_set(err, -SL_EBUDGET,
                      "an expert cache of %s is below what a step takes at once (%llu experts, "
                      "%s); give more --cache",
                      have, least, need);
}

int sl_memory_plan_cache(struct sl_memory_plan *plan, uint64_t cache_bytes, bool cache_min,
                         struct sl_err *err)
{
    char need[SL_SIZE_TEXT_BYTES], have[SL_SIZE_TEXT_BYTES], cache[SL_SIZE_TEXT_BYTES];
    char text[ADVICE_BYTES];
    uint64_t n_slots;

    if (cache_min)
        n_slots = plan->slots_min;
    else if (cache_bytes)
        n_slots = cache_bytes / plan->slot_bytes;
    else
        n_slots =
            slots_that_fit(plan) > plan->slots_least ? slots_that_fit(plan) : plan->slots_least;
    n_slots = n_slots < plan->slots_max ? n_slots : plan->slots_max;
    plan->need_bytes[SL_MEMORY_CACHE] = n_slots * plan->slot_bytes;
    plan->need_bytes[SL_MEMORY_TABLES] = table_bytes(plan, n_slots * plan->slot_bytes);
    if (n_slots < plan->slots_least)
        return too_small(plan, cache_bytes, err);
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
        [SL_MEMORY_DRAFT] = "draft",
        [SL_MEMORY_IMAGES] = "images",
        [SL_MEMORY_PAGES] = "KV on disk",
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
        if ((i == SL_MEMORY_SMALL_STEPS || i == SL_MEMORY_DRAFT || i == SL_MEMORY_IMAGES ||
             i == SL_MEMORY_PAGES) &&
            plan->need_bytes[i] == 0)
            continue;
        fprintf(out, "  %-16s %10s", sl_memory_user_name((enum sl_memory_user)i),
                sl_size_format(plan->need_bytes[i], text));
        if (i == SL_MEMORY_PROGRAM)
            fprintf(out, "   code, headers, tokenizer, prompt, stacks, buffers");
        if (i == SL_MEMORY_WEIGHTS && plan->dense.n_streamed > 0)
            fprintf(out, "   %u of %u layers stay, %s of the others are read for each step",
                    plan->n_layers - plan->dense.n_streamed, plan->n_layers,
                    sl_size_format(plan->streamed_bytes, text));
        if (i == SL_MEMORY_KV && plan->kv_is_full)
            fprintf(out, "   %u x %u tokens", plan->n_sequences, plan->context_tokens);
        if (i == SL_MEMORY_KV && !plan->kv_is_full)
            fprintf(out, "   sequences of up to %u tokens, each taking what it holds",
                    plan->context_tokens);
        if (i == SL_MEMORY_ACTIVATIONS)
            fprintf(out, "   %u tokens at once", plan->segment_tokens);
        if (i == SL_MEMORY_SMALL_STEPS)
            fprintf(out, "   %u tokens at once", plan->small_step_tokens);
        if (i == SL_MEMORY_DRAFT)
            fprintf(out, "   its dense weights, and %s for its steps",
                    sl_size_format(plan->draft_working_bytes, text));
        if (i == SL_MEMORY_IMAGES)
            fprintf(out, "   one as it goes to disk or comes from there");
        if (i == SL_MEMORY_PAGES)
            fprintf(out, "   pages of KV caches on their way, and where they are");
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
