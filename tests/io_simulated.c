#include "tests/io_simulated.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/file.h"
#include "core/base/size.h"
#include "tests/io_fault.h"

#define FILE_BYTES_MAX (UINT64_C(64) << 20)

struct file {
    char *bytes;
    size_t size;
};

struct entry {
    struct sl_io_read read;
    uint64_t due_ns;
    bool used;
};

struct simulated {
    struct sl_io io;
    struct io_simulated_plan plan;
    struct file *files;
    struct entry *entries; /* reads_max */
    uint32_t n_out;
    uint64_t random, now_ns;
    uint64_t delivered_bytes, n_completions, n_failures;
};

static struct simulated *simulated_of(struct sl_io *io)
{
    return (struct simulated *)(void *)io;
}

static uint64_t below(struct simulated *sim, uint64_t limit)
{
    return io_fault_random(&sim->random) % limit;
}

/* No two reads that are out write to the same memory. */
static void assert_apart(const struct simulated *sim, const struct sl_io_read *read)
{
    const uint8_t *first = read->dst;

    for (uint32_t i = 0; i < sim->io.reads_max; i++) {
        const struct sl_io_read *other = &sim->entries[i].read;
        const uint8_t *other_first = other->dst;

        sl_assert(!sim->entries[i].used || first + read->size_bytes <= other_first ||
                  other_first + other->size_bytes <= first);
    }
}

static void simulated_submit(struct sl_io *io, const struct sl_io_read *reads, uint32_t n_reads)
{
    struct simulated *sim = simulated_of(io);

    for (uint32_t i = 0; i < n_reads; i++) {
        uint64_t latency_ns = 1 + below(sim, sim->plan.latency_ns_max);
        uint32_t index = 0;

        sl_assert(sim->n_out < io->reads_max);
        sl_assert(reads[i].file_index < io->n_files && reads[i].size_bytes > 0);
        sl_assert((reads[i].offset_bytes | reads[i].size_bytes | (uintptr_t)reads[i].dst) %
                      SL_BLOCK_BYTES ==
                  0);
        assert_apart(sim, &reads[i]);
        if (sim->plan.on_submit)
            sim->plan.on_submit(sim->plan.context, &reads[i]);
        while (sim->entries[index].used)
            index++;
        if (below(sim, 1000) < sim->plan.slow_permille)
            latency_ns *= 100;
        sim->entries[index] = (struct entry){reads[i], sim->now_ns + latency_ns, true};
        sim->n_out++;
    }
}

static int32_t deliver(struct simulated *sim, const struct sl_io_read *read)
{
    const struct file *file = &sim->files[read->file_index];
    const uint32_t block = (uint32_t)SL_BLOCK_BYTES;
    uint64_t chance = below(sim, 1000), n = 0;

    if (chance < sim->plan.again_permille)
        return chance % 2 ? -EINTR : -EAGAIN;
    chance -= sim->plan.again_permille;
    if (chance < sim->plan.fail_permille) {
        sim->n_failures++;
        return -EIO;
    }
    if (read->offset_bytes < file->size)
        n = file->size - read->offset_bytes;
    n = n < read->size_bytes ? n : read->size_bytes;
    if (n > block && below(sim, 1000) < sim->plan.short_permille)
        n = block + below(sim, n - block);
    memcpy(read->dst, file->bytes + read->offset_bytes, n);
    memset((uint8_t *)read->dst + n, 0xa5, read->size_bytes - n); /* nobody may rely on it */
    if (n > 0 && below(sim, 1000) < sim->plan.flip_permille) {
        sim->n_failures++;
        ((uint8_t *)read->dst)[below(sim, n)] ^= (uint8_t)(1 << below(sim, 8));
    }
    sim->delivered_bytes += n;
    return (int32_t)n;
}

/* The read that is due next, or NULL. */
static struct entry *next_due(struct simulated *sim)
{
    struct entry *next = NULL;

    for (uint32_t i = 0; i < sim->io.reads_max; i++)
        if (sim->entries[i].used && (!next || sim->entries[i].due_ns < next->due_ns))
            next = &sim->entries[i];
    return next;
}

static uint32_t simulated_reap(struct sl_io *io, uint64_t wait_ns,
                               struct sl_io_completion *completions, uint32_t n_max)
{
    struct simulated *sim = simulated_of(io);
    struct entry *entry;
    uint32_t n = 0;

    for (; n < n_max && (entry = next_due(sim)); n++) {
        const struct sl_io_read *read = &entry->read;
        int32_t result;

        if (entry->due_ns > sim->now_ns) {
            if (n > 0)
                break;
            if (entry->due_ns - sim->now_ns > wait_ns) {
                sim->now_ns += wait_ns;
                break;
            }
            sim->now_ns = entry->due_ns;
        }
        result = deliver(sim, read);
        completions[n] = (struct sl_io_completion){read->tag, result};
        entry->used = false;
        sim->n_out--;
        sim->n_completions++;
    }
    return n;
}

static void simulated_close(struct sl_io *io)
{
    struct simulated *sim = simulated_of(io);

    for (uint32_t i = 0; i < io->n_files; i++) {
        free(sim->files[i].bytes);
        free(io->files[i].path);
    }
    free(io->files);
    free(sim->files);
    free(sim->entries);
    free(sim);
}

struct sl_io *io_simulated_open(const char *const *paths, uint32_t n_files, uint32_t reads_max,
                                const struct io_simulated_plan *plan)
{
    static const struct sl_io_ops ops = {
        .submit = simulated_submit, .reap = simulated_reap, .close = simulated_close};
    struct simulated *sim = calloc(1, sizeof(*sim));

    sl_assert(sim);
    sim->io = (struct sl_io){.ops = &ops,
                             .files = calloc(n_files, sizeof(*sim->io.files)),
                             .n_files = n_files,
                             .n_drives = 1,
                             .reads_max = reads_max,
                             .direct = true};
    sim->plan = *plan;
    sim->random = plan->seed;
    sim->files = calloc(n_files, sizeof(*sim->files));
    sim->entries = calloc(reads_max, sizeof(*sim->entries));
    sl_assert(sim->io.files && sim->files && sim->entries);
    for (uint32_t i = 0; i < n_files; i++) {
        int rc = sl_file_read_all(paths[i], FILE_BYTES_MAX, &sim->files[i].bytes,
                                  &sim->files[i].size, NULL);

        sl_assert(rc == 0);
        sim->io.files[i] = (struct sl_io_file){.fd = -1, .path = strdup(paths[i])};
        sl_assert(sim->io.files[i].path);
    }
    return &sim->io;
}

void io_simulated_advance(struct sl_io *io, uint64_t ns)
{
    simulated_of(io)->now_ns += ns;
}

uint64_t io_simulated_clock_ns(void *io)
{
    return simulated_of(io)->now_ns;
}

uint64_t io_simulated_delivered_bytes(const struct sl_io *io)
{
    return ((const struct simulated *)(const void *)io)->delivered_bytes;
}

uint64_t io_simulated_completion_count(const struct sl_io *io)
{
    return ((const struct simulated *)(const void *)io)->n_completions;
}

uint64_t io_simulated_failure_count(const struct sl_io *io)
{
    return ((const struct simulated *)(const void *)io)->n_failures;
}
