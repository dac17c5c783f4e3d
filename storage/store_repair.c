#include "storage/store_repair.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "storage/checksum.h"
#include "storage/store_records.h"
#include "storage/store_identity.h"

struct repairer {
    const struct sl_repair_options *o;
    const char *paths[SL_STORE_FILES_MAX];
    int files[SL_STORE_FILES_MAX]; /* -1 until opened */
    uint32_t n_files;
    struct sl_record_maker maker;
    uint8_t *buffer;
};

static int other_weights(const struct repairer *r, const char *what, struct sl_err *err)
{
    return sl_err_set(err, -SL_EFORMAT, "%s: %s is not what %s was packed from",
                      r->o->checkpoint_folder, what, sl_store_folder(r->o->store));
}

static int repair_carried(struct repairer *r, uint32_t index, struct sl_err *err)
{
    const struct sl_store_carried *carried = sl_store_carried(r->o->store, index);
    char *to = NULL, *text;
    size_t length;
    int rc = sl_carried_read(r->o->checkpoint_folder, carried->name, &text, &length, err);

    if (rc < 0)
        return rc;
    if (length != carried->size_bytes || sl_checksum(text, length) != carried->checksum)
        rc = other_weights(r, carried->name, err);
    else if (asprintf(&to, "%s/%s", sl_store_folder(r->o->store), carried->name) < 0)
        rc = sl_err_set(err, -ENOMEM, "%s: out of memory", carried->name);
    else
        rc = sl_write_small(r->o->writer, to, text, length, err);
    free(to);
    free(text);
    return rc;
}

/* Summed first, and written when that is right. */
static int repair_tensor(struct repairer *r, uint32_t index, struct sl_err *err)
{
    const struct sl_store_tensor *tensor = sl_store_tensor(r->o->store, index);
    struct sl_weight_source *weights = sl_checkpoint_weights(r->o->checkpoint);
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
    return sl_record_write(r->o->writer, r->files, r->paths, expert, record, err);
}

static int repair_items(struct repairer *r, const struct sl_store_item *items, uint32_t n_items,
                        struct sl_err *err)
{
    int rc = 0;

    for (uint32_t i = 0; i < n_items && rc == 0; i++) {
        const struct sl_store_item *item = &items[i];

        if (item->kind == SL_STORE_CARRIED)
            rc = repair_carried(r, item->index, err);
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
    return rc;
}

static int check_identity(const struct repairer *r, struct sl_err *err)
{
    const struct sl_store_model *model = sl_store_model(r->o->store);
    uint64_t config_checksum, index_checksum;
    int rc = sl_store_identify(r->o->checkpoint, r->o->checkpoint_folder, &config_checksum,
                               &index_checksum, err);

    if (rc < 0)
        return rc;
    if (config_checksum != model->config_checksum)
        return other_weights(r, "config.json", err);
    if (index_checksum != model->index_checksum)
        return other_weights(r, "its index", err);
    return 0;
}

static int prepare(struct repairer *r, struct sl_err *err)
{
    const struct sl_record_source source = {.experts = r->o->experts,
                                            .checkpoint = r->o->checkpoint};
    int rc = sl_record_maker_init(&r->maker, &source);

    if (rc == 0 && sl_store_model(r->o->store)->layout == SL_STORE_LAYOUT_R16_ZSTD)
        rc = sl_record_maker_compress(&r->maker);
    r->buffer = aligned_alloc(SL_WRITE_ALIGN_BYTES, SL_TENSOR_BUFFER_BYTES);
    if (rc < 0 || !r->buffer)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", sl_store_folder(r->o->store));
    for (uint32_t i = 0; i < r->n_files; i++) {
        r->paths[i] = sl_store_file_path(r->o->store, i);
        rc = r->o->writer->ops->open(r->o->writer, r->paths[i], true, &r->files[i]);
        if (rc < 0)
            return sl_write_error(err, rc, r->paths[i], "open");
    }
    return 0;
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
        r.files[i] = -1;
    if ((rc = check_identity(&r, err)) == 0 && (rc = prepare(&r, err)) == 0)
        rc = repair_items(&r, items, n_items, err);
    for (uint32_t i = 0; i < SL_STORE_FILES_MAX; i++) {
        if (r.files[i] >= 0)
            options->writer->ops->close(options->writer, r.files[i]);
    }
    sl_record_maker_fini(&r.maker);
    free(r.buffer);
    close(lock_fd);
    return rc;
}
