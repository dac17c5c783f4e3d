/* Checksums of data on disk: XXH3 with 64 bits. They find accidents, not attacks.
 *
 * No shared state: any thread may call, each stream belongs to one at a time. */
#ifndef SL_STORAGE_IO_CHECKSUM_H
#define SL_STORAGE_IO_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

uint64_t sl_checksum(const void *data, size_t size_bytes);

/* Another seed gives another function; seed 0 is sl_checksum(). */
uint64_t sl_checksum_seeded(const void *data, size_t size_bytes, uint64_t seed);

/* A checksum that is computed piece by piece: the result is sl_checksum() of all added bytes
 * together. */
struct sl_checksum_stream;

/* Returns NULL when out of memory. */
struct sl_checksum_stream *sl_checksum_stream_create(void);

/* NULL is allowed. */
void sl_checksum_stream_destroy(struct sl_checksum_stream *stream);

/* Forgets what was added. */
void sl_checksum_stream_reset(struct sl_checksum_stream *stream);
void sl_checksum_stream_add(struct sl_checksum_stream *stream, const void *data, size_t size_bytes);
uint64_t sl_checksum_stream_value(const struct sl_checksum_stream *stream);

#endif
