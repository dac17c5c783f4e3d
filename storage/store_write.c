/* Owns the order in which things are written and become true:
 *
 *     catalog: model, files, state 0              what is going to be here
 *     carried files, synced
 *     dense tensors | experts, batch by batch:    data written ─► files synced ─► catalog: entries
 *                                                                                 and state
 *     catalog: state complete
 *
 * Where everything lies follows from the model and the sizes of the files, so that every go writes
 * the same bytes to the same places, and only the catalog's state tells how far the last one came.
 */
#include "storage/store_write.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/assert.h"
#include "core/base/size.h"
#include "core/kernels/r16.h"
#include "storage/catalog.h"
#include "storage/checksum.h"
#include "storage/store.h"
#include "storage/store_identity.h"
#include "storage/store_layout.h"
#include "storage/store_records.h"

/* One thread's. */
struct worker {
    uint8_t *staging, *record;
    int rc;
    struct sl_err err;
};

struct packer {
    const struct sl_pack_options *o;
    struct sl_store_model model;
    struct sl_store_state state; /* as the catalog has it, or the open transaction will */
    struct sl_store_layout layout;
    int handles[SL_STORE_FILES_MAX]; /* -1 until opened */
    uint64_t *tensor_offsets;        /* (n_tensors) */
    uint64_t record_bytes;
    struct sl_catalog *catalog;
    int lock_fd;
    struct worker *workers;
    uint32_t n_workers;
    uint8_t *buffer;      /* SL_TENSOR_BUFFER_BYTES */
    uint64_t batch_bytes; /* written since the last commit */
    struct sl_pack_result result;
    uint64_t left_bytes; /* of total_bytes, when this began */
};

uint64_t sl_pack_thread_bytes(const struct sl_expert_shape *shape)
{
    return sl_record_staging_bytes(shape) + sl_packed_expert_bytes(shape);
}

static int no_memory(const struct packer *p, struct sl_err *err)
{
    return sl_err_set(err, -ENOMEM, "%s: out of memory", p->o->store_folder);
}

/* ---- what and where ---------------------------------------------------------------------------
 */

/* Where each tensor goes. Returns how large their file becomes. */
static uint64_t place_tensors(struct packer *p)
{
    uint64_t at_bytes = 0;

    for (uint32_t i = 0; i < p->o->n_tensors; i++) {
        const struct sl_checkpoint_tensor *tensor =
            sl_checkpoint_find(p->o->checkpoint, p->o->tensors[i]);

        sl_assert(tensor); /* the list is made from what was found */
        p->tensor_offsets[i] = at_bytes;
        at_bytes += sl_round_up(tensor->info.size_bytes, SL_STORE_BLOCK_BYTES);
    }
    return at_bytes;
}

static int describe_model(struct packer *p, struct sl_err *err)
{
    const struct sl_pack_options *o = p->o;

    p->model = (struct sl_store_model){
        .format_version = SL_STORE_VERSION,
        .layout = SL_STORE_LAYOUT_R16,
        .shape = *sl_expert_store_shape(o->experts),
        .n_files = 2 + o->n_stripes,
        .n_tensors = o->n_tensors,
    };
    if (!sl_expert_shape_is_sound(&p->model.shape))
        return sl_err_set(err, -SL_EUNSUPPORTED,
                          "%s: hidden_size %u and moe_intermediate_size %u: experts need multiples "
                          "of %u",
                          o->checkpoint_folder, p->model.shape.hidden_size,
                          p->model.shape.moe_intermediate_size, SL_FP4_GROUP_COLS);
    return sl_store_identify(o->checkpoint, o->checkpoint_folder, &p->model.config_checksum,
                             &p->model.index_checksum, err);
}

/* ---- the catalog ------------------------------------------------------------------------------
 */

static int put_state(struct packer *p, struct sl_err *err)
{
    uint8_t value[SL_STORE_VALUE_BYTES_MAX];

    return sl_catalog_put(p->catalog, SL_STORE_KEY_STATE, value,
                          sl_store_state_encode(&p->state, value), err);
}

static int put_model(struct packer *p, struct sl_err *err)
{
    uint8_t value[SL_STORE_VALUE_BYTES_MAX];
    int rc = sl_catalog_put(p->catalog, SL_STORE_KEY_MODEL, value,
                            sl_store_model_encode(&p->model, value), err);

    for (uint32_t i = 0; i < p->model.n_files && rc == 0; i++) {
        char key[SL_STORE_KEY_BYTES];

        sl_store_file_key(key, i);
        rc = sl_catalog_put(p->catalog, key, value,
                            sl_store_file_encode(&p->layout.files[i], value), err);
    }
    return rc == 0 ? put_state(p, err) : rc;
}

/* Syncs what was written, then says so. The next batch begins. */
static int commit(struct packer *p, struct sl_err *err)
{
    struct sl_file_writer *writer = p->o->writer;
    int rc;

    for (uint32_t i = 0; i < p->model.n_files; i++) {
        rc = writer->ops->sync(writer, p->handles[i]);
        if (rc < 0)
            return sl_write_error(err, rc, p->layout.paths[i], "sync");
    }
    p->batch_bytes = 0;
    if ((rc = put_state(p, err)) < 0 || (rc = sl_catalog_commit(p->catalog, err)) < 0)
        return rc;
    if (p->o->stop && atomic_load(p->o->stop))
        return sl_err_set(err, -ECANCELED, "%s: stopped; run sluice pack again to go on",
                          p->o->store_folder);
    return sl_catalog_begin(p->catalog, err);
}

/* ---- beginning --------------------------------------------------------------------------------
 */

/* A new store takes a folder that is empty but for a catalog with nothing in it. */
static int check_empty(const struct packer *p, struct sl_err *err)
{
    DIR *dir = opendir(p->o->store_folder);
    const struct dirent *entry;
    int rc = 0;

    if (!dir)
        return sl_write_error(err, -errno, p->o->store_folder, "list the folder");
    while (rc == 0 && (entry = readdir(dir))) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0 &&
            strcmp(entry->d_name, SL_CATALOG_FOLDER) != 0)
            rc = sl_err_set(err, -SL_EFORMAT, "%s: not empty, and not a store: \"%.255s\" is in it",
                            p->o->store_folder, entry->d_name);
    }
    closedir(dir);
    return rc;
}

static int refuse_entry(void *context, const char *key, const uint8_t *value, size_t size_bytes,
                        struct sl_err *err)
{
    const struct packer *p = context;

    (void)value;
    (void)size_bytes;
    return sl_err_set(err, -SL_EFORMAT, "%s: the catalog is not of a packed model: it has \"%s\"",
                      p->o->store_folder, key);
}

/* On other drives a store has one file each, which nobody else may have. */
static int check_stripes(const struct packer *p, struct sl_err *err)
{
    for (uint32_t i = 2; i < p->model.n_files; i++) {
        if (access(p->layout.paths[i], F_OK) == 0)
            return sl_err_set(err, -EEXIST, "%s: is there already; another store's?",
                              p->layout.paths[i]);
    }
    return 0;
}

/* The catalog's names are on disk before any other name is made: what is found without a catalog is
 * not ours. */
static int begin_new(struct packer *p, struct sl_err *err)
{
    static const char *const folders[] = {("/" SL_CATALOG_FOLDER), "", "/.."};
    struct sl_file_writer *writer = p->o->writer;
    int rc;

    if ((rc = sl_catalog_each(p->catalog, "", refuse_entry, p, err)) < 0 ||
        (rc = check_empty(p, err)) < 0 || (rc = check_stripes(p, err)) < 0 ||
        (rc = put_model(p, err)) < 0 || (rc = sl_catalog_commit(p->catalog, err)) < 0)
        return rc;
    for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]); i++) {
        char *path;

        if (asprintf(&path, "%s%s", p->o->store_folder, folders[i]) < 0)
            return no_memory(p, err);
        rc = writer->ops->sync_folder(writer, path);
        if (rc < 0)
            sl_write_error(err, rc, path, "sync");
        free(path);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* The last thing that was packed, made again, is what the catalog says it is: two fine-tunes of one
 * model have the same config and the same index. */
static int check_last(struct packer *p, const struct sl_store *store, struct sl_err *err)
{
    const struct sl_store_state *state = sl_store_state(store);
    bool same = true;
    int rc = 0;

    if (state->n_experts_done > 0) {
        struct sl_expert_key key = sl_store_expert_at(&p->model.shape, state->n_experts_done - 1);
        uint64_t checksums[SL_EXPERT_MATRICES];

        rc = sl_record_make(p->o->checkpoint, p->o->experts, key, p->workers[0].staging,
                            p->workers[0].record, checksums, err);
        same = rc < 0 ||
               memcmp(checksums, sl_store_expert(store, key)->checksums, sizeof(checksums)) == 0;
    } else if (state->n_tensors_done > 0) {
        uint32_t last = state->n_tensors_done - 1;
        struct sl_tensor_target nowhere = {0};
        uint64_t checksum = 0;

        rc = sl_tensor_copy(p->o->checkpoint,
                            sl_checkpoint_find(p->o->checkpoint, p->o->tensors[last]), &nowhere,
                            p->buffer, &checksum, err);
        same = checksum == sl_store_tensor(store, last)->checksum;
    }
    if (rc < 0 || same)
        return rc;
    return sl_err_set(err, -SL_EFORMAT,
                      "%s: the store was begun from a checkpoint with other weights than %s",
                      p->o->store_folder, p->o->checkpoint_folder);
}

static bool same_model(const struct sl_store_model *a, const struct sl_store_model *b)
{
    uint8_t a_bytes[SL_STORE_VALUE_BYTES_MAX], b_bytes[SL_STORE_VALUE_BYTES_MAX];
    size_t size_bytes = sl_store_model_encode(a, a_bytes);

    return size_bytes == sl_store_model_encode(b, b_bytes) &&
           memcmp(a_bytes, b_bytes, size_bytes) == 0;
}

/* Takes up the state of a store that is there. */
static int begin_again(struct packer *p, struct sl_err *err)
{
    const struct sl_store_model *found;
    struct sl_store *store;
    int rc = sl_store_open(&store, p->o->store_folder, SL_STORE_RESUME, err);

    if (rc < 0)
        return rc;
    found = sl_store_model(store);
    p->model.n_files = found->n_files; /* stripes stay as they are */
    if (!same_model(found, &p->model))
        rc = sl_err_set(err, -SL_EFORMAT,
                        "%s: the store is of another model: its config.json and index have "
                        "checksums %016llx and %016llx, those of %s %016llx and %016llx",
                        p->o->store_folder, (unsigned long long)found->config_checksum,
                        (unsigned long long)found->index_checksum, p->o->checkpoint_folder,
                        (unsigned long long)p->model.config_checksum,
                        (unsigned long long)p->model.index_checksum);
    p->state = *sl_store_state(store);
    if (rc == 0)
        rc = sl_store_layout_adopt(&p->layout, store, err);
    if (rc == 0 && !p->state.complete)
        rc = check_last(p, store, err);
    sl_store_close(store);
    return rc;
}

static int open_catalog(struct packer *p, struct sl_err *err)
{
    int rc = sl_catalog_open(&p->catalog, p->o->store_folder, true, err);

    return rc == 0 ? sl_catalog_begin(p->catalog, err) : rc;
}

/* Returns 1 if there is a catalog with a model, 0 if the store is new. */
static int has_model(struct packer *p, struct sl_err *err)
{
    const uint8_t *value;
    size_t size_bytes;
    int rc;

    if (!sl_store_is(p->o->store_folder))
        return check_empty(p, err);
    rc = open_catalog(p, err);
    if (rc == 0)
        rc = sl_catalog_get(p->catalog, SL_STORE_KEY_MODEL, &value, &size_bytes, err);
    sl_catalog_close(p->catalog);
    p->catalog = NULL;
    return rc;
}

static int make_catalog(struct packer *p, struct sl_err *err)
{
    struct sl_file_writer *writer = p->o->writer;
    char *folder;
    int rc;

    if (asprintf(&folder, "%s/%s", p->o->store_folder, SL_CATALOG_FOLDER) < 0)
        return no_memory(p, err);
    rc = writer->ops->make_folder(writer, folder);
    if (rc < 0)
        sl_write_error(err, rc, folder, "make the folder");
    free(folder);
    return rc < 0 ? rc : open_catalog(p, err);
}

/* Leaves the catalog open, with a transaction, unless the store is complete. */
static int begin(struct packer *p, struct sl_err *err)
{
    const struct sl_pack_options *o = p->o;
    bool is_new;
    int rc;

    if ((rc = o->writer->ops->make_folder(o->writer, o->store_folder)) < 0)
        return sl_write_error(err, rc, o->store_folder, "make the folder");
    if ((rc = sl_store_lock(o->store_folder, err)) < 0)
        return rc;
    p->lock_fd = rc;
    if ((rc = has_model(p, err)) < 0)
        return rc;
    is_new = rc == 0;
    rc = is_new
             ? sl_store_layout_make(&p->layout, o->store_folder, &p->model.shape, place_tensors(p),
                                    o->stripe_folders, o->weights, o->n_stripes, err)
             : begin_again(p, err);
    if (rc < 0)
        return rc;
    p->result.total_bytes = sl_store_layout_bytes(&p->layout);
    if (p->state.complete)
        return 0;
    if ((rc = sl_store_layout_check_space(&p->layout, err)) < 0 ||
        (rc = is_new ? make_catalog(p, err) : open_catalog(p, err)) < 0)
        return rc;
    if (is_new && (rc = begin_new(p, err)) == 0)
        rc = sl_catalog_begin(p->catalog, err);
    return rc;
}

/* ---- files ------------------------------------------------------------------------------------
 */

/* Syncs the folder that a file is in. */
static int sync_name(const struct packer *p, const char *path, struct sl_err *err)
{
    struct sl_file_writer *writer = p->o->writer;
    char *folder = strndup(path, (size_t)(strrchr(path, '/') - path));
    int rc;

    if (!folder)
        return no_memory(p, err);
    rc = writer->ops->sync_folder(writer, folder);
    if (rc < 0)
        sl_write_error(err, rc, folder, "sync");
    free(folder);
    return rc;
}

static int open_files(struct packer *p, struct sl_err *err)
{
    struct sl_file_writer *writer = p->o->writer;
    int rc = 0;

    for (uint32_t i = 0; i < p->model.n_files && rc == 0; i++) {
        rc = writer->ops->open(writer, p->layout.paths[i], true, &p->handles[i]);
        if (rc < 0)
            sl_write_error(err, rc, p->layout.paths[i], "create");
        else if (i > 0) /* the first is where the second is */
            rc = sync_name(p, p->layout.paths[i], err);
    }
    return rc;
}

static int carry(struct packer *p, const char *name, struct sl_err *err)
{
    uint8_t value[SL_STORE_VALUE_BYTES_MAX];
    char key[SL_STORE_KEY_BYTES], *text, *path;
    struct sl_store_carried carried;
    size_t length;
    int rc = sl_carried_read(p->o->checkpoint_folder, name, &text, &length, err);

    if (rc < 0)
        return rc;
    snprintf(carried.name, sizeof(carried.name), "%s", name);
    carried.size_bytes = length;
    carried.checksum = sl_checksum(text, length);
    if (asprintf(&path, "%s/%s", p->o->store_folder, name) < 0) {
        free(text);
        return no_memory(p, err);
    }
    rc = sl_write_small(p->o->writer, path, text, length, err);
    free(path);
    free(text);
    sl_store_carried_key(key, name);
    return rc < 0 ? rc
                  : sl_catalog_put(p->catalog, key, value, sl_store_carried_encode(&carried, value),
                                   err);
}

/* Written anew in each go: they are small, and may not have got to the disk in the last one. Their
 * names are synced with those of the data files. */
static int carry_all(struct packer *p, struct sl_err *err)
{
    static const char *const names[] = {"config.json", "tokenizer.json", "tokenizer_config.json",
                                        "generation_config.json"};
    int rc = 0;

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]) && rc == 0; i++) {
        char *path;
        bool found;

        if (asprintf(&path, "%s/%s", p->o->checkpoint_folder, names[i]) < 0)
            return no_memory(p, err);
        found = access(path, F_OK) == 0;
        free(path);
        if (found)
            rc = carry(p, names[i], err);
    }
    return rc;
}

/* ---- data -------------------------------------------------------------------------------------
 */

static void count(struct packer *p, uint64_t size_bytes)
{
    p->batch_bytes += size_bytes;
    p->result.written_bytes += size_bytes;
    if (p->o->on_progress)
        p->o->on_progress(p->o->progress_context, p->result.written_bytes, p->left_bytes);
}

static int pack_tensor(struct packer *p, uint32_t index, struct sl_err *err)
{
    const struct sl_checkpoint_tensor *from =
        sl_checkpoint_find(p->o->checkpoint, p->o->tensors[index]);
    struct sl_tensor_target target = {p->o->writer, p->handles[0], p->layout.paths[0],
                                      p->tensor_offsets[index]};
    struct sl_store_tensor tensor = {
        .info = from->info,
        .extent = {.offset_bytes = target.offset_bytes, .size_bytes = from->info.size_bytes}};
    uint8_t value[SL_STORE_VALUE_BYTES_MAX];
    char key[SL_STORE_KEY_BYTES];
    int rc = sl_tensor_copy(p->o->checkpoint, from, &target, p->buffer, &tensor.checksum, err);

    if (rc < 0)
        return rc;
    snprintf(tensor.name, sizeof(tensor.name), "%s", from->name);
    sl_store_tensor_key(key, index);
    rc = sl_catalog_put(p->catalog, key, value, sl_store_tensor_encode(&tensor, value), err);
    if (rc < 0)
        return rc;
    p->state.n_tensors_done++;
    count(p, sl_round_up(from->info.size_bytes, SL_STORE_BLOCK_BYTES));
    return 0;
}

static int pack_tensors(struct packer *p, struct sl_err *err)
{
    int rc = 0;

    while (rc == 0 && p->state.n_tensors_done < p->model.n_tensors) {
        rc = pack_tensor(p, p->state.n_tensors_done, err);
        if (rc == 0 && p->batch_bytes >= p->o->batch_bytes)
            rc = commit(p, err);
    }
    return rc;
}

/* A run of experts that the threads share. */
struct expert_job {
    struct packer *packer;
    uint32_t first;
    struct sl_packed_expert *entries;
};

static void pack_experts_job(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct expert_job *job = context;
    const struct packer *p = job->packer;
    struct worker *w = &p->workers[thread_index];

    for (size_t i = first; i < end && w->rc == 0; i++) {
        struct sl_packed_expert *entry = &job->entries[i];
        uint32_t number = job->first + (uint32_t)i;

        w->rc = sl_record_make(p->o->checkpoint, p->o->experts,
                               sl_store_expert_at(&p->model.shape, number), w->staging, w->record,
                               entry->checksums, &w->err);
        if (w->rc < 0)
            break;
        sl_store_layout_place(&p->layout, number, entry);
        w->rc = sl_record_write(p->o->writer, p->handles, (const char *const *)p->layout.paths,
                                entry, w->record, &w->err);
    }
}

static int pack_run(struct packer *p, struct expert_job *job, uint32_t n, struct sl_err *err)
{
    uint8_t value[SL_STORE_VALUE_BYTES_MAX];
    char key[SL_STORE_KEY_BYTES];
    int rc = 0;

    sl_pool_run(p->o->pool, n, 1, pack_experts_job, job);
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
    }
    if (rc < 0)
        return rc;
    p->state.n_experts_done += n;
    count(p, n * p->record_bytes);
    return 0;
}

/* A run is a batch, so that some experts are read while others are written. */
static int pack_experts(struct packer *p, struct sl_err *err)
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
        return no_memory(p, err);
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

static int take_memory(struct packer *p, struct sl_err *err)
{
    const struct sl_expert_shape *shape = &p->model.shape;

    p->record_bytes = sl_packed_expert_bytes(shape);
    p->tensor_offsets = calloc(p->o->n_tensors + 1, sizeof(*p->tensor_offsets));
    p->buffer = aligned_alloc(SL_WRITE_ALIGN_BYTES, SL_TENSOR_BUFFER_BYTES);
    p->n_workers = sl_pool_thread_count(p->o->pool);
    p->workers = calloc(p->n_workers, sizeof(*p->workers));
    if (!p->tensor_offsets || !p->buffer || !p->workers)
        return no_memory(p, err);
    for (uint32_t i = 0; i < p->n_workers; i++) {
        p->workers[i].staging = malloc(sl_record_staging_bytes(shape));
        p->workers[i].record = aligned_alloc(SL_WRITE_ALIGN_BYTES, sl_packed_expert_bytes(shape));
        if (!p->workers[i].staging || !p->workers[i].record)
            return no_memory(p, err);
    }
    return 0;
}

static uint64_t bytes_done(const struct packer *p)
{
    uint64_t bytes = p->state.n_experts_done * p->record_bytes;

    return p->state.n_tensors_done == p->model.n_tensors
               ? bytes + p->layout.files[0].size_bytes
               : bytes + p->tensor_offsets[p->state.n_tensors_done];
}

static int pack(struct packer *p, struct sl_err *err)
{
    int rc;

    if ((rc = describe_model(p, err)) < 0 || (rc = take_memory(p, err)) < 0 ||
        (rc = begin(p, err)) < 0 || p->state.complete)
        return rc;
    place_tensors(p);
    p->left_bytes = p->result.total_bytes - bytes_done(p);
    if ((rc = carry_all(p, err)) < 0 || (rc = open_files(p, err)) < 0 ||
        (rc = pack_tensors(p, err)) < 0 || (rc = pack_experts(p, err)) < 0)
        return rc;
    p->state.complete = true;
    rc = commit(p, err);
    return rc == -ECANCELED ? 0 : rc; /* too late for that */
}

int sl_store_pack(const struct sl_pack_options *options, struct sl_pack_result *ret_result,
                  struct sl_err *err)
{
    struct packer p = {.o = options, .lock_fd = -1};
    int rc;

    sl_assert(options->n_tensors <= SL_STORE_TENSORS_MAX);
    for (uint32_t i = 0; i < SL_STORE_FILES_MAX; i++)
        p.handles[i] = -1;
    rc = pack(&p, err);
    sl_catalog_close(p.catalog);
    for (uint32_t i = 0; i < SL_STORE_FILES_MAX; i++) {
        if (p.handles[i] >= 0)
            options->writer->ops->close(options->writer, p.handles[i]);
    }
    for (uint32_t i = 0; p.workers && i < p.n_workers; i++) {
        free(p.workers[i].staging);
        free(p.workers[i].record);
    }
    free(p.workers);
    free(p.buffer);
    free(p.tensor_offsets);
    sl_store_layout_fini(&p.layout);
    if (p.lock_fd >= 0)
        close(p.lock_fd);
    if (ret_result)
        *ret_result = p.result;
    return rc;
}
