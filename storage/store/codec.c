/* Cuts records into chunks, and owns the calls to zstd.
 *
 *     stored record:  sizes of chunk 0, 1, ... | scales, codes of chunk 0 | of chunk 1 ... | zeros
 */
#define ZSTD_STATIC_LINKING_ONLY /* decoders in the caller's memory; in zstd since 1.3 */
#include "storage/store/codec.h"

#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "core/base/assert.h"
#include "core/base/size.h"
#include "core/kernels/r16.h"

/* zstd's level: level 1 is no faster to unpack, and level 9 takes ten times as long to save a
 * hundredth more. */
#define LEVEL 3

#define FP8_BLOCK_TILES (SL_FP8_BLOCK / SL_R16_ROWS) /* that share a row of scales */
#define SCALES_BYTES 64u                             /* of an FP4 group; its codes follow */
#define CODES_BYTES (SL_FP4_GROUP_BYTES - SCALES_BYTES)
#define CHUNK_HEAD_BYTES 8u /* two sizes */

#define SAVED_MIN 32u /* 1 / 32 of a record: scales that take a fifth save 1 / 21 */

_Static_assert(SL_CODEC_CHUNK_TILES *UINT64_C(65536) * SL_R16_ROWS < UINT32_MAX,
               "sizes of a chunk fit their fields");
_Static_assert(SL_CODEC_CHUNK_TILES % FP8_BLOCK_TILES == 0, "no chunk cuts a block of rows");

/* ---- chunks -----------------------------------------------------------------------------------
 */

static struct sl_record_chunk chunk_of(const struct sl_expert_shape *shape, int matrix,
                                       size_t first_tile, size_t n_tiles)
{
    const size_t cols = sl_expert_matrix_cols(shape, matrix);
    const uint64_t at = sl_expert_matrix_offset_bytes(shape, matrix);
    const size_t row_of_scales = cols / SL_FP8_BLOCK * sizeof(float);
    struct sl_record_chunk chunk = {
        .matrix = matrix,
        .codes_offset_bytes = at + first_tile * sl_expert_tile_bytes(shape, matrix),
    };

    if (shape->expert_dtype == SL_EXPERT_FP8) {
        chunk.codes_bytes = (uint32_t)(n_tiles * sl_expert_tile_bytes(shape, matrix));
        chunk.scales_offset_bytes = at + sl_expert_tiles_bytes(shape, matrix) +
                                    first_tile / FP8_BLOCK_TILES * row_of_scales;
        chunk.scales_bytes = (uint32_t)(n_tiles / FP8_BLOCK_TILES * row_of_scales);
    } else {
        chunk.n_groups = (uint32_t)(n_tiles * (cols / SL_FP4_GROUP_COLS));
        chunk.codes_bytes = chunk.n_groups * CODES_BYTES;
        chunk.scales_bytes = chunk.n_groups * SCALES_BYTES;
    }
    return chunk;
}

/* Fills in the parts of the index that follow from the shape alone. */
static void cut(struct sl_record_index *index, const struct sl_expert_shape *shape)
{
    index->n_chunks = 0;
    for (int i = 0; i < SL_EXPERT_MATRICES; i++) {
        const int matrix = sl_expert_matrix_order[i];
        const size_t n_tiles = sl_r16_tile_count(sl_expert_matrix_rows(shape, matrix));

        for (size_t tile = 0; tile < n_tiles; tile += SL_CODEC_CHUNK_TILES) {
            size_t n =
                n_tiles - tile < SL_CODEC_CHUNK_TILES ? n_tiles - tile : SL_CODEC_CHUNK_TILES;

            sl_assert(index->n_chunks < SL_CODEC_CHUNKS_MAX);
            index->chunks[index->n_chunks++] = chunk_of(shape, matrix, tile, n);
        }
    }
}

static uint32_t groups_max(const struct sl_expert_shape *shape)
{
    const uint32_t cols = shape->hidden_size > shape->moe_intermediate_size
                              ? shape->hidden_size
                              : shape->moe_intermediate_size;

    return SL_CODEC_CHUNK_TILES * (cols / SL_FP4_GROUP_COLS);
}

/* ---- packing ----------------------------------------------------------------------------------
 */

struct sl_record_encoder {
    ZSTD_CCtx *context;
    uint8_t *scales, *codes; /* of a chunk, gathered */
    struct sl_record_index index;
    uint64_t record_bytes;
};

struct sl_record_encoder *sl_record_encoder_create(const struct sl_expert_shape *shape)
{
    struct sl_record_encoder *encoder = calloc(1, sizeof(*encoder));

    if (!encoder)
        return NULL;
    cut(&encoder->index, shape);
    encoder->record_bytes = sl_packed_expert_bytes(shape);
    encoder->context = ZSTD_createCCtx();
    encoder->scales = malloc((size_t)groups_max(shape) * SCALES_BYTES);
    encoder->codes = malloc((size_t)groups_max(shape) * CODES_BYTES);
    if (encoder->context && encoder->scales && encoder->codes)
        return encoder;
    sl_record_encoder_destroy(encoder);
    return NULL;
}

void sl_record_encoder_destroy(struct sl_record_encoder *encoder)
{
    if (!encoder)
        return;
    ZSTD_freeCCtx(encoder->context);
    free(encoder->scales);
    free(encoder->codes);
    free(encoder);
}

static void put_u32(uint8_t *bytes, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        bytes[i] = (uint8_t)(value >> 8 * i);
}

/* Stores a part compressed if its frame takes at most half the size, and otherwise as it is. zstd
 * is given no more room than that, so that it soon gives up on parts that do not compress. Returns
 * how many bytes were written, 0 if there is no room. */
static uint32_t put_part(ZSTD_CCtx *context, const uint8_t *part, uint32_t part_bytes, uint8_t *dst,
                         uint64_t room_bytes)
{
    const uint64_t half_bytes = part_bytes / 2;
    size_t size_bytes = ZSTD_compressCCtx(
        context, dst, room_bytes < half_bytes ? room_bytes : half_bytes, part, part_bytes, LEVEL);

    if (!ZSTD_isError(size_bytes))
        return (uint32_t)size_bytes;
    if (part_bytes > room_bytes)
        return 0;
    memcpy(dst, part, part_bytes);
    return part_bytes;
}

/* Points to a chunk's scales and codes, each in one piece: FP4's are brought together first. */
static void gather(struct sl_record_encoder *encoder, const struct sl_record_chunk *chunk,
                   const uint8_t *record, const uint8_t *ret_parts[2])
{
    const uint8_t *group = record + chunk->codes_offset_bytes;

    ret_parts[0] = chunk->n_groups ? encoder->scales : record + chunk->scales_offset_bytes;
    ret_parts[1] = chunk->n_groups ? encoder->codes : record + chunk->codes_offset_bytes;
    for (uint32_t i = 0; i < chunk->n_groups; i++, group += SL_FP4_GROUP_BYTES) {
        memcpy(encoder->scales + (size_t)i * SCALES_BYTES, group, SCALES_BYTES);
        memcpy(encoder->codes + (size_t)i * CODES_BYTES, group + SCALES_BYTES, CODES_BYTES);
    }
}

uint64_t sl_record_compress(struct sl_record_encoder *encoder, const uint8_t *record,
                            uint8_t *stored, struct sl_codec_gain *gain)
{
    const uint32_t n_chunks = encoder->index.n_chunks;
    const uint64_t limit_bytes =
        sl_round_down(encoder->record_bytes - encoder->record_bytes / SAVED_MIN, SL_BLOCK_BYTES);
    uint64_t at_bytes = (uint64_t)n_chunks * CHUNK_HEAD_BYTES;
    struct sl_codec_gain sum = *gain;
    uint64_t end_bytes;

    if (at_bytes > limit_bytes)
        return 0;
    for (uint32_t i = 0; i < n_chunks; i++) {
        const struct sl_record_chunk *chunk = &encoder->index.chunks[i];
        const uint32_t part_bytes[2] = {chunk->scales_bytes, chunk->codes_bytes};
        const uint8_t *parts[2];
        uint32_t size_bytes[2];

        gather(encoder, chunk, record, parts);
        for (int part = 0; part < 2; part++) {
            size_bytes[part] = put_part(encoder->context, parts[part], part_bytes[part],
                                        stored + at_bytes, limit_bytes - at_bytes);
            if (size_bytes[part] == 0)
                return 0;
            put_u32(stored + (size_t)i * CHUNK_HEAD_BYTES + 4 * part, size_bytes[part]);
            at_bytes += size_bytes[part];
        }
        sum.scales_bytes += part_bytes[0];
        sum.scales_stored_bytes += size_bytes[0];
        sum.codes_bytes += part_bytes[1];
        sum.codes_stored_bytes += size_bytes[1];
    }
    *gain = sum;
    end_bytes = sl_round_up(at_bytes, SL_BLOCK_BYTES);
    memset(stored + at_bytes, 0, end_bytes - at_bytes);
    return end_bytes;
}

/* ---- unpacking --------------------------------------------------------------------------------
 */

struct sl_record_decoder {
    ZSTD_DCtx *context; /* in the same memory */
    uint8_t *scales;    /* of a chunk, behind it */
};

static uint64_t align_64(uint64_t size_bytes)
{
    return sl_round_up(size_bytes, 64);
}

uint64_t sl_record_decoder_bytes(const struct sl_expert_shape *shape)
{
    return align_64(sizeof(struct sl_record_decoder)) + align_64(ZSTD_estimateDCtxSize()) +
           (uint64_t)groups_max(shape) * SCALES_BYTES;
}

struct sl_record_decoder *sl_record_decoder_init(uint8_t *memory)
{
    struct sl_record_decoder *decoder = (struct sl_record_decoder *)(void *)memory;

    memory += align_64(sizeof(*decoder));
    decoder->context = ZSTD_initStaticDCtx(memory, ZSTD_estimateDCtxSize());
    sl_assert(decoder->context); /* it was given what it asked for */
    decoder->scales = memory + align_64(ZSTD_estimateDCtxSize());
    return decoder;
}

static uint32_t get_u32(const uint8_t *bytes)
{
    return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 |
           (uint32_t)bytes[3] << 24;
}

bool sl_record_index_read(struct sl_record_index *index, const struct sl_expert_shape *shape,
                          const uint8_t *stored, uint64_t stored_bytes)
{
    uint64_t at_bytes;

    cut(index, shape);
    at_bytes = (uint64_t)index->n_chunks * CHUNK_HEAD_BYTES;
    if (at_bytes > stored_bytes)
        return false;
    for (uint32_t i = 0; i < index->n_chunks; i++) {
        struct sl_record_chunk *chunk = &index->chunks[i];
        const uint8_t *head = stored + (size_t)i * CHUNK_HEAD_BYTES;

        chunk->scales_stored_bytes = get_u32(head);
        chunk->codes_stored_bytes = get_u32(head + 4);
        chunk->scales = stored + at_bytes;
        chunk->codes = chunk->scales + chunk->scales_stored_bytes;
        if (chunk->scales_stored_bytes > chunk->scales_bytes ||
            chunk->codes_stored_bytes > chunk->codes_bytes ||
            (uint64_t)chunk->scales_stored_bytes + chunk->codes_stored_bytes >
                stored_bytes - at_bytes)
            return false;
        at_bytes += (uint64_t)chunk->scales_stored_bytes + chunk->codes_stored_bytes;
    }
    return sl_round_up(at_bytes, SL_BLOCK_BYTES) == stored_bytes;
}

/* Returns a part's bytes: where they are stored, or unpacked to `dst`; NULL if the part is
 * corrupt. */
static const uint8_t *get_part(ZSTD_DCtx *context, const uint8_t *part, uint32_t stored_bytes,
                               uint32_t part_bytes, uint8_t *dst)
{
    if (stored_bytes == part_bytes)
        return part;
    return ZSTD_decompressDCtx(context, dst, part_bytes, part, stored_bytes) == part_bytes ? dst
                                                                                           : NULL;
}

/* FP8: both parts go straight to their places. */
static bool unpack_apart(struct sl_record_decoder *decoder, const struct sl_record_chunk *chunk,
                         uint8_t *record)
{
    uint8_t *scales_to = record + chunk->scales_offset_bytes,
            *codes_to = record + chunk->codes_offset_bytes;
    const uint8_t *scales = get_part(decoder->context, chunk->scales, chunk->scales_stored_bytes,
                                     chunk->scales_bytes, scales_to);
    const uint8_t *codes = get_part(decoder->context, chunk->codes, chunk->codes_stored_bytes,
                                    chunk->codes_bytes, codes_to);

    if (!scales || !codes)
        return false;
    if (scales != scales_to)
        memcpy(scales_to, scales, chunk->scales_bytes);
    if (codes != codes_to)
        memcpy(codes_to, codes, chunk->codes_bytes);
    return true;
}

/* FP4: compressed codes are unpacked to the end of the chunk's place in the record. From there each
 * group of codes is copied forward to its own place, which never reaches the groups that are still
 * to be copied. */
static bool unpack_groups(struct sl_record_decoder *decoder, const struct sl_record_chunk *chunk,
                          uint8_t *record)
{
    uint8_t *group = record + chunk->codes_offset_bytes;
    const uint8_t *scales = get_part(decoder->context, chunk->scales, chunk->scales_stored_bytes,
                                     chunk->scales_bytes, decoder->scales);
    const uint8_t *codes = get_part(decoder->context, chunk->codes, chunk->codes_stored_bytes,
                                    chunk->codes_bytes, group + chunk->scales_bytes);

    if (!scales || !codes)
        return false;
    for (uint32_t i = 0; i < chunk->n_groups; i++, group += SL_FP4_GROUP_BYTES) {
        memcpy(group, scales + (size_t)i * SCALES_BYTES, SCALES_BYTES);
        memmove(group + SCALES_BYTES, codes + (size_t)i * CODES_BYTES, CODES_BYTES);
    }
    return true;
}

bool sl_record_unpack(struct sl_record_decoder *decoder, const struct sl_record_chunk *chunk,
                      uint8_t *record)
{
    return chunk->n_groups ? unpack_groups(decoder, chunk, record)
                           : unpack_apart(decoder, chunk, record);
}
