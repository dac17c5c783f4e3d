#include "daemon/engine/weight_progress.h"

static int find(struct sl_weight_source *source, const char *name, struct sl_tensor_info *ret_info)
{
    struct sl_weight_source *inner = ((struct sl_weight_progress *)source)->inner;

    return inner->ops->find(inner, name, ret_info);
}

static int read_part(struct sl_weight_source *source, const char *name, uint64_t offset_bytes,
                     uint64_t size_bytes, void *dst, struct sl_err *err)
{
    struct sl_weight_progress *in = (struct sl_weight_progress *)source;
    int rc = in->inner->ops->read(in->inner, name, offset_bytes, size_bytes, dst, err);

    in->read_bytes += size_bytes;
    if (in->on_progress)
        in->on_progress(in->context, in->read_bytes, in->total_bytes);
    return rc;
}

static const char *where(struct sl_weight_source *source, const char *name)
{
    struct sl_weight_source *inner = ((struct sl_weight_progress *)source)->inner;

    return inner->ops->where(inner, name);
}

void sl_weight_progress_init(struct sl_weight_progress *progress, struct sl_weight_source *inner,
                             uint64_t total_bytes, sl_progress_fn *on_progress, void *context)
{
    static const struct sl_weight_source_ops ops = {find, read_part, where};

    *progress = (struct sl_weight_progress){.source = {&ops},
                                            .inner = inner,
                                            .total_bytes = total_bytes,
                                            .on_progress = on_progress,
                                            .context = context};
}
