/* Layers that share their data: who has it from whom, and which whole blocks of the files that
 * makes equal. The writer (synth_write.c) clones those and writes the rest. */
#include "tools/synth/synth_share.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "core/base/file.h"

/* A tensor that may share its bytes with those of the same place in other blocks. */
struct place {
    const char *name; /* without the block's prefix */
    struct sl_synth_tensor *tensor;
    uint32_t shard_index;
};

static bool shareable(const struct sl_synth_tensor *tensor)
{
    enum sl_synth_kind kind = tensor->values.kind;

    return kind == SL_SYNTH_FP4 || kind == SL_SYNTH_FP8 || kind == SL_SYNTH_SCALE;
}

static bool same_place(const struct place *x, const struct place *y)
{
    return strcmp(x->name, y->name) == 0 &&
           x->tensor->info.size_bytes == y->tensor->info.size_bytes;
}

static int compare_places(const void *a, const void *b)
{
    const struct place *x = a, *y = b;
    uint64_t x_bytes = x->tensor->info.size_bytes, y_bytes = y->tensor->info.size_bytes;
    int by_name = strcmp(x->name, y->name);

    if (by_name)
        return by_name;
    if (x_bytes != y_bytes)
        return x_bytes < y_bytes ? -1 : 1;
    return (x->shard_index > y->shard_index) - (x->shard_index < y->shard_index);
}

/* Returns how many places there are; *ret_places is the caller's to free. */
static int list_places(const struct sl_synth_plan *plan, struct place **ret_places)
{
    struct place *places;
    uint32_t n = 0, room = 0;

    for (uint32_t s = 0; s < plan->n_shards; s++)
        room += plan->shards[s].n_tensors;
    places = calloc(room, sizeof(*places));
    if (!places)
        return -ENOMEM;
    for (uint32_t s = 0; s < plan->n_shards; s++) {
        const struct sl_synth_shard *shard = &plan->shards[s];

        for (uint32_t t = 0; t < shard->n_tensors && shard->block[0]; t++)
            if (shareable(&shard->tensors[t]))
                places[n++] = (struct place){shard->tensors[t].name + strlen(shard->block),
                                             &shard->tensors[t], s};
    }
    qsort(places, n, sizeof(*places), compare_places);
    *ret_places = places;
    return (int)n;
}

/* The first `share_layers` of each place are donors of the others. One number is drawn for a whole
 * shard, so that what lies together there lies together in the donor. */
static void assign_donors(struct place *places, uint32_t n_places, uint32_t share_layers)
{
    for (uint32_t first = 0, i = 0; i < n_places; i++) {
        const struct place *donor;

        if (!same_place(&places[first], &places[i]))
            first = i;
        if (i - first < share_layers)
            continue;
        donor = &places[first + sl_synth_mix(0, places[i].shard_index) % share_layers];
        places[i].tensor->donor = donor->tensor;
        places[i].tensor->donor_shard = donor->shard_index;
        places[i].tensor->values.key = donor->tensor->values.key;
    }
}

/* Adds the whole blocks of `run`, whose ends need not be on blocks, to the shard's runs. */
static int add_run(struct sl_synth_shard *shard, const struct sl_synth_run *run)
{
    uint64_t skip = -run->offset_bytes % SL_SYNTH_BLOCK_BYTES;
    struct sl_synth_run *more;

    if (run->size_bytes < skip + SL_SYNTH_BLOCK_BYTES)
        return 0;
    more = reallocarray(shard->runs, shard->n_runs + 1, sizeof(*shard->runs));
    if (!more)
        return -ENOMEM;
    shard->runs = more;
    more += shard->n_runs++;
    *more = *run;
    more->offset_bytes += skip;
    more->donor_offset_bytes += skip;
    more->size_bytes -= skip;
    more->size_bytes -= more->size_bytes % SL_SYNTH_BLOCK_BYTES;
    return 0;
}

/* Joins tensors that follow each other here and in their donors' file. Those that lie differently
 * in a block there are written. */
static int find_runs(const struct sl_synth_plan *plan, struct sl_synth_shard *shard)
{
    struct sl_synth_run run = {0};

    for (uint32_t t = 0; t < shard->n_tensors; t++) {
        const struct sl_synth_tensor *tensor = &shard->tensors[t];
        uint64_t at = shard->header_bytes + tensor->offset_bytes, donor_at;
        int rc;

        if (!tensor->donor)
            continue;
        donor_at = plan->shards[tensor->donor_shard].header_bytes + tensor->donor->offset_bytes;
        if ((at - donor_at) % SL_SYNTH_BLOCK_BYTES != 0)
            continue;
        if (run.donor_shard != tensor->donor_shard || run.offset_bytes + run.size_bytes != at ||
            run.donor_offset_bytes + run.size_bytes != donor_at) {
            rc = add_run(shard, &run);
            if (rc < 0)
                return rc;
            run = (struct sl_synth_run){.offset_bytes = at,
                                        .donor_shard = tensor->donor_shard,
                                        .donor_offset_bytes = donor_at};
        }
        run.size_bytes += tensor->info.size_bytes;
    }
    return add_run(shard, &run);
}

int sl_synth_share(struct sl_synth_plan *plan, uint32_t share_layers)
{
    struct place *places = NULL;
    int n_places = list_places(plan, &places);
    int rc = 0;

    if (n_places < 0)
        return n_places;
    if (n_places > 0)
        assign_donors(places, (uint32_t)n_places, share_layers);
    free(places);
    for (uint32_t s = 0; s < plan->n_shards && rc == 0; s++) {
        struct sl_synth_shard *shard = &plan->shards[s];

        rc = find_runs(plan, shard);
        for (uint32_t r = 0; r < shard->n_runs; r++)
            plan->write_bytes -= shard->runs[r].size_bytes;
    }
    return rc;
}

int sl_synth_clone(int fd, int donor_fd, const struct sl_synth_run *run)
{
    struct file_clone_range range = {.src_fd = donor_fd,
                                     .src_offset = run->donor_offset_bytes,
                                     .src_length = run->size_bytes,
                                     .dest_offset = run->offset_bytes};

    return ioctl(fd, FICLONERANGE, &range) < 0 ? -errno : 0;
}

int sl_synth_check_sharing(const char *folder, struct sl_err *err)
{
    static const uint8_t zeros[SL_SYNTH_BLOCK_BYTES];
    const struct sl_synth_run block = {.size_bytes = sizeof(zeros)};
    int donor_fd = open(folder, O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
    int fd = open(folder, O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
    int rc = donor_fd < 0 || fd < 0 ? -errno : 0;

    if (rc == 0)
        rc = sl_file_write_at(donor_fd, zeros, sizeof(zeros), 0);
    if (rc == 0)
        rc = sl_synth_clone(fd, donor_fd, &block);
    if (donor_fd >= 0)
        close(donor_fd);
    if (fd >= 0)
        close(fd);
    return rc == 0 ? 0
                   : sl_err_set(err, rc,
                                "--share-layers: the file system cannot share blocks between files "
                                "(%s); XFS and Btrfs can",
                                sl_strerror(rc));
}
