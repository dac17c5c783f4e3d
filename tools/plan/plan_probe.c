#include "tools/plan/plan_probe.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "storage/io/io_probe.h"
#include "tools/bench/bench.h"
#include "tools/cli/engine_options.h"
#include "tools/cli/expert_files.h"
#include "core/kernels/dispatch.h"

#define READING_NS UINT64_C(10000000)

struct sl_multiplications sl_plan_core_rates(void)
{
    return (struct sl_multiplications){.int8 = 135, .bf16 = 67, .f32 = 34};
}

static int probe(struct sl_bench *bench, struct sl_machine_speeds *speeds, bool *ret_disturbed,
                 struct sl_err *err)
{
    const struct sl_bench_rate memory = sl_bench_probe_read(&bench->probe, READING_NS);
    struct sl_bench_rate int8, bf16, f32;
    int rc;

    if ((rc = sl_bench_linear_rate(bench, SL_MATRIX_FP4, 2048, 4096, &int8, err)) < 0 ||
        (rc = sl_bench_linear_rate(bench, SL_MATRIX_FP8, 4096, 8192, &bf16, err)) < 0 ||
        (rc = sl_bench_linear_rate(bench, SL_MATRIX_F32, 24, 16384, &f32, err)) < 0)
        return rc;
    speeds->memory = memory.rate;
    speeds->multiply = (struct sl_multiplications){int8.rate, bf16.rate, f32.rate};
    *ret_disturbed = memory.disturbed || int8.disturbed || bf16.disturbed || f32.disturbed;
    return 0;
}

int sl_plan_probe_cores(uint32_t n_threads, struct sl_machine_speeds *speeds, bool *ret_disturbed,
                        struct sl_err *err)
{
    const struct sl_affinity affinity = sl_choose_affinity(n_threads);
    struct sl_kernels kernels;
    struct sl_pool *pool = NULL;
    struct sl_bench bench;
    int rc;

    if ((rc = sl_kernels_select(&kernels, NULL, err)) == 0 &&
        (rc = sl_pool_create(&pool, n_threads, err)) == 0) {
        const struct sl_compute compute = {
            .kernels = &kernels, .pool = pool, .numerics = SL_NUMERICS_NATIVE};

        sl_pool_pin(pool, &affinity);
        rc = sl_bench_init(&bench, &compute, UINT64_MAX, false, err);
        if (rc == 0)
            rc = probe(&bench, speeds, ret_disturbed, err);
        sl_bench_fini(&bench);
    }
    sl_pool_destroy(pool);
    return rc;
}

static int probe_files(const char *const *paths, uint32_t n_paths, sl_io_open_fn *open_io,
                       double *ret_rate, struct sl_err *err)
{
    struct sl_io_probe probe;
    struct sl_io *io;
    int rc = open_io(&io, paths, n_paths, SL_IO_PROBE_DEPTH_MAX, err);

    if (rc < 0)
        return rc;
    rc = sl_io_probe(io, 0, &probe, err);
    io->ops->close(io);
    if (rc < 0)
        return rc;
    if (probe.bytes_per_s == 0)
        return sl_err_set(err, -SL_EUNSUPPORTED,
                          "%s: too small to tell the drive's speed by, or in the page cache: "
                          "--drive FILE names 1 GiB or more on that drive, --ssd the speed",
                          paths[0]);
    *ret_rate = (double)probe.bytes_per_s / 1e9;
    return 0;
}

static int probe_model(const char *folder, sl_io_open_fn *open_io, double *ret_rate,
                       struct sl_err *err)
{
    struct sl_expert_files files;
    int rc = sl_expert_files_open(&files, folder, err);

    if (rc == 0)
        rc = probe_files(files.paths, files.n_files, open_io, ret_rate, err);
    sl_expert_files_close(&files);
    return rc;
}

int sl_plan_probe_drive(const char *path, sl_io_open_fn *open_io, double *ret_rate,
                        struct sl_err *err)
{
    struct stat status;

    if (stat(path, &status) == 0 && S_ISDIR(status.st_mode))
        return probe_model(path, open_io, ret_rate, err);
    return probe_files(&path, 1, open_io, ret_rate, err);
}
