#include "storage/experts/dense_reader.h"

#include <errno.h>
#include <stdlib.h>

#include "core/base/assert.h"
#include "storage/checkpoint/checkpoint.h"
#include "storage/io/read_slots.h"
#include "storage/store/store.h"

struct sl_dense_reader {
    struct sl_weight_reader weights; /* first */
    const struct sl_model_files *files;
    struct sl_read_slots reads;
    const char **names; /* of the tensors that the slots' reads are of */
    enum sl_verify verify;
    bool *verified; /* (tensors of the store) */
};

static const struct sl_weight_reader_ops ops;

int sl_dense_reader_create(struct sl_dense_reader **ret_reader, const struct sl_model_files *files,
                           struct sl_reader *reader, uint32_t n_slots, enum sl_verify verify,
                           struct sl_err *err)
{
    struct sl_dense_reader *in = calloc(1, sizeof(*in));
    const uint32_t n_tensors = files->store ? sl_store_model(files->store)->n_tensors : 0;

    if (in) {
        in->names = calloc(n_slots, sizeof(*in->names));
        in->verified = calloc(n_tensors + 1, sizeof(*in->verified));
    }
    if (!in || !in->names || !in->verified ||
        sl_read_slots_init(&in->reads, reader, SL_READS_OF_DENSE, n_slots, NULL) < 0) {
        sl_dense_reader_destroy(in);
        return sl_err_set(err, -ENOMEM, "reader of dense weights: out of memory");
    }
    in->weights.ops = &ops;
    in->files = files;
    in->verify = verify;
    *ret_reader = in;
    return 0;
}

void sl_dense_reader_destroy(struct sl_dense_reader *reader)
{
    if (!reader)
        return;
    sl_read_slots_fini(&reader->reads);
    free(reader->names);
    free(reader->verified);
    free(reader);
}

struct sl_weight_reader *sl_dense_reader_weights(struct sl_dense_reader *reader)
{
    return &reader->weights;
}

/* ---- the operations ----------------------------------------------------------------------------
 */

static struct sl_dense_reader *reader_of(struct sl_weight_reader *reader)
{
    return (struct sl_dense_reader *)(void *)reader;
}

/* Returns where a tensor lies, which the model has. */
static struct sl_extent find(const struct sl_dense_reader *in, const char *name)
{
    const struct sl_checkpoint_tensor *tensor;

    if (in->files->store) {
        uint32_t index = sl_store_find_tensor(in->files->store, name);

        sl_assert(index < sl_store_model(in->files->store)->n_tensors);
        return sl_store_tensor(in->files->store, index)->extent;
    }
    tensor = sl_checkpoint_find(in->files->checkpoint, name);
    sl_assert(tensor);
    return (struct sl_extent){.offset_bytes = tensor->offset_bytes,
                              .size_bytes = tensor->info.size_bytes,
                              .file_index = tensor->file_index};
}

static void begin(struct sl_weight_reader *reader, uint32_t slot, const char *name,
                  uint64_t offset_bytes, uint64_t size_bytes, uint8_t *dst, bool urgent)
{
    struct sl_dense_reader *in = reader_of(reader);
    struct sl_extent extent = find(in, name);

    sl_assert(offset_bytes + size_bytes <= extent.size_bytes);
    extent.offset_bytes += offset_bytes;
    extent.size_bytes = size_bytes;
    in->names[slot] = name;
    sl_read_slots_begin(&in->reads, slot, &extent, dst, urgent);
}

static void start(struct sl_weight_reader *reader)
{
    sl_read_slots_go_on(&reader_of(reader)->reads);
}

static void hurry(struct sl_weight_reader *reader, uint32_t slot)
{
    sl_read_slots_hurry(&reader_of(reader)->reads, slot);
}

static void cancel(struct sl_weight_reader *reader, uint32_t slot)
{
    sl_read_slots_cancel(&reader_of(reader)->reads, slot);
}

static int end(struct sl_weight_reader *reader, uint32_t slot, bool wait, const uint8_t **ret_bytes,
               struct sl_err *err)
{
    struct sl_dense_reader *in = reader_of(reader);
    int rc = sl_read_slots_end(&in->reads, slot, wait, ret_bytes, err);

    return rc < 0 ? sl_err_prefix(err, rc, "tensor \"%s\"", in->names[slot]) : rc;
}

static bool is_free(struct sl_weight_reader *reader, uint32_t slot)
{
    return sl_read_slots_is_free(&reader_of(reader)->reads, slot);
}

static int check(struct sl_weight_reader *reader, const char *name, uint64_t offset_bytes,
                 uint64_t size_bytes, const uint8_t *bytes, struct sl_err *err)
{
    struct sl_dense_reader *in = reader_of(reader);
    uint32_t index;
    int rc;

    if (!in->files->store || in->verify == SL_VERIFY_NEVER)
        return 0;
    index = sl_store_find_tensor(in->files->store, name);
    if (in->verify == SL_VERIFY_FIRST && in->verified[index])
        return 0;
    rc = sl_store_check_tensor(in->files->store, index, offset_bytes, size_bytes, bytes, err);
    if (rc > 0)
        in->verified[index] = true;
    return rc < 0 ? rc : 0;
}

static const struct sl_weight_reader_ops ops = {
    .begin = begin,
    .start = start,
    .hurry = hurry,
    .cancel = cancel,
    .end = end,
    .is_free = is_free,
    .check = check,
};
