/* The header of an image from anywhere: whatever is accepted is sound in itself, so that places and
 * sizes do not overflow, and is what would have been written. Headers are tried as they are, and
 * with the checksum that makes them whole, which a fuzzer would not find; and so are names. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "core/base/assert.h"
#include "storage/images/image_format.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_header(const uint8_t bytes[SL_IMAGE_HEADER_BYTES])
{
    uint8_t again[SL_IMAGE_HEADER_BYTES];
    struct sl_image_header header;

    if (!sl_image_header_decode(&header, bytes) || header.version != SL_IMAGE_VERSION)
        return;
    sl_image_header_encode(&header, again);
    sl_assert(memcmp(again, bytes, sizeof(again)) == 0);
    sl_assert(header.first_token < header.end_token && header.end_token <= SL_IMAGE_TOKENS_MAX);
    sl_assert(sl_image_file_bytes(&header) % SL_BLOCK_BYTES == 0);
    sl_assert(sl_image_file_bytes(&header) < 3 * SL_IMAGE_PART_BYTES_MAX);
    for (int i = 0; i < SL_IMAGE_PARTS; i++)
        sl_assert(sl_image_part_offset(&header, (enum sl_image_part)i) + header.part_bytes[i] <=
                  sl_image_file_bytes(&header));
}

static void check_name(const uint8_t *data, size_t size)
{
    char name[64] = "", again[SL_IMAGE_NAME_BYTES];
    uint64_t prefix;
    bool is_new;

    memcpy(name, data, size < sizeof(name) - 1 ? size : sizeof(name) - 1);
    if (!sl_image_name_parse(name, &prefix, &is_new))
        return;
    sl_image_name(prefix, again);
    sl_assert(strncmp(name, again, strlen(again)) == 0);
    sl_assert(strcmp(name + strlen(again), is_new ? SL_IMAGE_NEW : "") == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t bytes[SL_IMAGE_HEADER_BYTES] = {0};
    uint64_t checksum;

    check_name(data, size);
    memcpy(bytes, data, size < sizeof(bytes) ? size : sizeof(bytes));
    check_header(bytes);
    checksum = sl_checksum(bytes, sizeof(bytes) - sizeof(checksum));
    memcpy(bytes + sizeof(bytes) - sizeof(checksum), &checksum, sizeof(checksum));
    check_header(bytes);
    return 0;
}
