#include "tools/chat/own_daemon.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "daemon/files/state_folder.h"
#include "tools/cli/commands.h"

#define LOOK_MS 50

static int make_folder(struct sl_own_daemon *daemon, struct sl_err *err)
{
    const char *parent = getenv("XDG_RUNTIME_DIR");

    if (asprintf(&daemon->folder, "%s/sluice-chat-XXXXXX", parent && *parent ? parent : P_tmpdir) <
        0) {
        daemon->folder = NULL;
        return sl_err_set(err, -ENOMEM, "chat: out of memory");
    }
    if (!mkdtemp(daemon->folder)) {
        const int rc = -errno;

        sl_err_set(err, rc, "%s: cannot make a folder for a socket: %s", daemon->folder,
                   sl_strerror(-rc));
        free(daemon->folder);
        daemon->folder = NULL;
        return rc;
    }
    if (asprintf(&daemon->socket_path, "%s/socket", daemon->folder) < 0) {
        daemon->socket_path = NULL;
        return sl_err_set(err, -ENOMEM, "chat: out of memory");
    }
    return 0;
}

/* The child's: it is removed at its end, also where it leaves a model half loaded. */
static const char *folder_to_remove;

static void remove_folder(void)
{
    rmdir(folder_to_remove);
}

/* Returns a folder for images, so that conversations go on where they were left; NULL: there is no
 * place for it. The caller frees it. */
static char *images_folder(void)
{
    char *state = sl_state_folder_default(), *folder = NULL;

    if (state && sl_state_folder_make(state, NULL) == 0 &&
        asprintf(&folder, "%s/images", state) < 0)
        folder = NULL;
    free(state);
    return folder;
}

/* The child's life. Ctrl-C is for the conversation, not for the daemon. SIGTERM is blocked, so that
 * it waits for the daemon to look for it: whenever it comes, the folder goes. */
static void serve(const struct sl_own_daemon *daemon, pid_t parent, int argc, char *const *argv)
{
    char **arguments = calloc((size_t)argc + 8, sizeof(*arguments));
    static char quiet[] = "--quiet", socket_option[] = "--socket", images_option[] = "--images";
    static char state_option[] = "--state", no_state[] = "none";
    char *images = images_folder();
    int status, n = 0;

    prctl(PR_SET_PDEATHSIG, SIGTERM);
    folder_to_remove = daemon->folder;
    if (!arguments || getppid() != parent || at_quick_exit(remove_folder) != 0) {
        remove_folder();
        _exit(1);
    }
    setpgid(0, 0);
    arguments[n++] = argv[0];
    if (images) { /* the user's own option comes later, and counts */
        arguments[n++] = images_option;
        arguments[n++] = images;
    }
    memcpy(arguments + n, argv + 1, (size_t)(argc - 1) * sizeof(*arguments));
    n += argc - 1;
    arguments[n++] = quiet;
    arguments[n++] = socket_option;
    arguments[n++] = daemon->socket_path;
    arguments[n++] = state_option; /* batches are for a daemon that stays */
    arguments[n++] = no_state;
    status = sl_cmd_serve(n, arguments);
    remove_folder(); /* a parent that was killed does not */
    exit(status);
}

int sl_own_daemon_start(struct sl_own_daemon *daemon, int argc, char *const *argv,
                        struct sl_err *err)
{
    const pid_t parent = getpid();
    sigset_t ends, before;
    int rc;

    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    sigaddset(&ends, SIGHUP);
    fflush(NULL);
    /* From the folder on until there is a child that removes it, this process is not ended. */
    pthread_sigmask(SIG_BLOCK, &ends, &before);
    rc = make_folder(daemon, err);
    if (rc == 0)
        daemon->process = fork();
    if (daemon->process == 0 && rc == 0)
        serve(daemon, parent, argc, argv);
    if (daemon->process < 0) {
        rc = sl_err_set(err, -errno, "cannot start a daemon: %s", sl_strerror(errno));
        daemon->process = 0;
        rmdir(daemon->folder);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return rc;
}

int sl_own_daemon_wait(struct sl_own_daemon *daemon, struct sl_daemon_client *client,
                       const atomic_bool *stop, struct sl_err *err)
{
    const struct timespec pause = {0, LOOK_MS * 1000000L};
    struct sl_err not_yet;
    int status;

    while (!atomic_load(stop)) {
        if (waitpid(daemon->process, &status, WNOHANG) == daemon->process) {
            daemon->process = 0;
            return WIFEXITED(status) && WEXITSTATUS(status) > 0 ? WEXITSTATUS(status) : 1;
        }
        if (sl_daemon_client_get(client, "/health", &not_yet) == 200)
            return 0;
        nanosleep(&pause, NULL);
    }
    return sl_err_set(err, -EINTR, "interrupted");
}

void sl_own_daemon_stop(struct sl_own_daemon *daemon)
{
    if (daemon->process > 0) {
        kill(daemon->process, SIGTERM);
        waitpid(daemon->process, NULL, 0);
    }
    if (daemon->socket_path)
        unlink(daemon->socket_path); /* the daemon has done so, unless it was killed */
    if (daemon->folder)
        rmdir(daemon->folder);
    free(daemon->socket_path);
    free(daemon->folder);
    *daemon = (struct sl_own_daemon){0};
}
