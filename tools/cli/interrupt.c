#include "tools/cli/interrupt.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "tools/cli/output_file.h"
#include "core/base/size.h"

static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
#define N_SIGNALS (SL_ARRAY_LEN(signals))

/* The handler writes `stop` and `caught`, the command's thread `deferred` and `kept`. */
static atomic_bool stop, deferred, kept;
static atomic_int caught; /* the first signal; 0: none */

/* The signal is blocked while its handler runs, so it takes effect when that returns. */
static void die(int number)
{
    signal(number, SIG_DFL);
    raise(number);
}

static void on_signal(int number)
{
    int none = 0;

    if (atomic_load(&kept) && number == SIGINT) {
        atomic_store(&stop, true);
        return;
    }
    atomic_compare_exchange_strong(&caught, &none, number);
    if (atomic_load(&deferred) && !atomic_exchange(&stop, true))
        return;
    sl_output_remove_unfinished();
    die(number);
}

/* LMDB maps the catalog of a store that is written. Where another program cuts the file, no page
 * is behind the mapping any more. Memory that fails raises the same signal, with other codes. */
static void on_bus_error(int number, siginfo_t *info, void *context)
{
    static const char line[] = "sluice: a file that was in use, most likely a store's catalog.mdb, "
                               "was cut by another program; sluice verify --repair-catalog can "
                               "mend a catalog from its copy\n";
    ssize_t written;

    (void)context;
    sl_output_remove_unfinished();
    if (info->si_code != BUS_ADRERR)
        die(number);
    written = write(STDERR_FILENO, line, sizeof(line) - 1);
    (void)written; /* nobody is left to tell */
    _exit(1);
}

void sl_interrupt_catch(void)
{
    /* Restarting keeps a write that waits for its reader from failing. */
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART}, before;
    struct sigaction bus_error = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO};

    for (size_t i = 0; i < N_SIGNALS; i++)
        if (sigaction(signals[i], NULL, &before) == 0 && before.sa_handler != SIG_IGN)
            sigaction(signals[i], &action, NULL);
    sigaction(SIGBUS, &bus_error, NULL);
}

void sl_interrupt_defer(void)
{
    atomic_store(&deferred, true);
}

void sl_interrupt_keep(void)
{
    const struct sigaction action = {.sa_handler = on_signal}; /* reads are not restarted */

    atomic_store(&kept, true);
    sigaction(SIGINT, &action, NULL);
}

void sl_interrupt_clear(void)
{
    atomic_store(&stop, false);
}

/* A signal between looking at `stop` and a read would be forgotten by the read. So the signal comes
 * only while ppoll() waits. */
int sl_interrupt_wait(int fd)
{
    struct pollfd input = {.fd = fd, .events = POLLIN};
    sigset_t interrupt, before;
    int rc = -1;

    sigemptyset(&interrupt);
    sigaddset(&interrupt, SIGINT);
    pthread_sigmask(SIG_BLOCK, &interrupt, &before);
    while (rc < 0 && !atomic_load(&stop)) {
        rc = ppoll(&input, 1, NULL, &before);
        if (rc < 0 && errno != EINTR)
            rc = 0; /* a read will say why */
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return rc < 0 ? -EINTR : 0;
}

bool sl_interrupted(void)
{
    return atomic_load(&stop);
}

const atomic_bool *sl_interrupt_stop(void)
{
    return &stop;
}

int sl_interrupt_finish(int status)
{
    if (!sl_interrupted() || atomic_load(&caught) == 0)
        return status;
    fflush(NULL);
    die(atomic_load(&caught));
    return status;
}
