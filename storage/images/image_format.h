/* The bytes of an image file: a chunk of a sequence on disk, whose header says what it is.
 *
 *     header      1 block: struct sl_image_header, with a checksum of its own at the end
 *     ids         the chunk's token ids, u32 each
 *     entries     what the KV cache holds of these tokens and keeps
 *     mark        what the KV cache holds after the last one and will overwrite; or nothing: then
 *                 others continue here, but no sequence begins here
 *
 * Each part is filled up with zeros to whole blocks and has a checksum in the header. To this
 * folder, entries and marks are bytes of a known number.
 *
 * A file is named after its prefix: the checksum of what it belongs to (model, numerics, format)
 * and of all token ids from the sequence's first to the chunk's last. It names the prefix that it
 * continues, so that files form a tree. docs/FORMAT.md describes every byte. Pure functions. */
#ifndef SL_STORAGE_IMAGES_IMAGE_FORMAT_H
#define SL_STORAGE_IMAGES_IMAGE_FORMAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/size.h"
#include "storage/io/checksum.h"

/* Also changes where the same model makes other entries of the same tokens: docs/NUMERICS.md. */
#define SL_IMAGE_VERSION 4u

#define SL_IMAGE_HEADER_BYTES SL_BLOCK_BYTES
#define SL_IMAGE_TOKENS_MAX (UINT32_C(1) << 24)
#define SL_IMAGE_PART_BYTES_MAX (UINT64_C(1) << 40)

/* Whose image it is: what it depends on beside the tokens. It serves nobody else. */
struct sl_image_owner {
    uint64_t model; /* tells the weights and the config: see sl_model_identity() */
    bool exact;     /* numerics */
    bool with_mtp;  /* entries of the MTP block are there, which no released model's makes */
};

enum sl_image_part { SL_IMAGE_IDS, SL_IMAGE_ENTRIES, SL_IMAGE_MARK, SL_IMAGE_PARTS };

struct sl_image_header {
    uint32_t version; /* of another one, nothing else is known */
    struct sl_image_owner owner;
    uint64_t prefix;      /* of the tokens up to end_token */
    uint64_t base_prefix; /* of those up to first_token */
    uint32_t first_token, end_token;
    uint64_t part_bytes[SL_IMAGE_PARTS]; /* without the zeros */
    uint64_t checksums[SL_IMAGE_PARTS];  /* with the zeros */
};

/* Each part's place, and the size of a file with all of them. */
uint64_t sl_image_part_offset(const struct sl_image_header *header, enum sl_image_part part);
uint64_t sl_image_part_stored_bytes(const struct sl_image_header *header, enum sl_image_part part);
uint64_t sl_image_file_bytes(const struct sl_image_header *header);

void sl_image_header_encode(const struct sl_image_header *header,
                            uint8_t bytes[SL_IMAGE_HEADER_BYTES]);

/* Returns false for bytes that the encoder would not have written; of another version, whose
 * header is sound, only the version is read. */
bool sl_image_header_decode(struct sl_image_header *header,
                            const uint8_t bytes[SL_IMAGE_HEADER_BYTES]);

/* Returns whether the bytes of a part that lie in memory, with their zeros, have the checksum that
 * the header names. */
bool sl_image_part_is_sound(const struct sl_image_header *header, enum sl_image_part part,
                            const uint8_t *bytes);

bool sl_image_owner_equal(const struct sl_image_owner *a, const struct sl_image_owner *b);

/* ---- names -------------------------------------------------------------------------------------
 */

/* The prefix of tokens, longer and longer: begin() forgets all, add() appends tokens. */
void sl_image_prefix_begin(struct sl_checksum_stream *stream, const struct sl_image_owner *owner);
void sl_image_prefix_add(struct sl_checksum_stream *stream, const int32_t *tokens,
                         uint32_t n_tokens);

/* A file's name, and that of one that is being written. */
#define SL_IMAGE_NAME_BYTES 32u
#define SL_IMAGE_SUFFIX ".image"
#define SL_IMAGE_NEW ".new"
void sl_image_name(uint64_t prefix, char name[SL_IMAGE_NAME_BYTES]);

/* Returns whether a name is that of an image, and of which; *ret_new says whether it is of one that
 * is being written. */
bool sl_image_name_parse(const char *name, uint64_t *ret_prefix, bool *ret_new);

#endif
