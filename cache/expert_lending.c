/* What is demanded, guessed and lent. Which expert is in which slot, and who makes room, is
 * cache/slot_table.c's; loading one expert, from its extents on disk to tiles in a slot, is
 * cache/expert_load.c's. */
#include "cache/expert_lending.h"

#include <errno.h>

#include "core/base/assert.h"

/* Of what a sweep reads, one in so many may be read ahead in vain. */
#define SWEEP_WASTE_SHARE 64u

static struct sl_lending *lending_of(struct sl_expert_source *source)
{
    return (struct sl_lending *)(void *)source;
}

/* Sees to the slot's memory, which takes a job of the pool where that is new. Returns whether it
 * did; then the drives are to have something to do meanwhile, and while the next one is seen to. */
static bool fill_slot(struct sl_lending *lending, uint32_t slot_index)
{
    struct sl_pool *pool = lending->loader.pool;
    const bool was_progressing = lending->progressing;
    enum sl_phase phase = sl_pool_phase(pool, SL_PHASE_REPACK);
    bool filled;

    lending->progressing = true; /* the slot is taken, and nothing is loaded into it yet */
    filled = sl_slab_fill(&lending->slab, slot_index);
    lending->progressing = was_progressing;
    sl_pool_phase(pool, phase);
    return filled;
}

bool sl_lending_begin_load(struct sl_lending *lending, struct sl_expert_key key,
                           enum sl_load_kind kind)
{
    struct sl_policy *policy = lending->table.policy;
    struct sl_slot *slot;
    uint32_t index;
    bool filled;

    if (sl_expert_loader_is_full(&lending->loader))
        return false;
    slot =
        sl_slot_table_take(&lending->table, key, kind == SL_LOAD_HINTED || kind == SL_LOAD_GUESSED);
    if (!slot)
        return false;
    slot->demanded = kind == SL_LOAD_DEMANDED;
    slot->guessed = kind == SL_LOAD_GUESSED;
    if (kind == SL_LOAD_GUESSED && lending->guess.visited)
        policy->ops->use(policy, key);
    else if (slot->hinted)
        policy->ops->expect(policy, key);
    lending->demand.n_awaited += slot->demanded;
    index = sl_slot_index(&lending->table, slot);
    filled = fill_slot(lending, index);
    sl_expert_loader_begin(&lending->loader, key, index, sl_slab_slot(&lending->slab, index),
                           kind == SL_LOAD_DEMANDED);
    if (filled)
        sl_reader_start(lending->loader.reader);
    return true;
}

/* A sweep is through with a layer: from now on that makes room first. Of the next one, as if it had
 * been demanded, what is there goes last. */
static void pass_layer(struct sl_lending *lending)
{
    struct sl_policy *policy = lending->table.policy;
    struct sl_expert_key key = {.layer_index = lending->guess.layer_index};

    lending->guess.visited = true;
    policy->ops->visit(policy, key.layer_index);
    for (; key.expert_index < lending->shape.n_routed_experts; key.expert_index++) {
        struct sl_slot *slot = sl_slot_table_find(&lending->table, key);

        if (!slot || slot->state != SL_SLOT_READY)
            continue;
        policy->ops->withdraw(policy, sl_slot_index(&lending->table, slot));
        policy->ops->use(policy, key);
        policy->ops->offer(policy, sl_slot_index(&lending->table, slot), key);
    }
}

/* Begins what is guessed, unless something that is demanded still needs the drives. */
static void begin_guessed(struct sl_lending *lending)
{
    struct sl_guess *guess = &lending->guess;

    if (lending->demand.next_missing < lending->demand.n_missing || lending->demand.n_awaited > 0)
        return;
    if (guess->sweep && (lending->demand.open || lending->n_lent > 0))
        return; /* what is worth least may not be back yet */
    if (guess->sweep && !guess->visited)
        pass_layer(lending);
    for (; guess->next < guess->n; guess->next++) {
        struct sl_expert_key key = {guess->layer_index, guess->experts[guess->next]};

        if (sl_slot_table_find(&lending->table, key))
            continue;
        if (!(guess->sweep ? sl_slot_table_may_read_ahead(&lending->table)
                           : sl_slot_table_may_hint(&lending->table)) ||
            !sl_lending_begin_load(lending, key, SL_LOAD_GUESSED))
            return;
        guess->n_loads++;
        lending->n_guess_loads++;
    }
}

static void begin_loads(struct sl_lending *lending)
{
    struct sl_demand *demand = &lending->demand;

    while (demand->next_missing < demand->n_missing) {
        struct sl_expert_key key = {demand->layer_index, demand->missing[demand->next_missing]};

        if (!sl_lending_begin_load(lending, key, SL_LOAD_DEMANDED))
            break;
        demand->next_missing++;
    }
    begin_guessed(lending);
    sl_reader_start(lending->loader.reader);
}

static void make_lendable(struct sl_lending *lending, struct sl_slot *slot)
{
    slot->state = SL_SLOT_PINNED;
    slot->demanded = false;
    sl_list_append(&lending->lendable, &slot->link);
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
static void end_load(struct sl_lending *lending, const struct sl_expert_load_end *end)
{
    struct sl_slot *slot = &lending->table.slots[end->slot_index];

    if (slot->state == SL_SLOT_HELD) {
        if (!end->held)
            sl_slot_table_let_go(&lending->table, slot);
        return;
    }
    if (slot->late) {
        slot->late = false;
        return;
    }
    sl_assert(slot->state == SL_SLOT_LOADING);
    if (end->head) {
        if (slot->demanded)
            sl_list_append(&lending->heads, &slot->link);
        return;
    }
    sl_list_remove(&slot->link); /* of the heads, if it is there */
    lending->demand.n_awaited -= slot->demanded;
    if (end->rc < 0 && slot->demanded && lending->failure.code == 0)
        lending->failure = end->err;
    if (slot->lent) {
        end_lent_load(slot, end);
    } else if (end->rc == 0 && slot->demanded) {
        make_lendable(lending, slot);
    } else if (end->rc == 0) {
        sl_slot_table_ready(&lending->table, slot);
    } else {
        slot->demanded = slot->guessed = false; /* or it would be said of the slot's next expert */
        sl_slot_table_drop(&lending->table, slot, end->held);
    }
}

void sl_lending_progress(struct sl_lending *lending, bool wait)
{
    struct sl_expert_load_end end;

    lending->progressing = true;
    begin_loads(lending);
    while (sl_expert_loader_reap(&lending->loader, wait, &end)) {
        end_load(lending, &end);
        begin_loads(lending);
        wait = false;
    }
    lending->progressing = false;
}

void sl_lending_progress_between(void *context)
{
    struct sl_lending *lending = context;

    /* Taking in what has landed runs jobs as well. */
    if (!lending->progressing && !sl_expert_loader_is_idle(&lending->loader))
        sl_lending_progress(lending, false);
}

void sl_lending_expire_guess(struct sl_lending *lending)
{
    struct sl_guess *guess = &lending->guess;

    for (uint32_t i = 0; i < guess->n; i++) {
        struct sl_expert_key key = {guess->layer_index, guess->experts[i]};
        struct sl_slot *slot = sl_slot_table_find(&lending->table, key);

        guess->named[guess->experts[i]] = false;
        if (!slot || !slot->guessed)
            continue;
        slot->guessed = false;
        if (slot->state == SL_SLOT_READY) {
            sl_slot_table_unhint(&lending->table, slot);
            continue;
        }
        guess->n_loads--;
        if (slot->state == SL_SLOT_PINNED) {
            lending->n_guess_hits++;
        } else if (slot->demanded) {
            lending->n_guess_late++;
        } else {
            lending->guess_wasted_bytes +=
                sl_expert_loader_cancel(&lending->loader, sl_slot_index(&lending->table, slot));
            sl_slot_table_drop(&lending->table, slot, true);
        }
    }
    lending->guess_wasted_bytes += guess->n_loads * lending->slot_bytes; /* landed in vain */
    *guess = (struct sl_guess){.experts = guess->experts, .named = guess->named};
}

static void add_guess(struct sl_lending *lending, uint16_t expert_index)
{
    lending->guess.experts[lending->guess.n++] = expert_index;
    lending->guess.named[expert_index] = true;
    lending->n_guessed++;
}

/* A step that asks for most of a layer's experts asks for most of the next one's. So these are read
 * while those are computed with, and while the next layer attends. Of experts that one layer has no
 * use for, the next will have as few: no more are guessed than let a small share be read in vain.
 */
static void guess_sweep(struct sl_lending *lending, uint16_t layer_index, uint32_t n_experts)
{
    const struct sl_expert_shape *shape = &lending->shape;
    const uint32_t n_all = shape->n_routed_experts, n_unused = n_all - n_experts;
    const uint32_t n_max =
        n_unused > 0 ? n_experts * n_all / (n_unused * SWEEP_WASTE_SHARE) : n_all;

    if (!lending->read_ahead || n_max == 0 || layer_index + 1u >= shape->num_hidden_layers)
        return;
    lending->guess.sweep = true;
    lending->guess.layer_index = (uint16_t)(layer_index + 1);
    for (uint32_t i = 0; i < n_all && lending->guess.n < n_max; i++) {
        uint16_t expert = sl_expert_map_nth(lending->loader.store, layer_index + 1u, i);
        struct sl_expert_key key = {lending->guess.layer_index, expert};

        if (!sl_slot_table_find(&lending->table, key))
            add_guess(lending, expert);
    }
}

static void source_guess(struct sl_expert_source *source, const struct sl_expert_key *keys,
                         uint32_t n_keys)
{
    struct sl_lending *lending = lending_of(source);

    sl_assert(n_keys <= SL_GUESS_MAX);
    sl_lending_expire_guess(lending);
    for (uint32_t i = 0; i < n_keys; i++) {
        sl_assert(keys[i].layer_index == keys[0].layer_index);
        lending->guess.layer_index = keys[i].layer_index;
        add_guess(lending, keys[i].expert_index);
    }
    sl_lending_progress(lending, false);
}

static void source_hint(struct sl_expert_source *source, const struct sl_expert_key *keys,
                        uint32_t n_keys)
{
    struct sl_lending *lending = lending_of(source);

    /* What is free after this, the open demand does not lack. */
    sl_lending_progress(lending, false);
    for (uint32_t i = 0; i < n_keys; i++) {
        if (sl_slot_table_find(&lending->table, keys[i]))
            continue;
        if (!sl_slot_table_may_hint(&lending->table) ||
            !sl_lending_begin_load(lending, keys[i], SL_LOAD_HINTED))
            break;
    }
    sl_reader_start(lending->loader.reader);
}

/* Lists what is missing in the order in which it is to be read. */
static void list_missing(struct sl_lending *lending)
{
    struct sl_demand *demand = &lending->demand;

    demand->n_missing = demand->next_missing = 0;
    for (uint32_t i = 0; i < lending->shape.n_routed_experts; i++) {
        uint16_t expert = sl_expert_map_nth(lending->loader.store, demand->layer_index, i);

        if (demand->is_missing[expert])
            demand->missing[demand->n_missing++] = expert;
        demand->is_missing[expert] = false;
    }
}

/* One expert of a new demand: it is there, or on its way, or missing. */
static void claim(struct sl_lending *lending, struct sl_expert_key key)
{
    struct sl_demand *demand = &lending->demand;
    struct sl_slot *slot = sl_slot_table_claim(&lending->table, key);

    lending->n_guessed_right +=
        lending->guess.layer_index == key.layer_index && lending->guess.named[key.expert_index];
    if (!slot) {
        demand->is_missing[key.expert_index] = true;
        return;
    }
    if (slot->state == SL_SLOT_PINNED) {
        make_lendable(lending, slot);
    } else {
        const uint32_t index = sl_slot_index(&lending->table, slot);

        slot->demanded = true;
        demand->n_awaited++;
        sl_expert_loader_set_urgent(&lending->loader, index, true);
        if (sl_expert_loader_has_head(&lending->loader, index))
            sl_list_append(&lending->heads, &slot->link);
    }
}

static int source_demand(struct sl_expert_source *source, uint16_t layer_index,
                         const uint16_t *experts, uint32_t n_experts, struct sl_err *err)
{
    struct sl_lending *lending = lending_of(source);
    struct sl_demand *demand = &lending->demand;

    (void)err; /* reads that fail show in next() */
    sl_assert(!demand->open && demand->n_awaited == 0);
    lending->guess.next = lending->guess.n; /* what is not begun comes too late */
    demand->open = true;
    demand->layer_index = layer_index;
    demand->n_left = n_experts;
    if (!lending->guess.visited || lending->guess.layer_index != layer_index)
        lending->table.policy->ops->visit(lending->table.policy, layer_index);
    lending->guess.sweep = false; /* the layer is passed */
    /* All that is there is claimed before anything is evicted. */
    for (uint32_t i = 0; i < n_experts; i++) {
        sl_assert(i == 0 || experts[i - 1] < experts[i]);
        claim(lending, (struct sl_expert_key){layer_index, experts[i]});
    }
    list_missing(lending);
    /* Sets the misses going, and shows which guesses have landed. */
    sl_lending_progress(lending, false);
    sl_lending_expire_guess(lending);
    guess_sweep(lending, layer_index, n_experts);
    return 0;
}

/* Ends the demand, and with it the step. What it was waiting for lands all the same, for whoever
 * asks next, but keeps nobody else waiting; what was guessed would be read for nobody. */
static void abandon(struct sl_lending *lending)
{
    struct sl_link *link;

    sl_lending_expire_guess(lending);
    while ((link = sl_list_pop(&lending->lendable)))
        sl_slot_table_ready(&lending->table, sl_list_item(link, struct sl_slot, link));
    for (uint32_t i = 0; i < lending->table.n_slots; i++) {
        struct sl_slot *slot = &lending->table.slots[i];

        if (slot->demanded) {
            sl_expert_loader_set_urgent(&lending->loader, i, false);
            sl_list_remove(&slot->link); /* of the heads, if it is there */
        }
        slot->demanded = false;
    }
    lending->demand.n_missing = lending->demand.next_missing = lending->demand.n_awaited = 0;
    lending->demand.open = false;
    lending->failure.code = 0;
}

static void source_abandon(struct sl_expert_source *source)
{
    abandon(lending_of(source));
}

static void lend(struct sl_lending *lending, struct sl_slot *slot, struct sl_expert_loan *ret_loan)
{
    uint32_t index = sl_slot_index(&lending->table, slot);

    sl_assert(lending->n_lent < lending->source.hold_max);
    slot->lent = true;
    lending->n_lent++;
    lending->demand.n_left--;
    ret_loan->key = slot->key;
    ret_loan->slot_index = index;
    ret_loan->partial = slot->state == SL_SLOT_LOADING;
    for (int matrix = 0; matrix < SL_EXPERT_MATRICES; matrix++)
        ret_loan->w[matrix] = sl_slab_slot(&lending->slab, index) +
                              sl_expert_matrix_offset_bytes(&lending->shape, matrix);
}

/* Ends the demand if something of it failed, and says what. Returns 0 if nothing did. */
static int take_failure(struct sl_lending *lending, struct sl_err *err)
{
    const int rc = lending->failure.code;

    if (rc < 0) {
        if (err)
            *err = lending->failure;
        abandon(lending);
    }
    return rc;
}

static int source_next(struct sl_expert_source *source, bool wait, struct sl_expert_loan *ret_loan,
                       struct sl_err *err)
{
    struct sl_lending *lending = lending_of(source);
    struct sl_link *link;
    int rc;

    sl_assert(lending->demand.open);
    if (lending->demand.n_left == 0) {
        lending->demand.open = false;
        return 0;
    }
    sl_lending_progress(lending, false);
    while (wait && lending->failure.code == 0 && sl_list_is_empty(&lending->lendable) &&
           sl_list_is_empty(&lending->heads)) {
        if (sl_expert_loader_is_idle(&lending->loader)) {
            /* hold_max leaves slots to load into, if the drives do. */
            sl_expert_loader_explain_held(&lending->loader, &lending->failure);
            break;
        }
        sl_lending_progress(lending, true);
    }
    rc = take_failure(lending, err);
    if (rc < 0)
        return rc;
    link = sl_list_pop(&lending->lendable);
    if (!link && wait)
        link = sl_list_pop(&lending->heads);
    if (!link)
        return -EAGAIN;
    lend(lending, sl_list_item(link, struct sl_slot, link), ret_loan);
    return 1;
}

static int source_complete(struct sl_expert_source *source, const struct sl_expert_loan *loan,
                           struct sl_err *err)
{
    struct sl_lending *lending = lending_of(source);
    const struct sl_slot *slot = &lending->table.slots[loan->slot_index];

    sl_assert(slot->lent);
    while (slot->state == SL_SLOT_LOADING && lending->failure.code == 0)
        sl_lending_progress(lending, true);
    return take_failure(lending, err);
}

static void source_release(struct sl_expert_source *source, const struct sl_expert_loan *loan)
{
    struct sl_lending *lending = lending_of(source);
    struct sl_slot *slot;

    sl_assert(loan->slot_index < lending->table.n_slots);
    slot = &lending->table.slots[loan->slot_index];
    sl_assert(slot->lent);
    sl_assert(slot->key.layer_index == loan->key.layer_index);
    sl_assert(slot->key.expert_index == loan->key.expert_index);
    slot->lent = false;
    lending->n_lent--;
    if (slot->failed) {
        slot->failed = false;
        sl_slot_table_drop(&lending->table, slot, slot->late);
        slot->late = false;
    } else if (slot->state == SL_SLOT_PINNED) {
        sl_slot_table_ready(&lending->table, slot);
    } else {
        sl_assert(!slot->demanded); /* the demand is over; it lands for whoever asks next */
    }
    sl_lending_progress(lending, false);
}

/* What hints brought becomes like any other; what they have on its way lands, for whoever asks. */
static void source_forget(struct sl_expert_source *source)
{
    struct sl_lending *lending = lending_of(source);

    sl_assert(!lending->demand.open);
    sl_lending_expire_guess(lending);
    for (uint32_t i = 0; i < lending->table.n_slots; i++)
        sl_slot_table_unhint(&lending->table, &lending->table.slots[i]);
}

static const struct sl_expert_source_ops source_ops = {
    .hint = source_hint,
    .demand = source_demand,
    .next = source_next,
    .release = source_release,
    .complete = source_complete,
    .abandon = source_abandon,
    .guess = source_guess,
    .forget = source_forget,
};

void sl_lending_carve(struct sl_lending *lending, struct sl_arena *arena)
{
    const uint32_t experts = lending->shape.n_routed_experts;

    lending->demand.missing = sl_arena_take(arena, experts, sizeof(*lending->demand.missing));
    lending->demand.is_missing = sl_arena_take(arena, experts, sizeof(*lending->demand.is_missing));
    lending->guess.experts = sl_arena_take(arena, experts, sizeof(*lending->guess.experts));
    lending->guess.named = sl_arena_take(arena, experts, sizeof(*lending->guess.named));
}

void sl_lending_start(struct sl_lending *lending)
{
    lending->source.ops = &source_ops;
    sl_list_init(&lending->lendable);
    sl_list_init(&lending->heads);
}

static uint32_t list_length(const struct sl_link *head)
{
    uint32_t n = 0;

    for (const struct sl_link *link = head->next; link != head; link = link->next)
        n++;
    return n;
}

bool sl_lending_is_sound(const struct sl_lending *lending)
{
    const struct sl_slot_table *table = &lending->table;
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
    return sl_slot_table_is_sound(table) && n_lent == lending->n_lent &&
           n_awaited == lending->demand.n_awaited &&
           n_pinned == list_length(&lending->lendable) + n_lent - n_lent_loading &&
           n_loading + n_held == lending->loader.n_busy &&
           n_held == lending->loader.n_held + lending->loader.n_cancelled;
}
