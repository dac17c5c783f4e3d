#include "storage/pack/store_rebuild.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/assert.h"
#include "core/base/file.h"
#include "core/base/size.h"
#include "storage/store/store_copies.h"
#include "storage/pack/store_identity.h"
#include "storage/store/store_layout.h"

/* Refuses to write over the data of another model. */
static int check_config(const struct sl_pack_options *options, struct sl_err *err)
{
    char *found = NULL, *wanted = NULL;
    size_t found_bytes, wanted_bytes;
    int rc = sl_copied_file_read(options->store_folder, "config.json", &found, &found_bytes, err);

    if (rc == 0)
        rc = sl_copied_file_read(options->checkpoint_folder, "config.json", &wanted, &wanted_bytes,
                                 err);
    if (rc == 0 && (found_bytes != wanted_bytes || memcmp(found, wanted, found_bytes) != 0))
        rc = sl_err_set(err, -SL_EFORMAT, "%s: its config.json is not that of %s",
                        options->store_folder, options->checkpoint_folder);
    free(found);
    free(wanted);
    return rc;
}

/* Counts the dense tensors that begin in the file with the same bytes as in the source. */
static int count_known(const struct sl_pack_options *options, int fd, uint32_t *ret_n_known,
                       struct sl_err *err)
{
    struct sl_weight_source *weights = options->from ? sl_store_weights(options->from, false)
                                                     : sl_checkpoint_weights(options->checkpoint);
    uint8_t wanted[SL_BLOCK_BYTES], found[SL_BLOCK_BYTES];
    uint64_t offset_bytes = 0;

    for (uint32_t i = 0; i < options->n_tensors; i++) {
        struct sl_tensor_info info;
        uint64_t n;
        int rc = weights->ops->find(weights, options->tensors[i], &info);

        sl_assert(rc == 0); /* the list is made from what was found */
        n = info.size_bytes < sizeof(wanted) ? info.size_bytes : sizeof(wanted);
        rc = weights->ops->read(weights, options->tensors[i], 0, n, wanted, err);
        if (rc < 0)
            return rc;
        *ret_n_known += sl_file_read_at(fd, found, n, offset_bytes) == (int64_t)n &&
                        memcmp(found, wanted, n) == 0;
        offset_bytes += sl_round_up(info.size_bytes, SL_BLOCK_BYTES);
    }
    return 0;
}

/* A fine-tune has the same config.json as its base model, so the dense tensors are compared,
 * too. */
static int check_dense(const struct sl_pack_options *options, struct sl_err *err)
{
    char *path = sl_store_path(options->store_folder, "dense.bin");
    uint32_t n_known = 0;
    int fd, rc;

    if (!path)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", options->store_folder);
    fd = sl_file_open_nofollow(path, err);
    rc = fd < 0 ? fd : count_known(options, fd, &n_known, err);
    if (fd >= 0)
        close(fd);
    if (rc == 0 && n_known < options->n_tensors / 2)
        rc = sl_err_set(err, -SL_EFORMAT, "%s: %u of %u tensors are not those of %s", path,
                        options->n_tensors - n_known, options->n_tensors,
                        options->checkpoint_folder);
    free(path);
    return rc == -ENOENT ? 0 : rc;
}

/* Tells the size of a file, and whether it has holes, as files of compressed records do. */
static int look_at_file(const char *path, uint64_t *ret_weight, bool *ret_holes)
{
    struct stat status;

    if (lstat(path, &status) < 0 || !S_ISREG(status.st_mode))
        return -ENOENT;
    *ret_weight = (uint64_t)status.st_size;
    *ret_holes |= (uint64_t)status.st_blocks * 512 < (uint64_t)status.st_size;
    return 0;
}

static int look_at_files(struct sl_pack_options *options, uint64_t weights[1 + SL_STRIPES_MAX],
                         struct sl_err *err)
{
    char *path = sl_store_path(options->store_folder, "experts-1.bin");
    int rc = path ? 0 : sl_err_set(err, -ENOMEM, "%s: out of memory", options->store_folder);

    weights[0] = 0;
    if (path && look_at_file(path, &weights[0], &options->compress) < 0 && options->n_stripes == 0)
        rc = sl_err_set(err, -SL_EFORMAT, "%s: is not there: none of the store's experts are left",
                        path);
    weights[0] += weights[0] == 0;
    free(path);
    for (uint32_t i = 0; i < options->n_stripes && rc == 0; i++) {
        char part[SL_STORE_PATH_BYTES];

        rc = sl_store_part_path(part, options->stripe_folders[i], 2 + i, err);
        if (rc == 0 && look_at_file(part, &weights[1 + i], &options->compress) < 0)
            rc = sl_err_set(err, -SL_EFORMAT,
                            "%s: is not there: the folders are to be named in the order in which "
                            "they were given to sluice pack",
                            part);
    }
    return rc;
}

int sl_store_rebuild(const struct sl_pack_options *options, struct sl_err *err)
{
    struct sl_pack_options changed = *options;
    uint64_t weights[1 + SL_STRIPES_MAX];
    int rc;

    changed.rebuild = true;
    changed.weights = weights;
    if ((rc = check_config(options, err)) < 0 || (rc = check_dense(options, err)) < 0 ||
        (rc = look_at_files(&changed, weights, err)) < 0)
        return rc;
    return sl_store_pack(&changed, NULL, err);
}
