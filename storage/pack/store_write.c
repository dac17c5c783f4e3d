/* Owns the order in which things are written and become true:
 *
 *     catalog: model, files, state 0              what is going to be here
 *     copied files, synced
 *     dense tensors | experts, batch by batch:    data written ─► files synced ─► catalog: entries
 *                                                                                 and state
 *     catalog: state complete; sealed
 *
 * A shard of the source that has nothing for later batches is freed right after such a commit, once
 * the catalog is sealed and all paths still lead to what was written.
 *
 * Where everything lies follows from the model and the sizes of the files, so that every run writes
 * the same bytes to the same offsets, and only the catalog's state tells how far the last one came.
 * storage/pack/store_begin.c does everything that comes before the data. */
#include "storage/pack/store_write.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/base/assert.h"
#include "core/base/size.h"
#include "core/model/phase.h"
#include "storage/store/record_read.h"
#include "storage/store/store.h"
#include "storage/pack/store_begin.h"
#include "storage/pack/store_finish.h"
#include "storage/pack/store_records.h"
#include "storage/pack/store_source.h"

uint64_t sl_pack_thread_bytes(const struct sl_expert_shape *shape)
{
    return sl_record_maker_bytes(shape);
}

/* Syncs the data of the batch and then commits the catalog that says so. The next batch begins. */
static int commit(struct sl_packer *p, struct sl_err *err)
{
    struct sl_file_writer *writer = p->o->writer;
    int rc;

    for (uint32_t i = 0; i < p->model.n_files; i++) {
        rc = writer->ops->sync(writer, p->handles[i]);
        if (rc < 0)
            return sl_write_error(err, rc, p->layout.paths[i], "sync");
    }
    p->batch_bytes = 0;
    if ((rc = sl_packer_put_state(p, err)) < 0 || (rc = sl_catalog_commit(p->catalog, err)) < 0)
        return rc;
    if ((p->state.complete || sl_packer_frees(p)) &&
        ((rc = sl_packer_seal(p, err)) < 0 || (rc = sl_packer_check_paths(p, err)) < 0 ||
         (rc = sl_packer_check_whole(p, err)) < 0))
        return rc;
    if ((rc = sl_packer_free_shards(p, err)) < 0 || p->state.complete)
        return rc;
    if (p->o->stop && atomic_load(p->o->stop))
        return sl_packer_stopped(p, err);
    return sl_catalog_begin(p->catalog, err);
}

/* ---- data -------------------------------------------------------------------------------------
 */

/* Counts written bytes of data that would take size_bytes if they were not compressed. */
static void count(struct sl_packer *p, uint64_t size_bytes, uint64_t written_bytes)
{
    p->batch_bytes += size_bytes;
    p->done_bytes += size_bytes;
    p->result.written_bytes += written_bytes;
    p->result.saved_bytes += size_bytes - written_bytes;
    if (p->o->on_progress)
        p->o->on_progress(p->o->progress_context, p->done_bytes, p->left_bytes);
}

static int pack_tensor(struct sl_packer *p, uint32_t index, struct sl_err *err)
{
    const char *name = p->o->tensors[index];
    struct sl_tensor_target target = {p->o->writer, p->handles[0], p->layout.paths[0],
                                      p->tensor_offsets[index]};
    struct sl_store_tensor tensor = {.extent.offset_bytes = target.offset_bytes};
    uint8_t value[SL_STORE_VALUE_BYTES_MAX];
    char key[SL_STORE_KEY_BYTES];
    uint64_t size_bytes;
    int rc = p->weights->ops->find(p->weights, name, &tensor.info);

    sl_assert(rc == 0);
    tensor.extent.size_bytes = tensor.info.size_bytes;
    rc = sl_tensor_copy(p->weights, name, tensor.info.size_bytes, &target, p->buffer,
                        &tensor.checksum, err);
    if (rc < 0)
        return rc;
    snprintf(tensor.name, sizeof(tensor.name), "%s", name);
    sl_store_tensor_key(key, index);
    rc = sl_catalog_put(p->catalog, key, value, sl_store_tensor_encode(&tensor, value), err);
    if (rc < 0)
        return rc;
    p->state.n_tensors_done++;
    size_bytes = sl_round_up(tensor.info.size_bytes, SL_BLOCK_BYTES);
    count(p, size_bytes, size_bytes);
    return 0;
}

static int pack_tensors(struct sl_packer *p, struct sl_err *err)
{
    int rc = 0;

    while (rc == 0 && p->state.n_tensors_done < p->model.n_tensors) {
        rc = pack_tensor(p, p->state.n_tensors_done, err);
        if (rc == 0 && p->batch_bytes >= p->o->batch_bytes)
            rc = commit(p, err);
    }
    return rc;
}

/* Consecutive experts that the threads share. */
struct expert_job {
    struct sl_packer *packer;
    uint32_t first;
    struct sl_packed_expert *entries;
};

static void pack_experts_job(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct expert_job *job = context;
    const struct sl_packer *p = job->packer;
    struct sl_pack_worker *w = &p->workers[thread_index];

    for (size_t i = first; i < end && w->rc == 0; i++) {
        struct sl_packed_expert *entry = &job->entries[i];
        uint32_t number = job->first + (uint32_t)i;
        const uint8_t *record;
        uint64_t record_bytes;

        w->rc = sl_record_make(&w->maker, sl_store_expert_at(&p->model.shape, number), entry,
                               &record, &record_bytes, &w->err);
        if (w->rc < 0)
            break;
        sl_store_layout_cut(&p->layout, number, record_bytes, entry);
        w->rc = sl_record_write(p->o->writer, p->handles, (const char *const *)p->layout.paths,
                                entry, record, &w->err);
    }
}

static int pack_run(struct sl_packer *p, struct expert_job *job, uint32_t n, struct sl_err *err)
{
    uint8_t value[SL_STORE_VALUE_BYTES_MAX];
    char key[SL_STORE_KEY_BYTES];
    uint64_t written_bytes = 0;
    int rc = 0;

    sl_pool_run(p->o->pool, SL_PHASE_OUTSIDE, n, 1, pack_experts_job, job);
    for (uint32_t i = 0; i < p->n_workers; i++) {
        if (p->workers[i].rc == 0)
            continue;
        if (err)
            *err = p->workers[i].err;
        return p->workers[i].rc;
    }
    for (uint32_t i = 0; i < n && rc == 0; i++) {
        sl_store_expert_key(key, sl_store_expert_at(&p->model.shape, job->first + i));
        rc = sl_catalog_put(p->catalog, key, value, sl_store_expert_encode(&job->entries[i], value),
                            err);
        written_bytes += sl_packed_expert_stored_bytes(&job->entries[i]);
    }
    if (rc < 0)
        return rc;
    p->state.n_experts_done += n;
    count(p, n * p->record_bytes, written_bytes);
    return 0;
}

/* The threads get a whole batch of experts at once, so that some are read while others are
 * written. */
static int pack_experts(struct sl_packer *p, struct sl_err *err)
{
    uint32_t n_experts = sl_store_expert_count(&p->model.shape);
    uint64_t n_batch = p->o->batch_bytes / p->record_bytes;
    uint32_t n_max = n_batch < p->n_workers ? p->n_workers
                     : n_batch < n_experts  ? (uint32_t)n_batch
                                            : n_experts;
    struct expert_job job = {.packer = p};
    int rc = 0;

    job.entries = calloc(n_max, sizeof(*job.entries));
    if (!job.entries)
        return sl_packer_no_memory(p, err);
    while (rc == 0 && p->state.n_experts_done < n_experts) {
        uint32_t left = n_experts - p->state.n_experts_done;

        job.first = p->state.n_experts_done;
        rc = pack_run(p, &job, left < n_max ? left : n_max, err);
        if (rc == 0 && p->batch_bytes >= p->o->batch_bytes)
            rc = commit(p, err);
    }
    free(job.entries);
    return rc;
}

/* ---- all of it --------------------------------------------------------------------------------
 */

static int take_memory(struct sl_packer *p, struct sl_err *err)
{
    const struct sl_record_source source = {
        .experts = p->o->experts,
        .checkpoint = p->o->checkpoint,
        .store = p->o->from,
        .fds = p->source_fds,
        .paths = p->source_paths,
    };

    p->buffer = aligned_alloc(SL_BLOCK_BYTES, SL_TENSOR_BUFFER_BYTES);
    p->n_workers = sl_pool_thread_count(p->o->pool);
    p->workers = calloc(p->n_workers, sizeof(*p->workers));
    if (!p->buffer || !p->workers)
        return sl_packer_no_memory(p, err);
    for (uint32_t i = 0; i < p->n_workers; i++) {
        if (sl_record_maker_init(&p->workers[i].maker, &source) < 0)
            return sl_packer_no_memory(p, err);
    }
    return 0;
}

/* Makes the makers compress from now on if the store is compressed. Until here they made plain
 * records, since items of earlier runs are compared by their tiles. */
static int begin_compressing(struct sl_packer *p, struct sl_err *err)
{
    if (!sl_store_layout_compresses(p->model.layout))
        return 0;
    for (uint32_t i = 0; i < p->n_workers; i++) {
        if (sl_record_maker_compress(&p->workers[i].maker) < 0)
            return sl_packer_no_memory(p, err);
    }
    return 0;
}

static uint64_t bytes_done(const struct sl_packer *p)
{
    uint64_t bytes = p->state.n_experts_done * p->record_bytes;

    return p->state.n_tensors_done == p->model.n_tensors
               ? bytes + p->layout.files[0].size_bytes
               : bytes + p->tensor_offsets[p->state.n_tensors_done];
}

static int pack(struct sl_packer *p, struct sl_err *err)
{
    int rc;

    if ((rc = sl_packer_describe(p, err)) < 0 || (rc = take_memory(p, err)) < 0 ||
        (rc = sl_packer_begin(p, err)) < 0 || (rc = sl_packer_check_paths(p, err)) < 0 ||
        (p->state.complete && (rc = sl_packer_check_whole(p, err)) < 0) ||
        (rc = sl_packer_free_shards(p, err)) < 0 || p->state.complete)
        return rc;
    p->left_bytes = p->result.total_bytes - bytes_done(p);
    if ((rc = begin_compressing(p, err)) < 0 || (rc = sl_packer_open_files(p, err)) < 0 ||
        (rc = pack_tensors(p, err)) < 0 || (rc = pack_experts(p, err)) < 0 ||
        (rc = commit(p, err)) < 0 || (rc = sl_packer_trim(p, err)) < 0)
        return rc;
    p->state.complete = true;
    return commit(p, err);
}

static void add_gain(struct sl_codec_gain *sum, const struct sl_codec_gain *gain)
{
    sum->scales_bytes += gain->scales_bytes;
    sum->scales_stored_bytes += gain->scales_stored_bytes;
    sum->codes_bytes += gain->codes_bytes;
    sum->codes_stored_bytes += gain->codes_stored_bytes;
}

int sl_store_pack(const struct sl_pack_options *options, struct sl_pack_result *ret_result,
                  struct sl_err *err)
{
    struct sl_packer p = {.o = options, .lock_fd = -1};
    int rc;

    sl_assert(options->n_tensors <= SL_STORE_TENSORS_MAX);
    sl_assert(!options->from || !options->consume);
    for (uint32_t i = 0; i < SL_STORE_FILES_MAX; i++)
        p.handles[i] = p.source_fds[i] = -1;
    rc = pack(&p, err);
    sl_record_files_close(p.source_fds);
    sl_catalog_close(p.catalog);
    for (uint32_t i = 0; i < SL_STORE_FILES_MAX; i++) {
        if (p.handles[i] >= 0)
            options->writer->ops->close(options->writer, p.handles[i]);
    }
    for (uint32_t i = 0; p.workers && i < p.n_workers; i++) {
        add_gain(&p.result.gain, &p.workers[i].maker.gain);
        sl_record_maker_fini(&p.workers[i].maker);
    }
    p.result.compressed = sl_store_layout_compresses(p.model.layout);
    p.result.total_bytes -= p.result.saved_bytes;
    free(p.workers);
    free(p.buffer);
    free(p.tensor_offsets);
    free(p.shards);
    sl_store_layout_fini(&p.layout);
    if (p.lock_fd >= 0)
        close(p.lock_fd);
    if (ret_result)
        *ret_result = p.result;
    return rc;
}
