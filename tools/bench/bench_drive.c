#include "tools/bench/bench_drive.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "daemon/engine/engine_internal.h"
#include "storage/io/io_probe.h"

static int open_files(struct sl_bench_drive *drive, sl_io_open_fn *open_io, struct sl_err *err)
{
    const struct sl_expert_map *store = drive->engine->store;
    const char **paths = sl_expert_map_file_paths(store);
    int rc;

    if (!paths)
        return sl_err_set(err, -ENOMEM, "list of files: out of memory");
    if (!open_io)
        open_io = sl_io_choose(NULL);
    rc = open_io(&drive->io, paths, sl_expert_map_file_count(store),
                 drive->engine->options.reader.depth, err);
    free(paths);
    return rc;
}

int sl_bench_drive_open(struct sl_bench_drive *drive, const struct sl_engine *engine,
                        sl_io_open_fn *open_io, struct sl_err *err)
{
    const struct sl_reader_options reader = engine->options.reader;
    const struct sl_expert_shape *shape = sl_expert_map_shape(engine->store);
    const uint32_t n_experts = shape->num_hidden_layers * shape->n_routed_experts;
    int rc;

    drive->engine = engine;
    drive->n_extents_max = n_experts * SL_EXPERT_READS_MAX;
    rc = open_files(drive, open_io, err);
    if (rc < 0)
        return rc;
    drive->noted = calloc(n_experts, sizeof(*drive->noted));
    drive->extents = calloc(drive->n_extents_max, sizeof(*drive->extents));
    if (!drive->noted || !drive->extents)
        return sl_err_set(err, -ENOMEM, "list of experts: out of memory");
    /* The area holds twice the bytes that may be in flight, which reads of one piece need, and some
     * whole experts. */
    return sl_arena_init(&drive->area,
                         2 * (uint64_t)drive->io->n_drives * reader.depth * reader.piece_bytes +
                             4 * sl_packed_expert_bytes(shape),
                         "reads to be timed", err);
}

void sl_bench_drive_close(struct sl_bench_drive *drive)
{
    if (drive->io)
        drive->io->ops->close(drive->io);
    sl_arena_fini(&drive->area);
    free(drive->noted);
    free(drive->extents);
    *drive = (struct sl_bench_drive){.engine = NULL};
}

void sl_bench_drive_note(void *context, uint32_t layer_index, uint32_t n_tokens,
                         const uint16_t *experts)
{
    struct sl_bench_drive *drive = context;
    const struct sl_expert_map *store;
    uint32_t n_experts, n;

    if (!drive->noted)
        return;
    store = drive->engine->store;
    n_experts = sl_expert_map_shape(store)->n_routed_experts;
    n = n_tokens * sl_engine_config(drive->engine)->num_experts_per_tok;
    for (uint32_t i = 0; i < n; i++) {
        bool *noted = &drive->noted[layer_index * n_experts + experts[i]];

        if (!*noted)
            drive->n_extents += sl_expert_map_reads(
                store, (struct sl_expert_key){(uint16_t)layer_index, experts[i]},
                drive->extents + drive->n_extents);
        *noted = true;
        sl_assert(drive->n_extents <= drive->n_extents_max);
    }
}

void sl_bench_drive_forget(struct sl_bench_drive *drive)
{
    const struct sl_expert_shape *shape;

    if (!drive->noted)
        return;
    shape = sl_expert_map_shape(drive->engine->store);
    memset(drive->noted, 0, shape->num_hidden_layers * shape->n_routed_experts * sizeof(bool));
    drive->n_extents = 0;
}

int sl_bench_drive_rate(struct sl_bench_drive *drive, uint64_t ns, double *ret_rate,
                        struct sl_err *err)
{
    /* The first half of the time does not count, because a drive that is held to a rate is faster
     * after a rest. */
    struct sl_io_trial trial = {.ramp_ns = ns / 2, .ns = ns};
    struct sl_io_timing timing;
    int rc;

    *ret_rate = 0;
    if (drive->n_extents == 0)
        return 0;
    trial.options = drive->engine->options.reader;
    rc = sl_io_time(drive->io, &trial, drive->extents, drive->n_extents, drive->area.base,
                    drive->area.size_bytes, &timing, err);
    if (rc == -ETIMEDOUT)
        drive->area = (struct sl_arena){0}; /* left to the drive */
    if (rc == 0)
        *ret_rate = (double)timing.read_bytes / (double)timing.ns;
    return rc;
}
