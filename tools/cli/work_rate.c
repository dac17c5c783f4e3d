#include "tools/cli/work_rate.h"

#include <stdio.h>

#define FIRST_GAP_NS UINT64_C(250000000)
#define GROWTH_NS UINT64_C(10000000000) /* before that, differences in cost are chance */

struct sl_work_rate sl_work_rate_start(uint64_t now_ns, bool growing, uint64_t done)
{
    return (struct sl_work_rate){.growing = growing,
                                 .latest = {now_ns, done},
                                 .marks = {{now_ns, done}},
                                 .n_marks = 1,
                                 .gap_ns = FIRST_GAP_NS};
}

void sl_work_rate_note(struct sl_work_rate *rate, uint64_t now_ns, uint64_t done)
{
    const struct sl_work_mark *last = &rate->marks[rate->n_marks - 1];

    rate->latest = (struct sl_work_mark){now_ns, done};
    if (now_ns - last->ns < rate->gap_ns || done == last->done)
        return;
    if (rate->n_marks == SL_WORK_RATE_MARKS) {
        rate->n_marks /= 2;
        for (uint32_t i = 1; i < rate->n_marks; i++)
            rate->marks[i] = rate->marks[2 * i];
        rate->gap_ns *= 2;
    }
    rate->marks[rate->n_marks++] = rate->latest;
}

/* Returns the mark at which the last quarter of the time begins. */
static struct sl_work_mark recent_mark(const struct sl_work_rate *rate)
{
    const uint64_t elapsed_ns = rate->latest.ns - rate->marks[0].ns;
    uint32_t i = rate->n_marks - 1;

    while (i > 0 && rate->latest.ns - rate->marks[i].ns < elapsed_ns / 4)
        i--;
    return rate->marks[i];
}

/* Returns the seconds for a unit of work between two marks; 0 if no work was done. */
static double cost(struct sl_work_mark from, struct sl_work_mark to)
{
    return to.done > from.done ? (double)(to.ns - from.ns) * 1e-9 / (double)(to.done - from.done)
                               : 0;
}

double sl_work_rate_per_second(const struct sl_work_rate *rate)
{
    const double seconds = cost(recent_mark(rate), rate->latest);

    return seconds > 0 ? 1 / seconds : 0;
}

double sl_work_rate_seconds_left(const struct sl_work_rate *rate, uint64_t total)
{
    const struct sl_work_mark mark = recent_mark(rate), first = rate->marks[0];
    const double done = (double)rate->latest.done;
    const double now = cost(mark, rate->latest), before = cost(first, mark);
    /* Each cost is the average of its stretch, so it holds for the middle of it. */
    const double middle_before = ((double)first.done + (double)mark.done) / 2;
    const double middle = ((double)mark.done + done) / 2;
    double slope = 0;

    if (total <= rate->latest.done)
        return 0;
    if (rate->growing && rate->latest.ns - first.ns > GROWTH_NS && before > 0 && now > before)
        slope = (now - before) / (middle - middle_before);
    if (middle > 0 && slope > now / middle) /* not more than from nothing at the beginning */
        slope = now / middle;
    return ((double)total - done) * (now + slope * (((double)total + done) / 2 - middle));
}

const char *sl_seconds_format(double seconds, char text[SL_SECONDS_TEXT_BYTES])
{
    const uint64_t minutes = (uint64_t)(seconds / 60 + 0.5);

    if (seconds < 120)
        snprintf(text, SL_SECONDS_TEXT_BYTES, "%.0f s", seconds);
    else if (minutes < 120)
        snprintf(text, SL_SECONDS_TEXT_BYTES, "%u min", (unsigned)minutes);
    else if (minutes < 100 * 60)
        snprintf(text, SL_SECONDS_TEXT_BYTES, "%u h %02u min", (unsigned)(minutes / 60),
                 (unsigned)(minutes % 60));
    else
        snprintf(text, SL_SECONDS_TEXT_BYTES, "%.0f days", seconds / 86400);
    return text;
}
