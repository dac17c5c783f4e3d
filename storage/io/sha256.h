/* SHA-256, as downloads are published with it: with OpenSSL, which has the processor's own
 * instructions for it. */
#ifndef SL_STORAGE_IO_SHA256_H
#define SL_STORAGE_IO_SHA256_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SL_SHA256_HEX 64 /* digits */

struct sl_sha256;

/* Begins a hash. NULL when out of memory. */
struct sl_sha256 *sl_sha256_create(void);
void sl_sha256_destroy(struct sl_sha256 *hash); /* NULL is allowed */

/* Begins anew, also after an end. */
void sl_sha256_reset(struct sl_sha256 *hash);
void sl_sha256_add(struct sl_sha256 *hash, const void *bytes, size_t n_bytes);

/* Ends it, and writes it in lower case with a zero behind it. */
void sl_sha256_end(struct sl_sha256 *hash, char ret_hex[SL_SHA256_HEX + 1]);

/* Whether text begins with 64 hexadecimal digits, and no more of them. */
bool sl_sha256_is_hex(const char *text);

#endif
