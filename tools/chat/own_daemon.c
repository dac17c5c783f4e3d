#include "tools/chat/own_daemon.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

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

/* The child's life. Ctrl-C is for the conversation, not for the daemon. */
static void serve(const struct sl_own_daemon *daemon, pid_t parent, int argc, char *const *argv)
{
    char **arguments = calloc((size_t)argc + 6, sizeof(*arguments));
    static char quiet[] = "--quiet", socket_option[] = "--socket";
    static char state_option[] = "--state", no_state[] = "none";
    int status;

    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (!arguments || getppid() != parent)
        _exit(1);
    setpgid(0, 0);
    memcpy(arguments, argv, (size_t)argc * sizeof(*arguments));
    arguments[argc++] = quiet;
    arguments[argc++] = socket_option;
    arguments[argc++] = daemon->socket_path;
    arguments[argc++] = state_option; /* batches are for a daemon that stays */
    arguments[argc++] = no_state;
    status = sl_cmd_serve(argc, arguments);
    rmdir(daemon->folder); /* a parent that was killed does not */
    exit(status);
}

int sl_own_daemon_start(struct sl_own_daemon *daemon, int argc, char *const *argv,
                        struct sl_err *err)
{
    const pid_t parent = getpid();
    int rc = make_folder(daemon, err);

    if (rc < 0)
        return rc;
    fflush(NULL);
    daemon->process = fork();
    if (daemon->process == 0)
        serve(daemon, parent, argc, argv);
    if (daemon->process < 0) {
        rc = -errno;
        daemon->process = 0;
        return sl_err_set(err, rc, "cannot start a daemon: %s", sl_strerror(-rc));
    }
    return 0;
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
