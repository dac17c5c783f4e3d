#include "tools/cli/limits.h"

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/resource.h>

/* A thread that multiplies uses 350 KB of stack (kernels-avx512/fp4_avx512.c), JSON nested as deep
 * as jansson reads it about as much, and sanitizers twice that. Unused stack costs nothing. */
#define STACK_BYTES (4u << 20)

void sl_limits_prepare(void)
{
    struct rlimit files;
    pthread_attr_t attributes;

    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < files.rlim_max) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    signal(SIGXFSZ, SIG_IGN);
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    pthread_setattr_default_np(&attributes);
    pthread_attr_destroy(&attributes);
}

struct program {
    int (*run)(int argc, char **argv);
    int argc;
    char **argv;
    sigset_t signals; /* as they were blocked for the main thread */
    int status;
};

static void *program_main(void *context)
{
    struct program *program = context;

    pthread_sigmask(SIG_SETMASK, &program->signals, NULL);
    program->status = program->run(program->argc, program->argv);
    return NULL;
}

int sl_limits_run(int (*run)(int argc, char **argv), int argc, char **argv)
{
    struct program program = {.run = run, .argc = argc, .argv = argv};
    pthread_t thread;
    sigset_t all;
    bool started;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &program.signals);
    started = pthread_create(&thread, NULL, program_main, &program) == 0;
    if (started)
        pthread_join(thread, NULL);
    else
        program_main(&program); /* without a thread, on the stack there is */
    return program.status;
}
