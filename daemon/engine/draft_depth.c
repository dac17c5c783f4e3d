#include "daemon/engine/draft_depth.h"

#include "core/base/assert.h"

/* A sample's weight fades to this with each later one of its kind. */
#define TIME_FADES_TO 0.8
#define RIGHT_FADES_TO 0.98

/* The account's memory: some two thousand steps. */
#define ACCOUNT_FADES_TO 0.9995

/* Before a depth was tried, its guesses are taken for right so often, with this many samples'
 * weight. */
#define RIGHT_FIRST 0.6
#define RIGHT_FIRST_WEIGHT 2.0

/* Steps without guesses come first: so many, to know what they take. Later, one in OFF_EVERY keeps
 * that known. */
#define OFF_FIRST 4u
#define OFF_EVERY 32u

/* Steps after which deeper guesses are tried again. */
#define LOOK_EVERY 256u

/* A trial of what did not pay, and its first steps, in which the draft has seen too little. */
#define PROBE_STEPS 12u
#define WARMING_STEPS 4u

/* Steps' time that may be lost before there is an account. */
#define LOSS_FIRST_STEPS 1.0

/* A trial waits for no more of the account than these steps, however dear guesses were: the account
 * of two thousand steps has room for them, and times may have changed. */
#define PROBE_LOSS_STEPS_MAX 12.0

/* Gains below that are noise. */
#define GAIN_LEAST 1.01

static void add(struct sl_draft_mean *mean, double fades_to, double weight, double value)
{
    mean->weight = fades_to * mean->weight + weight;
    mean->sum = fades_to * mean->sum + weight * value;
}

void sl_draft_depth_init(struct sl_draft_depth *d, uint32_t depth_max, bool is_chosen,
                         double pass_share)
{
    sl_assert(depth_max >= 1 && depth_max <= SL_DRAFT_DEPTH_MAX);
    *d = (struct sl_draft_depth){
        .depth_max = depth_max, .is_chosen = is_chosen, .pass_share = pass_share};
    for (uint32_t i = 0; i < depth_max; i++)
        d->right[i] = (struct sl_draft_mean){RIGHT_FIRST_WEIGHT, RIGHT_FIRST_WEIGHT * RIGHT_FIRST};
}

/* ---- times -------------------------------------------------------------------------------------
 */

/* The group of a number of rows, and the least number in a group. */
static uint32_t group_of(uint32_t n_rows)
{
    uint32_t octave = 8, group = 8;

    if (n_rows <= 8)
        return n_rows > 0 ? n_rows - 1 : 0;
    while (n_rows >= 2 * octave && group + 4 < SL_DRAFT_ROW_GROUPS - 4) {
        octave *= 2;
        group += 4;
    }
    group += (n_rows - octave) * 4 / octave;
    return group < SL_DRAFT_ROW_GROUPS ? group : SL_DRAFT_ROW_GROUPS - 1;
}

static double rows_of(uint32_t group)
{
    const uint32_t octave = (group - 8) / 4;

    return group < 8 ? group + 1 : (double)(8u << octave) * (1 + (group - 8) % 4 / 4.0);
}

/* Between two groups that are known times grow evenly; beyond the last one, and before the first,
 * they are taken to stay as they are: so what is not known looks good enough to be tried. */
static double step_ns(const struct sl_draft_depth *d, uint32_t n_rows)
{
    const uint32_t group = group_of(n_rows);
    uint32_t low = group, high = group;
    double a, b;

    while (low > 0 && d->step_ns[low].weight == 0)
        low--;
    while (high < SL_DRAFT_ROW_GROUPS - 1 && d->step_ns[high].weight == 0)
        high++;
    if (d->step_ns[low].weight == 0)
        low = high;
    if (d->step_ns[high].weight == 0)
        high = low;
    if (d->step_ns[low].weight == 0)
        return 0;
    a = d->step_ns[low].sum / d->step_ns[low].weight;
    b = d->step_ns[high].sum / d->step_ns[high].weight;
    if (low == high)
        return a;
    return a + (b - a) * (rows_of(group) - rows_of(low)) / (rows_of(high) - rows_of(low));
}

/* A pass for n texts. A depth that is not known takes what the nearest lower one does. */
static double draft_ns(const struct sl_draft_depth *d, uint32_t depth, uint32_t n)
{
    while (depth > 0 && d->draft_ns[depth].weight == 0)
        depth--;
    if (depth == 0)
        return d->pass_share * step_ns(d, d->n_rows);
    return n * d->draft_ns[depth].sum / d->draft_ns[depth].weight;
}

/* ---- what pays ---------------------------------------------------------------------------------
 */

static double tokens_of(const struct sl_draft_depth *d, uint32_t depth)
{
    double all_right = 1, sum = 1;

    for (uint32_t i = 0; i < depth; i++) {
        all_right *= d->right[i].sum / d->right[i].weight;
        sum += all_right;
    }
    return sum;
}

/* A step's time with guesses of n texts, of which not all may be worth their rows. */
static double guessing_ns(const struct sl_draft_depth *d, uint32_t depth, uint32_t n_rows,
                          uint32_t n)
{
    double carried = 0, low_ns, high_ns;
    uint32_t low;

    for (uint32_t i = 0; i < depth; i++)
        carried += d->carried[i].weight > 0 ? d->carried[i].sum / d->carried[i].weight : 1;
    carried *= n;
    low = (uint32_t)carried;
    low_ns = step_ns(d, n_rows + low);
    high_ns = step_ns(d, n_rows + low + 1);
    return low_ns + (high_ns - low_ns) * (carried - low);
}

/* How many times as many tokens a depth makes in a time as none does: in steps of n_rows in which
 * n texts have guesses. */
static double gain_of(const struct sl_draft_depth *d, uint32_t depth, uint32_t n_rows, uint32_t n)
{
    const double off_ns = step_ns(d, n_rows);
    const double ns = guessing_ns(d, depth, n_rows, n) + draft_ns(d, depth, n);

    return ns > 0 ? tokens_of(d, depth) * off_ns / ns : 1;
}

/* A guess adds a row to a step that makes a token of each text in a time. Where it is right, it
 * saves a text's share of such a step. */
double sl_draft_depth_chance_min(const struct sl_draft_depth *d, uint32_t n_guesses,
                                 uint32_t n_texts)
{
    const double off_ns = step_ns(d, d->n_rows);
    const double more_ns = step_ns(d, d->n_rows + n_texts * n_guesses) - off_ns;

    if (!d->is_chosen || d->n_probing > 0 || n_guesses == 0 || off_ns <= 0 || more_ns <= 0)
        return 0;
    return more_ns / n_guesses < off_ns ? more_ns / n_guesses / off_ns : 1;
}

/* The next depth is tried when the one before it is known. */
static bool may_try(const struct sl_draft_depth *d, uint32_t depth)
{
    return depth == 1 || d->right[depth - 2].weight >= 2 * RIGHT_FIRST_WEIGHT;
}

static uint32_t best_depth(const struct sl_draft_depth *d, uint32_t n_rows, uint32_t n)
{
    double best_gain = GAIN_LEAST;
    uint32_t best = 0;

    for (uint32_t depth = 1; depth <= d->depth_max && may_try(d, depth); depth++) {
        const double gain = gain_of(d, depth, n_rows, n);

        if (gain > best_gain) {
            best_gain = gain;
            best = depth;
        }
    }
    return best;
}

/* The time that may still be lost. */
static double left_ns(const struct sl_draft_depth *d)
{
    return SL_DRAFT_LOSS * d->total_ns + LOSS_FIRST_STEPS * step_ns(d, d->n_rows) - d->lost_ns;
}

/* The time that a trial would lose if no guess were right, as far as it is waited for. */
static double probe_ns(const struct sl_draft_depth *d, uint32_t n_texts)
{
    const double more = step_ns(d, d->n_rows + n_texts) - step_ns(d, d->n_rows);
    const double ns = PROBE_STEPS * (draft_ns(d, 1, n_texts) + (more > 0 ? more : 0));
    const double most = PROBE_LOSS_STEPS_MAX * step_ns(d, d->n_rows);

    return ns < most ? ns : most;
}

uint32_t sl_draft_depth_choose(const struct sl_draft_depth *d, uint32_t n_rows, uint32_t n_ready)
{
    uint32_t best;

    if (!d->is_chosen)
        return d->depth_max;
    if (d->n_steps % OFF_EVERY == OFF_EVERY - 1)
        return 0;
    best = best_depth(d, n_rows, n_ready);
    return best > 0 ? best : d->n_probing > 0;
}

uint32_t sl_draft_depth_wanted(const struct sl_draft_depth *d, uint32_t n_texts)
{
    uint32_t best;

    if (!d->is_chosen)
        return d->depth_max;
    if (d->n_steps < OFF_FIRST)
        return 0;
    if (d->n_probing > 0 && left_ns(d) >= 0)
        return 1;
    best = best_depth(d, d->n_rows, n_texts);
    if (best == 0)
        return left_ns(d) < probe_ns(d, n_texts) ? SL_DRAFT_BLIND : 1;
    return left_ns(d) < (d->guesses ? 0 : draft_ns(d, best, n_texts)) ? SL_DRAFT_BLIND : best;
}

uint64_t sl_draft_depth_pass_ns_max(const struct sl_draft_depth *d, uint32_t n_guesses,
                                    uint32_t n_texts)
{
    const double left = left_ns(d);

    if (!d->is_chosen || n_guesses == 0)
        return UINT64_MAX;
    return (uint64_t)((left > 0 ? left : 0) + draft_ns(d, n_guesses, n_texts));
}

/* ---- samples -----------------------------------------------------------------------------------
 */

static void note_right(struct sl_draft_depth *d, const struct sl_draft_sample *s)
{
    for (uint32_t i = 0; i < d->depth_max; i++)
        if (s->tried[i] > 0)
            add(&d->right[i], RIGHT_FADES_TO, s->tried[i], (double)s->right[i] / s->tried[i]);
    for (uint32_t i = 0; i < d->depth_max; i++) {
        const uint32_t n = s->carried[i] + s->left_out[i];

        if (n > 0)
            add(&d->carried[i], RIGHT_FADES_TO, n, (double)s->carried[i] / n);
    }
}

/* Steps without guesses would have made as many tokens a text in so many steps. */
static void note_loss(struct sl_draft_depth *d, const struct sl_draft_sample *s, uint32_t n_texts)
{
    const double ns = (double)(s->step_ns + s->draft_ns);
    const double off_ns = step_ns(d, s->n_rows) * (n_texts > 0 ? (double)s->n_made / n_texts : 1);

    d->total_ns = ACCOUNT_FADES_TO * d->total_ns + ns;
    d->lost_ns = ACCOUNT_FADES_TO * d->lost_ns;
    if (s->n_tried > 0 || s->draft_ns > 0)
        d->lost_ns += ns - off_ns;
    if (d->lost_ns < 0) /* gains of one time are no leave to lose in another */
        d->lost_ns = 0;
}

/* Times and chances of deeper guesses than these may hold no more: they are tried again. */
static void forget_deeper(struct sl_draft_depth *d, uint32_t depth, uint32_t n_texts)
{
    for (uint32_t g = group_of(d->n_rows + n_texts * depth) + 1; g < SL_DRAFT_ROW_GROUPS; g++)
        d->step_ns[g].weight = d->step_ns[g].sum = 0;
    for (uint32_t i = depth + 1; i <= d->depth_max; i++)
        d->draft_ns[i].weight = d->draft_ns[i].sum = 0;
    for (uint32_t i = depth; i < d->depth_max; i++)
        if (d->right[i].weight > 2 * RIGHT_FIRST_WEIGHT) {
            d->right[i].sum *= 2 * RIGHT_FIRST_WEIGHT / d->right[i].weight;
            d->right[i].weight = 2 * RIGHT_FIRST_WEIGHT;
        }
}

/* The trial that begins with a draft's first guesses, and with those after a time without. */
static void note_trial(struct sl_draft_depth *d, const struct sl_draft_sample *s)
{
    const bool guesses = s->n_guessing > 0 && s->depth_wanted > 0 && !s->is_cut;

    if (guesses && !d->guesses) {
        d->n_warming = WARMING_STEPS;
        d->n_probing = PROBE_STEPS;
        forget_deeper(d, 0, s->n_texts);
    } else if (d->n_probing > 0) {
        d->n_probing = guesses ? d->n_probing - 1 : 0;
    }
    d->guesses = guesses;
}

void sl_draft_depth_add(struct sl_draft_depth *d, const struct sl_draft_sample *s)
{
    add(&d->step_ns[group_of(s->n_rows + s->n_tried)], TIME_FADES_TO, 1, (double)s->step_ns);
    /* A prompt's tokens take longer to see. */
    if (s->n_guessing > 0 && !s->is_cut && s->n_texts == s->n_rows)
        add(&d->draft_ns[s->depth_wanted], TIME_FADES_TO, 1, (double)s->draft_ns / s->n_guessing);
    if (s->n_tried > 0 && d->n_warming > 0)
        d->n_warming--;
    else
        note_right(d, s);
    note_loss(d, s, s->n_texts);
    note_trial(d, s);
    d->n_rows = s->n_texts > 1 ? s->n_rows : 1; /* one text has no prompt beside it next time */
    if (++d->n_steps % LOOK_EVERY == 0 && d->guesses)
        forget_deeper(d, best_depth(d, d->n_rows, s->n_texts), s->n_texts);
}
