#include "storage/pack/store_repair.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/size.h"
#include "storage/io/checksum.h"
#include "storage/store/record_read.h"
#include "storage/store/store_copies.h"
#include "storage/pack/store_identity.h"
#include "storage/pack/store_relocate.h"
#include "storage/pack/store_records.h"

struct repairer {
    const struct sl_repair_options *o;
    const char *paths[SL_STORE_FILES_MAX];
    int files[SL_STORE_FILES_MAX]; /* -1 until opened */
    uint32_t n_files;
    int fds[SL_STORE_FILES_MAX];      /* of the same files, to read from */
    struct sl_weight_source *weights; /* the source's; NULL if there is none */
    const char *source_paths[SL_STORE_FILES_MAX];
    int source_fds[SL_STORE_FILES_MAX];
    struct sl_record_maker maker;
    uint8_t *buffer;
};

static int other_weights(const struct repairer *r, const char *what, struct sl_err *err)
{
    return sl_err_set(err, -SL_EFORMAT, "%s: %s is not what %s was packed from",
                      r->o->checkpoint_folder, what, sl_store_folder(r->o->store));
}

static int repair_copied_file(struct repairer *r, uint32_t index, struct sl_err *err)
{
    const struct sl_store_copied_file *copied = sl_store_copied_file(r->o->store, index);
    char *to = sl_store_path(sl_store_folder(r->o->store), copied->name), *text;
    size_t length;
    int rc = sl_copied_file_read(r->o->checkpoint_folder, copied->name, &text, &length, err);

    if (rc < 0) {
        free(to);
        return rc;
    }
    if (length != copied->size_bytes || sl_checksum(text, length) != copied->checksum)
        rc = other_weights(r, copied->name, err);
    else if (!to)
        rc = sl_err_set(err, -ENOMEM, "%s: out of memory", copied->name);
    else if ((rc = sl_write_small(r->o->writer, to, text, length, err)) == 0)
        rc = sl_write_name(r->o->writer, to, err);
    free(to);
    free(text);
    return rc;
}

/* Computes the checksum first, and writes the tensor only if it is the catalog's. */
static int repair_tensor(struct repairer *r, uint32_t index, struct sl_err *err)
{
    const struct sl_store_tensor *tensor = sl_store_tensor(r->o->store, index);
    struct sl_weight_source *weights = r->weights;
    const uint64_t size_bytes = tensor->info.size_bytes;
    struct sl_tensor_target target = {.offset_bytes = tensor->extent.offset_bytes};
    struct sl_tensor_info info;
    uint64_t checksum;
    int rc;

    if (weights->ops->find(weights, tensor->name, &info) < 0 || info.size_bytes != size_bytes)
        return other_weights(r, tensor->name, err);
    rc = sl_tensor_copy(weights, tensor->name, size_bytes, &target, r->buffer, &checksum, err);
    if (rc < 0)
        return rc;
    if (checksum != tensor->checksum)
        return other_weights(r, tensor->name, err);
    target.writer = r->o->writer;
    target.file = r->files[tensor->extent.file_index];
    target.path = r->paths[tensor->extent.file_index];
    return sl_tensor_copy(weights, tensor->name, size_bytes, &target, r->buffer, &checksum, err);
}

/* Writes the parts of a record that differ from it. */
static int write_record(struct repairer *r, const struct sl_packed_expert *expert,
                        const uint8_t *record, struct sl_err *err)
{
    for (uint32_t i = 0; i < expert->n_parts; i++) {
        const struct sl_extent *part = &expert->parts[i];
        struct sl_packed_expert one = {.n_parts = 1, .parts = {*part}};
        bool same = true;
        int rc;

        for (uint64_t at = 0; at < part->size_bytes && same; at += SL_TENSOR_BUFFER_BYTES) {
            uint64_t left_bytes = part->size_bytes - at;
            uint64_t n = left_bytes < SL_TENSOR_BUFFER_BYTES ? left_bytes : SL_TENSOR_BUFFER_BYTES;

            same = sl_file_read_at(r->fds[part->file_index], r->buffer, n,
                                   part->offset_bytes + at) == (int64_t)n &&
                   memcmp(r->buffer, record + at, n) == 0;
        }
        if (!same &&
            (rc = sl_record_write(r->o->writer, r->files, r->paths, &one, record, err)) < 0)
            return rc;
        record += part->size_bytes;
    }
    return 0;
}

static int repair_expert(struct repairer *r, struct sl_expert_key key, struct sl_err *err)
{
    const struct sl_packed_expert *expert = sl_store_expert(r->o->store, key);
    struct sl_packed_expert made;
    char text[SL_EXPERT_TEXT_BYTES];
    const uint8_t *record;
    uint64_t record_bytes;
    int rc = sl_record_make(&r->maker, key, &made, &record, &record_bytes, err);

    if (rc < 0)
        return rc;
    sl_expert_format(&sl_store_model(r->o->store)->shape, key, text);
    if (memcmp(made.checksums, expert->checksums, sizeof(made.checksums)) != 0)
        return other_weights(r, text, err);
    if (record_bytes != sl_packed_expert_stored_bytes(expert) ||
        made.stored_checksum != expert->stored_checksum)
        return sl_err_set(err, -SL_EUNSUPPORTED,
                          "%s: %s was compressed by another version of zstd, which makes other "
                          "bytes of it; pack anew",
                          sl_store_folder(r->o->store), text);
    return write_record(r, expert, record, err);
}

static int repair_copy(struct repairer *r, uint32_t index, struct sl_err *err)
{
    const char *folder = sl_store_folder(r->o->store);
    struct sl_catalog_entries sealed;
    int rc = sl_store_sealed_read(&sealed, folder, err);

    if (rc == 0)
        rc = index == 0 ? sl_store_catalog_make(NULL, folder, &sealed, r->o->writer, err)
                        : sl_store_copy_seal(sl_store_file_path(r->o->store, index), index, &sealed,
                                             r->o->writer, err);
    sl_catalog_entries_fini(&sealed);
    return rc;
}

static int repair_tail(struct repairer *r, uint32_t index, struct sl_err *err)
{
    int rc = r->o->writer->ops->cut(r->o->writer, r->paths[index],
                                    sl_store_file_end_bytes(r->o->store, index));

    return rc < 0 ? sl_write_error(err, rc, r->paths[index], "shorten") : 0;
}

static bool needs_source(const struct sl_store_item *item)
{
    return item->kind != SL_STORE_COPY && item->kind != SL_STORE_TAIL;
}

static int repair_items(struct repairer *r, const struct sl_store_item *items, uint32_t n_items,
                        struct sl_err *err)
{
    bool stopped = false;
    int rc = 0;

    for (uint32_t i = 0; i < n_items && rc == 0; i++) {
        const struct sl_store_item *item = &items[i];

        if (needs_source(item) && !r->weights)
            continue;
        if (r->o->stop && atomic_load(r->o->stop)) {
            stopped = true;
            break;
        }
        if (item->kind == SL_STORE_COPY)
            rc = repair_copy(r, item->index, err);
        else if (item->kind == SL_STORE_TAIL)
            rc = repair_tail(r, item->index, err);
        else if (item->kind == SL_STORE_COPIED_FILE)
            rc = repair_copied_file(r, item->index, err);
        else if (item->kind == SL_STORE_TENSOR)
            rc = repair_tensor(r, item->index, err);
        else if (i == 0 || items[i - 1].kind != item->kind ||
                 items[i - 1].key.layer_index != item->key.layer_index ||
                 items[i - 1].key.expert_index != item->key.expert_index)
            rc = repair_expert(r, item->key, err);
    }
    for (uint32_t i = 0; i < r->n_files && rc == 0; i++) {
        rc = r->o->writer->ops->sync(r->o->writer, r->files[i]);
        if (rc < 0)
            sl_write_error(err, rc, r->paths[i], "sync");
    }
    return rc == 0 && stopped
               ? sl_err_set(err, -ECANCELED, "%s: stopped", sl_store_folder(r->o->store))
               : rc;
}

static int check_identity(const struct repairer *r, struct sl_err *err)
{
    const struct sl_store_model *model = sl_store_model(r->o->store);
    uint64_t config_checksum, index_checksum;
    int rc;

    if (r->o->from) {
        config_checksum = sl_store_model(r->o->from)->config_checksum;
        index_checksum = sl_store_model(r->o->from)->index_checksum;
    } else {
        rc = sl_store_identify(r->o->checkpoint, r->o->checkpoint_folder, &config_checksum,
                               &index_checksum, err);
        if (rc < 0)
            return rc;
    }
    if (config_checksum != model->config_checksum)
        return other_weights(r, "config.json", err);
    if (index_checksum != model->index_checksum)
        return other_weights(r, "its index", err);
    return 0;
}

static int open_source(struct repairer *r, struct sl_err *err)
{
    const struct sl_record_source source = {.experts = r->o->experts,
                                            .checkpoint = r->o->checkpoint,
                                            .store = r->o->from,
                                            .fds = r->source_fds,
                                            .paths = r->source_paths};
    int rc;

    if (!r->o->checkpoint && !r->o->from)
        return 0;
    if ((rc = check_identity(r, err)) < 0)
        return rc;
    r->weights =
        r->o->from ? sl_store_weights(r->o->from, true) : sl_checkpoint_weights(r->o->checkpoint);
    for (uint32_t i = 0; r->o->from && i < sl_store_file_count(r->o->from); i++)
        r->source_paths[i] = sl_store_file_path(r->o->from, i);
    if (r->o->from && (rc = sl_record_files_open(r->source_fds, r->source_paths,
                                                 sl_store_file_count(r->o->from), err)) < 0)
        return rc;
    rc = sl_record_maker_init(&r->maker, &source);
    if (rc == 0 && sl_store_layout_compresses(sl_store_model(r->o->store)->layout))
        rc = sl_record_maker_compress(&r->maker);
    return rc < 0 ? sl_err_set(err, rc, "%s: out of memory", sl_store_folder(r->o->store)) : 0;
}

static int prepare(struct repairer *r, struct sl_err *err)
{
    int rc = 0;

    r->buffer = aligned_alloc(SL_BLOCK_BYTES, SL_TENSOR_BUFFER_BYTES);
    if (!r->buffer)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", sl_store_folder(r->o->store));
    for (uint32_t i = 0; i < r->n_files; i++)
        r->paths[i] = sl_store_file_path(r->o->store, i);
    rc = sl_store_may_write(r->o->store, r->paths, r->o->stripe_folders, r->o->n_stripes, err);
    for (uint32_t i = 0; i < r->n_files && rc == 0; i++) {
        rc = r->o->writer->ops->open(r->o->writer, r->paths[i], true, &r->files[i]);
        if (rc < 0)
            return sl_write_error(err, rc, r->paths[i], "open");
    }
    if (rc == 0)
        rc = sl_record_files_open(r->fds, r->paths, r->n_files, err);
    return rc == 0 ? open_source(r, err) : rc;
}

int sl_store_repair(const struct sl_repair_options *options, const struct sl_store_item *items,
                    uint32_t n_items, struct sl_err *err)
{
    struct repairer r = {.o = options, .n_files = sl_store_file_count(options->store)};
    int lock_fd = sl_store_lock(sl_store_folder(options->store), err);
    int rc;

    if (lock_fd < 0)
        return lock_fd;
    for (uint32_t i = 0; i < SL_STORE_FILES_MAX; i++)
        r.files[i] = r.fds[i] = r.source_fds[i] = -1;
    if ((rc = prepare(&r, err)) == 0)
        rc = repair_items(&r, items, n_items, err);
    for (uint32_t i = 0; i < SL_STORE_FILES_MAX; i++) {
        if (r.files[i] >= 0)
            options->writer->ops->close(options->writer, r.files[i]);
    }
    sl_record_files_close(r.fds);
    sl_record_files_close(r.source_fds);
    sl_record_maker_fini(&r.maker);
    free(r.buffer);
    close(lock_fd);
    return rc;
}
