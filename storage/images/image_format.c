#include "storage/images/image_format.h"

#include <stdio.h>
#include <string.h>

/* Offsets in the header. */
enum {
    AT_MAGIC = 0,
    AT_VERSION = 8,
    AT_FLAGS = 12,
    AT_MODEL = 16,
    AT_PREFIX = 24,
    AT_BASE_PREFIX = 32,
    AT_FIRST_TOKEN = 40,
    AT_END_TOKEN = 44,
    AT_PART_BYTES = 48,
    AT_CHECKSUMS = AT_PART_BYTES + 8 * SL_IMAGE_PARTS,
    AT_ZEROS = AT_CHECKSUMS + 8 * SL_IMAGE_PARTS,
    AT_CHECKSUM = SL_IMAGE_HEADER_BYTES - 8,
};

enum { FLAG_EXACT = 1, FLAG_MTP = 2 };

static const char magic[8] = {'S', 'L', 'U', 'I', 'C', 'E', 'I', 'M'};

static void put(uint8_t *bytes, uint64_t value, uint32_t n_bytes)
{
    for (uint32_t i = 0; i < n_bytes; i++)
        bytes[i] = (uint8_t)(value >> 8 * i);
}

static uint64_t get(const uint8_t *bytes, uint32_t n_bytes)
{
    uint64_t value = 0;

    for (uint32_t i = 0; i < n_bytes; i++)
        value |= (uint64_t)bytes[i] << 8 * i;
    return value;
}

static uint32_t flags_of(const struct sl_image_owner *owner)
{
    return (owner->exact ? FLAG_EXACT : 0) | (owner->with_mtp ? FLAG_MTP : 0);
}

/* ---- places ------------------------------------------------------------------------------------
 */

uint64_t sl_image_part_stored_bytes(const struct sl_image_header *header, enum sl_image_part part)
{
    return sl_round_up(header->part_bytes[part], SL_BLOCK_BYTES);
}

uint64_t sl_image_part_offset(const struct sl_image_header *header, enum sl_image_part part)
{
    uint64_t offset = SL_IMAGE_HEADER_BYTES;

    for (int i = 0; i < (int)part; i++)
        offset += sl_image_part_stored_bytes(header, (enum sl_image_part)i);
    return offset;
}

uint64_t sl_image_file_bytes(const struct sl_image_header *header)
{
    return sl_image_part_offset(header, SL_IMAGE_PARTS);
}

/* ---- the header --------------------------------------------------------------------------------
 */

void sl_image_header_encode(const struct sl_image_header *header,
                            uint8_t bytes[SL_IMAGE_HEADER_BYTES])
{
    memset(bytes, 0, SL_IMAGE_HEADER_BYTES);
    memcpy(bytes + AT_MAGIC, magic, sizeof(magic));
    put(bytes + AT_VERSION, header->version, 4);
    put(bytes + AT_FLAGS, flags_of(&header->owner), 4);
    put(bytes + AT_MODEL, header->owner.model, 8);
    put(bytes + AT_PREFIX, header->prefix, 8);
    put(bytes + AT_BASE_PREFIX, header->base_prefix, 8);
    put(bytes + AT_FIRST_TOKEN, header->first_token, 4);
    put(bytes + AT_END_TOKEN, header->end_token, 4);
    for (int i = 0; i < SL_IMAGE_PARTS; i++) {
        put(bytes + AT_PART_BYTES + 8 * i, header->part_bytes[i], 8);
        put(bytes + AT_CHECKSUMS + 8 * i, header->checksums[i], 8);
    }
    put(bytes + AT_CHECKSUM, sl_checksum(bytes, AT_CHECKSUM), 8);
}

static bool sizes_are_sound(const struct sl_image_header *header)
{
    const uint64_t *bytes = header->part_bytes;

    return header->first_token < header->end_token && header->end_token <= SL_IMAGE_TOKENS_MAX &&
           bytes[SL_IMAGE_IDS] == UINT64_C(4) * (header->end_token - header->first_token) &&
           bytes[SL_IMAGE_ENTRIES] <= SL_IMAGE_PART_BYTES_MAX &&
           bytes[SL_IMAGE_MARK] <= SL_IMAGE_PART_BYTES_MAX;
}

bool sl_image_header_decode(struct sl_image_header *header,
                            const uint8_t bytes[SL_IMAGE_HEADER_BYTES])
{
    const uint64_t flags = get(bytes + AT_FLAGS, 4);

    *header = (struct sl_image_header){.version = (uint32_t)get(bytes + AT_VERSION, 4)};
    if (memcmp(bytes + AT_MAGIC, magic, sizeof(magic)) != 0 ||
        get(bytes + AT_CHECKSUM, 8) != sl_checksum(bytes, AT_CHECKSUM))
        return false;
    if (header->version != SL_IMAGE_VERSION)
        return true;
    for (uint32_t i = AT_ZEROS; i < AT_CHECKSUM; i++)
        if (bytes[i] != 0)
            return false;
    header->owner = (struct sl_image_owner){.model = get(bytes + AT_MODEL, 8),
                                            .exact = flags & FLAG_EXACT,
                                            .with_mtp = flags & FLAG_MTP};
    header->prefix = get(bytes + AT_PREFIX, 8);
    header->base_prefix = get(bytes + AT_BASE_PREFIX, 8);
    header->first_token = (uint32_t)get(bytes + AT_FIRST_TOKEN, 4);
    header->end_token = (uint32_t)get(bytes + AT_END_TOKEN, 4);
    for (int i = 0; i < SL_IMAGE_PARTS; i++) {
        header->part_bytes[i] = get(bytes + AT_PART_BYTES + 8 * i, 8);
        header->checksums[i] = get(bytes + AT_CHECKSUMS + 8 * i, 8);
    }
    return flags == flags_of(&header->owner) && sizes_are_sound(header);
}

bool sl_image_part_is_sound(const struct sl_image_header *header, enum sl_image_part part,
                            const uint8_t *bytes)
{
    return sl_checksum(bytes, sl_image_part_stored_bytes(header, part)) == header->checksums[part];
}

bool sl_image_owner_equal(const struct sl_image_owner *a, const struct sl_image_owner *b)
{
    return a->model == b->model && flags_of(a) == flags_of(b);
}

/* ---- names -------------------------------------------------------------------------------------
 */

void sl_image_prefix_begin(struct sl_checksum_stream *stream, const struct sl_image_owner *owner)
{
    uint8_t bytes[16];

    put(bytes, SL_IMAGE_VERSION, 4);
    put(bytes + 4, flags_of(owner), 4);
    put(bytes + 8, owner->model, 8);
    sl_checksum_stream_reset(stream);
    sl_checksum_stream_add(stream, bytes, sizeof(bytes));
}

/* Token ids are little-endian on disk, and in the memory of every machine that this runs on. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "token ids are hashed as they lie");

void sl_image_prefix_add(struct sl_checksum_stream *stream, const int32_t *tokens,
                         uint32_t n_tokens)
{
    sl_checksum_stream_add(stream, tokens, n_tokens * sizeof(*tokens));
}

void sl_image_name(uint64_t prefix, char name[SL_IMAGE_NAME_BYTES])
{
    snprintf(name, SL_IMAGE_NAME_BYTES, "%016llx" SL_IMAGE_SUFFIX, (unsigned long long)prefix);
}

bool sl_image_name_parse(const char *name, uint64_t *ret_prefix, bool *ret_new)
{
    char expected[SL_IMAGE_NAME_BYTES];
    uint64_t prefix = 0;
    size_t length;

    for (int i = 0; i < 16; i++) {
        static const char digits[] = "0123456789abcdef";
        const char *digit = name[i] ? strchr(digits, name[i]) : NULL;

        if (!digit)
            return false;
        prefix = prefix << 4 | (uint64_t)(digit - digits);
    }
    sl_image_name(prefix, expected);
    length = strlen(expected);
    if (strncmp(name, expected, length) != 0 ||
        (name[length] != '\0' && strcmp(name + length, SL_IMAGE_NEW) != 0))
        return false;
    *ret_prefix = prefix;
    *ret_new = name[length] != '\0';
    return true;
}
