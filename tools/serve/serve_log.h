/* The server's log: a line for each request, on standard error, which a service manager keeps. It
 * holds nothing of what was asked or answered; --trace does. */
#ifndef SL_TOOLS_SERVE_SERVE_LOG_H
#define SL_TOOLS_SERVE_SERVE_LOG_H

#include <pthread.h>
#include <stdbool.h>

#include "daemon/http/front.h"

struct sl_serve_log {
    bool json;
    bool is_quiet;         /* requests are not told */
    bool with_time;        /* who keeps the lines does not add it */
    pthread_mutex_t lock;  /* guards the trace, and keeps lines whole */
    int trace;             /* a descriptor; -1: none is kept */
    bool is_trace_cut;     /* its last line is not complete */
    bool has_trace_failed; /* at the last line, which is told once */
};

/* Opens the trace, with mode 0600, unless `trace` is NULL. Fails with -errno. */
int sl_serve_log_open(struct sl_serve_log *log, bool json, bool is_quiet, const char *trace,
                      struct sl_err *err);
void sl_serve_log_close(struct sl_serve_log *log);

/* For struct sl_front; the context is the struct sl_serve_log. */
void sl_serve_log_request(void *log, const struct sl_log_entry *entry);
void sl_serve_log_trace(void *log, const char *id, const char *what, const char *text,
                        size_t length);

/* A line about anything else. */
void sl_serve_log_line(struct sl_serve_log *log, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif
