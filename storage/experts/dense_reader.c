#include "storage/experts/dense_reader.h"

#include <errno.h>
#include <stdlib.h>

#include "core/base/assert.h"
#include "storage/checkpoint/checkpoint.h"
#include "storage/store/store.h"

struct slot {
    struct sl_read read;
    const char *name;
    bool busy; /* its read has not ended */
    bool back; /* it has been reaped */
    bool late; /* it has ended, but a drive may still write to its dst */
};

struct sl_dense_reader {
    struct sl_weight_reader weights; /* first */
    const struct sl_model_files *files;
    struct sl_reader *reader;
    struct slot *slots;
    uint32_t n_slots;
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
        in->slots = calloc(n_slots, sizeof(*in->slots));
        in->verified = calloc(n_tensors + 1, sizeof(*in->verified));
    }
    if (!in || !in->slots || !in->verified) {
        sl_dense_reader_destroy(in);
        return sl_err_set(err, -ENOMEM, "reader of dense weights: out of memory");
    }
    in->weights.ops = &ops;
    in->files = files;
    in->reader = reader;
    in->n_slots = n_slots;
    in->verify = verify;
    *ret_reader = in;
    return 0;
}

void sl_dense_reader_destroy(struct sl_dense_reader *reader)
{
    if (!reader)
        return;
    free(reader->slots);
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

static void begin(struct sl_weight_reader *reader, uint32_t slot_index, const char *name,
                  uint64_t offset_bytes, uint64_t size_bytes, uint8_t *dst, bool urgent)
{
    struct sl_dense_reader *in = reader_of(reader);
    struct slot *slot = &in->slots[slot_index];
    const struct sl_extent extent = find(in, name);

    sl_assert(slot_index < in->n_slots && !slot->busy && !slot->late);
    sl_assert(offset_bytes + size_bytes <= extent.size_bytes);
    *slot = (struct slot){.read = {.offset_bytes = extent.offset_bytes + offset_bytes,
                                   .size_bytes = size_bytes,
                                   .dst = dst,
                                   .owner = slot,
                                   .file_index = extent.file_index,
                                   .read_class = urgent ? SL_READ_DEMAND : SL_READ_AHEAD,
                                   .user = SL_READS_OF_DENSE},
                          .name = name,
                          .busy = true};
    sl_reader_queue(in->reader, &slot->read);
}

static void start(struct sl_weight_reader *reader)
{
    sl_reader_start(reader_of(reader)->reader);
}

static void hurry(struct sl_weight_reader *reader, uint32_t slot_index)
{
    struct sl_dense_reader *in = reader_of(reader);
    struct slot *slot = &in->slots[slot_index];

    if (slot->busy && !slot->back && slot->read.read_class != SL_READ_DEMAND)
        sl_reader_set_class(in->reader, &slot->read, SL_READ_DEMAND);
}

static void cancel(struct sl_weight_reader *reader, uint32_t slot_index)
{
    struct sl_dense_reader *in = reader_of(reader);
    struct slot *slot = &in->slots[slot_index];

    if (slot->busy && !slot->back)
        sl_reader_cancel(in->reader, &slot->read);
}

/* Takes in what the reader hands back: each read once, or twice if its drive was late. */
static bool reap(struct sl_dense_reader *in, bool wait)
{
    struct sl_read *read = sl_reader_reap(in->reader, SL_READS_OF_DENSE, wait);
    struct slot *slot;

    if (!read)
        return false;
    slot = read->owner;
    slot->back = true;
    slot->late = read->late;
    return true;
}

static int end(struct sl_weight_reader *reader, uint32_t slot_index, bool wait,
               const uint8_t **ret_bytes, struct sl_err *err)
{
    struct sl_dense_reader *in = reader_of(reader);
    struct slot *slot = &in->slots[slot_index];

    sl_assert(slot->busy);
    while (!slot->back)
        if (!reap(in, wait) && !slot->back) {
            sl_assert(!wait); /* a read that is out comes back */
            return 0;
        }
    slot->busy = false;
    if (slot->read.rc == -ECANCELED)
        return sl_err_set(err, -ECANCELED, "tensor \"%s\": not read any more", slot->name);
    if (slot->read.rc < 0) {
        sl_reader_explain(in->reader, &slot->read, err);
        return sl_err_prefix(err, slot->read.rc, "tensor \"%s\"", slot->name);
    }
    *ret_bytes = slot->read.dst + slot->read.offset_bytes % SL_BLOCK_BYTES;
    return 1;
}

static bool is_free(struct sl_weight_reader *reader, uint32_t slot_index)
{
    struct sl_dense_reader *in = reader_of(reader);
    const struct slot *slot = &in->slots[slot_index];

    while (slot->late && reap(in, false)) /* its drive may have answered meanwhile */
        ;
    return !slot->busy && !slot->late;
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
