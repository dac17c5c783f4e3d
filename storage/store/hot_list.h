/* The hot list: experts of a store worth loading first, the most wanted first. It is kept beside
 * the store (storage/store/advice.h) from one run to the next.
 *
 * A list may be absent, and may name experts that the model does not have. */
#ifndef SL_STORAGE_STORE_HOT_LIST_H
#define SL_STORAGE_STORE_HOT_LIST_H

#include <stdint.h>

#include "core/base/err.h"
#include "core/model/expert_key.h"

/* Reads at most n_max keys; none if no list was written. Fails as sl_advice_read() does. */
int sl_hot_list_read(const char *store_folder, struct sl_expert_key *keys, uint32_t n_max,
                     uint32_t *ret_n_keys, struct sl_err *err);

/* Replaces the list. At most SL_STORE_HOT_MAX keys. Fails as sl_advice_write() does. */
int sl_hot_list_write(const char *store_folder, const struct sl_expert_key *keys, uint32_t n_keys,
                      struct sl_err *err);

#endif
