/* sluice bench io: how fast expert records come from the drives through our reader, beside fio on
 * the same files in the same run, and beside a plain mmap of the same bytes. */
#include <argp.h>
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/size.h"
#include "storage/io/io_probe.h"
#include "tools/bench/bench.h"
#include "tools/cli/command_line.h"
#include "tools/cli/engine_options.h"
#include "tools/cli/expert_files.h"

#define CHOICES_MAX 8u
#define FILE_RECORD_BYTES (UINT64_C(12) << 20) /* of files that are no model: about an expert */
#define SECONDS_DEFAULT 2.0
#define RAMP_MS 100u /* that both read before they count: fio's buffers are new each time */
#define FIO_OUTPUT_BYTES_MAX (1u << 20)

struct command {
    const char **names; /* MODEL or files, as given */
    uint32_t n_names;
    uint32_t sizes[CHOICES_MAX], depths[CHOICES_MAX];
    uint32_t n_sizes, n_depths;
    sl_io_open_fn *open_io; /* NULL: the machine's */
    struct sl_bench bench;

    struct sl_expert_files model; /* zeroed where files were named */
    const char **paths;           /* the files read: the model's, or `names` */
    bool *is_read;                /* (n_files) it holds an extent */
    uint32_t n_files;
    struct sl_extent *extents; /* in the order in which they are read */
    uint32_t n_extents;
    uint64_t aligned_run_bytes_max;
    uint32_t next_extent; /* so that no cache has what is read next */
    struct sl_io *io;
    struct sl_arena area;
    bool has_fio;
};

enum { OPTION_SIZES = 256, OPTION_DEPTHS, OPTION_IO, OPTION_SECONDS, OPTION_JSON };

static uint32_t parse_list(struct argp_state *state, const char *option, char *text, bool sizes,
                           uint32_t *ret_values)
{
    char *rest = NULL;
    uint32_t n = 0;

    for (char *item = strtok_r(text, ",", &rest); item; item = strtok_r(NULL, ",", &rest)) {
        if (n == CHOICES_MAX)
            argp_error(state, "%s takes up to %u values", option, CHOICES_MAX);
        ret_values[n++] = sizes ? sl_parse_piece(state, option, item)
                                : sl_parse_count(state, option, item, SL_IO_DEPTH_MAX);
    }
    if (n == 0)
        argp_error(state, "%s takes a list such as %s", option, sizes ? "512K,1M" : "8,32");
    return n;
}

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct command *command = state->input;

    switch (key) {
    case OPTION_SIZES:
        command->n_sizes = parse_list(state, "--sizes", value, true, command->sizes);
        return 0;
    case OPTION_DEPTHS:
        command->n_depths = parse_list(state, "--depths", value, false, command->depths);
        return 0;
    case OPTION_IO:
        command->open_io = sl_parse_io(state, value);
        return 0;
    case OPTION_SECONDS:
        command->bench.seconds = sl_parse_seconds(state, "--seconds", value);
        return 0;
    case OPTION_JSON:
        command->bench.json = true;
        return 0;
    case ARGP_KEY_ARGS:
        command->names = (const char **)state->argv + state->next;
        command->n_names = (uint32_t)(state->argc - state->next);
        return 0;
    case ARGP_KEY_NO_ARGS:
        argp_error(state, "MODEL or FILE is missing");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* ---- what is read ------------------------------------------------------------------------------
 */

static int add_extent(struct command *command, struct sl_extent extent, struct sl_err *err)
{
    struct sl_extent *extents;
    uint64_t aligned_run_bytes = sl_aligned_run_bytes(extent.offset_bytes, extent.size_bytes);

    /* Doubles at powers of two. */
    if ((command->n_extents & (command->n_extents - 1)) == 0) {
        extents = reallocarray(command->extents, command->n_extents ? 2 * command->n_extents : 1,
                               sizeof(*extents));
        if (!extents)
            return sl_err_set(err, -ENOMEM, "list of records: out of memory");
        command->extents = extents;
    }
    command->extents[command->n_extents++] = extent;
    if (aligned_run_bytes > command->aligned_run_bytes_max)
        command->aligned_run_bytes_max = aligned_run_bytes;
    return 0;
}

static int file_size(const char *path, uint64_t *ret_bytes, struct sl_err *err)
{
    struct stat status;

    if (stat(path, &status) < 0)
        return sl_err_set(err, -errno, "%s: %s", path, sl_strerror(errno));
    *ret_bytes = (uint64_t)status.st_size;
    return 0;
}

/* Adds the whole blocks of a file, cut into records. */
static int add_file(struct command *command, uint32_t file_index, struct sl_err *err)
{
    const char *path = command->paths[file_index];
    uint64_t size_bytes = 0;
    int rc = file_size(path, &size_bytes, err);

    size_bytes = sl_round_down(size_bytes, SL_BLOCK_BYTES);
    if (rc == 0 && size_bytes == 0)
        return sl_err_set(err, -SL_EFORMAT, "%s: too small to be timed", path);
    for (uint64_t at = 0; rc == 0 && at < size_bytes; at += FILE_RECORD_BYTES) {
        uint64_t left_bytes = size_bytes - at;
        struct sl_extent extent = {
            at, left_bytes < FILE_RECORD_BYTES ? left_bytes : FILE_RECORD_BYTES, file_index};

        rc = add_extent(command, extent, err);
    }
    return rc;
}

/* Adds experts in random order; the reads of each stay together, as the engine asks for them. */
static int add_experts(struct command *command, const struct sl_expert_shape *shape,
                       struct sl_err *err)
{
    const uint32_t n = shape->num_hidden_layers * shape->n_routed_experts;
    uint32_t *order = calloc(n, sizeof(*order));
    uint64_t random = sl_clock_ns() | 1;
    int rc = 0;

    if (!order)
        return sl_err_set(err, -ENOMEM, "list of experts: out of memory");
    for (uint32_t i = 0; i < n; i++) {
        uint32_t k = (uint32_t)(sl_bench_random(&random) % (i + 1));

        order[i] = order[k];
        order[k] = i;
    }
    for (uint32_t i = 0; rc == 0 && i < n; i++) {
        struct sl_expert_key key = {(uint16_t)(order[i] / shape->n_routed_experts),
                                    (uint16_t)(order[i] % shape->n_routed_experts)};
        struct sl_extent reads[SL_EXPERT_READS_MAX];
        uint32_t n_reads = sl_expert_map_reads(command->model.store, key, reads);

        for (uint32_t k = 0; rc == 0 && k < n_reads; k++)
            rc = add_extent(command, reads[k], err);
    }
    free(order);
    return rc;
}

static int open_model(struct command *command, struct sl_err *err)
{
    int rc = sl_expert_files_open(&command->model, sl_parse_model(command->names[0]), err);

    if (rc < 0)
        return rc;
    command->n_files = command->model.n_files;
    command->paths = command->model.paths;
    return add_experts(command, sl_expert_map_shape(command->model.store), err);
}

static int open_files(struct command *command, struct sl_err *err)
{
    uint64_t random = sl_clock_ns() | 1;
    int rc = 0;

    command->n_files = command->n_names;
    command->paths = command->names;
    for (uint32_t i = 0; rc == 0 && i < command->n_files; i++)
        rc = add_file(command, i, err);
    for (uint32_t i = command->n_extents; i > 1; i--) {
        uint32_t k = (uint32_t)(sl_bench_random(&random) % i);
        struct sl_extent swap = command->extents[i - 1];

        command->extents[i - 1] = command->extents[k];
        command->extents[k] = swap;
    }
    return rc;
}

static int mark_files(struct command *command, struct sl_err *err)
{
    command->is_read = calloc(command->n_files, sizeof(*command->is_read));
    if (!command->is_read)
        return sl_err_set(err, -ENOMEM, "list of files: out of memory");
    for (uint32_t i = 0; i < command->n_extents; i++)
        command->is_read[command->extents[i].file_index] = true;
    return 0;
}

static uint32_t largest(const uint32_t *values, uint32_t n)
{
    uint32_t most = 0;

    for (uint32_t i = 0; i < n; i++)
        most = values[i] > most ? values[i] : most;
    return most;
}

/* Lets the system hold the memory. If it will not, reads only cost more processor time. */
static void hold_area(struct command *command)
{
    const struct sl_io_ops *ops = command->io->ops;
    const uint64_t size_bytes = command->area.size_bytes;
    const uint64_t part_bytes =
        size_bytes < SL_IO_PART_BYTES_MAX ? size_bytes : SL_IO_PART_BYTES_MAX;

    if (!ops->attach || ops->attach(command->io, command->area.base, size_bytes, part_bytes) < 0)
        return;
    for (uint32_t part = 0; part * part_bytes < size_bytes; part++)
        ops->hold(command->io, part, true);
}

static int prepare(struct command *command, struct sl_err *err)
{
    const uint32_t depth = largest(command->depths, command->n_depths);
    const uint32_t size = largest(command->sizes, command->n_sizes);
    struct stat status;
    int rc;

    if (command->n_names == 1 && stat(command->names[0], &status) == 0 && S_ISDIR(status.st_mode))
        rc = open_model(command, err);
    else
        rc = open_files(command, err);
    if (rc == 0) {
        command->open_io = sl_choose_io(command->open_io);
        rc = command->open_io(&command->io, command->paths, command->n_files,
                              depth > SL_IO_PROBE_DEPTH_MAX ? depth : SL_IO_PROBE_DEPTH_MAX, err);
    }
    if (rc == 0)
        rc = mark_files(command, err);
    if (rc == 0) /* reads of one piece or less do not keep a drive busy on their own: twice that */
        rc = sl_arena_init(&command->area,
                           2 * (uint64_t)command->io->n_drives * depth * size +
                               4 * command->aligned_run_bytes_max,
                           "reads to be timed", err);
    if (rc == 0)
        hold_area(command);
    return rc;
}

static uint64_t run_ns(const struct command *command)
{
    return (uint64_t)(command->bench.seconds * 1e9 / SL_BENCH_RUNS);
}

/* ---- fio ---------------------------------------------------------------------------------------
 */

/* Runs fio and returns what it prints, for the caller to free; NULL if it cannot be run. (Spawned,
 * for a fork would copy the memory that the ring holds.) */
static char *run_fio(char *const *arguments)
{
    char *output = calloc(1, FIO_OUTPUT_BYTES_MAX);
    posix_spawn_file_actions_t actions;
    size_t length = 0;
    int ends[2], status = -1;
    ssize_t got;
    pid_t child;

    if (!output || pipe2(ends, O_CLOEXEC) < 0) {
        free(output);
        return NULL;
    }
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    if (posix_spawnp(&child, arguments[0], &actions, NULL, arguments, environ) != 0)
        child = -1;
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    while ((got = read(ends[0], output + length, FIO_OUTPUT_BYTES_MAX - 1 - length)) > 0)
        length += (size_t)got;
    close(ends[0]);
    if (child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) &&
        WEXITSTATUS(status) == 0)
        return output;
    free(output);
    return NULL;
}

/* Makes fio's option --filename= for a drive's files, with the colons in their names escaped.
 * Returns NULL if none of its files is read, or when out of memory. */
static char *fio_file_names(const struct command *command, uint32_t drive_index)
{
    char *text = NULL;
    size_t length;
    uint32_t n = 0;
    FILE *stream = open_memstream(&text, &length);

    if (!stream)
        return NULL;
    fputs("--filename=", stream);
    for (uint32_t i = 0; i < command->n_files; i++) {
        if (command->io->files[i].drive_index != drive_index || !command->is_read[i])
            continue;
        if (n++)
            fputc(':', stream);
        for (const char *c = command->paths[i]; *c; c++) {
            if (*c == ':' || *c == '\\')
                fputc('\\', stream);
            fputc(*c, stream);
        }
    }
    if (fclose(stream) == 0 && n > 0)
        return text;
    free(text);
    return NULL;
}

/* Returns 10^9 bytes a second from fio's report; 0 if it cannot be read. */
static double fio_rate(const char *output)
{
    const char *json = output ? strchr(output, '{') : NULL;
    json_t *root = NULL, *value;
    double rate = 0;

    if (json && sl_json_parse(&root, json, strlen(json), "fio", NULL) == 0) {
        value = json_object_get(json_array_get(json_object_get(root, "jobs"), 0), "read");
        rate = json_number_value(json_object_get(value, "bw_bytes")) / 1e9;
    }
    json_decref(root);
    return rate;
}

/* fio runs one job for each drive, so that each has the depth. Like our reader, it reads a record
 * in order and then another one somewhere else. */
static double time_fio(const struct command *command, uint32_t size_bytes, uint32_t depth)
{
    char pattern[32], size[32], iodepth[32], ramp[32], runtime[32];
    const bool uring = command->open_io == sl_io_uring_open;
    char *const fixed[] = {"fio",
                           "--readonly",
                           pattern,
                           "--direct=1",
                           "--norandommap",
                           "--randrepeat=0",
                           "--thread",
                           uring ? "--ioengine=io_uring" : "--ioengine=libaio",
                           "--time_based",
                           "--group_reporting",
                           "--output-format=json",
                           size,
                           iodepth,
                           ramp,
                           runtime};
    const size_t n_fixed = SL_ARRAY_LEN(fixed);
    const uint32_t n_drives = command->io->n_drives;
    char **arguments = calloc(n_fixed + 2 * n_drives + 1, sizeof(*arguments));
    size_t n = n_fixed;
    char *output;
    double rate;

    if (!arguments)
        return 0;
    snprintf(pattern, sizeof(pattern), "--rw=randread:%llu",
             (unsigned long long)(command->aligned_run_bytes_max + size_bytes - 1) / size_bytes);
    snprintf(size, sizeof(size), "--bs=%u", size_bytes);
    snprintf(iodepth, sizeof(iodepth), "--iodepth=%u", depth);
    snprintf(ramp, sizeof(ramp), "--ramp_time=%ums", RAMP_MS);
    snprintf(runtime, sizeof(runtime), "--runtime=%ums", (unsigned)(run_ns(command) / 1000000 + 1));
    memcpy(arguments, fixed, sizeof(fixed));
    for (uint32_t i = 0; i < n_drives; i++) {
        char *names = fio_file_names(command, i);

        if (!names)
            continue;
        arguments[n++] = "--name=drive";
        arguments[n++] = names;
    }
    output = run_fio(arguments);
    rate = fio_rate(output);
    for (size_t i = n_fixed + 1; i < n; i += 2)
        free(arguments[i]);
    free(arguments);
    free(output);
    return rate;
}

static bool find_fio(void)
{
    char *const arguments[] = {"fio", "--version", NULL};
    char *output = run_fio(arguments);

    free(output);
    return output != NULL;
}

/* ---- ours, and mmap ----------------------------------------------------------------------------
 */

/* Measures our reader; rates are in 10^9 bytes a second. */
static int time_reader(struct command *command, uint32_t size_bytes, uint32_t depth,
                       double *ret_rate, struct sl_err *err)
{
    const struct sl_io_trial trial = {.options = {.piece_bytes = size_bytes, .depth = depth},
                                      .ramp_ns = RAMP_MS * UINT64_C(1000000),
                                      .ns = run_ns(command),
                                      .first_extent = command->next_extent};
    struct sl_io_timing timing;
    int rc = sl_io_time(command->io, &trial, command->extents, command->n_extents,
                        command->area.base, command->area.size_bytes, &timing, err);

    if (rc == 0) {
        *ret_rate = (double)timing.read_bytes / (double)timing.ns;
        command->next_extent = timing.next_extent;
    }
    return rc;
}

/* Touches every page of an extent after dropping it from the page cache. Gives the time that this
 * took. */
static int touch(const char *path, const struct sl_extent *extent, uint64_t *ret_ns,
                 struct sl_err *err)
{
    const uint64_t first_bytes = sl_round_down(extent->offset_bytes, SL_BLOCK_BYTES);
    const size_t length = (size_t)(extent->offset_bytes + extent->size_bytes - first_bytes);
    int fd = sl_file_open(path, err);
    const volatile uint8_t *bytes;
    uint64_t start_ns;
    int rc = 0;

    if (fd < 0)
        return fd;
    posix_fadvise(fd, (off_t)first_bytes, (off_t)length, POSIX_FADV_DONTNEED);
    start_ns = sl_clock_ns();
    bytes = mmap(NULL, length, PROT_READ, MAP_SHARED, fd, (off_t)first_bytes);
    if (bytes == MAP_FAILED) {
        rc = sl_err_set(err, -errno, "%s: cannot be mapped: %s", path, sl_strerror(errno));
    } else {
        for (size_t i = 0; i < length; i += SL_BLOCK_BYTES)
            (void)bytes[i];
        munmap((void *)(uintptr_t)bytes, length);
    }
    *ret_ns = sl_clock_ns() - start_ns;
    close(fd);
    return rc;
}

static int time_mmap(struct command *command, double *ret_rate, struct sl_err *err)
{
    uint64_t touched_bytes = 0, spent_ns = 0;

    while (spent_ns < run_ns(command)) {
        const struct sl_extent *extent = &command->extents[command->next_extent];
        uint64_t ns = 0;
        int rc = touch(command->paths[extent->file_index], extent, &ns, err);

        if (rc < 0)
            return rc;
        command->next_extent = (command->next_extent + 1) % command->n_extents;
        touched_bytes += extent->size_bytes;
        spent_ns += ns;
    }
    *ret_rate = (double)touched_bytes / (double)spent_ns;
    return 0;
}

/* ---- the command -------------------------------------------------------------------------------
 */

static const char *shape_of(const struct command *command, uint32_t size_bytes, uint32_t depth,
                            char shape[64])
{
    char text[SL_SIZE_TEXT_BYTES];

    snprintf(shape, 64, "%s x %u%s%s", sl_size_format(size_bytes, text), depth,
             command->io->n_drives > 1 ? ", on each drive" : "",
             command->has_fio ? "" : ", no fio here");
    return shape;
}

static void print(const struct command *command, const char *what, const char *shape, double value,
                  double limit)
{
    sl_bench_print(
        &command->bench,
        (struct sl_bench_figure){
            .what = what, .shape = shape, .unit = "GB/s", .value = value, .limit = limit});
}

/* Runs our reader and fio in turn. Raises *best to fio's rate, or to ours where there is no fio. */
static int measure(struct command *command, uint32_t size_bytes, uint32_t depth, double *best,
                   struct sl_err *err)
{
    double values[SL_BENCH_RUNS], limits[SL_BENCH_RUNS] = {0}, value, limit;
    char shape[64];

    for (uint32_t i = 0; i < SL_BENCH_RUNS; i++) {
        int rc = time_reader(command, size_bytes, depth, &values[i], err);

        if (rc < 0)
            return rc;
        if (command->has_fio)
            limits[i] = time_fio(command, size_bytes, depth);
    }
    value = sl_bench_median(values, SL_BENCH_RUNS);
    limit = sl_bench_median(limits, SL_BENCH_RUNS);
    print(command, "expert reads", shape_of(command, size_bytes, depth, shape), value, limit);
    if ((limit > 0 ? limit : value) > *best)
        *best = limit > 0 ? limit : value;
    return 0;
}

static int run(struct command *command, struct sl_err *err)
{
    struct sl_io_probe probe;
    double best = 0, rate;
    char shape[64];
    int rc;

    for (uint32_t size = 0; size < command->n_sizes; size++) {
        for (uint32_t depth = 0; depth < command->n_depths; depth++) {
            rc = measure(command, command->sizes[size], command->depths[depth], &best, err);
            if (rc < 0)
                return rc;
        }
    }
    rc = sl_io_probe(command->io, 0, &probe, err);
    if (rc < 0)
        return rc;
    if (probe.bytes_per_s > 0)
        print(command, "what the engine's probe finds",
              shape_of(command, probe.piece_bytes, probe.depth, shape),
              (double)probe.bytes_per_s / 1e9, best);
    rc = time_mmap(command, &rate, err);
    if (rc == 0)
        print(command, "mmap of the same records", "page by page, one thread", rate, best);
    return rc;
}

static void print_header(const struct command *command)
{
    if (command->bench.json)
        return;
    printf("%u file%s on %u drive%s%s; limit: %s\n", command->n_files, sl_plural(command->n_files),
           command->io->n_drives, sl_plural(command->io->n_drives),
           command->io->direct ? "" : " without direct I/O: the page cache takes part",
           command->has_fio ? "fio, same files, sizes and depth" : "none, fio is not installed");
}

int sl_bench_io(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"sizes", OPTION_SIZES, "SIZE,...", 0, "pieces (default 512K,1M,2M)", 0},
        {"depths", OPTION_DEPTHS, "N,...", 0, "pieces in flight on each drive (default 8,32)", 0},
        {"io", OPTION_IO, "uring|threads", 0,
         "how they are read (default uring, or threads where io_uring is not available)", 0},
        {"seconds", OPTION_SECONDS, "S", 0, "time for each figure (default 2)", 0},
        {"json", OPTION_JSON, NULL, 0, "one JSON object a line", 0},
        {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse_option,
        .args_doc = "MODEL|FILE...",
        .doc = "Reads experts of MODEL, or pieces of any FILEs, past the "
               "page cache and in random order, for each size and depth beside fio on the same "
               "files, and once through mmap."};
    struct command command = {.sizes = {512 << 10, 1 << 20, 2 << 20},
                              .depths = {8, 32},
                              .n_sizes = 3,
                              .n_depths = 2,
                              .bench.seconds = SECONDS_DEFAULT};
    struct sl_err err = {0};
    int rc;

    sl_command_parse(&argp, argc, argv, &command);
    rc = prepare(&command, &err);
    if (rc == 0) {
        /* Puts fio's buffers into huge pages, as ours are, because that alone can double a rate. */
        setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1", 1);
        command.has_fio = find_fio();
        print_header(&command);
        rc = run(&command, &err);
    }
    if (command.io)
        command.io->ops->close(command.io);
    if (rc != -ETIMEDOUT) /* or it is left to the drive */
        sl_arena_fini(&command.area);
    free(command.extents);
    free(command.is_read);
    sl_expert_files_close(&command.model);
    return sl_command_status(rc, &err);
}
