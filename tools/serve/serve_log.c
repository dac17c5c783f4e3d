#include "tools/serve/serve_log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "core/base/bytes.h"

int sl_serve_log_open(struct sl_serve_log *log, bool json, bool is_quiet, const char *trace,
                      struct sl_err *err)
{
    *log = (struct sl_serve_log){
        .json = json, .is_quiet = is_quiet, .with_time = !getenv("JOURNAL_STREAM"), .trace = -1};
    pthread_mutex_init(&log->lock, NULL);
    if (!trace)
        return 0;
    log->trace = open(trace, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log->trace < 0)
        return sl_err_set(err, -errno, "%s: cannot be written: %s", trace, sl_strerror(errno));
    return 0;
}

void sl_serve_log_close(struct sl_serve_log *log)
{
    if (log->trace >= 0)
        close(log->trace);
    pthread_mutex_destroy(&log->lock);
}

/* ---- lines -------------------------------------------------------------------------------------
 */

static void now_text(char *text, size_t size)
{
    const time_t now = time(NULL);
    struct tm utc;

    gmtime_r(&now, &utc);
    strftime(text, size, "%Y-%m-%dT%H:%M:%SZ", &utc);
}

/* Writes the line at once, so that lines of several threads do not mix. */
static void put_line(struct sl_serve_log *log, const char *text)
{
    char now[32] = "";

    if (log->with_time && !log->json)
        now_text(now, sizeof(now));
    pthread_mutex_lock(&log->lock);
    fprintf(stderr, "%s%s%s\n", now, now[0] ? " " : "", text);
    pthread_mutex_unlock(&log->lock);
}

void sl_serve_log_line(struct sl_serve_log *log, const char *format, ...)
{
    char text[SL_ERR_MESSAGE_BYTES + 128], now[32];
    json_t *object;
    char *json;
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    if (!log->json) {
        put_line(log, text);
        return;
    }
    now_text(now, sizeof(now));
    object = json_pack("{s:s, s:s}", "time", now, "message", text);
    json = object ? json_dumps(object, JSON_COMPACT) : NULL;
    put_line(log, json ? json : "{}");
    free(json);
    json_decref(object);
}

static void set_text(json_t *object, const char *key, const char *text)
{
    if (text)
        json_object_set_new(object, key, json_string(text));
}

static void put_json(struct sl_serve_log *log, const struct sl_log_entry *e)
{
    json_t *object = json_object();
    char now[32];
    char *json;

    now_text(now, sizeof(now));
    set_text(object, "time", now);
    set_text(object, "method", e->method);
    set_text(object, "path", e->path);
    json_object_set_new(object, "status", json_integer(e->status));
    set_text(object, "protocol", e->protocol);
    set_text(object, "id", e->id);
    if (e->user >= 0)
        json_object_set_new(object, "user", json_integer(e->user));
    set_text(object, "error", e->why);
    if (e->has_usage) {
        json_object_set_new(object, "prompt_tokens", json_integer(e->usage.n_prompt_tokens));
        json_object_set_new(object, "cached_tokens", json_integer(e->usage.n_cached_tokens));
        json_object_set_new(object, "new_tokens", json_integer(e->usage.n_new_tokens));
        json_object_set_new(object, "read_bytes", json_integer((json_int_t)e->usage.read_bytes));
    }
    if (e->total_ns > 0)
        json_object_set_new(object, "total_s", json_real((double)e->total_ns / 1e9));
    if (e->first_ns > 0)
        json_object_set_new(object, "first_token_s", json_real((double)e->first_ns / 1e9));
    json = json_dumps(object, JSON_COMPACT);
    put_line(log, json ? json : "{}");
    free(json);
    json_decref(object);
}

/* Text of others becomes part of a line: control characters would make lines of their own. */
static void put_safe(FILE *out, const char *text)
{
    for (; *text; text++)
        fputc((unsigned char)*text < ' ' || *text == 0x7f ? '?' : *text, out);
}

void sl_serve_log_request(void *context, const struct sl_log_entry *e)
{
    struct sl_serve_log *log = context;
    char *text = NULL;
    size_t length;
    FILE *out;

    if (log->is_quiet)
        return;
    if (log->json) {
        put_json(log, e);
        return;
    }
    out = open_memstream(&text, &length);
    if (!out)
        return;
    put_safe(out, e->method);
    fputc(' ', out);
    put_safe(out, e->path);
    fprintf(out, " %d", e->status);
    if (e->id)
        fprintf(out, " %s %s", e->protocol, e->id);
    if (e->user >= 0)
        fprintf(out, " user=%" PRId64, e->user);
    if (e->has_usage)
        fprintf(out, " prompt=%" PRIu32 " cached=%" PRIu32 " new=%" PRIu32 " read=%" PRIu64,
                e->usage.n_prompt_tokens, e->usage.n_cached_tokens, e->usage.n_new_tokens,
                e->usage.read_bytes);
    if (e->first_ns > 0)
        fprintf(out, " first=%.3fs", (double)e->first_ns / 1e9);
    if (e->total_ns > 0)
        fprintf(out, " total=%.3fs", (double)e->total_ns / 1e9);
    if (e->why) {
        fputs(": ", out);
        put_safe(out, e->why);
    }
    if (fclose(out) == 0)
        put_line(log, text);
    free(text);
}

/* Writes a line of the trace; one that was cut before, as by a full disk, stays a line of its own.
 * Returns 0, or -errno. */
static int write_trace(struct sl_serve_log *log, const json_t *object)
{
    struct sl_bytes line = {0};
    size_t at = 0;
    ssize_t n = 0;
    int rc = 0;

    if (log->is_trace_cut)
        sl_bytes_add_text(&line, "\n");
    sl_bytes_add_json(&line, object);
    sl_bytes_add_text(&line, "\n");
    if (line.out_of_memory)
        rc = -ENOMEM;
    while (rc == 0 && at < line.length) {
        n = write(log->trace, line.data + at, line.length - at);
        if (n >= 0)
            at += (size_t)n;
        else if (errno != EINTR)
            rc = -errno;
    }
    if (at > 0)
        log->is_trace_cut = at < line.length;
    log->has_trace_failed = rc < 0;
    sl_bytes_fini(&line);
    return rc;
}

void sl_serve_log_trace(void *context, const char *id, const char *what, const char *text,
                        size_t length)
{
    struct sl_serve_log *log = context;
    bool had_failed;
    json_t *object;
    char now[32];
    int rc;

    now_text(now, sizeof(now));
    object = json_pack("{s:s, s:s, s:s%}", "time", now, "id", id, what, text, length);
    pthread_mutex_lock(&log->lock);
    had_failed = log->has_trace_failed;
    rc = write_trace(log, object);
    pthread_mutex_unlock(&log->lock);
    json_decref(object);
    if (rc < 0 && !had_failed)
        sl_serve_log_line(log, "the trace cannot be written: %s", sl_strerror(-rc));
}
