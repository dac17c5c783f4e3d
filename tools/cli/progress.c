#include "tools/cli/progress.h"

#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/size.h"

#define LINE_NS UINT64_C(10000000000) /* between lines that stay */
#define REDRAW_NS UINT64_C(250000000)
#define LINE_BYTES_MAX 256u
#define COLUMNS_DEFAULT 80u /* of a terminal that does not tell */

/* Returns whether `out` is a terminal on which a line can be cleared. */
static bool takes_escapes(FILE *out)
{
    const char *kind = getenv("TERM");

    return isatty(fileno(out)) && kind && *kind && strcmp(kind, "dumb") != 0;
}

struct sl_progress sl_progress_start(FILE *out, const char *what, const char *unit)
{
    uint64_t now_ns = sl_clock_ns();
    bool growing = unit && strcmp(unit, "tokens") == 0;

    return (struct sl_progress){.what = what,
                                .unit = unit,
                                .out = out,
                                .start_ns = now_ns,
                                .shown_ns = now_ns,
                                .redrawn = takes_escapes(out),
                                .rate = sl_work_rate_start(now_ns, growing, 0)};
}

void sl_progress_skip(struct sl_progress *progress, uint64_t done)
{
    progress->rate = sl_work_rate_start(progress->start_ns, progress->rate.growing, done);
}

static void describe(const struct sl_progress *progress, uint64_t done, uint64_t total,
                     char line[LINE_BYTES_MAX])
{
    const double rate = sl_work_rate_per_second(&progress->rate);
    const double left = sl_work_rate_seconds_left(&progress->rate, total);
    char done_text[SL_SIZE_TEXT_BYTES], total_text[SL_SIZE_TEXT_BYTES];
    char left_text[SL_SECONDS_TEXT_BYTES], amount[96];

    if (progress->unit)
        snprintf(amount, sizeof(amount),
                 rate < 100 ? "%llu of %llu %s, %.3g/s" : "%llu of %llu %s, %.0f/s",
                 (unsigned long long)done, (unsigned long long)total, progress->unit, rate);
    else
        snprintf(amount, sizeof(amount), "%s of %s, %.2f GB/s", sl_size_format(done, done_text),
                 sl_size_format(total, total_text), rate * 1e-9);
    snprintf(line, LINE_BYTES_MAX, "%s: %s, %s left%s%s", progress->what, amount,
             sl_seconds_format(left, left_text), progress->note[0] ? ", " : "", progress->note);
}

/* The last column stays free: some terminals begin a new line after it. */
static int columns_of(FILE *out)
{
    struct winsize size;

    if (ioctl(fileno(out), TIOCGWINSZ, &size) < 0 || size.ws_col == 0)
        return COLUMNS_DEFAULT - 1;
    return size.ws_col - 1;
}

void sl_progress_announce(const struct sl_progress *progress)
{
    if (!progress->redrawn)
        return;
    fprintf(progress->out, "\r%.*s\033[K", columns_of(progress->out), progress->what);
    fflush(progress->out);
}

bool sl_progress_is_due(const struct sl_progress *progress)
{
    return sl_clock_ns() - progress->shown_ns >= (progress->redrawn ? REDRAW_NS : LINE_NS);
}

void sl_progress_show(void *context, uint64_t done, uint64_t total)
{
    struct sl_progress *progress = context;
    char line[LINE_BYTES_MAX];

    sl_work_rate_note(&progress->rate, sl_clock_ns(), done);
    if (done == 0 || !sl_progress_is_due(progress))
        return;
    describe(progress, done, total, line);
    sl_progress_show_line(progress, line);
}

void sl_progress_show_line(struct sl_progress *progress, const char *line)
{
    progress->shown_ns = sl_clock_ns();
    if (progress->redrawn)
        fprintf(progress->out, "\r%.*s\033[K", columns_of(progress->out), line);
    else
        fprintf(progress->out, "%s\n", line);
    fflush(progress->out);
}

void sl_text_progress_route(void *context, uint32_t layer_index, uint32_t n_tokens,
                            const uint16_t *experts)
{
    struct sl_text_progress *text = context;

    (void)experts;
    if (text->n_tokens == 0 || layer_index >= text->n_layers)
        return;
    sl_progress_show(&text->progress,
                     text->n_done + (uint64_t)n_tokens * (layer_index + 1) / text->n_layers,
                     text->n_tokens);
    if (layer_index + 1 == text->n_layers)
        text->n_done += n_tokens;
}

void sl_progress_end(struct sl_progress *progress)
{
    if (progress->redrawn)
        fprintf(progress->out, "\r\033[K");
}
