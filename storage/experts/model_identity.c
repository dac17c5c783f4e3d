#include "storage/experts/model_identity.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/base/file.h"
#include "storage/io/checksum.h"

#define CONFIG_BYTES_MAX (UINT64_C(64) << 20)

/* Each sample is a read of its own: these take a fraction of a second together. */
#define SAMPLES_MAX 2048u /* of dense tensors, and of experts' */
#define SAMPLE_BYTES 4096u

struct identity {
    struct sl_checksum_stream *stream;
    struct sl_err *err;
};

static void add_number(const struct identity *identity, uint64_t number)
{
    sl_checksum_stream_add(identity->stream, &number, sizeof(number));
}

/* With the zero that ends it. */
static void add_text(const struct identity *identity, const char *text)
{
    sl_checksum_stream_add(identity->stream, text, strlen(text) + 1);
}

static void add_info(const struct identity *identity, const struct sl_tensor_info *info)
{
    add_text(identity, sl_tensor_dtype_name(info));
    add_number(identity, info->n_dims);
    for (uint32_t i = 0; i < SL_TENSOR_DIMS_MAX; i++)
        add_number(identity, info->shape[i]);
    add_number(identity, info->size_bytes);
}

/* ---- a store -----------------------------------------------------------------------------------
 */

static void add_store(const struct identity *identity, const struct sl_store *store)
{
    const struct sl_store_model *model = sl_store_model(store);

    add_text(identity, "store");
    add_number(identity, model->config_checksum);
    for (uint32_t i = 0; i < model->n_tensors; i++) {
        const struct sl_store_tensor *tensor = sl_store_tensor(store, i);

        add_text(identity, tensor->name);
        add_info(identity, &tensor->info);
        add_number(identity, tensor->checksum);
    }
    for (uint32_t i = 0; i < sl_store_expert_count(&model->shape); i++) {
        const struct sl_packed_expert *expert =
            sl_store_expert(store, sl_store_expert_at(&model->shape, i));

        for (int matrix = 0; matrix < SL_EXPERT_MATRICES; matrix++)
            add_number(identity, expert->checksums[matrix]);
    }
}

/* ---- a checkpoint ------------------------------------------------------------------------------
 */

static int add_config(const struct identity *identity, const char *folder)
{
    char *path, *text;
    size_t length;
    int rc;

    if (asprintf(&path, "%s/config.json", folder) < 0)
        return sl_err_set(identity->err, -ENOMEM, "%s: out of memory", folder);
    rc = sl_file_read_all(path, CONFIG_BYTES_MAX, &text, &length, identity->err);
    free(path);
    if (rc < 0)
        return rc;
    add_number(identity, length);
    sl_checksum_stream_add(identity->stream, text, length);
    free(text);
    return 0;
}

static int add_shard(const struct identity *identity, const char *path)
{
    struct stat status;

    if (stat(path, &status) < 0)
        return sl_err_set(identity->err, -errno, "%s: cannot look up its size: %s", path,
                          sl_strerror(errno));
    add_number(identity, (uint64_t)status.st_size);
    add_number(identity, (uint64_t)status.st_mtim.tv_sec);
    add_number(identity, (uint64_t)status.st_mtim.tv_nsec);
    return 0;
}

static bool is_expert(const struct sl_checkpoint_tensor *tensor)
{
    return strstr(tensor->name, ".experts.") != NULL;
}

/* Adds bytes from the middle of every so many of the tensors, experts' or others. */
static int add_samples(const struct identity *identity, const struct sl_checkpoint *checkpoint,
                       bool of_experts)
{
    const uint32_t n_tensors = sl_checkpoint_tensor_count(checkpoint);
    uint32_t n_such = 0, n_passed = 0, every;
    uint8_t sample[SAMPLE_BYTES];
    int rc = 0;

    for (uint32_t i = 0; i < n_tensors; i++)
        n_such += is_expert(sl_checkpoint_tensor_at(checkpoint, i)) == of_experts;
    every = n_such / SAMPLES_MAX + 1;
    for (uint32_t i = 0; rc == 0 && i < n_tensors; i++) {
        const struct sl_checkpoint_tensor *tensor = sl_checkpoint_tensor_at(checkpoint, i);
        const uint64_t bytes = tensor->info.size_bytes;
        const uint64_t size = bytes < SAMPLE_BYTES ? bytes : SAMPLE_BYTES;

        if (is_expert(tensor) != of_experts || n_passed++ % every != 0 || size == 0)
            continue;
        rc = sl_checkpoint_read(checkpoint, tensor->file_index,
                                tensor->offset_bytes + (bytes - size) / 2, size, sample,
                                identity->err);
        if (rc == 0)
            sl_checksum_stream_add(identity->stream, sample, size);
    }
    return rc;
}

static int add_checkpoint(const struct identity *identity, const struct sl_checkpoint *checkpoint,
                          const char *folder)
{
    int rc = add_config(identity, folder);

    add_text(identity, "checkpoint");
    for (uint32_t i = 0; rc == 0 && i < sl_checkpoint_file_count(checkpoint); i++)
        rc = add_shard(identity, sl_checkpoint_file_path(checkpoint, i));
    for (uint32_t i = 0; rc == 0 && i < sl_checkpoint_tensor_count(checkpoint); i++) {
        const struct sl_checkpoint_tensor *tensor = sl_checkpoint_tensor_at(checkpoint, i);

        add_text(identity, tensor->name);
        add_info(identity, &tensor->info);
        add_number(identity, tensor->file_index);
        add_number(identity, tensor->offset_bytes);
    }
    if (rc == 0)
        rc = add_samples(identity, checkpoint, false);
    return rc < 0 ? rc : add_samples(identity, checkpoint, true);
}

int sl_model_identity(const struct sl_model_files *files, const char *folder,
                      uint64_t *ret_identity, struct sl_err *err)
{
    const struct identity identity = {sl_checksum_stream_create(), err};
    int rc = 0;

    if (!identity.stream)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", folder);
    if (files->store)
        add_store(&identity, files->store);
    else
        rc = add_checkpoint(&identity, files->checkpoint, folder);
    if (rc == 0)
        *ret_identity = sl_checksum_stream_value(identity.stream);
    sl_checksum_stream_destroy(identity.stream);
    return rc;
}
