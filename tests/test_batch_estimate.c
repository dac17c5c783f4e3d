/* The time left of batches, in worlds with machines that read, multiply, or both: documents alone
 * or with several questions each, long ones first or last, answers that are alike, short and long,
 * or cut at limits, one for all or each its own; runs that are killed and go on, and users who take
 * turns of the machine. From a quarter of the way on, what is told is right within a fifth, in all
 * but a few of the cases of each kind. SL_SEED=n gives other worlds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/base/size.h"
#include "daemon/batch/batch_estimate.h"
#include "tests/fixture_model.h"
#include "tests/kernel_inputs.h"

#define ITEMS 240u
#define STEP_ROWS 4096u
#define TOLD_MAX 8192u

static const double machines[][3] = {
    {30, 0.05, 0.05}, {30, 0.001, 0.001}, {0.1, 0.01, 0.02}, {2, 0.004, 0.1}};
static const double past_s[] = {1e-6, 0, 3e-6, 1e-6};
static const double wait_shares[] = {1, 0.9, 0, 0}; /* of step_s, for drives */

enum answers { ALIKE, EVEN, MOSTLY_SHORT, OFTEN_CUT, OWN_LIMITS, ANSWERS };
enum order { ANY_ORDER, LONG_FIRST, LONG_LAST };

/* What is tried. */
struct kind {
    const char *name;
    uint32_t group_items; /* that ask about one document */
    enum order order;
    bool is_killed, has_users, has_drafts;
};

struct item {
    uint32_t group, n_prompt, n_shared, n_answer, n_new_max;
    uint32_t n_left, n_made; /* of the prompt, and what was made before; of the answer */
    bool is_running, has_begun, has_ended;
};

struct world {
    const struct kind *kind;
    double step_s, prompt_s, made_s, past_s, wait_share;
    uint32_t n_places;
    struct item items[ITEMS];
    bool is_known[ITEMS]; /* what a group shares was taken in */
    uint32_t n_ended;
    double user_s; /* that users take after each step, now */

    double seconds; /* of it all; the sample begins anew with each run */
    struct sl_estimate_sample sample;
    struct sl_batch_estimate estimate;
    struct sl_answer_lengths lengths;
    uint64_t *random;
};

/* ---- worlds ------------------------------------------------------------------------------------
 */

static double chance(struct world *w)
{
    return (1 + fixture_below(w->random, 9999)) / 10000.0;
}

static void make_answer(struct world *w, struct item *item, enum answers answers)
{
    static const uint32_t limits[ANSWERS] = {300, 0, 500, 300, 0};
    const double u = chance(w);
    double n = answers == ALIKE        ? 300
               : answers == EVEN       ? 100 + 300 * u
               : answers == OFTEN_CUT  ? 900 * u
               : answers == OWN_LIMITS ? 600
                                       : -250 * log(u); /* most are short, some long */

    item->n_new_max =
        answers == OWN_LIMITS ? 30u << 2 * fixture_below(w->random, 3) : limits[answers];
    if (item->n_new_max > 0 && n > item->n_new_max)
        n = item->n_new_max;
    item->n_answer = n < 1 ? 1 : (uint32_t)n;
}

static uint32_t prompt_tokens(struct world *w, uint32_t group)
{
    const double place = (double)group * w->kind->group_items / ITEMS;

    switch (w->kind->order) {
    case LONG_FIRST:
        return (uint32_t)(7000 * pow(0.1, place));
    case LONG_LAST:
        return (uint32_t)(700 * pow(10, place));
    case ANY_ORDER:
        break;
    }
    return 500 + fixture_below(w->random, 3000);
}

static struct world *make_world(const struct kind *kind, uint32_t number, uint64_t *random)
{
    static const uint32_t places[] = {8, 40, 64};
    const double *machine = machines[number % 4];
    struct world *w = calloc(1, sizeof(*w));
    uint32_t n_shared = 0;

    assert_non_null(w);
    w->kind = kind;
    w->random = random;
    w->step_s = machine[0];
    w->prompt_s = machine[1];
    w->made_s = machine[2];
    w->past_s = past_s[number % 4];
    w->wait_share = wait_shares[number % 4];
    w->n_places = places[number / 4 % 3];
    for (uint32_t i = 0; i < ITEMS; i++) {
        struct item *item = &w->items[i];

        item->group = i / kind->group_items;
        if (i % kind->group_items == 0)
            n_shared = prompt_tokens(w, item->group);
        item->n_prompt = n_shared + 10 + fixture_below(random, 90);
        item->n_shared = i % kind->group_items > 0 ? n_shared : 0;
        make_answer(w, item, (enum answers)(number / 12 % ANSWERS));
    }
    return w;
}

/* ---- a step ------------------------------------------------------------------------------------
 */

static uint32_t n_running(const struct world *w)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < ITEMS; i++)
        n += w->items[i].is_running;
    return n;
}

/* An item begins when what it shares is known, or nobody else is about to take it in. */
static void begin_items(struct world *w)
{
    uint32_t n = n_running(w);
    bool is_coming[ITEMS] = {false};

    for (uint32_t i = 0; i < ITEMS; i++) {
        struct item *item = &w->items[i];
        const uint32_t group = item->group;

        if (!item->is_running && !item->has_ended && n < w->n_places) {
            item->is_running = true;
            item->n_left = item->n_prompt + item->n_made;
            n++;
        }
        if (item->is_running && !item->has_begun && (w->is_known[group] || !is_coming[group])) {
            item->has_begun = true;
            item->n_left -= w->is_known[group] ? item->n_shared : 0;
        }
        is_coming[group] |= item->has_begun && !w->is_known[group];
    }
}

/* Returns the pasts of the last n tokens of what is taken in like a prompt. */
static double pasts(const struct item *item, uint32_t n)
{
    const double n_all = item->n_prompt + item->n_made, first = n_all - n;

    return (n_all * n_all - first * first) / 2;
}

/* Takes in as much of a prompt as there is room for. Its last token has a step of its own. */
static uint32_t take_prompt(struct world *w, struct item *item, uint32_t room)
{
    uint32_t n = item->n_left < room ? item->n_left : room;

    if (n == item->n_left && n > 1)
        n--;
    w->sample.pasts += pasts(item, item->n_left) - pasts(item, item->n_left - n);
    item->n_left -= n;
    if (item->n_left <= 100)
        w->is_known[item->group] = true;
    if (n > 0 && item->n_left == 0)
        item->n_made++;
    return n;
}

static void end_item(struct world *w, struct item *item)
{
    item->is_running = item->has_begun = false;
    item->has_ended = true;
    w->n_ended++;
    sl_answer_lengths_add(&w->lengths, item->n_made,
                          item->n_new_max > 0 && item->n_made == item->n_new_max);
}

static double users_s(struct world *w)
{
    if (!w->kind->has_users)
        return 0;
    if (fixture_below(w->random, 8) == 0)
        w->user_s = fixture_below(w->random, 2) ? 0 : 3 * chance(w) * w->step_s;
    return w->user_s;
}

/* All that decode make a token, or several; what room a step has goes to prompts, in order. */
static void take_step(struct world *w)
{
    const double before = w->sample.pasts;
    uint32_t n_prompt = 0, n_made = 0, n_decoding = 0;
    double seconds;

    begin_items(w);
    for (uint32_t i = 0; i < ITEMS; i++) {
        struct item *item = &w->items[i];
        const uint32_t n_more = w->kind->has_drafts ? 1 + fixture_below(w->random, 3) : 1;

        if (!item->has_begun || item->n_left > 0)
            continue;
        n_decoding++;
        item->n_made += n_more;
        if (item->n_made > item->n_answer)
            item->n_made = item->n_answer;
        n_made += n_more;
    }
    for (uint32_t i = 0; i < ITEMS; i++)
        if (w->items[i].has_begun && w->items[i].n_left > 0)
            n_prompt += take_prompt(w, &w->items[i], STEP_ROWS - n_decoding - n_prompt);
    for (uint32_t i = 0; i < ITEMS; i++)
        if (w->items[i].has_begun && w->items[i].n_made >= w->items[i].n_answer)
            end_item(w, &w->items[i]);
    seconds = (w->step_s + w->prompt_s * n_prompt + w->made_s * n_made +
               w->past_s * (w->sample.pasts - before)) *
                  (0.95 + fixture_below(w->random, 100) / 1000.0) +
              users_s(w);
    w->seconds += seconds;
    w->sample.seconds += seconds;
    w->sample.wait_seconds += w->wait_share * w->step_s;
    w->sample.steps++;
    w->sample.prompt_tokens += n_prompt;
    w->sample.made_tokens += n_made;
}

/* ---- what is told ------------------------------------------------------------------------------
 */

static struct sl_estimate_item as_told(const struct item *item)
{
    return (struct sl_estimate_item){.prompt_tokens = item->has_begun || item->is_running
                                                          ? item->n_left
                                                          : item->n_prompt + item->n_made,
                                     .n_texts = 1,
                                     .n_made = item->n_made,
                                     .n_new_max = item->n_new_max};
}

/* Notes the step. What items share that have not begun counts once, unless it is known no more.
 * Returns what is told, where that is wanted. */
static double note(struct world *w, bool is_wanted)
{
    struct sl_estimate_item running[ITEMS];
    struct sl_estimate_batch work = {.lengths = &w->lengths, .running = running};
    bool is_there[ITEMS] = {false};
    double left = -1;

    w->sample.n_begun = w->sample.n_decoding = 0;
    for (uint32_t i = 0; i < ITEMS; i++) {
        const struct item *item = &w->items[i];
        struct sl_estimate_item told = as_told(item);

        if (item->has_ended)
            continue;
        told.pasts = (uint64_t)pasts(item, (uint32_t)told.prompt_tokens);
        if (item->has_begun) {
            running[work.n_running++] = told;
            w->sample.n_begun++;
            w->sample.n_decoding += item->n_left == 0;
        } else {
            if (is_there[item->group] || w->is_known[item->group])
                told.prompt_tokens -= item->n_shared;
            told.pasts = (uint64_t)pasts(item, (uint32_t)told.prompt_tokens);
            sl_estimate_waiting_add(&work.waiting, &told, 1);
        }
        is_there[item->group] = true;
    }
    w->sample.items_wait = work.waiting.n_items > 0;
    w->sample.prompt_rows = STEP_ROWS - w->sample.n_decoding;
    sl_batch_estimate_note(&w->estimate, &w->sample);
    if (is_wanted)
        sl_batch_estimate_left(&w->estimate, &work, 1, w->n_places, &left);
    return left;
}

/* A run ends and another begins: what was made stays, what prompts were taken in is gone. */
static void kill_run(struct world *w)
{
    memset(w->is_known, 0, sizeof(w->is_known));
    memset(&w->estimate, 0, sizeof(w->estimate));
    w->sample = (struct sl_estimate_sample){.seconds = 0};
    for (uint32_t i = 0; i < ITEMS; i++)
        w->items[i].is_running = w->items[i].has_begun = false;
}

struct telling {
    double left, at;
    bool is_new; /* the run has only begun */
};

/* Runs a world, and counts what was told too long or too short. Nobody knows of a kill before. */
static void run(struct world *w, uint32_t *n, uint32_t *n_off)
{
    const uint32_t kill_at =
        w->kind->is_killed ? ITEMS / 4 + fixture_below(w->random, ITEMS / 2) : ITEMS + 1;
    struct telling *told = calloc(TOLD_MAX, sizeof(*told));
    uint32_t n_told = 0;
    bool was_killed = false, is_wanted;
    double left;

    assert_non_null(told);
    while (w->n_ended < ITEMS) {
        take_step(w);
        if (w->n_ended >= kill_at && !was_killed) {
            kill_run(w);
            was_killed = true;
            n_told = 0;
        }
        is_wanted = (uint64_t)w->sample.steps % 10 == 0 && n_told < TOLD_MAX;
        left = note(w, is_wanted);
        if (is_wanted)
            told[n_told++] = (struct telling){left, w->seconds, w->sample.steps < 20};
    }
    for (uint32_t i = 0; i < n_told; i++) {
        const double truth = w->seconds - told[i].at;

        if (told[i].at < w->seconds / 4 || told[i].is_new)
            continue;
        ++*n;
        *n_off += told[i].left < 0 || fabs(told[i].left - truth) > 0.2 * truth + 0.02 * w->seconds;
    }
    free(told);
}

/* ---- tests -------------------------------------------------------------------------------------
 */

static void test_left(void **state)
{
    static const struct kind kinds[] = {
        {.name = "nothing shared", .group_items = 1},
        {.name = "two questions each", .group_items = 2},
        {.name = "twelve questions each", .group_items = 12},
        {.name = "long ones first", .group_items = 2, .order = LONG_FIRST},
        {.name = "long ones last", .group_items = 2, .order = LONG_LAST},
        {.name = "killed", .group_items = 3, .is_killed = true},
        {.name = "beside users", .group_items = 2, .has_users = true},
        {.name = "with drafts", .group_items = 2, .has_drafts = true}};
    uint64_t random = inputs_seed();

    (void)state;
    for (uint32_t i = 0; i < SL_ARRAY_LEN(kinds); i++) {
        uint32_t n = 0, n_off = 0;

        for (uint32_t number = 0; number < SL_ARRAY_LEN(machines) * 3 * ANSWERS; number++) {
            struct world *w = make_world(&kinds[i], number, &random);

            run(w, &n, &n_off);
            free(w);
        }
        print_message("# %s: %u of %u off\n", kinds[i].name, n_off, n);
        assert_true(n > 5000);
        assert_true(n_off < n / 20); /* mostly where the longest of the last answers decides */
    }
}

static void test_nothing_known(void **state)
{
    const struct sl_answer_lengths lengths = {.n = 0};
    struct sl_batch_estimate estimate = {.recent_s = 0};
    struct sl_estimate_batch work = {.lengths = &lengths};
    double left;

    (void)state;
    sl_estimate_waiting_add(&work.waiting,
                            &(struct sl_estimate_item){.prompt_tokens = 10, .n_texts = 1}, 1);
    sl_batch_estimate_left(&estimate, &work, 1, 4, &left);
    assert_true(left < 0);
    assert_true(sl_batch_estimate_rate(&estimate) == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_left),
                                       cmocka_unit_test(test_nothing_known)};

    return cmocka_run_group_tests_name("batch_estimate", tests, NULL, NULL);
}
