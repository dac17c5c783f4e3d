/* Replacement policies: what is chosen is what a plain model of the policy says, however offers are
 * ordered, and the slot table loses no slot. Random visits, uses, offers and withdrawals go to a
 * policy and to a model that keeps every demand and looks at all of them each time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cache/slot_table.h"
#include "tests/io_fault.h"

#define LAYERS 3u
#define EXPERTS 10u
#define ALL (LAYERS * EXPERTS)
#define PER_VISIT 3u
#define VISITS 3000u

static uint32_t below(uint64_t *random, uint32_t limit)
{
    return (uint32_t)(io_fault_random(random) % limit);
}

/* What a policy was told, as it was told. */
struct model {
    uint32_t visits[LAYERS], sweep, layer;
    uint32_t uses[ALL][VISITS]; /* visits that asked for it */
    uint32_t n_uses[ALL];
    uint32_t last[ALL]; /* number of its latest use among all */
    uint32_t n;
};

static void model_use(struct model *m, uint32_t id, uint32_t visit)
{
    m->last[id] = ++m->n;
    if (m->n_uses[id] == 0 || m->uses[id][m->n_uses[id] - 1] != visit)
        m->uses[id][m->n_uses[id]++] = visit;
}

/* The larger, the sooner it goes. */
typedef double spare_fn(const struct model *m, uint32_t id);

static double lru_spare(const struct model *m, uint32_t id)
{
    return m->n - m->last[id];
}

/* Each demand fades to a half in 48 visits of its layer. */
static double frequency_spare(const struct model *m, uint32_t id)
{
    const uint32_t layer = id / EXPERTS, visit = m->visits[layer];
    const uint32_t distance = (layer + LAYERS - m->layer) % LAYERS;
    double count = 0, all = 0;

    for (uint32_t i = 0; i < m->n_uses[id]; i++)
        count += exp2(((double)m->uses[id][i] - visit) / 48);
    for (uint32_t i = 1; i <= visit; i++)
        all += exp2(((double)i - visit) / 48);
    if (layer == m->layer && m->uses[id][m->n_uses[id] - 1] == visit)
        return 1 / (1 + count); /* it has just been used: after all others */
    return (distance ? distance : LAYERS) + LAYERS * (all / count - 1);
}

/* Ids that are on offer, each in the slot of its number. The choice is one of ids first .. end - 1:
 * of a layer, or of all. */
static void check_choice(struct sl_policy *policy, const struct model *m, bool *offered,
                         spare_fn *spare, uint32_t layer)
{
    const uint32_t first = layer < LAYERS ? layer * EXPERTS : 0;
    const uint32_t end = layer < LAYERS ? first + EXPERTS : ALL;
    uint32_t chosen = layer < LAYERS ? policy->ops->choose_of(policy, (uint16_t)layer)
                                     : policy->ops->choose(policy);
    uint32_t n_offered = 0;

    for (uint32_t id = first; id < end; id++)
        n_offered += offered[id];
    if (n_offered == 0) {
        assert_int_equal(chosen, SL_NO_SLOT);
        return;
    }
    assert_in_range(chosen, first, end - 1);
    assert_true(offered[chosen]);
    for (uint32_t id = first; id < end; id++)
        if (offered[id]) /* equal but for rounding */
            assert_true(spare(m, chosen) >= spare(m, id) * (1 - 1e-9));
    offered[chosen] = false;
}

static void run_policy(const struct sl_policy_ops *ops, spare_fn *spare, uint64_t seed)
{
    const struct sl_policy_shape shape = {LAYERS, EXPERTS, ALL};
    struct model *m = calloc(1, sizeof(*m));
    struct sl_arena measure, arena;
    bool offered[ALL] = {false};
    struct sl_policy *policy;

    assert_non_null(m);
    sl_arena_init_measure(&measure);
    assert_null(ops->carve(&measure, &shape));
    assert_int_equal(sl_arena_init(&arena, measure.used_bytes, "policy", NULL), 0);
    policy = ops->carve(&arena, &shape);
    for (uint32_t round = 0; round < VISITS; round++) {
        uint32_t layer = below(&seed, LAYERS), hot = below(&seed, 2) ? 4 : EXPERTS;

        policy->ops->visit(policy, (uint16_t)layer);
        /* Sweeps are counted: a layer may have missed some, or start the next. */
        m->sweep += m->visits[layer] == m->sweep;
        m->visits[layer] = m->sweep;
        m->layer = layer;
        for (uint32_t i = 0; i < PER_VISIT; i++) {
            uint16_t expert = (uint16_t)below(&seed, hot);
            uint32_t id = layer * EXPERTS + expert;

            if (offered[id])
                policy->ops->withdraw(policy, id);
            offered[id] = false;
            policy->ops->use(policy, (struct sl_expert_key){(uint16_t)layer, expert});
            model_use(m, id, m->visits[layer]);
        }
        for (uint32_t i = 0; i < 2 * PER_VISIT; i++) {
            uint32_t id = below(&seed, ALL);

            if (m->last[id] == 0 || offered[id])
                continue;
            policy->ops->offer(
                policy, id,
                (struct sl_expert_key){(uint16_t)(id / EXPERTS), (uint16_t)(id % EXPERTS)});
            offered[id] = true;
        }
        for (uint32_t n = below(&seed, 4); n > 0; n--)
            check_choice(policy, m, offered, spare, below(&seed, 2 * LAYERS));
    }
    sl_arena_fini(&arena);
    free(m);
}

static void test_lru(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 4; seed++)
        run_policy(&sl_policy_lru, lru_spare, seed);
}

static void test_frequency(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 4; seed++)
        run_policy(&sl_policy_frequency, frequency_spare, seed);
}

/* What is expected goes last, and is counted once; what does not come fades. */
static void test_expected_experts_stay(void **state)
{
    static const struct sl_policy_ops *const policies[] = {&sl_policy_frequency, &sl_policy_lru};
    const struct sl_policy_shape shape = {1, 4, 4};
    const struct sl_expert_key hot = {0, 1}, expected = {0, 2}, rare = {0, 3};

    (void)state;
    for (uint32_t i = 0; i < 2; i++) {
        struct sl_arena measure, arena;
        struct sl_policy *policy;

        sl_arena_init_measure(&measure);
        policies[i]->carve(&measure, &shape);
        assert_int_equal(sl_arena_init(&arena, measure.used_bytes, "policy", NULL), 0);
        policy = policies[i]->carve(&arena, &shape);
        for (uint32_t visit = 0; visit < 100; visit++) {
            policy->ops->visit(policy, 0);
            if (visit == 0)
                policy->ops->use(policy, rare);
            policy->ops->use(policy, hot);
        }
        policy->ops->expect(policy, expected);
        policy->ops->offer(policy, 1, hot);
        policy->ops->offer(policy, 3, rare);
        policy->ops->offer(policy, 2, expected);
        assert_int_equal(policy->ops->choose(policy), 3);
        assert_int_equal(policy->ops->choose(policy), 1);
        for (uint32_t visit = 0; visit < 1000; visit++) {
            policy->ops->visit(policy, 0);
            policy->ops->use(policy, hot);
        }
        policy->ops->offer(policy, 1, hot);
        assert_int_equal(policy->ops->choose(policy), 2);
        sl_arena_fini(&arena);
    }
}

static void test_names(void **state)
{
    const struct sl_policy_ops *ops = NULL;
    struct sl_err err;

    (void)state;
    assert_int_equal(sl_policy_find(&ops, NULL, NULL), 0);
    assert_ptr_equal(ops, &sl_policy_frequency);
    assert_int_equal(sl_policy_find(&ops, "lru", NULL), 0);
    assert_ptr_equal(ops, &sl_policy_lru);
    assert_int_equal(sl_policy_find(&ops, "optimum", &err), -EINVAL);
    assert_non_null(strstr(err.message, SL_POLICY_NAMES));
    assert_ptr_equal(ops, &sl_policy_lru);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lru),
        cmocka_unit_test(test_frequency),
        cmocka_unit_test(test_expected_experts_stay),
        cmocka_unit_test(test_names),
    };

    return cmocka_run_group_tests_name("policy", tests, NULL, NULL);
}
