#include "storage/store/hot_list.h"

#include <errno.h>
#include <stdlib.h>

#include "core/base/assert.h"
#include "storage/store/advice.h"
#include "storage/store/store_format.h"

#define FILE_NAME "hot"

int sl_hot_list_read(const char *store_folder, struct sl_expert_key *keys, uint32_t n_max,
                     uint32_t *ret_n_keys, struct sl_err *err)
{
    uint8_t *value = NULL;
    size_t size_bytes;
    uint32_t n_keys = 0;
    int rc = sl_advice_read(store_folder, FILE_NAME, &value, &size_bytes, err);

    if (rc == 1 && !sl_store_hot_decode(keys, n_max, &n_keys, value, size_bytes))
        rc = sl_err_set(err, -SL_ECORRUPT, "%s: damaged: the file \"%s\" is no list of experts",
                        store_folder, FILE_NAME);
    free(value);
    if (rc >= 0)
        *ret_n_keys = n_keys;
    return rc < 0 ? rc : 0;
}

int sl_hot_list_write(const char *store_folder, const struct sl_expert_key *keys, uint32_t n_keys,
                      struct sl_err *err)
{
    uint8_t *value;
    int rc;

    sl_assert(n_keys <= SL_STORE_HOT_MAX);
    value = malloc(SL_STORE_HOT_BYTES(n_keys) + 1); /* + 1: the list may be empty */
    if (!value)
        return sl_err_set(err, -ENOMEM, "%s: hot list: out of memory", store_folder);
    rc = sl_advice_write(store_folder, FILE_NAME, value, sl_store_hot_encode(keys, n_keys, value),
                         err);
    free(value);
    return rc;
}
