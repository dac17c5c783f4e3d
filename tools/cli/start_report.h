/* Reports what a start is doing: a line for each kind of work that takes longer than a moment, and
 * another line every ten seconds. */
#ifndef SL_TOOLS_CLI_START_REPORT_H
#define SL_TOOLS_CLI_START_REPORT_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct sl_start_report {
    FILE *out;
    pthread_t thread;
    bool started;

    pthread_mutex_t lock; /* guards the rest */
    pthread_cond_t changed;
    const char *doing; /* NULL: it tells for itself, or nothing is to be told */
    const char *where;
    uint64_t since_ns;
    uint64_t line_ns; /* when the next line is due */
    bool over;
};

/* Starts a thread that prints to `out`; if no thread can be started, nothing is reported. `where`
 * goes to the end of each line. The caller ends it with sl_start_report_end(). */
void sl_start_report_begin(struct sl_start_report *report, FILE *out, const char *doing,
                           const char *where);

/* An sl_stage_fn (daemon/engine/engine.h); `context` is the struct sl_start_report. */
void sl_start_report_doing(void *context, const char *doing);

void sl_start_report_end(struct sl_start_report *report);

#endif
