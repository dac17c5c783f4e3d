/* Owns the slab, the demand that is open, and what is lent. Which expert is in which slot, and who
 * makes room, is cache/slot_table.c's; loading one expert, from its extents on disk to tiles in a
 * slot, is cache/expert_load.c's. */
#include "cache/expert_cache.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cache/expert_load.h"
#include "cache/slot_table.h"
#include "core/base/arena.h"
#include "core/base/assert.h"
#include "core/base/size.h"
#include "core/kernels/r16.h"

struct demand {
    uint16_t *missing; /* (n_routed_experts) experts whose load is not begun, as they lie on disk */
    bool *is_missing;  /* (n_routed_experts) while `missing` is made */
    uint32_t n_missing, next_missing;
    uint32_t n_left;    /* to be lent */
    uint32_t n_awaited; /* loading */
    uint16_t layer_index;
    bool open;
};

/* The latest, until the next demand: at what the caller may ask for, or in a sweep, where most of a
 * layer's experts are demanded, at what it asks for next. */
struct guess {
    uint16_t *experts; /* (n_routed_experts) of the layer */
    bool *named;       /* (n_routed_experts) is in `experts` */
    uint32_t n, next;  /* whose load is not begun */
    uint32_t n_loads;  /* begun, and neither demanded nor given up */
    uint16_t layer_index;
    bool sweep;
    bool visited; /* the policy takes the layer for the present one */
};

struct sl_expert_cache {
    struct sl_expert_source source;
    struct sl_expert_shape shape;
    struct sl_arena arena;

    uint8_t *slab; /* slots * slot_bytes */
    uint64_t slot_bytes;
    struct sl_slot_table table;
    struct sl_link lendable; /* pinned and not yet lent */
    struct sl_link heads;    /* demanded, loading and not yet lent, but with w1 and w3 there */
    uint32_t n_lent;
    uint32_t num_experts_per_tok, n_slots_min;

    struct sl_expert_loader loader;
    bool attached; /* what the loader reads into */
    struct demand demand;
    struct guess guess;
    struct sl_err failure; /* of the open demand; code 0 if none */
    bool progressing;
    bool read_ahead;
    uint64_t n_preloads;
    uint64_t n_guessed, n_guessed_right, n_guess_loads, n_guess_hits, n_guess_late;
    uint64_t guess_wasted_bytes;
};

/* Of what a sweep reads, one in so many may be read ahead in vain. */
#define SWEEP_WASTE_SHARE 64u

static struct sl_expert_cache *cache_of(struct sl_expert_source *source)
{
    return (struct sl_expert_cache *)(void *)source;
}

enum load_kind { LOAD_DEMANDED, LOAD_HINTED, LOAD_GUESSED, LOAD_AHEAD };

/* Returns false if no staging buffer or no slot is free. */
static bool begin_load(struct sl_expert_cache *cache, struct sl_expert_key key, enum load_kind kind)
{
    struct sl_policy *policy = cache->table.policy;
    struct sl_slot *slot;
    uint32_t index;

    if (sl_expert_loader_is_full(&cache->loader))
        return false;
    slot = sl_slot_table_take(&cache->table, key, kind == LOAD_HINTED || kind == LOAD_GUESSED);
    if (!slot)
        return false;
    slot->demanded = kind == LOAD_DEMANDED;
    slot->guessed = kind == LOAD_GUESSED;
    if (kind == LOAD_GUESSED && cache->guess.visited)
        policy->ops->use(policy, key);
    else if (slot->hinted)
        policy->ops->expect(policy, key);
    cache->demand.n_awaited += slot->demanded;
    index = sl_slot_index(&cache->table, slot);
    sl_expert_loader_begin(&cache->loader, key, index, cache->slab + index * cache->slot_bytes,
                           kind == LOAD_DEMANDED);
    return true;
}

/* A sweep is through with a layer: from now on that makes room first. Of the next one, as if it had
 * been demanded, what is there goes last. */
static void pass_layer(struct sl_expert_cache *cache)
{
    struct sl_policy *policy = cache->table.policy;
    struct sl_expert_key key = {.layer_index = cache->guess.layer_index};

    cache->guess.visited = true;
    policy->ops->visit(policy, key.layer_index);
    for (; key.expert_index < cache->shape.n_routed_experts; key.expert_index++) {
        struct sl_slot *slot = sl_slot_table_find(&cache->table, key);

        if (!slot || slot->state != SL_SLOT_READY)
            continue;
        policy->ops->withdraw(policy, sl_slot_index(&cache->table, slot));
        policy->ops->use(policy, key);
        policy->ops->offer(policy, sl_slot_index(&cache->table, slot), key);
    }
}

/* Begins what is guessed, unless something that is demanded still needs the drives. */
static void begin_guessed(struct sl_expert_cache *cache)
{
    struct guess *guess = &cache->guess;

    if (cache->demand.next_missing < cache->demand.n_missing || cache->demand.n_awaited > 0)
        return;
    if (guess->sweep && (cache->demand.open || cache->n_lent > 0))
        return; /* what is worth least may not be back yet */
    if (guess->sweep && !guess->visited)
        pass_layer(cache);
    for (; guess->next < guess->n; guess->next++) {
        struct sl_expert_key key = {guess->layer_index, guess->experts[guess->next]};

        if (sl_slot_table_find(&cache->table, key))
            continue;
        if (!(guess->sweep ? sl_slot_table_may_read_ahead(&cache->table)
                           : sl_slot_table_may_hint(&cache->table)) ||
            !begin_load(cache, key, LOAD_GUESSED))
            return;
        guess->n_loads++;
        cache->n_guess_loads++;
    }
}

static void begin_loads(struct sl_expert_cache *cache)
{
    struct demand *demand = &cache->demand;

    while (demand->next_missing < demand->n_missing) {
        struct sl_expert_key key = {demand->layer_index, demand->missing[demand->next_missing]};

        if (!begin_load(cache, key, LOAD_DEMANDED))
            break;
        demand->next_missing++;
    }
    begin_guessed(cache);
    sl_reader_start(cache->loader.reader);
}

static void make_lendable(struct sl_expert_cache *cache, struct sl_slot *slot)
{
    slot->state = SL_SLOT_PINNED;
    slot->demanded = false;
    sl_list_append(&cache->lendable, &slot->link);
}

/* The end of a load that is lent already. */
static void end_lent_load(struct sl_slot *slot, const struct sl_expert_load_end *end)
{
    slot->state = SL_SLOT_PINNED;
    slot->demanded = false;
    slot->failed = end->rc < 0;
    slot->late = end->held;
}

/* A hint that failed is forgotten: its demand will read it again, and say so if that fails. */
static void end_load(struct sl_expert_cache *cache, const struct sl_expert_load_end *end)
{
    struct sl_slot *slot = &cache->table.slots[end->slot_index];

    if (slot->state == SL_SLOT_HELD) {
        if (!end->held)
            sl_slot_table_let_go(&cache->table, slot);
        return;
    }
    if (slot->late) {
        slot->late = false;
        return;
    }
    sl_assert(slot->state == SL_SLOT_LOADING);
    if (end->head) {
        if (slot->demanded)
            sl_list_append(&cache->heads, &slot->link);
        return;
    }
    sl_list_remove(&slot->link); /* of the heads, if it is there */
    cache->demand.n_awaited -= slot->demanded;
    if (end->rc < 0 && slot->demanded && cache->failure.code == 0)
        cache->failure = end->err;
    if (slot->lent) {
        end_lent_load(slot, end);
    } else if (end->rc == 0 && slot->demanded) {
        make_lendable(cache, slot);
    } else if (end->rc == 0) {
        sl_slot_table_ready(&cache->table, slot);
    } else {
        slot->demanded = slot->guessed = false; /* or it would be said of the slot's next expert */
        sl_slot_table_drop(&cache->table, slot, end->held);
    }
}

/* Takes in what has landed and begins what can be begun; with `wait`, waits for one load at least,
 * if there is one. */
static void progress(struct sl_expert_cache *cache, bool wait)
{
    struct sl_expert_load_end end;

    cache->progressing = true;
    begin_loads(cache);
    while (sl_expert_loader_reap(&cache->loader, wait, &end)) {
        end_load(cache, &end);
        begin_loads(cache);
        wait = false;
    }
    cache->progressing = false;
}

/* Keeps the drives busy while others compute. Taking in what has landed computes as well. */
static void progress_between(void *context)
{
    struct sl_expert_cache *cache = context;

    if (!cache->progressing && !sl_expert_loader_is_idle(&cache->loader))
        progress(cache, false);
}

/* Counts what of the guess has been demanded, and gives up the rest. */
static void expire_guess(struct sl_expert_cache *cache)
{
    struct guess *guess = &cache->guess;

    for (uint32_t i = 0; i < guess->n; i++) {
        struct sl_expert_key key = {guess->layer_index, guess->experts[i]};
        struct sl_slot *slot = sl_slot_table_find(&cache->table, key);

        guess->named[guess->experts[i]] = false;
        if (!slot || !slot->guessed)
            continue;
        slot->guessed = false;
        if (slot->state == SL_SLOT_READY) {
            sl_slot_table_unhint(&cache->table, slot);
            continue;
        }
        guess->n_loads--;
        if (slot->state == SL_SLOT_PINNED) {
            cache->n_guess_hits++;
        } else if (slot->demanded) {
            cache->n_guess_late++;
        } else {
            cache->guess_wasted_bytes +=
                sl_expert_loader_cancel(&cache->loader, sl_slot_index(&cache->table, slot));
            sl_slot_table_drop(&cache->table, slot, true);
        }
    }
    cache->guess_wasted_bytes += guess->n_loads * cache->slot_bytes; /* landed in vain */
    *guess = (struct guess){.experts = guess->experts, .named = guess->named};
}

static void add_guess(struct sl_expert_cache *cache, uint16_t expert_index)
{
    cache->guess.experts[cache->guess.n++] = expert_index;
    cache->guess.named[expert_index] = true;
    cache->n_guessed++;
}

/* A step that asks for most of a layer's experts asks for most of the next one's. So these are read
 * while those are computed with, and while the next layer attends. Of experts that one layer has no
 * use for, the next will have as few: no more are guessed than let a small share be read in vain.
 */
static void guess_sweep(struct sl_expert_cache *cache, uint16_t layer_index, uint32_t n_experts)
{
    const struct sl_expert_shape *shape = &cache->shape;
    const uint32_t n_all = shape->n_routed_experts, n_unused = n_all - n_experts;
    const uint32_t n_max =
        n_unused > 0 ? n_experts * n_all / (n_unused * SWEEP_WASTE_SHARE) : n_all;

    if (!cache->read_ahead || n_max == 0 || layer_index + 1u >= shape->num_hidden_layers)
        return;
    cache->guess.sweep = true;
    cache->guess.layer_index = (uint16_t)(layer_index + 1);
    for (uint32_t i = 0; i < n_all && cache->guess.n < n_max; i++) {
        uint16_t expert = sl_expert_store_nth(cache->loader.store, layer_index + 1u, i);
        struct sl_expert_key key = {cache->guess.layer_index, expert};

        if (!sl_slot_table_find(&cache->table, key))
            add_guess(cache, expert);
    }
}

static void source_guess(struct sl_expert_source *source, const struct sl_expert_key *keys,
                         uint32_t n_keys)
{
    struct sl_expert_cache *cache = cache_of(source);

    sl_assert(n_keys <= SL_GUESS_MAX);
    expire_guess(cache);
    for (uint32_t i = 0; i < n_keys; i++) {
        sl_assert(keys[i].layer_index == keys[0].layer_index);
        cache->guess.layer_index = keys[i].layer_index;
        add_guess(cache, keys[i].expert_index);
    }
    progress(cache, false);
}

static void source_hint(struct sl_expert_source *source, const struct sl_expert_key *keys,
                        uint32_t n_keys)
{
    struct sl_expert_cache *cache = cache_of(source);

    progress(cache, false); /* what is free after this, the open demand does not lack */
    for (uint32_t i = 0; i < n_keys; i++) {
        if (sl_slot_table_find(&cache->table, keys[i]))
            continue;
        if (!sl_slot_table_may_hint(&cache->table) || !begin_load(cache, keys[i], LOAD_HINTED))
            break;
    }
    sl_reader_start(cache->loader.reader);
}

/* Lists what is missing in the order in which it is to be read. */
static void list_missing(struct sl_expert_cache *cache)
{
    struct demand *demand = &cache->demand;

    demand->n_missing = demand->next_missing = 0;
    for (uint32_t i = 0; i < cache->shape.n_routed_experts; i++) {
        uint16_t expert = sl_expert_store_nth(cache->loader.store, demand->layer_index, i);

        if (demand->is_missing[expert])
            demand->missing[demand->n_missing++] = expert;
        demand->is_missing[expert] = false;
    }
}

/* One expert of a new demand: it is there, or on its way, or missing. */
static void claim(struct sl_expert_cache *cache, struct sl_expert_key key)
{
    struct demand *demand = &cache->demand;
    struct sl_slot *slot = sl_slot_table_claim(&cache->table, key);

    cache->n_guessed_right +=
        cache->guess.layer_index == key.layer_index && cache->guess.named[key.expert_index];
    if (!slot) {
        demand->is_missing[key.expert_index] = true;
        return;
    }
    if (slot->state == SL_SLOT_PINNED) {
        make_lendable(cache, slot);
    } else {
        const uint32_t index = sl_slot_index(&cache->table, slot);

        slot->demanded = true;
        demand->n_awaited++;
        sl_expert_loader_set_urgent(&cache->loader, index, true);
        if (sl_expert_loader_has_head(&cache->loader, index))
            sl_list_append(&cache->heads, &slot->link);
    }
}

static int source_demand(struct sl_expert_source *source, uint16_t layer_index,
                         const uint16_t *experts, uint32_t n_experts, struct sl_err *err)
{
    struct sl_expert_cache *cache = cache_of(source);
    struct demand *demand = &cache->demand;

    (void)err; /* reads that fail show in next() */
    sl_assert(!demand->open && demand->n_awaited == 0);
    cache->guess.next = cache->guess.n; /* what is not begun comes too late */
    demand->open = true;
    demand->layer_index = layer_index;
    demand->n_left = n_experts;
    if (!cache->guess.visited || cache->guess.layer_index != layer_index)
        cache->table.policy->ops->visit(cache->table.policy, layer_index);
    cache->guess.sweep = false; /* the layer is passed */
    /* All that is there is claimed before anything is evicted. */
    for (uint32_t i = 0; i < n_experts; i++) {
        sl_assert(i == 0 || experts[i - 1] < experts[i]);
        claim(cache, (struct sl_expert_key){layer_index, experts[i]});
    }
    list_missing(cache);
    progress(cache, false); /* sets the misses going, and shows which guesses have landed */
    expire_guess(cache);
    guess_sweep(cache, layer_index, n_experts);
    return 0;
}

/* Ends the demand after a failure. What it was waiting for lands all the same, for whoever asks
 * next, but keeps nobody else waiting. */
static void abandon(struct sl_expert_cache *cache)
{
    struct sl_link *link;

    while ((link = sl_list_pop(&cache->lendable)))
        sl_slot_table_ready(&cache->table, sl_list_item(link, struct sl_slot, link));
    for (uint32_t i = 0; i < cache->table.n_slots; i++) {
        struct sl_slot *slot = &cache->table.slots[i];

        if (slot->demanded) {
            sl_expert_loader_set_urgent(&cache->loader, i, false);
            sl_list_remove(&slot->link); /* of the heads, if it is there */
        }
        slot->demanded = false;
    }
    cache->demand.n_missing = cache->demand.next_missing = cache->demand.n_awaited = 0;
    cache->demand.open = false;
    cache->failure.code = 0;
}

static void source_abandon(struct sl_expert_source *source)
{
    abandon(cache_of(source));
}

static void lend(struct sl_expert_cache *cache, struct sl_slot *slot,
                 struct sl_expert_loan *ret_loan)
{
    uint32_t index = sl_slot_index(&cache->table, slot);

    sl_assert(cache->n_lent < cache->source.hold_max);
    slot->lent = true;
    cache->n_lent++;
    cache->demand.n_left--;
    ret_loan->key = slot->key;
    ret_loan->slot_index = index;
    ret_loan->partial = slot->state == SL_SLOT_LOADING;
    for (int matrix = 0; matrix < SL_EXPERT_MATRICES; matrix++)
        ret_loan->w[matrix] = cache->slab + index * cache->slot_bytes +
                              sl_expert_matrix_offset_bytes(&cache->shape, matrix);
}

/* Ends the demand if something of it failed, and says what. Returns 0 if nothing did. */
static int take_failure(struct sl_expert_cache *cache, struct sl_err *err)
{
    const int rc = cache->failure.code;

    if (rc < 0) {
        if (err)
            *err = cache->failure;
        abandon(cache);
    }
    return rc;
}

static int source_next(struct sl_expert_source *source, bool wait, struct sl_expert_loan *ret_loan,
                       struct sl_err *err)
{
    struct sl_expert_cache *cache = cache_of(source);
    struct sl_link *link;
    int rc;

    sl_assert(cache->demand.open);
    if (cache->demand.n_left == 0) {
        cache->demand.open = false;
        return 0;
    }
    progress(cache, false);
    while (wait && cache->failure.code == 0 && sl_list_is_empty(&cache->lendable) &&
           sl_list_is_empty(&cache->heads)) {
        if (sl_expert_loader_is_idle(&cache->loader)) {
            /* hold_max leaves slots to load into, if the drives do. */
            sl_expert_loader_explain_held(&cache->loader, &cache->failure);
            break;
        }
        progress(cache, true);
    }
    rc = take_failure(cache, err);
    if (rc < 0)
        return rc;
    link = sl_list_pop(&cache->lendable);
    if (!link && wait)
        link = sl_list_pop(&cache->heads);
    if (!link)
        return -EAGAIN;
    lend(cache, sl_list_item(link, struct sl_slot, link), ret_loan);
    return 1;
}

static int source_complete(struct sl_expert_source *source, const struct sl_expert_loan *loan,
                           struct sl_err *err)
{
    struct sl_expert_cache *cache = cache_of(source);
    const struct sl_slot *slot = &cache->table.slots[loan->slot_index];

    sl_assert(slot->lent);
    while (slot->state == SL_SLOT_LOADING && cache->failure.code == 0)
        progress(cache, true);
    return take_failure(cache, err);
}

static void source_release(struct sl_expert_source *source, const struct sl_expert_loan *loan)
{
    struct sl_expert_cache *cache = cache_of(source);
    struct sl_slot *slot;

    sl_assert(loan->slot_index < cache->table.n_slots);
    slot = &cache->table.slots[loan->slot_index];
    sl_assert(slot->lent);
    sl_assert(slot->key.layer_index == loan->key.layer_index);
    sl_assert(slot->key.expert_index == loan->key.expert_index);
    slot->lent = false;
    cache->n_lent--;
    if (slot->failed) {
        slot->failed = false;
        sl_slot_table_drop(&cache->table, slot, slot->late);
        slot->late = false;
    } else if (slot->state == SL_SLOT_PINNED) {
        sl_slot_table_ready(&cache->table, slot);
    } else {
        sl_assert(!slot->demanded); /* the demand is over; it lands for whoever asks next */
    }
    progress(cache, false);
}

static const struct sl_expert_source_ops source_ops = {
    .hint = source_hint,
    .demand = source_demand,
    .next = source_next,
    .release = source_release,
    .complete = source_complete,
    .abandon = source_abandon,
    .guess = source_guess,
};

uint32_t sl_expert_cache_inflight_default(uint32_t num_experts_per_tok)
{
    return 3 * num_experts_per_tok;
}

uint64_t sl_expert_cache_slot_bytes(const struct sl_expert_shape *shape)
{
    return sl_packed_expert_bytes(shape);
}

uint32_t sl_expert_cache_slots_min(const struct sl_expert_shape *shape,
                                   uint32_t num_experts_per_tok)
{
    return num_experts_per_tok * (shape->num_hidden_layers + shape->n_mtp_layers);
}

uint64_t sl_expert_cache_staging_bytes(const struct sl_expert_store *store, uint32_t inflight_max)
{
    return inflight_max * sl_expert_load_staging_bytes(store);
}

static void carve(struct sl_expert_cache *cache, struct sl_arena *arena,
                  const struct sl_policy_ops *policy)
{
    cache->slab = sl_arena_take_aligned(arena, cache->table.n_slots_max, cache->slot_bytes, 4096);
    sl_expert_loader_carve(&cache->loader, arena);
    sl_slot_table_carve(&cache->table, arena, policy);
    cache->demand.missing =
        sl_arena_take(arena, cache->shape.n_routed_experts, sizeof(*cache->demand.missing));
    cache->demand.is_missing =
        sl_arena_take(arena, cache->shape.n_routed_experts, sizeof(*cache->demand.is_missing));
    cache->guess.experts =
        sl_arena_take(arena, cache->shape.n_routed_experts, sizeof(*cache->guess.experts));
    cache->guess.named =
        sl_arena_take(arena, cache->shape.n_routed_experts, sizeof(*cache->guess.named));
}

/* How many slots a slab makes, if they are enough. */
static int count_slots(const struct sl_expert_cache *cache, uint64_t slab_bytes,
                       uint32_t n_slots_max, uint32_t *ret_n_slots, struct sl_err *err)
{
    uint64_t n_slots = slab_bytes / cache->slot_bytes;
    char granted[SL_SIZE_TEXT_BYTES], needed[SL_SIZE_TEXT_BYTES], each[SL_SIZE_TEXT_BYTES];

    if (n_slots < cache->n_slots_min)
        return sl_err_set(err, -SL_EBUDGET,
                          "the expert cache was given %s, but needs at least %s: %u experts of %s",
                          sl_size_format(slab_bytes, granted),
                          sl_size_format(cache->n_slots_min * cache->slot_bytes, needed),
                          cache->n_slots_min, sl_size_format(cache->slot_bytes, each));
    *ret_n_slots = (uint32_t)(n_slots < n_slots_max ? n_slots : n_slots_max);
    return 0;
}

/* Half of the slots, so that loads go on while the caller holds what it may. */
static void set_hold_max(struct sl_expert_cache *cache)
{
    cache->source.hold_max = cache->table.n_slots / 2 > cache->num_experts_per_tok
                                 ? cache->table.n_slots / 2
                                 : cache->num_experts_per_tok;
}

static void attach(struct sl_expert_cache *cache)
{
    cache->attached = sl_expert_loader_attach(&cache->loader, cache->slab,
                                              cache->table.n_slots * cache->slot_bytes) == 0;
}

int sl_expert_cache_create(struct sl_expert_cache **ret_cache, const struct sl_expert_store *store,
                           struct sl_reader *reader, struct sl_pool *pool,
                           const struct sl_expert_cache_options *options, struct sl_err *err)
{
    const struct sl_policy_ops *policy = options->policy ? options->policy : &sl_policy_frequency;
    struct sl_expert_cache *cache;
    struct sl_arena measure;
    int rc;

    cache = calloc(1, sizeof(*cache));
    if (!cache)
        return sl_err_set(err, -ENOMEM, "expert cache: out of memory");
    cache->shape = *sl_expert_store_shape(store);
    cache->table.n_layers = cache->shape.num_hidden_layers + cache->shape.n_mtp_layers;
    cache->table.n_experts = cache->shape.n_routed_experts;
    if (cache->shape.hidden_size % SL_FP4_GROUP_COLS != 0 ||
        cache->shape.moe_intermediate_size % SL_FP4_GROUP_COLS != 0) {
        rc = sl_err_set(err, -SL_EUNSUPPORTED,
                        "hidden_size %u and moe_intermediate_size %u: experts need multiples of %u",
                        cache->shape.hidden_size, cache->shape.moe_intermediate_size,
                        SL_FP4_GROUP_COLS);
        goto fail;
    }
    cache->slot_bytes = sl_expert_cache_slot_bytes(&cache->shape);
    cache->num_experts_per_tok = options->num_experts_per_tok;
    cache->read_ahead = options->read_ahead;
    cache->n_slots_min = options->slots_min > options->num_experts_per_tok
                             ? options->slots_min
                             : options->num_experts_per_tok;
    rc = count_slots(cache, options->slab_bytes, cache->table.n_layers * cache->table.n_experts,
                     &cache->table.n_slots_max, err);
    if (rc < 0)
        goto fail;
    sl_expert_loader_init(&cache->loader, store, reader, pool, options->inflight_max,
                          options->verify);
    cache->source.ops = &source_ops;
    sl_arena_init_measure(&measure);
    carve(cache, &measure, policy);
    rc = sl_arena_map(&cache->arena, measure.used_bytes, "expert cache", err);
    if (rc < 0)
        goto fail;
    carve(cache, &cache->arena, policy);
    sl_expert_slab_place(&cache->shape, pool, cache->slab, cache->table.n_slots_max);
    sl_arena_lock(&cache->arena);
    sl_slot_table_start(&cache->table, cache->table.n_slots_max, options->inflight_max);
    sl_list_init(&cache->lendable);
    sl_list_init(&cache->heads);
    set_hold_max(cache);
    attach(cache);
    sl_pool_set_between(pool, progress_between, cache);
    *ret_cache = cache;
    return 0;
fail:
    free(cache);
    return rc;
}

void sl_expert_cache_destroy(struct sl_expert_cache *cache)
{
    struct sl_expert_load_end end;

    if (!cache)
        return;
    sl_assert(cache->n_lent == 0);
    sl_pool_set_between(cache->loader.pool, NULL, NULL);
    while (sl_expert_loader_reap(&cache->loader, true, &end))
        ;
    /* Nobody may write to memory that is gone: this also waits for what drives hold. */
    sl_expert_loader_attach(&cache->loader, NULL, 0);
    sl_arena_fini(&cache->arena);
    free(cache);
}

static void move_tiles(void *context, uint32_t from, uint32_t to)
{
    const struct sl_expert_cache *cache = context;

    memcpy(cache->slab + to * cache->slot_bytes, cache->slab + from * cache->slot_bytes,
           cache->slot_bytes);
}

int sl_expert_cache_resize(struct sl_expert_cache *cache, uint64_t slab_bytes, struct sl_err *err)
{
    const uint32_t n_before = cache->table.n_slots;
    uint32_t n_slots = 0;
    int rc;

    rc = count_slots(cache, slab_bytes, cache->table.n_slots_max, &n_slots, err);
    if (rc < 0)
        return rc;
    if (cache->demand.open || cache->n_lent > 0)
        return sl_err_set(err, -EBUSY,
                          "the expert cache cannot be resized in the middle of a step");
    expire_guess(cache);
    while (!sl_expert_loader_is_idle(&cache->loader))
        progress(cache, true);
    if (cache->loader.n_held > 0)
        return sl_err_set(err, -EBUSY,
                          "the expert cache cannot be resized while a drive does not let go of it");
    sl_slot_table_resize(&cache->table, n_slots, move_tiles, cache);
    /* Attached pages are those that reads land in, also when others have taken their place. */
    sl_expert_loader_attach(&cache->loader, NULL, 0);
    if (n_slots < n_before) {
        sl_arena_give_back(&cache->arena, cache->slab + n_slots * cache->slot_bytes,
                           (n_before - n_slots) * cache->slot_bytes);
    } else if (n_slots > n_before) {
        sl_expert_slab_place(&cache->shape, cache->loader.pool,
                             cache->slab + n_before * cache->slot_bytes, n_slots - n_before);
        sl_arena_take_back(&cache->arena, cache->slab + n_before * cache->slot_bytes,
                           (n_slots - n_before) * cache->slot_bytes);
    }
    attach(cache);
    set_hold_max(cache);
    return 0;
}

uint32_t sl_expert_cache_hot_list(struct sl_expert_cache *cache, struct sl_expert_key *ret_keys,
                                  uint32_t n_max)
{
    return sl_slot_table_rank(&cache->table, ret_keys, n_max);
}

static bool may_preload(struct sl_expert_cache *cache, struct sl_expert_key key)
{
    return key.layer_index < cache->table.n_layers && key.expert_index < cache->table.n_experts &&
           !sl_slot_table_find(&cache->table, key);
}

/* Makes the policy rank the keys as they are ranked here, by a past of PRELOAD_SWEEPS sweeps: the
 * best were asked for in all of them, the last in the first one alone. */
#define PRELOAD_SWEEPS 8u

static void pretend_uses(struct sl_expert_cache *cache, const struct sl_expert_key *keys,
                         uint32_t n_keys)
{
    struct sl_policy *policy = cache->table.policy;

    for (uint32_t sweep = 0; sweep < PRELOAD_SWEEPS; sweep++) {
        uint64_t n = (uint64_t)n_keys * (PRELOAD_SWEEPS - sweep) / PRELOAD_SWEEPS;

        for (uint32_t layer = 0; layer < cache->table.n_layers; layer++)
            policy->ops->visit(policy, (uint16_t)layer);
        while (n-- > 0)
            if (may_preload(cache, keys[n]))
                policy->ops->use(policy, keys[n]);
    }
}

void sl_expert_cache_preload(struct sl_expert_cache *cache, const struct sl_expert_key *keys,
                             uint32_t n_keys, const atomic_bool *stop, sl_progress_fn *on_progress,
                             void *context)
{
    uint32_t n_room = 0, n = 0;

    sl_assert(!cache->demand.open);
    for (uint32_t i = 0; i < cache->table.n_slots; i++)
        n_room += cache->table.slots[i].state == SL_SLOT_EMPTY;
    while (n < n_keys && n_room > 0)
        n_room -= may_preload(cache, keys[n++]);
    if (n == 0)
        return;
    pretend_uses(cache, keys, n);
    for (uint32_t i = 0; i < n && !(stop && atomic_load(stop)); i++) {
        while (sl_expert_loader_is_full(&cache->loader) &&
               !sl_expert_loader_is_idle(&cache->loader))
            progress(cache, true);
        if (may_preload(cache, keys[i])) {
            if (!begin_load(cache, keys[i], LOAD_AHEAD))
                break; /* drives keep what there is */
            cache->n_preloads++;
            sl_reader_start(cache->loader.reader);
        }
        if (on_progress)
            on_progress(context, i + 1, n);
    }
    while (!sl_expert_loader_is_idle(&cache->loader))
        progress(cache, true);
}

const struct sl_slot_table *sl_expert_cache_table(const struct sl_expert_cache *cache)
{
    return &cache->table;
}

static uint32_t list_length(const struct sl_link *head)
{
    uint32_t n = 0;

    for (const struct sl_link *link = head->next; link != head; link = link->next)
        n++;
    return n;
}

bool sl_expert_cache_is_sound(const struct sl_expert_cache *cache)
{
    const struct sl_slot_table *table = &cache->table;
    uint32_t n_pinned = 0, n_loading = 0, n_held = 0, n_lent = 0, n_lent_loading = 0;
    uint32_t n_awaited = 0;

    for (uint32_t i = 0; i < table->n_slots; i++) {
        const struct sl_slot *slot = &table->slots[i];

        n_loading += slot->state == SL_SLOT_LOADING;
        n_pinned += slot->state == SL_SLOT_PINNED;
        n_held += slot->state == SL_SLOT_HELD || slot->late;
        n_lent += slot->lent;
        n_lent_loading += slot->lent && slot->state == SL_SLOT_LOADING;
        n_awaited += slot->demanded;
    }
    return sl_slot_table_is_sound(table) && n_lent == cache->n_lent &&
           n_awaited == cache->demand.n_awaited &&
           n_pinned == list_length(&cache->lendable) + n_lent - n_lent_loading &&
           n_loading + n_held == cache->loader.n_busy &&
           n_held == cache->loader.n_held + cache->loader.n_cancelled;
}

struct sl_expert_source *sl_expert_cache_source(struct sl_expert_cache *cache)
{
    return &cache->source;
}

bool sl_expert_cache_is_attached(const struct sl_expert_cache *cache)
{
    return cache->attached;
}

const struct sl_arena *sl_expert_cache_arena(const struct sl_expert_cache *cache)
{
    return &cache->arena;
}

uint32_t sl_expert_cache_slot_count(const struct sl_expert_cache *cache)
{
    return cache->table.n_slots;
}

struct sl_expert_cache_counters sl_expert_cache_counters(const struct sl_expert_cache *cache)
{
    const struct sl_slot_counters *slots = &cache->table.counters;
    const struct sl_reader_counters reader = sl_reader_counters(cache->loader.reader);

    return (struct sl_expert_cache_counters){
        .n_requests = slots->n_requests,
        .n_hits = slots->n_hits,
        .n_hinted_hits = slots->n_hinted_hits,
        .n_guessed = cache->n_guessed,
        .n_guessed_right = cache->n_guessed_right,
        .n_guess_loads = cache->n_guess_loads,
        .n_guess_hits = cache->n_guess_hits,
        .n_guess_late = cache->n_guess_late,
        .guess_wasted_bytes = cache->guess_wasted_bytes,
        .n_loads = slots->n_loads,
        .n_preloads = cache->n_preloads,
        .n_evictions = slots->n_evictions,
        .n_retries = reader.n_retries + cache->loader.n_rereads,
        .n_stalls = reader.n_stalls,
        .longest_ns = reader.longest_ns,
        .wanted_bytes = cache->loader.wanted_bytes,
        .read_bytes = reader.read_bytes,
        .wait_ns = reader.wait_ns,
        .repack_ns = cache->loader.repack_ns,
        .verify_ns = cache->loader.verify_ns,
    };
}
