/* Owns the loop that keeps drives busy for a while, and the choice of pieces and depth from its
 * rates. */
#include "storage/io/io_probe.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "core/base/arena.h"
#include "core/base/assert.h"
#include "core/base/clock.h"
#include "core/base/size.h"

#define FILES_BYTES_MIN (UINT64_C(1) << 30)
#define TRIAL_NS UINT64_C(30000000)
#define PROBE_NS UINT64_C(300000000)

/* The probe reads this much at a time: a part of an expert, which is cut into several pieces. */
#define READ_BYTES (UINT64_C(4) << 20)
#define N_READS 1024u

/* A rate within this distance of the best counts as equally good. */
#define GOOD_ENOUGH 0.95

/* ---- one trial ---------------------------------------------------------------------------------
 */

struct run {
    struct sl_reader *reader;
    const struct sl_io_trial *trial;
    const struct sl_extent *extents;
    uint32_t n_extents, n_begun;
    uint64_t start_ns; /* when bytes began to count, once `counts` is set */
    uint64_t start_bytes;
    bool counts;
    int rc;
    struct sl_err *err;
};

static bool is_over(struct run *run)
{
    const uint64_t now_ns = sl_clock_ns();

    if (!run->counts && now_ns - run->start_ns >= run->trial->ramp_ns) {
        run->counts = true;
        run->start_ns = now_ns;
        run->start_bytes = sl_reader_counters(run->reader, SL_READS_OF_EXPERTS).read_bytes;
    }
    return run->rc < 0 || (run->counts && now_ns - run->start_ns >= run->trial->ns);
}

static void begin(struct run *run, struct sl_read *read)
{
    const struct sl_extent *extent =
        &run->extents[(run->trial->first_extent + run->n_begun++) % run->n_extents];

    read->offset_bytes = extent->offset_bytes;
    read->size_bytes = extent->size_bytes;
    read->file_index = extent->file_index;
    sl_reader_queue(run->reader, read);
}

static void run_reads(struct run *run, struct sl_read *reads, uint32_t n_reads)
{
    struct sl_read *read;

    run->start_ns = sl_clock_ns();
    run->counts = run->trial->ramp_ns == 0;
    for (uint32_t i = 0; i < n_reads; i++)
        begin(run, &reads[i]);
    while ((read = sl_reader_reap(run->reader, SL_READS_OF_EXPERTS, true))) {
        if (read->late || (read->rc < 0 && read->rc != -ECANCELED && run->rc == 0))
            run->rc = sl_reader_explain(run->reader, read, run->err);
        if (!is_over(run)) {
            begin(run, read);
            continue;
        }
        for (uint32_t i = 0; i < n_reads; i++)
            sl_reader_cancel(run->reader, &reads[i]);
    }
    sl_reader_drain(run->reader); /* a read that is still out was late, as run->rc says */
}

int sl_io_time(struct sl_io *io, const struct sl_io_trial *trial, const struct sl_extent *extents,
               uint32_t n_extents, uint8_t *area, uint64_t area_bytes,
               struct sl_io_timing *ret_timing, struct sl_err *err)
{
    struct run run = {.trial = trial, .extents = extents, .n_extents = n_extents, .err = err};
    uint64_t aligned_run_bytes = 0;
    struct sl_read *reads;
    uint32_t n_reads;

    sl_assert(n_extents >= 1);
    for (uint32_t i = 0; i < n_extents; i++) {
        uint64_t bytes = sl_aligned_run_bytes(extents[i].offset_bytes, extents[i].size_bytes);

        aligned_run_bytes = bytes > aligned_run_bytes ? bytes : aligned_run_bytes;
    }
    n_reads = (uint32_t)(area_bytes / aligned_run_bytes);
    sl_assert(n_reads >= 1);
    reads = calloc(n_reads, sizeof(*reads));
    if (!reads)
        return sl_err_set(err, -ENOMEM, "reads to be timed: out of memory");
    for (uint32_t i = 0; i < n_reads; i++)
        reads[i].dst = area + i * aligned_run_bytes;
    run.rc = sl_reader_create(&run.reader, io, &trial->options, err);
    if (run.rc == 0) {
        run_reads(&run, reads, n_reads);
        ret_timing->ns = sl_clock_ns() - run.start_ns;
        ret_timing->next_extent = (trial->first_extent + run.n_begun) % n_extents;
        ret_timing->read_bytes =
            sl_reader_counters(run.reader, SL_READS_OF_EXPERTS).read_bytes - run.start_bytes;
    }
    sl_reader_destroy(run.reader);
    free(reads);
    return run.rc;
}

/* ---- the probe ---------------------------------------------------------------------------------
 */

static uint64_t random_below(uint64_t *state, uint64_t limit)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state % limit;
}

/* Chooses N_READS extents; larger files get more of them. Returns false if the files are too
 * small. */
static bool choose_extents(const struct sl_io *io, struct sl_extent extents[N_READS])
{
    uint64_t random = sl_clock_ns() | 1, total_bytes = 0;
    struct stat status;

    for (uint32_t i = 0; i < io->n_files; i++)
        total_bytes += fstat(io->files[i].fd, &status) == 0 ? (uint64_t)status.st_size : 0;
    if (total_bytes < FILES_BYTES_MIN)
        return false;
    for (uint32_t n = 0; n < N_READS;) {
        uint64_t at_bytes = random_below(&random, total_bytes);
        uint32_t i = 0;

        while (fstat(io->files[i].fd, &status) == 0 && at_bytes >= (uint64_t)status.st_size) {
            at_bytes -= (uint64_t)status.st_size;
            if (++i == io->n_files)
                return false; /* a file has shrunk meanwhile */
        }
        if ((uint64_t)status.st_size < READ_BYTES)
            continue;
        if (at_bytes > (uint64_t)status.st_size - READ_BYTES)
            at_bytes = (uint64_t)status.st_size - READ_BYTES;
        extents[n++] = (struct sl_extent){.offset_bytes = sl_round_down(at_bytes, SL_BLOCK_BYTES),
                                          .size_bytes = READ_BYTES,
                                          .file_index = i};
    }
    return true;
}

/* The candidates, ascending in bytes in flight. */
static const struct {
    uint32_t piece_bytes, depth;
} candidates[] = {
    {512 << 10, 8}, {1 << 20, 8},  {512 << 10, 16}, {2 << 20, 8},
    {1 << 20, 16},  {2 << 20, 16}, {1 << 20, 32},   {2 << 20, SL_IO_PROBE_DEPTH_MAX},
};

#define N_CANDIDATES (SL_ARRAY_LEN(candidates))

/* A slow drive takes long to deliver the bytes that are in flight already. Then the later
 * candidates, which have more in flight, are left out. */
static int try_candidates(struct sl_io *io, const struct sl_extent *extents,
                          const struct sl_arena *area, uint64_t stall_ns, struct sl_io_probe *probe,
                          struct sl_err *err)
{
    const uint64_t start_ns = sl_clock_ns();
    uint64_t rates[N_CANDIDATES] = {0}, best = 0;

    for (size_t i = 0; i < N_CANDIDATES && sl_clock_ns() - start_ns < PROBE_NS; i++) {
        const struct sl_io_trial trial = {.options = {.piece_bytes = candidates[i].piece_bytes,
                                                      .depth = candidates[i].depth,
                                                      .stall_ns = stall_ns},
                                          .ns = TRIAL_NS};
        struct sl_io_timing timing = {0};
        int rc = sl_io_time(io, &trial, extents + i * N_READS / N_CANDIDATES,
                            N_READS / N_CANDIDATES, area->base, area->size_bytes, &timing, err);

        if (rc < 0)
            return rc;
        rates[i] = (uint64_t)((double)timing.read_bytes * 1e9 / (double)timing.ns);
        best = rates[i] > best ? rates[i] : best;
    }
    for (size_t i = N_CANDIDATES; i-- > 0;) {
        if ((double)rates[i] < GOOD_ENOUGH * (double)best)
            continue;
        probe->piece_bytes = candidates[i].piece_bytes;
        probe->depth = candidates[i].depth;
        probe->bytes_per_s = rates[i];
    }
    return 0;
}

int sl_io_probe(struct sl_io *io, uint64_t stall_ns, struct sl_io_probe *ret_probe,
                struct sl_err *err)
{
    const uint64_t area_bytes =
        io->n_drives * (UINT64_C(2) << 20) * SL_IO_PROBE_DEPTH_MAX + 2 * READ_BYTES;
    struct sl_extent extents[N_READS];
    struct sl_arena area = {0};
    int rc = 0;

    *ret_probe =
        (struct sl_io_probe){.piece_bytes = SL_READER_PIECE_BYTES, .depth = SL_READER_DEPTH};
    if (!io->direct || !choose_extents(io, extents))
        return 0;
    if (sl_arena_init(&area, area_bytes, "probe of the drives", NULL) == 0)
        rc = try_candidates(io, extents, &area, stall_ns, ret_probe, err);
    if (rc == -ETIMEDOUT)
        return rc; /* the area is left to the drive */
    sl_arena_fini(&area);
    return 0;
}
