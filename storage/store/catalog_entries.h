/* A catalog's entries in memory: keys and values, the keys ascending by their bytes. Sealed, they
 * are a file: the entries in a row with one checksum over all of them, which finds a flipped bit
 * anywhere (docs/FORMAT.md).
 *
 * The meaning of the values is known to storage/store/store_format.h only. No shared state. */
#ifndef SL_STORAGE_STORE_CATALOG_ENTRIES_H
#define SL_STORAGE_STORE_CATALOG_ENTRIES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/err.h"

#define SL_CATALOG_KEY_BYTES_MAX 320u
#define SL_CATALOG_BYTES_MAX (UINT64_C(1) << 30) /* room for some million experts */

/* A zeroed list is empty. */
struct sl_catalog_entries {
    uint8_t *bytes; /* the file's, but for the checksum at its end, for which there is room */
    size_t size_bytes, room_bytes;
    uint32_t n_entries;
    size_t last_key_at; /* in bytes */
};

/* Frees the entries and zeroes them. Zeroed ones are allowed. */
void sl_catalog_entries_fini(struct sl_catalog_entries *entries);

/* Appends an entry. Fails with -ENOMEM, or -SL_EFORMAT for a key that is empty, too long, has
 * control characters or does not come after the last one. */
int sl_catalog_entries_add(struct sl_catalog_entries *entries, const void *key, size_t key_bytes,
                           const void *value, size_t size_bytes);

/* Looks a value up, which stays owned by the entries. Returns false if there is none. */
bool sl_catalog_entries_get(const struct sl_catalog_entries *entries, const char *key,
                            const uint8_t **ret_value, size_t *ret_size_bytes);

/* Calls fn for every key that starts with `prefix`, in order. If fn fails, ends early and returns
 * fn's error. */
typedef int sl_catalog_entry_fn(void *context, const char *key, const uint8_t *value,
                                size_t size_bytes, struct sl_err *err);
int sl_catalog_entries_each(const struct sl_catalog_entries *entries, const char *prefix,
                            sl_catalog_entry_fn *fn, void *context, struct sl_err *err);

bool sl_catalog_entries_same(const struct sl_catalog_entries *a,
                             const struct sl_catalog_entries *b);

/* Makes the sealed copy's bytes, which stay owned by the entries. Fails with -ENOMEM. */
int sl_catalog_entries_seal(struct sl_catalog_entries *entries, const uint8_t **ret_bytes,
                            size_t *ret_size_bytes);

/* Takes over `bytes`, also when it fails; `where` is for messages. A failure leaves *entries empty.
 * Fails with -SL_ECORRUPT, or
 * -SL_EUNSUPPORTED for a file that another version of sluice has sealed. */
int sl_catalog_entries_unseal(struct sl_catalog_entries *entries, uint8_t *bytes, size_t size_bytes,
                              const char *where, struct sl_err *err);

/* Reads a sealed copy, which is a plain file. Fails also as sl_plain_file_read() does. */
int sl_catalog_entries_read(struct sl_catalog_entries *entries, const char *path,
                            struct sl_err *err);

#endif
