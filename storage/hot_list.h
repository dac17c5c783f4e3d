/* The hot list: experts of a store worth loading first, the most wanted first. It is remembered in
 * the store's catalog from one run to the next.
 *
 * Calls open the catalog and close it again; they wait for other writers. A list is advice: it may
 * be absent, and may name experts that the model does not have. */
#ifndef SL_STORAGE_HOT_LIST_H
#define SL_STORAGE_HOT_LIST_H

#include <stdint.h>

#include "core/base/err.h"
#include "core/model/expert_source.h"

/* Gives at most n_max keys, 0 if none were written. Fails as sl_catalog_open() and _get() do. */
int sl_hot_list_read(const char *store_folder, struct sl_expert_key *keys, uint32_t n_max,
                     uint32_t *ret_n_keys, struct sl_err *err);

/* Replaces the list; durable when it returns 0. At most SL_STORE_HOT_MAX keys. Fails also with
 * -EACCES or -EROFS where the store may not be written to. */
int sl_hot_list_write(const char *store_folder, const struct sl_expert_key *keys, uint32_t n_keys,
                      struct sl_err *err);

#endif
