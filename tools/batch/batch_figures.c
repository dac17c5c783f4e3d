#include "tools/batch/batch_figures.h"

#include <stdio.h>

#include "core/base/clock.h"
#include "core/base/size.h"
#include "tools/cli/work_rate.h"

void sl_batch_figures_begin(struct sl_batch_figures *f)
{
    f->begun_ns = sl_clock_ns();
    f->energy = sl_energy_start();
}

void sl_batch_figures_end(struct sl_batch_figures *f, const struct sl_worker_status *worker)
{
    f->elapsed_ns = sl_clock_ns() - f->begun_ns;
    f->joules = sl_energy_joules(&f->energy);
    f->worker = *worker;
}

void sl_batch_figures_line(const struct sl_batch_status *status, char *line, size_t size)
{
    const struct sl_batch_record *record = &status->record;
    char left[SL_SECONDS_TEXT_BYTES];

    if (status->pause[0]) {
        snprintf(line, size, "batch: %.200s", status->pause);
        return;
    }
    snprintf(
        line, size,
        "batch: %u of %u items, %s%s%.1f tokens/s; %u under way%s, %llu of %llu prompt tokens, "
        "%llu made",
        record->n_done + record->n_failed, record->n_items,
        status->left_s >= 0 ? sl_seconds_format(status->left_s, left) : "",
        status->left_s >= 0 ? " left, " : "", status->tokens_per_s, status->n_running,
        record->n_failed > 0 ? ", some failed" : "", (unsigned long long)status->n_done_tokens,
        (unsigned long long)record->n_prompt_tokens, (unsigned long long)status->n_made_tokens);
}

static void print_pages(const struct sl_kv_pager_counters *c)
{
    char out[SL_SIZE_TEXT_BYTES], in[SL_SIZE_TEXT_BYTES], text[SL_SECONDS_TEXT_BYTES];

    fprintf(stderr, "KV       %s on disk, %s read back; %llu of %llu layers waited, %s in all\n",
            sl_size_format(c->out_bytes, out), sl_size_format(c->in_bytes, in),
            (unsigned long long)c->n_waits, (unsigned long long)c->n_layers,
            sl_seconds_format((double)c->wait_ns / 1e9, text));
}

static void print_work(const struct sl_batch_figures *f)
{
    const struct sl_expert_cache_counters *c = &f->worker.cache;
    const struct sl_worker_counters *w = &f->worker.counters;
    const double seconds = (double)f->elapsed_ns / 1e9;
    char size[SL_SIZE_TEXT_BYTES], step_size[SL_SIZE_TEXT_BYTES], text[SL_SECONDS_TEXT_BYTES];

    fprintf(stderr, "time     %s, %llu step%s, %.1f tokens/s\n", sl_seconds_format(seconds, text),
            (unsigned long long)w->n_steps, sl_plural(w->n_steps),
            seconds > 0
                ? (double)(w->n_prompt_tokens - w->n_cached_tokens + w->n_new_tokens) / seconds
                : 0);
    fprintf(
        stderr,
        "experts  %s read, %s a step; hit rate %.1f %%, %.2f reads of each that was not there\n",
        sl_size_format(c->read_bytes, size),
        sl_size_format(w->n_steps > 0 ? c->read_bytes / w->n_steps : 0, step_size),
        c->n_requests > 0 ? 100 * (double)(c->n_hits + c->n_prefetch_hits) / (double)c->n_requests
                          : 0,
        c->n_requests > c->n_hits
            ? (double)(c->n_loads - c->n_preloads) / (double)(c->n_requests - c->n_hits)
            : 0);
    if (f->worker.pages.pager.out_bytes > 0)
        print_pages(&f->worker.pages.pager);
    if (f->joules >= 0)
        fprintf(stderr, "energy   %.0f J of the processors (RAPL)\n", f->joules);
}

void sl_batch_figures_print(const struct sl_batch_figures *f, const struct sl_batch_status *status,
                            const char *output_path, const char *error_path)
{
    const struct sl_batch_record *record = &status->record;

    fprintf(stderr, "batch    %u of %u item%s done: %s\n", record->n_done, record->n_items,
            sl_plural(record->n_items), output_path);
    if (record->n_failed > 0)
        fprintf(stderr, "failed   %u item%s: %s\n", record->n_failed, sl_plural(record->n_failed),
                error_path);
    fprintf(stderr, "tokens   %llu in, %llu out; %llu in were computed, %llu shared\n",
            (unsigned long long)record->n_in_tokens, (unsigned long long)record->n_out_tokens,
            (unsigned long long)record->n_computed_tokens,
            (unsigned long long)record->n_cached_tokens);
    if (f->elapsed_ns > 0)
        print_work(f);
}
