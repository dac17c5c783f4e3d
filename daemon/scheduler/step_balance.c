#include "daemon/scheduler/step_balance.h"

#include <stdbool.h>

/* A step's weight fades to this when the next one is through: to a half after eight. */
#define FADES_TO 0.917

/* A share of a step's time. Where so much was waited, the drives were busy throughout, and show
 * their rate; with less, what has landed lies about until somebody takes it in, and nobody can tell
 * whether the drives could do more. */
#define WAIT_SHOWS 0.1

/* Then they are taken for so much faster each time, up to a multiple of what was seen. */
#define FASTER 1.02
#define FASTEST_TIMES 1.5

/* Steps whose rows vary by less than that, from their mean, show no line. */
#define SPREAD_LEAST 0.05

/* Short steps that all have as many rows would stay so short for ever. */
#define ROWS_ALIKE_MAX 64.0

/* A row takes at least so much of its share of the mean step: noise makes no row free. */
#define ROW_SHARE_LEAST 0.2

/* Rows take so many times as long together as what any step takes. */
#define STEP_TIMES 4.0

#define ROWS_MAX 1e9

static double larger(double a, double b)
{
    return a > b ? a : b;
}

static double smaller(double a, double b)
{
    return a < b ? a : b;
}

static void note_drives(struct sl_step_balance *b, const struct sl_balance_sample *s)
{
    const double bytes = (double)s->read_bytes, elapsed_ns = (double)s->elapsed_ns;
    const double rate = s->busy_ns > 0 ? bytes / (double)s->busy_ns : 0;
    const double least = elapsed_ns > 0 ? bytes / elapsed_ns : 0;
    const bool shows = (double)s->wait_ns >= WAIT_SHOWS * elapsed_ns;

    b->read_bytes = b->n > 0 ? (b->read_bytes + bytes) / 2 : bytes;
    if (rate == 0)
        return;
    if (b->bytes_per_ns == 0)
        b->bytes_per_ns = rate;
    b->fastest = larger(b->fastest > 0 ? b->fastest : b->bytes_per_ns, shows ? rate : least);
    if (shows)
        b->bytes_per_ns = (b->bytes_per_ns + rate) / 2;
    else
        b->bytes_per_ns = smaller(b->bytes_per_ns * FASTER, b->fastest * FASTEST_TIMES);
    b->bytes_per_ns = larger(b->bytes_per_ns, least);
}

void sl_step_balance_add(struct sl_step_balance *b, const struct sl_balance_sample *s)
{
    const double rows = s->n_rows;
    const double ns = s->elapsed_ns > s->wait_ns ? (double)(s->elapsed_ns - s->wait_ns) : 0;

    note_drives(b, s);
    b->n = FADES_TO * b->n + 1;
    b->rows = FADES_TO * b->rows + rows;
    b->ns = FADES_TO * b->ns + ns;
    b->rows_rows = FADES_TO * b->rows_rows + rows * rows;
    b->rows_ns = FADES_TO * b->rows_ns + rows * ns;
}

uint32_t sl_step_balance_rows(const struct sl_step_balance *b)
{
    double mean_rows, mean_ns, row_ns, step_ns, spread, reading_ns, rows;

    if (b->n == 0 || b->ns <= 0)
        return SL_BALANCE_ROWS_MIN;
    mean_rows = b->rows / b->n;
    mean_ns = b->ns / b->n;
    row_ns = mean_ns / mean_rows;
    spread = b->rows_rows / b->n - mean_rows * mean_rows;
    if (spread > SPREAD_LEAST * SPREAD_LEAST * mean_rows * mean_rows) {
        const double slope = (b->rows_ns / b->n - mean_rows * mean_ns) / spread;
        const double least = ROW_SHARE_LEAST * row_ns;

        row_ns = slope > row_ns ? row_ns : slope < least ? least : slope;
    } else if (mean_rows < ROWS_ALIKE_MAX) {
        row_ns /= 2; /* nobody can tell; so the rows become more, which shows it */
    }
    step_ns = mean_ns - mean_rows * row_ns;
    reading_ns = b->bytes_per_ns > 0 ? b->read_bytes / b->bytes_per_ns : 0;
    rows = larger((reading_ns - step_ns) / row_ns, STEP_TIMES * step_ns / row_ns);
    return (uint32_t)smaller(larger(rows, SL_BALANCE_ROWS_MIN), ROWS_MAX);
}
