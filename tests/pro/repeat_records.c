/* Completes the records of a store whose checkpoint has the same experts in all layers (`sluice
 * synth --share-layers 1`): once `sluice pack` has written those of the first layer, this has the
 * others share their blocks and enters them into the catalog, in a second instead of the hour that
 * it takes to read and lay out 822 GB that are all the same. `sluice pack` then goes on from there.
 *
 *   repeat_records STORE
 *
 * For measuring, on a file system that can share blocks; tests/pro/pack_shared.sh uses it. */
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "core/model/expert_shape.h"
#include "storage/store/catalog.h"
#include "storage/store/catalog_read.h"
#include "storage/store/store.h"

struct repeat {
    struct sl_store *store;
    struct sl_catalog_entries entries;
    struct sl_catalog *catalog;
    char path[SL_STORE_PATH_BYTES], new_path[SL_STORE_PATH_BYTES]; /* the catalog's */
};

static int fail(const struct sl_err *err)
{
    fprintf(stderr, "repeat_records: %s\n", err->message);
    return 1;
}

/* The records of one layer become those of the first. */
static int share_layer(const struct repeat *r, int fd, uint32_t layer, struct sl_err *err)
{
    const struct sl_expert_shape *shape = &sl_store_model(r->store)->shape;
    const uint64_t layer_bytes = shape->n_routed_experts * sl_packed_expert_bytes(shape);
    struct file_clone_range range = {
        .src_fd = fd, .src_length = layer_bytes, .dest_offset = layer * layer_bytes};

    return ioctl(fd, FICLONERANGE, &range) == 0
               ? 0
               : sl_err_set(err, -1, "%s: cannot share blocks", sl_store_file_path(r->store, 1));
}

static int enter_layer(const struct repeat *r, uint16_t layer, struct sl_err *err)
{
    const struct sl_expert_shape *shape = &sl_store_model(r->store)->shape;
    uint8_t value[SL_STORE_VALUE_BYTES_MAX];
    char key[SL_STORE_KEY_BYTES];
    int rc = 0;

    for (uint16_t e = 0; rc == 0 && e < shape->n_routed_experts; e++) {
        struct sl_packed_expert expert = *sl_store_expert(r->store, (struct sl_expert_key){0, e});

        expert.parts[0].offset_bytes +=
            (uint64_t)layer * shape->n_routed_experts * sl_packed_expert_bytes(shape);
        sl_store_expert_key(key, (struct sl_expert_key){layer, e});
        rc = sl_catalog_put(r->catalog, key, value, sl_store_expert_encode(&expert, value), err);
    }
    return rc;
}

static int enter_state(const struct repeat *r, struct sl_err *err)
{
    struct sl_store_state state = *sl_store_state(r->store);
    uint8_t value[SL_STORE_VALUE_BYTES_MAX];

    state.n_experts_done = sl_store_expert_count(&sl_store_model(r->store)->shape);
    return sl_catalog_put(r->catalog, SL_STORE_KEY_STATE, value,
                          sl_store_state_encode(&state, value), err);
}

static int repeat(struct repeat *r, struct sl_err *err)
{
    const struct sl_store_model *model = sl_store_model(r->store);
    int fd, rc;

    if (model->layout != SL_STORE_LAYOUT_FP4 || model->n_files != 2 ||
        sl_store_state(r->store)->n_experts_done < model->shape.n_routed_experts)
        return sl_err_set(err, -1, "it takes the first layer, on one drive, not compressed");
    if ((rc = sl_catalog_read(&r->entries, r->path, err)) < 0 ||
        (rc = sl_catalog_create(&r->catalog, r->new_path, &r->entries, err)) < 0)
        return rc;
    fd = open(sl_store_file_path(r->store, 1), O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return sl_err_set(err, -1, "%s: cannot open", sl_store_file_path(r->store, 1));
    for (uint16_t layer = 1; rc == 0 && layer < sl_expert_layer_count(&model->shape); layer++) {
        rc = share_layer(r, fd, layer, err);
        if (rc == 0)
            rc = enter_layer(r, layer, err);
    }
    fsync(fd);
    close(fd);
    if (rc == 0)
        rc = enter_state(r, err);
    if (rc == 0)
        rc = sl_catalog_commit(r->catalog, err);
    if (rc == 0 && rename(r->new_path, r->path) < 0)
        rc = sl_err_set(err, -1, "%s: cannot rename", r->new_path);
    return rc;
}

int main(int argc, char **argv)
{
    struct repeat r = {0};
    struct sl_err err;
    int rc;

    if (argc != 2)
        return 2;
    snprintf(r.path, sizeof(r.path), "%s/catalog.mdb", argv[1]);
    snprintf(r.new_path, sizeof(r.new_path), "%s/catalog.mdb.new", argv[1]);
    if (sl_store_open(&r.store, argv[1], SL_STORE_RESUME, &err) < 0)
        return fail(&err);
    rc = repeat(&r, &err);
    sl_catalog_close(r.catalog);
    sl_catalog_entries_fini(&r.entries);
    sl_store_close(r.store);
    return rc < 0 ? fail(&err) : 0;
}
