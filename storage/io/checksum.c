#include "storage/io/checksum.h"

#include <xxhash.h>

#include "core/base/assert.h"

/* The library's own state is the stream. */
static XXH3_state_t *state_of(const struct sl_checksum_stream *stream)
{
    return (XXH3_state_t *)(uintptr_t)stream;
}

uint64_t sl_checksum(const void *data, size_t size_bytes)
{
    return XXH3_64bits(data, size_bytes);
}

uint64_t sl_checksum_seeded(const void *data, size_t size_bytes, uint64_t seed)
{
    return XXH3_64bits_withSeed(data, size_bytes, seed);
}

struct sl_checksum_stream *sl_checksum_stream_create(void)
{
    XXH3_state_t *state = XXH3_createState();

    if (state)
        XXH3_64bits_reset(state);
    return (struct sl_checksum_stream *)(void *)state;
}

void sl_checksum_stream_destroy(struct sl_checksum_stream *stream)
{
    XXH3_freeState(state_of(stream));
}

void sl_checksum_stream_reset(struct sl_checksum_stream *stream)
{
    XXH3_64bits_reset(state_of(stream));
}

void sl_checksum_stream_add(struct sl_checksum_stream *stream, const void *data, size_t size_bytes)
{
    /* The one failure is a null pointer. */
    sl_assert(XXH3_64bits_update(state_of(stream), data, size_bytes) == XXH_OK);
}

uint64_t sl_checksum_stream_value(const struct sl_checksum_stream *stream)
{
    return XXH3_64bits_digest(state_of(stream));
}
