#include "storage/pack/store_records.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/size.h"
#include "core/kernels/r16.h"
#include "core/model/expert_pack.h"
#include "storage/io/checksum.h"
#include "storage/store/record_read.h"

static uint64_t staging_bytes(const struct sl_expert_shape *shape)
{
    return sl_round_up(sl_record_read_staging_bytes(shape), SL_BLOCK_BYTES);
}

uint64_t sl_record_maker_bytes(const struct sl_expert_shape *shape)
{
    return staging_bytes(shape) + sl_packed_expert_bytes(shape);
}

int sl_record_maker_init(struct sl_record_maker *maker, const struct sl_record_source *source)
{
    const struct sl_expert_shape *shape = sl_expert_map_shape(source->experts);

    *maker = (struct sl_record_maker){
        .source = *source,
        .staging = aligned_alloc(SL_BLOCK_BYTES, staging_bytes(shape)),
        .record = aligned_alloc(SL_BLOCK_BYTES, sl_packed_expert_bytes(shape)),
    };
    return maker->staging && maker->record ? 0 : -ENOMEM;
}

int sl_record_maker_compress(struct sl_record_maker *maker)
{
    sl_assert(!maker->encoder);
    maker->encoder = sl_record_encoder_create(sl_expert_map_shape(maker->source.experts));
    return maker->encoder ? 0 : -ENOMEM;
}

void sl_record_maker_fini(struct sl_record_maker *maker)
{
    free(maker->staging);
    free(maker->record);
    sl_record_encoder_destroy(maker->encoder);
}

static int read_extent(const struct sl_checkpoint *checkpoint, const struct sl_extent *extent,
                       uint8_t **staging, const uint8_t **ret_bytes, struct sl_err *err)
{
    int rc = sl_checkpoint_read(checkpoint, extent->file_index, extent->offset_bytes,
                                extent->size_bytes, *staging, err);

    *ret_bytes = *staging;
    *staging += extent->size_bytes;
    return rc;
}

/* Fills maker->record with the tiles of a checkpoint's expert. */
static int repack(struct sl_record_maker *maker, struct sl_expert_key key,
                  uint64_t ret_checksums[SL_EXPERT_MATRICES], struct sl_err *err)
{
    const struct sl_record_source *source = &maker->source;
    const struct sl_expert_shape *shape = sl_expert_map_shape(source->experts);
    const struct sl_checkpoint_expert *from = sl_expert_map_find(source->experts, key);
    const enum sl_dtype scale_dtype = sl_expert_map_scale_dtype(source->experts);
    const uint8_t *codes[SL_EXPERT_MATRICES], *scales[SL_EXPERT_MATRICES];
    uint8_t *staging = maker->staging;
    char text[SL_EXPERT_TEXT_BYTES];
    int rc = 0;

    sl_assert(from);
    /* The release has codes and scales in this order, so reading goes through two runs of bytes. */
    for (int m = 0; m < SL_EXPERT_MATRICES && rc == 0; m++)
        rc = read_extent(source->checkpoint, &from->scales[m], &staging, &scales[m], err);
    for (int m = 0; m < SL_EXPERT_MATRICES && rc == 0; m++)
        rc = read_extent(source->checkpoint, &from->codes[m], &staging, &codes[m], err);
    for (int m = 0; m < SL_EXPERT_MATRICES && rc == 0; m++) {
        const struct sl_expert_rows rows = {codes[m], scales[m], scale_dtype};
        uint8_t *packed = maker->record + sl_expert_matrix_offset_bytes(shape, m);
        uint64_t size_bytes = sl_expert_matrix_bytes(shape, m);

        if (sl_expert_pack(shape, m, &rows, 0, sl_r16_tile_count(sl_expert_matrix_rows(shape, m)),
                           packed) < 0)
            rc = sl_err_set(err, -SL_ECORRUPT, "%s: %s has %s",
                            sl_expert_map_file_path(source->experts, from->scales[m].file_index),
                            sl_expert_matrix_name(m), sl_expert_unsound_text(shape->expert_dtype));
        memset(packed + size_bytes, 0, sl_round_up(size_bytes, SL_BLOCK_BYTES) - size_bytes);
        ret_checksums[m] = sl_checksum(packed, size_bytes);
    }
    return rc < 0 ? sl_err_prefix(err, rc, "%s", sl_expert_format(shape, key, text)) : 0;
}

/* Fills maker->record from a store. */
static int read_packed(struct sl_record_maker *maker, struct sl_expert_key key,
                       uint64_t ret_checksums[SL_EXPERT_MATRICES], struct sl_err *err)
{
    const struct sl_record_source *source = &maker->source;

    memcpy(ret_checksums, sl_store_expert(source->store, key)->checksums,
           SL_EXPERT_MATRICES * sizeof(*ret_checksums));
    return sl_record_read(source->store, source->fds, source->paths, key, maker->staging,
                          maker->record, err);
}

int sl_record_make(struct sl_record_maker *maker, struct sl_expert_key key,
                   struct sl_packed_expert *ret_expert, const uint8_t **ret_record,
                   uint64_t *ret_bytes, struct sl_err *err)
{
    const struct sl_expert_shape *shape = sl_expert_map_shape(maker->source.experts);
    uint64_t stored_bytes = 0;
    int rc = maker->source.store ? read_packed(maker, key, ret_expert->checksums, err)
                                 : repack(maker, key, ret_expert->checksums, err);

    if (rc < 0)
        return rc;
    if (maker->encoder)
        stored_bytes =
            sl_record_compress(maker->encoder, maker->record, maker->staging, &maker->gain);
    ret_expert->compressed = stored_bytes > 0;
    *ret_record = stored_bytes > 0 ? maker->staging : maker->record;
    *ret_bytes = stored_bytes > 0 ? stored_bytes : sl_packed_expert_bytes(shape);
    ret_expert->stored_checksum = stored_bytes > 0 ? sl_checksum(maker->staging, stored_bytes) : 0;
    return 0;
}

int sl_record_write(struct sl_file_writer *writer, const int *files, const char *const *paths,
                    const struct sl_packed_expert *expert, const uint8_t *record,
                    struct sl_err *err)
{
    for (uint32_t i = 0; i < expert->n_parts; i++) {
        const struct sl_extent *part = &expert->parts[i];
        int rc = writer->ops->write(writer, files[part->file_index], part->offset_bytes, record,
                                    part->size_bytes);

        if (rc < 0)
            return sl_write_error(err, rc, paths[part->file_index], "write");
        record += part->size_bytes;
    }
    return 0;
}

static int copy_chunks(struct sl_weight_source *weights, const char *name, uint64_t size_bytes,
                       const struct sl_tensor_target *target, uint8_t *buffer,
                       struct sl_checksum_stream *stream, struct sl_err *err)
{
    for (uint64_t at = 0; at < size_bytes; at += SL_TENSOR_BUFFER_BYTES) {
        uint64_t n =
            size_bytes - at < SL_TENSOR_BUFFER_BYTES ? size_bytes - at : SL_TENSOR_BUFFER_BYTES;
        uint64_t padded = sl_round_up(n, SL_BLOCK_BYTES);
        int rc = weights->ops->read(weights, name, at, n, buffer, err);

        if (rc < 0)
            return rc;
        sl_checksum_stream_add(stream, buffer, n);
        if (!target->writer)
            continue;
        memset(buffer + n, 0, padded - n);
        rc = target->writer->ops->write(target->writer, target->file, target->offset_bytes + at,
                                        buffer, padded);
        if (rc < 0)
            return sl_write_error(err, rc, target->path, "write");
    }
    return 0;
}

int sl_tensor_copy(struct sl_weight_source *weights, const char *name, uint64_t size_bytes,
                   const struct sl_tensor_target *target, uint8_t *buffer, uint64_t *ret_checksum,
                   struct sl_err *err)
{
    struct sl_checksum_stream *stream = sl_checksum_stream_create();
    int rc;

    if (!stream)
        return sl_err_set(err, -ENOMEM, "tensor \"%s\": out of memory", name);
    rc = copy_chunks(weights, name, size_bytes, target, buffer, stream, err);
    if (rc == 0)
        *ret_checksum = sl_checksum_stream_value(stream);
    sl_checksum_stream_destroy(stream);
    return rc;
}
