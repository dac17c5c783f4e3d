/* Owns the sealed copy's bytes:
 *
 *     "SLUICECT"   u32 format version   u32 number of entries   entries ...   u64 checksum
 *     entry        u16 length of key    u32 length of value     key   value                    */
#include "storage/store/catalog_entries.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "storage/io/checksum.h"
#include "storage/io/plain_file.h"
#include "storage/store/store_format.h"

#define MAGIC "SLUICECT"
#define AT_VERSION 8u
#define AT_COUNT 12u
#define HEADER_BYTES 16u
#define ENTRY_HEADER_BYTES 6u
#define CHECKSUM_BYTES 8u
#define FIRST_ROOM_BYTES 4096u

static void put(uint8_t *at, uint64_t value, size_t n_bytes)
{
    for (size_t i = 0; i < n_bytes; i++)
        at[i] = (uint8_t)(value >> 8 * i);
}

static uint64_t get(const uint8_t *at, size_t n_bytes)
{
    uint64_t value = 0;

    for (size_t i = 0; i < n_bytes; i++)
        value |= (uint64_t)at[i] << 8 * i;
    return value;
}

void sl_catalog_entries_fini(struct sl_catalog_entries *entries)
{
    free(entries->bytes);
    *entries = (struct sl_catalog_entries){0};
}

/* ---- one entry --------------------------------------------------------------------------------
 */

struct entry {
    const uint8_t *key, *value;
    size_t key_bytes, size_bytes;
};

/* Reads the entry at *at and moves *at behind it; returns false at the end, or if the bytes hold no
 * whole entry. */
static bool next_entry(const struct sl_catalog_entries *entries, size_t *at, struct entry *ret)
{
    const uint8_t *from;
    size_t left_bytes;

    if (entries->size_bytes <= *at + ENTRY_HEADER_BYTES)
        return false;
    from = entries->bytes + *at;
    left_bytes = entries->size_bytes - *at - ENTRY_HEADER_BYTES;
    ret->key_bytes = get(from, 2);
    ret->size_bytes = get(from + 2, 4);
    if (ret->key_bytes > left_bytes || ret->size_bytes > left_bytes - ret->key_bytes)
        return false;
    ret->key = from + ENTRY_HEADER_BYTES;
    ret->value = ret->key + ret->key_bytes;
    *at += ENTRY_HEADER_BYTES + ret->key_bytes + ret->size_bytes;
    return true;
}

static int compare_keys(const uint8_t *a, size_t a_bytes, const uint8_t *b, size_t b_bytes)
{
    int order = memcmp(a, b, a_bytes < b_bytes ? a_bytes : b_bytes);

    return order ? order : a_bytes < b_bytes ? -1 : a_bytes > b_bytes;
}

static bool is_key(const uint8_t *key, size_t key_bytes)
{
    if (key_bytes < 1 || key_bytes > SL_CATALOG_KEY_BYTES_MAX)
        return false;
    for (size_t i = 0; i < key_bytes; i++)
        if (key[i] < 0x20 || key[i] == 0x7f)
            return false;
    return true;
}

/* Returns whether the key may come after the last entry. */
static bool is_next_key(const struct sl_catalog_entries *entries, const uint8_t *key,
                        size_t key_bytes)
{
    size_t at = entries->last_key_at;
    struct entry last;

    if (!is_key(key, key_bytes))
        return false;
    return entries->n_entries == 0 || (next_entry(entries, &at, &last) &&
                                       compare_keys(last.key, last.key_bytes, key, key_bytes) < 0);
}

/* ---- building ---------------------------------------------------------------------------------
 */

static int make_room(struct sl_catalog_entries *entries, size_t wanted_bytes)
{
    size_t room_bytes = entries->room_bytes ? entries->room_bytes : FIRST_ROOM_BYTES;
    uint8_t *larger;

    if (wanted_bytes <= entries->room_bytes)
        return 0;
    while (room_bytes < wanted_bytes)
        room_bytes *= 2;
    larger = realloc(entries->bytes, room_bytes);
    if (!larger)
        return -ENOMEM;
    entries->bytes = larger;
    entries->room_bytes = room_bytes;
    return 0;
}

/* Writes the header of a list that is still empty. */
static int begin(struct sl_catalog_entries *entries)
{
    if (entries->size_bytes > 0)
        return 0;
    if (make_room(entries, HEADER_BYTES + CHECKSUM_BYTES) < 0)
        return -ENOMEM;
    memcpy(entries->bytes, MAGIC, AT_VERSION);
    put(entries->bytes + AT_VERSION, SL_STORE_VERSION, 4);
    put(entries->bytes + AT_COUNT, 0, 4);
    entries->size_bytes = HEADER_BYTES;
    return 0;
}

int sl_catalog_entries_add(struct sl_catalog_entries *entries, const void *key, size_t key_bytes,
                           const void *value, size_t size_bytes)
{
    uint8_t *at;

    if (size_bytes > SL_CATALOG_BYTES_MAX || !is_next_key(entries, key, key_bytes))
        return -SL_EFORMAT;
    if (begin(entries) < 0 || make_room(entries, entries->size_bytes + ENTRY_HEADER_BYTES +
                                                     key_bytes + size_bytes + CHECKSUM_BYTES) < 0)
        return -ENOMEM;
    at = entries->bytes + entries->size_bytes;
    put(at, key_bytes, 2);
    put(at + 2, size_bytes, 4);
    memcpy(at + ENTRY_HEADER_BYTES, key, key_bytes);
    if (size_bytes > 0)
        memcpy(at + ENTRY_HEADER_BYTES + key_bytes, value, size_bytes);
    entries->last_key_at = entries->size_bytes;
    entries->size_bytes += ENTRY_HEADER_BYTES + key_bytes + size_bytes;
    put(entries->bytes + AT_COUNT, ++entries->n_entries, 4);
    return 0;
}

/* ---- looking up -------------------------------------------------------------------------------
 */

bool sl_catalog_entries_get(const struct sl_catalog_entries *entries, const char *key,
                            const uint8_t **ret_value, size_t *ret_size_bytes)
{
    size_t at = HEADER_BYTES;
    struct entry entry;

    while (next_entry(entries, &at, &entry)) {
        if (entry.key_bytes == strlen(key) && memcmp(entry.key, key, entry.key_bytes) == 0) {
            *ret_value = entry.value;
            *ret_size_bytes = entry.size_bytes;
            return true;
        }
    }
    return false;
}

int sl_catalog_entries_each(const struct sl_catalog_entries *entries, const char *prefix,
                            sl_catalog_entry_fn *fn, void *context, struct sl_err *err)
{
    const size_t prefix_bytes = strlen(prefix);
    size_t at = HEADER_BYTES;
    struct entry entry;
    int rc = 0;

    while (rc >= 0 && next_entry(entries, &at, &entry)) {
        char key[SL_CATALOG_KEY_BYTES_MAX + 1];

        if (entry.key_bytes < prefix_bytes || memcmp(entry.key, prefix, prefix_bytes) != 0)
            continue;
        memcpy(key, entry.key, entry.key_bytes);
        key[entry.key_bytes] = '\0';
        rc = fn(context, key, entry.value, entry.size_bytes, err);
    }
    return rc < 0 ? rc : 0;
}

bool sl_catalog_entries_same(const struct sl_catalog_entries *a, const struct sl_catalog_entries *b)
{
    return a->size_bytes == b->size_bytes &&
           (a->size_bytes == 0 || memcmp(a->bytes, b->bytes, a->size_bytes) == 0);
}

/* ---- the sealed copy --------------------------------------------------------------------------
 */

int sl_catalog_entries_seal(struct sl_catalog_entries *entries, const uint8_t **ret_bytes,
                            size_t *ret_size_bytes)
{
    if (begin(entries) < 0)
        return -ENOMEM;
    sl_assert(entries->room_bytes >= entries->size_bytes + CHECKSUM_BYTES);
    put(entries->bytes + entries->size_bytes, sl_checksum(entries->bytes, entries->size_bytes),
        CHECKSUM_BYTES);
    *ret_bytes = entries->bytes;
    *ret_size_bytes = entries->size_bytes + CHECKSUM_BYTES;
    return 0;
}

/* Returns whether all bytes belong to entries, as many as the header says, in order. */
static bool check_entries(struct sl_catalog_entries *entries)
{
    const uint32_t n_entries = (uint32_t)get(entries->bytes + AT_COUNT, 4);
    size_t at = HEADER_BYTES, from = at;
    struct entry entry;

    while (next_entry(entries, &at, &entry)) {
        if (!is_next_key(entries, entry.key, entry.key_bytes))
            return false;
        entries->last_key_at = from;
        entries->n_entries++;
        from = at;
    }
    return at == entries->size_bytes && entries->n_entries == n_entries;
}

int sl_catalog_entries_unseal(struct sl_catalog_entries *entries, uint8_t *bytes, size_t size_bytes,
                              const char *where, struct sl_err *err)
{
    uint32_t version;
    int rc = 0;

    *entries = (struct sl_catalog_entries){.bytes = bytes, .room_bytes = size_bytes};
    if (size_bytes < HEADER_BYTES + CHECKSUM_BYTES || memcmp(bytes, MAGIC, AT_VERSION) != 0) {
        rc = sl_err_set(err, -SL_ECORRUPT,
                        "%s: damaged: it does not begin as a sealed catalog does", where);
        goto out;
    }
    entries->size_bytes = size_bytes - CHECKSUM_BYTES;
    if (sl_checksum(bytes, entries->size_bytes) !=
        get(bytes + entries->size_bytes, CHECKSUM_BYTES)) {
        rc = sl_err_set(err, -SL_ECORRUPT,
                        "%s: damaged: it does not have the checksum that it names", where);
        goto out;
    }
    version = (uint32_t)get(bytes + AT_VERSION, 4);
    if (version != SL_STORE_VERSION)
        rc = sl_err_set(err, -SL_EUNSUPPORTED,
                        "%s: the store has format version %u; this sluice knows version %u", where,
                        version, SL_STORE_VERSION);
    else if (!check_entries(entries))
        rc = sl_err_set(err, -SL_ECORRUPT,
                        "%s: damaged: its entries are not whole, or not in order", where);
out:
    if (rc < 0)
        sl_catalog_entries_fini(entries);
    return rc;
}

int sl_catalog_entries_read(struct sl_catalog_entries *entries, const char *path,
                            struct sl_err *err)
{
    uint8_t *bytes;
    size_t size_bytes;
    int rc;

    *entries = (struct sl_catalog_entries){0};
    rc = sl_plain_file_read(path, SL_CATALOG_BYTES_MAX, &bytes, &size_bytes, err);
    return rc < 0 ? rc : sl_catalog_entries_unseal(entries, bytes, size_bytes, path, err);
}
