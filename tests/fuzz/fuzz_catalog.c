/* A store's catalog from anywhere, sealed or as LMDB's file: whatever is accepted has its keys in
 * order, and a sealed one is what would have been sealed. The first byte says which of the two the
 * rest is. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "storage/store/catalog_entries.h"
#include "storage/store/catalog_read.h"
#include "storage/io/checksum.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct last {
    char key[SL_CATALOG_KEY_BYTES_MAX + 1];
    uint32_t n_entries;
    uint64_t checksum;
};

static int check_entry(void *context, const char *key, const uint8_t *value, size_t size_bytes,
                       struct sl_err *err)
{
    struct last *last = context;

    (void)err;
    sl_assert(strcmp(last->key, key) < 0);
    strcpy(last->key, key);
    last->n_entries++;
    last->checksum ^= sl_checksum(value, size_bytes); /* all of it can be read */
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct sl_catalog_entries entries;
    struct last last = {.n_entries = 0};
    const uint8_t *again;
    size_t again_bytes;
    uint8_t *copy;
    bool is_sealed;
    int rc;

    if (size < 1)
        return 0;
    is_sealed = data[0] % 2 == 0;
    copy = malloc(size); /* one more than it takes: there may be nothing */
    sl_assert(copy);
    memcpy(copy, data + 1, size - 1);
    if (is_sealed) {
        rc = sl_catalog_entries_unseal(&entries, copy, size - 1, "input", NULL);
    } else {
        rc = sl_catalog_read_bytes(&entries, copy, size - 1, "input", NULL);
        free(copy);
    }
    if (rc < 0)
        return 0;
    sl_assert(sl_catalog_entries_each(&entries, "", check_entry, &last, NULL) == 0);
    sl_assert(last.n_entries == entries.n_entries);
    sl_assert(sl_catalog_entries_seal(&entries, &again, &again_bytes) == 0);
    sl_assert(!is_sealed || (again_bytes == size - 1 && memcmp(again, data + 1, size - 1) == 0));
    sl_catalog_entries_fini(&entries);
    return 0;
}
