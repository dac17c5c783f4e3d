#include "tools/cli/start_report.h"

#include <signal.h>
#include <time.h>

#include "core/base/clock.h"

#define NS_PER_S UINT64_C(1000000000)
#define FIRST_LINE_NS UINT64_C(500000000) /* so that nobody wonders for a second */
#define NEXT_LINE_NS (10 * NS_PER_S)

static void print_line(struct sl_start_report *report)
{
    const uint64_t now_ns = sl_clock_ns();

    fprintf(report->out, "%s: %s", report->where, report->doing);
    if (now_ns - report->since_ns >= NEXT_LINE_NS)
        fprintf(report->out, ", for %.0f s now", (double)(now_ns - report->since_ns) / NS_PER_S);
    fputc('\n', report->out);
    fflush(report->out);
    report->line_ns = now_ns + NEXT_LINE_NS;
}

static void *report_main(void *context)
{
    struct sl_start_report *report = context;

    pthread_mutex_lock(&report->lock);
    while (!report->over) {
        const struct timespec until = {.tv_sec = (time_t)(report->line_ns / NS_PER_S),
                                       .tv_nsec = (long)(report->line_ns % NS_PER_S)};

        if (!report->doing)
            pthread_cond_wait(&report->changed, &report->lock);
        else if (sl_clock_ns() < report->line_ns)
            pthread_cond_timedwait(&report->changed, &report->lock, &until);
        else
            print_line(report);
    }
    pthread_mutex_unlock(&report->lock);
    return NULL;
}

void sl_start_report_begin(struct sl_start_report *report, FILE *out, const char *doing,
                           const char *where)
{
    const uint64_t now_ns = sl_clock_ns();
    pthread_condattr_t monotonic;
    sigset_t all, before;

    *report = (struct sl_start_report){.out = out,
                                       .doing = doing,
                                       .where = where,
                                       .since_ns = now_ns,
                                       .line_ns = now_ns + FIRST_LINE_NS};
    pthread_mutex_init(&report->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&report->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    sigfillset(&all); /* signals are for those who work */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    report->started = pthread_create(&report->thread, NULL, report_main, report) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void sl_start_report_doing(void *context, const char *doing)
{
    struct sl_start_report *report = context;

    pthread_mutex_lock(&report->lock);
    report->doing = doing;
    report->since_ns = sl_clock_ns();
    report->line_ns = report->since_ns + FIRST_LINE_NS;
    pthread_cond_signal(&report->changed);
    pthread_mutex_unlock(&report->lock);
}

void sl_start_report_end(struct sl_start_report *report)
{
    pthread_mutex_lock(&report->lock);
    report->over = true;
    pthread_cond_signal(&report->changed);
    pthread_mutex_unlock(&report->lock);
    if (report->started)
        pthread_join(report->thread, NULL);
    pthread_cond_destroy(&report->changed);
    pthread_mutex_destroy(&report->lock);
}
