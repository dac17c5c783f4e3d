#include "tools/progress.h"

#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/size.h"

#define LINE_NS UINT64_C(10000000000) /* between lines that go to a file */
#define REDRAW_NS UINT64_C(250000000)

struct sl_progress sl_progress_start(FILE *out, const char *what, const char *unit)
{
    uint64_t now_ns = sl_clock_ns();

    return (struct sl_progress){what, unit, out, now_ns, now_ns, isatty(fileno(out)) != 0};
}

void sl_progress_show(void *context, uint64_t done, uint64_t total)
{
    struct sl_progress *progress = context;
    uint64_t now_ns = sl_clock_ns();
    double rate = (double)done * 1e9 / (double)(now_ns - progress->start_ns);
    char done_text[SL_SIZE_TEXT_BYTES], total_text[SL_SIZE_TEXT_BYTES];

    if (done == 0 || now_ns - progress->shown_ns < (progress->terminal ? REDRAW_NS : LINE_NS))
        return;
    progress->shown_ns = now_ns;
    fprintf(progress->out, "%s%s: ", progress->terminal ? "\r" : "", progress->what);
    if (progress->unit)
        fprintf(progress->out, "%llu of %llu %s, %.1f/s", (unsigned long long)done,
                (unsigned long long)total, progress->unit, rate);
    else
        fprintf(progress->out, "%s of %s, %.2f GB/s", sl_size_format(done, done_text),
                sl_size_format(total, total_text), rate * 1e-9);
    fprintf(progress->out, ", %.0f s left%s", total > done ? (double)(total - done) / rate : 0,
            progress->terminal ? "\033[K" : "\n");
    fflush(progress->out);
}

void sl_text_progress_route(void *context, uint32_t layer_index, uint32_t n_tokens,
                            const uint16_t *experts)
{
    struct sl_text_progress *text = context;

    (void)experts;
    if (text->n_tokens > 0 && layer_index < text->n_layers)
        sl_progress_show(&text->progress,
                         text->n_done + (uint64_t)n_tokens * (layer_index + 1) / text->n_layers,
                         text->n_tokens);
}

void sl_progress_end(struct sl_progress *progress)
{
    if (progress->terminal)
        fprintf(progress->out, "\r\033[K");
}
