#include "daemon/scheduler/scheduler.h"

#include <errno.h>
#include <stdlib.h>

#include "core/base/assert.h"

#define FOREVER UINT64_MAX

/* Prompts of users and of batches get one part in so many of a step that others would fill. */
static const uint32_t prompt_shares[SL_JOB_CLASSES] = {
    [SL_JOB_INTERACTIVE] = 2, [SL_JOB_BATCH] = 8};

static struct sl_job *job_of(const struct sl_link *link)
{
    return sl_list_item(link, struct sl_job, link);
}

#define FOR_EACH_JOB(job, head)                                                                    \
    for (struct sl_link *at_ = (head)->next, *next_ = at_->next;                                   \
         at_ != (head) && ((job) = job_of(at_), true); at_ = next_, next_ = at_->next)

int sl_scheduler_init(struct sl_scheduler *s, const struct sl_scheduler_limits *limits)
{
    sl_assert(limits->running_max >= 1 && limits->spans_max >= 1 && limits->n_layers >= 1);
    *s = (struct sl_scheduler){.limits = *limits, .batch_rows = UINT32_MAX};
    for (int class = 0; class < SL_JOB_CLASSES; class ++)
        sl_list_init(&s->waiting[class]);
    sl_list_init(&s->running);
    s->order = calloc(limits->running_max, sizeof(struct sl_job *));
    for (int size = 0; size < SL_STEP_SIZES; size++) {
        sl_assert(limits->step_tokens_max[size] >= 1);
        s->steps[size].parts = calloc(limits->spans_max, sizeof(struct sl_part));
    }
    if (s->order && s->steps[SL_STEP_LARGE].parts && s->steps[SL_STEP_SMALL].parts)
        return 0;
    sl_scheduler_fini(s);
    return -ENOMEM;
}

void sl_scheduler_fini(struct sl_scheduler *s)
{
    free(s->order);
    for (int size = 0; size < SL_STEP_SIZES; size++)
        free(s->steps[size].parts);
    *s = (struct sl_scheduler){0};
}

/* ---- jobs come and go --------------------------------------------------------------------------
 */

/* Lists are in the order of arrival; a job that comes back goes to its old place. */
static void insert(struct sl_link *head, struct sl_job *job)
{
    struct sl_link *before = head->prev;

    while (before != head && job_of(before)->arrival > job->arrival)
        before = before->prev;
    sl_list_append(before->next, &job->link); /* in front of the one behind */
}

static void change_state(struct sl_scheduler *s, struct sl_job *job, enum sl_job_state state)
{
    if (job->state == SL_JOB_WAITING)
        s->n_waiting[job->class]--;
    if (job->state == SL_JOB_RUNNING)
        s->n_running[job->class]--;
    sl_list_remove(&job->link);
    job->state = state;
    if (state == SL_JOB_WAITING) {
        s->n_waiting[job->class]++;
        insert(&s->waiting[job->class], job);
    }
    if (state == SL_JOB_RUNNING) {
        s->n_running[job->class]++;
        insert(&s->running, job);
    }
}

/* Something has changed: there may be a sequence for those that found none. */
void sl_scheduler_retry(struct sl_scheduler *s)
{
    struct sl_job *job;

    for (int class = 0; class < SL_JOB_CLASSES; class ++)
        FOR_EACH_JOB(job, &s->waiting[class])
    job->is_deferred = false;
}

void sl_scheduler_submit(struct sl_scheduler *s, struct sl_job *job, enum sl_job_class class,
                         uint32_t n_left)
{
    sl_assert(job->state == SL_JOB_OUT && n_left >= 1);
    sl_list_init(&job->link);
    job->class = class;
    job->n_left = n_left;
    job->arrival = ++s->n_arrivals;
    change_state(s, job, SL_JOB_WAITING);
}

void sl_scheduler_remove(struct sl_scheduler *s, struct sl_job *job)
{
    struct sl_open_step *step = &s->steps[job->size];

    if (job->state == SL_JOB_OUT)
        return;
    if (job->in_step)
        for (uint32_t i = 0; i < step->n_parts; i++)
            if (step->parts[i].job == job) {
                step->parts[i].job = NULL;
                step->n_jobs--;
            }
    job->in_step = false;
    change_state(s, job, SL_JOB_OUT);
    sl_scheduler_retry(s);
}

void sl_scheduler_defer(struct sl_scheduler *s, struct sl_job *job)
{
    sl_assert(job->state == SL_JOB_RUNNING && !job->in_step);
    job->is_deferred = true;
    change_state(s, job, SL_JOB_WAITING);
}

void sl_scheduler_set_reader(struct sl_scheduler *s, struct sl_job *job, bool has_reader,
                             uint64_t keep_until_ns)
{
    (void)s;
    job->has_no_reader = !has_reader;
    job->keep_until_ns = keep_until_ns;
}

void sl_scheduler_hold(struct sl_scheduler *s, struct sl_job *job, bool is_held)
{
    (void)s;
    job->is_held = is_held;
}

void sl_scheduler_set_batch_rows(struct sl_scheduler *s, uint32_t n_rows)
{
    sl_assert(n_rows >= 1);
    s->batch_rows = n_rows;
}

void sl_scheduler_set_left(struct sl_scheduler *s, struct sl_job *job, uint32_t n_left,
                           bool decodes)
{
    (void)s;
    sl_assert(n_left >= 1 && (!decodes || n_left == 1));
    job->n_left = n_left;
    job->decodes = decodes;
}

void sl_scheduler_job_failed(struct sl_scheduler *s, struct sl_job *job)
{
    (void)s;
    job->n_failures++;
}

/* ---- who can be in a step ----------------------------------------------------------------------
 */

static bool can_step(const struct sl_job *job, enum sl_job_class class)
{
    return job->class == class && !job->in_step && !job->is_held &&
           !(job->has_no_reader && job->decodes);
}

/* This is what a class wants of its next steps. */
struct wish {
    uint32_t n_decode, n_prompts;
    uint64_t prompt_tokens;
};

static struct wish wish_of(const struct sl_scheduler *s, enum sl_job_class class)
{
    struct wish wish = {0};
    const struct sl_job *job;

    FOR_EACH_JOB(job, &s->running)
    {
        if (!can_step(job, class))
            continue;
        wish.n_decode += job->decodes;
        wish.n_prompts += !job->decodes;
        wish.prompt_tokens += job->decodes ? 0 : job->n_left;
    }
    return wish;
}

/* Somebody interactive has a reader who waits for more. */
static bool serves_interactive(const struct sl_scheduler *s)
{
    const struct sl_job *job;

    FOR_EACH_JOB(job, &s->running)
    if (job->class == SL_JOB_INTERACTIVE && !job->is_held && !job->has_no_reader)
        return true;
    return false;
}

static int by_service(const void *a, const void *b)
{
    const struct sl_job *x = *(struct sl_job *const *)a, *y = *(struct sl_job *const *)b;

    if (x->served != y->served)
        return x->served < y->served ? -1 : 1;
    return x->arrival < y->arrival ? -1 : x->arrival > y->arrival;
}

static void add_part(struct sl_scheduler *s, enum sl_step_size size, struct sl_job *job,
                     uint32_t n_tokens)
{
    struct sl_open_step *step = &s->steps[size];

    step->parts[step->n_parts++] = (struct sl_part){job, n_tokens};
    step->n_jobs = step->n_parts;
    job->in_step = true;
    job->size = size;
    job->served = s->n_steps;
}

/* Where there is not room for all that decode, those go first that waited the longest. */
static uint32_t add_decodes(struct sl_scheduler *s, enum sl_step_size size, enum sl_job_class class,
                            uint32_t n_max)
{
    struct sl_job *job;
    uint32_t n = 0;

    FOR_EACH_JOB(job, &s->running)
    if (can_step(job, class) && job->decodes)
        s->order[n++] = job;
    if (n > n_max)
        qsort(s->order, n, sizeof(struct sl_job *), by_service);
    n = n < n_max ? n : n_max;
    for (uint32_t i = 0; i < n; i++)
        add_part(s, size, s->order[i], 1);
    return n;
}

static int by_length(const void *a, const void *b)
{
    const struct sl_job *x = *(struct sl_job *const *)a, *y = *(struct sl_job *const *)b;

    if (x->n_left != y->n_left)
        return x->n_left < y->n_left ? -1 : 1;
    return x->arrival < y->arrival ? -1 : x->arrival > y->arrival;
}

static int by_arrival(const void *a, const void *b)
{
    const struct sl_job *x = *(struct sl_job *const *)a, *y = *(struct sl_job *const *)b;

    return x->arrival < y->arrival ? -1 : x->arrival > y->arrival;
}

/* A large step takes prompts in the order in which they came. A small one takes the shortest first,
 * so that a short question does not wait for longer ones: those have the large step, whose turn
 * comes when all do not fit this one. For the same reason a large step leaves out the shortest, as
 * many as have `spared` tokens together: the next small step takes them. */
static void add_prompts(struct sl_scheduler *s, enum sl_step_size size, enum sl_job_class class,
                        uint32_t room, uint32_t spared)
{
    struct sl_job *job;
    uint32_t n = 0, first = 0;

    FOR_EACH_JOB(job, &s->running)
    if (can_step(job, class) && !job->decodes)
        s->order[n++] = job;
    if (size == SL_STEP_SMALL || spared > 0)
        qsort(s->order, n, sizeof(struct sl_job *), by_length);
    while (first < n && s->order[first]->n_left <= spared)
        spared -= s->order[first++]->n_left;
    if (size == SL_STEP_LARGE)
        qsort(s->order + first, n - first, sizeof(struct sl_job *), by_arrival);
    for (uint32_t i = first; i < n && room > 0 && s->steps[size].n_parts < s->limits.spans_max;
         i++) {
        const uint32_t n_left = s->order[i]->n_left, n_tokens = n_left < room ? n_left : room;

        add_part(s, size, s->order[i], n_tokens);
        room -= n_tokens;
    }
}

static uint32_t min_u32(uint32_t a, uint64_t b)
{
    return a < b ? a : (uint32_t)b;
}

/* Returns one part in `share` of `n`, but 1 of anything that two can share. */
static uint32_t part_of(uint32_t n, uint32_t share)
{
    return n > 1 && n < share ? 1 : n / share;
}

/* Tokens of a step that decode, where prompts are waiting too: these get their share of it if they
 * need that. */
static uint32_t decodes_max(const struct sl_scheduler *s, enum sl_step_size size,
                            enum sl_job_class class, const struct wish *wish)
{
    const uint32_t tokens = s->limits.step_tokens_max[size], spans = s->limits.spans_max;
    const uint32_t share = prompt_shares[class];
    const uint32_t most = tokens - min_u32(part_of(tokens, share), wish->prompt_tokens);
    const uint32_t most_spans = spans - min_u32(part_of(spans, share), wish->n_prompts);

    return min_u32(most < most_spans ? most : most_spans, wish->n_decode);
}

/* Tokens of prompts that a step may take beside those that decode. */
static uint32_t prompts_max(const struct sl_scheduler *s, enum sl_step_size size,
                            enum sl_job_class class, uint32_t n_decodes)
{
    const uint32_t room = s->limits.step_tokens_max[size] - n_decodes;
    const uint32_t least = part_of(s->batch_rows, prompt_shares[class]);
    uint32_t n;

    if (class != SL_JOB_BATCH)
        return room;
    n = s->batch_rows > n_decodes ? s->batch_rows - n_decodes : 0;
    n = n > least ? n : least;
    n = n > 1 ? n : 1;
    return n < room ? n : room;
}

/* Tokens of users' prompts that the next small step takes. */
static uint32_t small_room(const struct sl_scheduler *s, const struct wish *users)
{
    return s->limits.step_tokens_max[SL_STEP_SMALL] -
           decodes_max(s, SL_STEP_SMALL, SL_JOB_INTERACTIVE, users);
}

/* ---- the next step -----------------------------------------------------------------------------
 */

static struct sl_action begin(struct sl_scheduler *s, enum sl_step_size size,
                              enum sl_job_class class, const struct wish *wish, bool with_decodes)
{
    const uint32_t n_max = with_decodes ? decodes_max(s, size, class, wish) : 0;
    struct sl_open_step *step = &s->steps[size];
    uint32_t n = 0;

    *step = (struct sl_open_step){.is_open = true, .class = class, .parts = step->parts};
    s->n_steps++;
    if (n_max > 0)
        n = add_decodes(s, size, class, n_max);
    add_prompts(s, size, class, prompts_max(s, size, class, n),
                size == SL_STEP_LARGE && class == SL_JOB_INTERACTIVE ? small_room(s, wish) : 0);
    sl_assert(step->n_parts > 0);
    return (struct sl_action){.kind = SL_ACTION_BEGIN, .size = size};
}

static struct sl_action advance(enum sl_step_size size)
{
    return (struct sl_action){.kind = SL_ACTION_ADVANCE, .size = size};
}

static void close_step(struct sl_scheduler *s, enum sl_step_size size, int rc)
{
    struct sl_open_step *step = &s->steps[size];

    for (uint32_t i = 0; i < step->n_parts; i++) {
        struct sl_job *job = step->parts[i].job;

        if (!job)
            continue;
        job->in_step = false;
        job->n_failures = rc < 0 ? job->n_failures + 1 : rc == 0 ? 0 : job->n_failures;
    }
    step->is_open = false;
    if (size == SL_STEP_SMALL)
        s->large_is_next = true;
    sl_scheduler_retry(s);
}

void sl_scheduler_give_up(struct sl_scheduler *s, enum sl_step_size size)
{
    close_step(s, size, 1);
}

static struct sl_action abandon(struct sl_scheduler *s, enum sl_step_size size)
{
    sl_scheduler_give_up(s, size);
    return (struct sl_action){.kind = SL_ACTION_ABANDON, .size = size};
}

/* Users' prompts that a small step has no room for. */
static bool wants_large(const struct sl_scheduler *s, const struct wish *users)
{
    return users->prompt_tokens > small_room(s, users);
}

static bool batch_may_run(const struct sl_scheduler *s, bool users_served)
{
    const uint64_t all_ns = s->ran_ns[SL_JOB_INTERACTIVE] + s->ran_ns[SL_JOB_BATCH];

    return !users_served || s->ran_ns[SL_JOB_BATCH] < all_ns / 1000 * s->limits.batch_permille;
}

static bool is_half_done(const struct sl_scheduler *s, const struct sl_open_step *step)
{
    return step->n_advances >= s->limits.n_layers / 2;
}

/* Decides what the large forward is to do: *ret_action is set if there is anything. */
static bool large_step(struct sl_scheduler *s, const struct wish *users, bool users_served,
                       struct sl_action *ret_action)
{
    struct sl_open_step *large = &s->steps[SL_STEP_LARGE];
    const bool users_want_it = wants_large(s, users);

    if (!large->is_open) {
        const struct wish batch = wish_of(s, SL_JOB_BATCH);

        if (users_want_it)
            *ret_action = begin(s, SL_STEP_LARGE, SL_JOB_INTERACTIVE, users, false);
        else if (batch.n_decode + batch.n_prompts > 0 && batch_may_run(s, users_served))
            *ret_action = begin(s, SL_STEP_LARGE, SL_JOB_BATCH, &batch, true);
        else
            return false;
        return true;
    }
    if (large->class == SL_JOB_BATCH && users_want_it && !is_half_done(s, large))
        *ret_action = abandon(s, SL_STEP_LARGE);
    else if (large->class == SL_JOB_INTERACTIVE || users_want_it || batch_may_run(s, users_served))
        *ret_action = advance(SL_STEP_LARGE);
    else
        return false;
    return true;
}

static bool next_step(struct sl_scheduler *s, struct sl_action *ret_action)
{
    const struct sl_open_step *small = &s->steps[SL_STEP_SMALL];
    const bool users_served = serves_interactive(s);
    struct wish users;
    bool for_users;

    for (int size = 0; size < SL_STEP_SIZES; size++)
        if (s->steps[size].is_open && s->steps[size].n_jobs == 0) {
            *ret_action = abandon(s, (enum sl_step_size)size);
            return true;
        }
    if (small->is_open) {
        *ret_action = advance(SL_STEP_SMALL);
        return true;
    }
    if (!users_served)
        s->ran_ns[SL_JOB_INTERACTIVE] = s->ran_ns[SL_JOB_BATCH] = 0;
    users = wish_of(s, SL_JOB_INTERACTIVE);
    for_users = users.n_decode + users.n_prompts > 0;
    if ((s->large_is_next || !for_users || !s->steps[SL_STEP_LARGE].is_open) &&
        large_step(s, &users, users_served, ret_action))
        return true;
    if (!for_users)
        return false;
    *ret_action = begin(s, SL_STEP_SMALL, SL_JOB_INTERACTIVE, &users, true);
    return true;
}

void sl_scheduler_advanced(struct sl_scheduler *s, enum sl_step_size size, int rc,
                           uint64_t elapsed_ns)
{
    struct sl_open_step *step = &s->steps[size];

    sl_assert(step->is_open);
    s->ran_ns[step->class] += elapsed_ns;
    step->n_advances++;
    if (size == SL_STEP_LARGE && step->class == SL_JOB_INTERACTIVE)
        s->large_is_next = false; /* a batch has a share of the time instead of turns */
    if (rc <= 0)
        close_step(s, size, rc);
}

/* ---- all that there is to do -------------------------------------------------------------------
 */

static struct sl_job *find_drop(const struct sl_scheduler *s, uint64_t now_ns,
                                uint64_t *ret_until_ns)
{
    struct sl_job *job;

    for (int class = 0; class < SL_JOB_CLASSES; class ++)
        FOR_EACH_JOB(job, &s->waiting[class])
    if (job->has_no_reader)
        return job;
    FOR_EACH_JOB(job, &s->running)
    {
        if (!job->has_no_reader || job->in_step)
            continue;
        if (job->decodes || now_ns >= job->keep_until_ns)
            return job;
        *ret_until_ns = job->keep_until_ns < *ret_until_ns ? job->keep_until_ns : *ret_until_ns;
    }
    return NULL;
}

static struct sl_job *find_admission(struct sl_scheduler *s)
{
    struct sl_job *job;

    for (int class = 0; class < SL_JOB_CLASSES; class ++) {
        if (s->n_running[SL_JOB_INTERACTIVE] + s->n_running[SL_JOB_BATCH] ==
                s->limits.running_max ||
            (class == SL_JOB_BATCH && s->n_running[class] >= s->limits.batch_running_max))
            continue;
        FOR_EACH_JOB(job, &s->waiting[class])
        if (!job->is_deferred)
            return job;
    }
    return NULL;
}

struct sl_action sl_scheduler_next(struct sl_scheduler *s, uint64_t now_ns)
{
    struct sl_action action = {.kind = SL_ACTION_WAIT, .until_ns = FOREVER};

    action.job = find_drop(s, now_ns, &action.until_ns);
    if (action.job) {
        action.kind = SL_ACTION_DROP;
        return action;
    }
    action.job = find_admission(s);
    if (action.job) {
        action.kind = SL_ACTION_ADMIT;
        change_state(s, action.job, SL_JOB_RUNNING);
        return action;
    }
    next_step(s, &action);
    return action;
}
