/* Compresses expert records with zstd, and unpacks them.
 *
 * A record of R16 tiles (storage/experts/expert_map.h) is cut into chunks: runs of
 * SL_CODEC_CHUNK_TILES tiles of one matrix, which threads unpack beside each other. The scales of a
 * chunk and its codes are kept apart, each as one zstd frame where that takes at most half the
 * room, and as they are otherwise. docs/FORMAT.md describes the bytes, docs/PERFORMANCE.md says why
 * half.
 *
 * Stored bytes are not trusted: whatever they are, they are refused, or give as many tiles as there
 * is room for. An encoder or decoder is used by one thread at a time. */
#ifndef SL_STORAGE_STORE_CODEC_H
#define SL_STORAGE_STORE_CODEC_H

#include <stdbool.h>
#include <stdint.h>

#include "core/model/expert_shape.h"

#define SL_CODEC_CHUNK_TILES 32u
#define SL_CODEC_CHUNKS_MAX (SL_EXPERT_MATRICES * SL_EXPERT_MATRIX_TILES_MAX / SL_CODEC_CHUNK_TILES)

/* ---- packing ----------------------------------------------------------------------------------
 */

/* How much smaller scales and codes became by compressing. */
struct sl_codec_gain {
    uint64_t scales_bytes, scales_stored_bytes;
    uint64_t codes_bytes, codes_stored_bytes;
};

struct sl_record_encoder;

/* Returns NULL when out of memory. sl_record_encoder_destroy() takes NULL. */
struct sl_record_encoder *sl_record_encoder_create(const struct sl_expert_shape *shape);
void sl_record_encoder_destroy(struct sl_record_encoder *encoder);

/* Compresses the record to `stored`, in whole blocks, and returns its size. Returns 0 if that does
 * not save a 32nd: then the plain record should be stored, since it can be read straight into a
 * slot. Both buffers have sl_packed_expert_bytes(). Equal records give equal bytes, as long as zstd
 * is of the same version. Adds the sizes before and after to *gain. */
uint64_t sl_record_compress(struct sl_record_encoder *encoder, const uint8_t *record,
                            uint8_t *stored, struct sl_codec_gain *gain);

/* ---- unpacking --------------------------------------------------------------------------------
 * Allocates nothing. */

/* A run of a matrix's tiles, which begin codes_offset_bytes bytes into the record. FP4: n_groups
 * groups, each with its scales before its codes. FP8: the codes alone, and the scales of the blocks
 * of rows that begin in these tiles lie scales_offset_bytes bytes into the record; n_groups is 0.
 */
struct sl_record_chunk {
    int matrix;
    uint32_t n_groups;
    uint64_t codes_offset_bytes, scales_offset_bytes;
    uint32_t scales_bytes, codes_bytes;               /* in the record */
    const uint8_t *scales, *codes;                    /* as stored */
    uint32_t scales_stored_bytes, codes_stored_bytes; /* likewise */
};

struct sl_record_index {
    uint32_t n_chunks;
    struct sl_record_chunk chunks[SL_CODEC_CHUNKS_MAX];
};

/* Finds the chunks of a record that sl_record_compress() made; they point into `stored`. Returns
 * false if the bytes are no such record. */
bool sl_record_index_read(struct sl_record_index *index, const struct sl_expert_shape *shape,
                          const uint8_t *stored, uint64_t stored_bytes);

/* A decoder lies in the caller's memory, aligned to 64 bytes, and need not be destroyed. */
struct sl_record_decoder;
uint64_t sl_record_decoder_bytes(const struct sl_expert_shape *shape);
struct sl_record_decoder *sl_record_decoder_init(uint8_t *memory);

/* Unpacks a chunk to its place in `record`, and touches no other. Returns false if it is corrupt;
 * the chunk's place is undefined then. */
bool sl_record_unpack(struct sl_record_decoder *decoder, const struct sl_record_chunk *chunk,
                      uint8_t *record);

#endif
