#include "tools/cli/watch.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "core/base/call_watch.h"
#include "storage/io/reader.h"

#define LOOKS 8u /* after the first, by the deadline */
#define NS_PER_S UINT64_C(1000000000)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards stall_ns */
static pthread_cond_t changed;
static uint64_t stall_ns = SL_READER_STALL_NS;

/* Waits until the next look, and begins to wait again when the stall time changes. Returns the
 * deadline. */
static uint64_t wait_for_look(void)
{
    struct timespec until;
    uint64_t used_ns = 0, until_ns;
    int rc = 0;

    pthread_mutex_lock(&lock);
    while (rc != ETIMEDOUT) {
        if (used_ns != stall_ns) {
            used_ns = stall_ns;
            clock_gettime(CLOCK_MONOTONIC, &until);
            until_ns = (uint64_t)until.tv_nsec + stall_ns * SL_READER_DEADLINE_STALLS / LOOKS;
            until.tv_sec += (time_t)(until_ns / NS_PER_S);
            until.tv_nsec = (long)(until_ns % NS_PER_S);
        }
        rc = pthread_cond_timedwait(&changed, &lock, &until);
    }
    pthread_mutex_unlock(&lock);
    return used_ns * SL_READER_DEADLINE_STALLS;
}

/* Looks are counted instead of time, because time also passes while the whole process is
 * stopped. */
static void *watch_main(void *context)
{
    struct sl_call_watch *watch = context;
    struct sl_err err;

    for (;;) {
        double deadline_s = (double)wait_for_look() / 1e9;

        if (sl_call_watch_look(watch, SL_CALL_WATCH_FOLDER, LOOKS, deadline_s, &err) < 0) {
            dprintf(STDERR_FILENO, "sluice: %s\n", err.message);
            _exit(1);
        }
    }
    return NULL;
}

void sl_watch_start(void)
{
    struct sl_call_watch *watch = sl_call_watch_create();
    pthread_condattr_t monotonic;
    sigset_t all, before;
    pthread_t thread;

    if (!watch)
        return;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    sigfillset(&all); /* signals are for those who work */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    if (pthread_create(&thread, NULL, watch_main, watch) == 0) {
        pthread_setname_np(thread, "sluice-watch");
        pthread_detach(thread);
    } else {
        sl_call_watch_destroy(watch);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void sl_watch_set_stall(uint64_t new_stall_ns)
{
    pthread_mutex_lock(&lock);
    stall_ns = new_stall_ns;
    pthread_cond_signal(&changed);
    pthread_mutex_unlock(&lock);
}
