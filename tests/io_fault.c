#include "tests/io_fault.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/size.h"

#define GATHER_MAX 32u

/* What goes wrong with a read. */
struct wrong {
    bool any;
    uint32_t kind; /* as in the plan */
    int code;
};

struct entry {
    struct sl_io_read read;
    int32_t result;
    struct wrong wrong;
    uint64_t due_ns; /* if it waits */
    bool used;
    bool waits; /* for its time, before it goes to `inner` */
    bool landed;
};

struct fault {
    struct sl_io io;
    struct sl_io *inner;
    struct entry *entries; /* reads_max; the index is the inner tag */
    uint32_t n_inner_out, n_landed, n_waiting;
    uint64_t now_ns;
    struct sl_io_read log[IO_FAULT_LOG];
    struct io_fault_plan plan;
    uint64_t random;
    uint64_t n_reads, delivered_bytes;
    uint64_t gap_end; /* the read that goes wrong next for gap_reads */
    uint64_t n_gaps[IO_FAULT_KINDS];
    struct wrong broken; /* for good, at: */
    uint32_t broken_file_index;
    uint64_t broken_offset_bytes;
};

uint64_t io_fault_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static void break_at(struct fault *fault, const struct sl_io_read *read, struct wrong wrong)
{
    fault->broken = wrong;
    fault->broken_file_index = read->file_index;
    fault->broken_offset_bytes = read->offset_bytes;
}

static void next_gap(struct fault *fault)
{
    const uint64_t gap = fault->plan.gap_reads;

    fault->gap_end = fault->n_reads + gap + (gap ? io_fault_random(&fault->random) % gap : 0);
}

static struct wrong end_gap(struct fault *fault, const struct sl_io_read *read)
{
    static const struct wrong kinds[IO_FAULT_KINDS] = {{true, IO_FAULT_FAIL, -EIO},
                                                       {true, IO_FAULT_SHORT, 0},
                                                       {true, IO_FAULT_LATE, 0},
                                                       {true, IO_FAULT_FAIL, 0}};
    const uint64_t dice = io_fault_random(&fault->random) % 64;
    const uint32_t kind = (uint32_t)dice % IO_FAULT_KINDS;

    if (fault->plan.fail_for_good && dice == IO_FAULT_FAIL)
        break_at(fault, read, kinds[kind]);
    fault->n_gaps[kind]++;
    next_gap(fault);
    return kinds[kind];
}

static struct wrong what_goes_wrong(struct fault *fault, const struct sl_io_read *read)
{
    const struct wrong planned = {true, fault->plan.fail_kind, fault->plan.fail_code};

    fault->log[fault->n_reads++ % IO_FAULT_LOG] = *read;
    if (fault->n_reads == fault->plan.fail_nth) {
        if (fault->plan.fail_for_good)
            break_at(fault, read, planned);
        return planned;
    }
    if (fault->broken.any && read->file_index == fault->broken_file_index &&
        read->offset_bytes <= fault->broken_offset_bytes &&
        fault->broken_offset_bytes < read->offset_bytes + read->size_bytes)
        return fault->broken;
    if (fault->plan.gap_reads && fault->n_reads == fault->gap_end)
        return end_gap(fault, read);
    return (struct wrong){.any = false};
}

static void submit_inner(struct fault *fault, uint32_t index)
{
    struct sl_io_read read = fault->entries[index].read;

    read.tag = index;
    fault->inner->ops->submit(fault->inner, &read, 1);
    fault->n_inner_out++;
}

static void fault_submit(struct sl_io *io, const struct sl_io_read *reads, uint32_t n_reads)
{
    struct fault *fault = (struct fault *)(void *)io;

    for (uint32_t i = 0; i < n_reads; i++) {
        const struct sl_io_read read = reads[i];
        struct entry *entry;
        uint32_t index = 0;

        while (index < io->reads_max && fault->entries[index].used)
            index++;
        sl_assert(index < io->reads_max); /* more out than allowed */
        sl_assert(read.offset_bytes % SL_BLOCK_BYTES == 0);
        sl_assert(read.size_bytes > 0 && read.size_bytes % SL_BLOCK_BYTES == 0);
        sl_assert((uintptr_t)read.dst % SL_BLOCK_BYTES == 0);
        entry = &fault->entries[index];
        *entry = (struct entry){.read = read, .used = true, .wrong = what_goes_wrong(fault, &read)};
        if (entry->wrong.any && entry->wrong.kind == IO_FAULT_LATE) {
            entry->due_ns = fault->now_ns + fault->plan.late_ns;
            entry->waits = true;
            fault->n_waiting++;
        } else if (entry->wrong.any && entry->wrong.code < 0) {
            entry->result = entry->wrong.code;
            entry->landed = true;
            fault->n_landed++;
        } else {
            submit_inner(fault, index);
        }
    }
}

static void spoil(struct fault *fault, struct entry *entry)
{
    uint32_t block = (uint32_t)SL_BLOCK_BYTES;
    uint32_t got = entry->result > 0 ? (uint32_t)entry->result : 0;

    if (entry->wrong.any && entry->wrong.kind == IO_FAULT_FAIL)
        memset(entry->read.dst, 0xff, got);
    if (entry->wrong.any && entry->wrong.kind == IO_FAULT_SHORT && got > 0)
        entry->result = (int32_t)(got > block ? got / block / 2 * block : got / 2);
    else if (got > block && io_fault_random(&fault->random) % 1000 < fault->plan.short_permille) {
        uint32_t kept = block + (uint32_t)(io_fault_random(&fault->random) % (got - block));

        memset((uint8_t *)entry->read.dst + kept, 0xa5,
               got - kept); /* so that nobody relies on it */
        entry->result = (int32_t)kept;
    }
}

static void gather(struct fault *fault)
{
    struct sl_io_completion completions[GATHER_MAX];

    while (fault->n_inner_out > 0) {
        uint32_t n = fault->inner->ops->reap(fault->inner, SL_IO_FOREVER, completions, GATHER_MAX);

        sl_assert(n >= 1 && n <= fault->n_inner_out);
        for (uint32_t i = 0; i < n; i++) {
            struct entry *entry = &fault->entries[completions[i].tag];

            sl_assert(entry->used && !entry->landed);
            entry->landed = true;
            entry->result = completions[i].result;
        }
        fault->n_inner_out -= n;
        fault->n_landed += n;
    }
}

/* Lets those go whose time has come. */
static void start_due(struct fault *fault)
{
    for (uint32_t i = 0; i < fault->io.reads_max && fault->n_waiting > 0; i++) {
        struct entry *entry = &fault->entries[i];

        if (!entry->waits || entry->due_ns > fault->now_ns)
            continue;
        entry->waits = false;
        fault->n_waiting--;
        submit_inner(fault, i);
    }
}

/* Nothing is to be had now: the time until something is, or until wait_ns have passed. */
static void pass_time(struct fault *fault, uint64_t wait_ns)
{
    uint64_t next_ns = IO_FAULT_NEVER;

    for (uint32_t i = 0; i < fault->io.reads_max; i++) {
        const struct entry *entry = &fault->entries[i];

        if (entry->waits && entry->due_ns < next_ns)
            next_ns = entry->due_ns;
    }
    sl_assert(wait_ns != SL_IO_FOREVER || next_ns < IO_FAULT_NEVER); /* it would never return */
    fault->now_ns = wait_ns < next_ns - fault->now_ns ? fault->now_ns + wait_ns : next_ns;
}

static uint32_t pick(struct fault *fault)
{
    uint64_t nth = fault->plan.shuffle ? io_fault_random(&fault->random) % fault->n_landed : 0;

    for (uint32_t i = 0;; i++) {
        if (fault->entries[i].landed && nth-- == 0)
            return i;
    }
}

static uint32_t fault_reap(struct sl_io *io, uint64_t wait_ns, struct sl_io_completion *completions,
                           uint32_t n_max)
{
    const bool wait = wait_ns > 0;
    struct fault *fault = (struct fault *)(void *)io;
    uint32_t n = 0;

    start_due(fault);
    gather(fault);
    if (fault->plan.lazy && !wait)
        return 0;
    if (wait && fault->n_landed == 0 && fault->n_waiting > 0) {
        pass_time(fault, wait_ns);
        start_due(fault);
        gather(fault);
    }
    if (fault->plan.shuffle) {
        n_max = (uint32_t)(io_fault_random(&fault->random) % (n_max < 4 ? n_max + 1 : 4));
        if (wait && n_max == 0)
            n_max = 1;
    }
    for (; n < n_max && fault->n_landed > 0; n++) {
        struct entry *entry = &fault->entries[pick(fault)];

        spoil(fault, entry);
        if (entry->result > 0)
            fault->delivered_bytes += (uint32_t)entry->result;
        completions[n] = (struct sl_io_completion){.tag = entry->read.tag, .result = entry->result};
        entry->used = entry->landed = false;
        fault->n_landed--;
    }
    return n;
}

static void fault_close(struct sl_io *io)
{
    struct fault *fault = (struct fault *)(void *)io;

    sl_assert(fault->n_inner_out == 0); /* reads that wait never went to it */
    fault->inner->ops->close(fault->inner);
    free(fault->entries);
    free(fault);
}

static int fault_attach(struct sl_io *io, void *base, uint64_t size_bytes, uint64_t part_bytes)
{
    struct sl_io *inner = ((struct fault *)(void *)io)->inner;

    return inner->ops->attach ? inner->ops->attach(inner, base, size_bytes, part_bytes) : 0;
}

static int fault_hold(struct sl_io *io, uint32_t part, bool hold)
{
    struct sl_io *inner = ((struct fault *)(void *)io)->inner;

    return inner->ops->hold ? inner->ops->hold(inner, part, hold) : 0;
}

static const struct sl_io_ops fault_ops = {
    .submit = fault_submit,
    .reap = fault_reap,
    .attach = fault_attach,
    .hold = fault_hold,
    .close = fault_close,
};

struct sl_io *io_fault_wrap(struct sl_io *inner)
{
    struct fault *fault = calloc(1, sizeof(*fault));

    sl_assert(fault);
    fault->io = *inner; /* files, reads_max, direct */
    fault->io.ops = &fault_ops;
    fault->inner = inner;
    fault->entries = calloc(inner->reads_max, sizeof(*fault->entries));
    sl_assert(fault->entries);
    return &fault->io;
}

void io_fault_set(struct sl_io *io, const struct io_fault_plan *plan)
{
    struct fault *fault = (struct fault *)(void *)io;

    sl_assert(fault->n_inner_out == 0 && fault->n_landed == 0 && fault->n_waiting == 0);
    fault->plan = *plan;
    fault->random = plan->seed;
    fault->n_reads = fault->delivered_bytes = 0;
    fault->broken.any = false;
    memset(fault->n_gaps, 0, sizeof(fault->n_gaps));
    next_gap(fault);
}

void io_fault_heal(struct sl_io *io)
{
    struct fault *fault = (struct fault *)(void *)io;

    fault->plan.fail_nth = fault->plan.gap_reads = 0;
    fault->plan.lazy = fault->broken.any = false;
    for (uint32_t i = 0; i < io->reads_max; i++)
        fault->entries[i].due_ns = fault->now_ns;
}

void io_fault_mend(struct sl_io *io)
{
    ((struct fault *)(void *)io)->broken.any = false;
}

void io_fault_set_drives(struct sl_io *io, uint32_t n_drives)
{
    for (uint32_t i = 0; i < io->n_files; i++)
        io->files[i].drive_index = i % n_drives;
    io->n_drives = n_drives;
}

uint64_t io_fault_clock_ns(void *io)
{
    return ((const struct fault *)io)->now_ns;
}

struct sl_io_read io_fault_read(const struct sl_io *io, uint64_t nth)
{
    const struct fault *fault = (const struct fault *)(const void *)io;

    sl_assert(nth >= 1 && nth <= fault->n_reads && fault->n_reads - nth < IO_FAULT_LOG);
    return fault->log[(nth - 1) % IO_FAULT_LOG];
}

uint64_t io_fault_gap_count(const struct sl_io *io, uint32_t kind)
{
    return ((const struct fault *)(const void *)io)->n_gaps[kind];
}

uint64_t io_fault_read_count(const struct sl_io *io)
{
    return ((const struct fault *)(const void *)io)->n_reads;
}

uint64_t io_fault_delivered_bytes(const struct sl_io *io)
{
    return ((const struct fault *)(const void *)io)->delivered_bytes;
}
