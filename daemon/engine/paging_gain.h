/* How many documents at once pay whose KV caches do not all fit in memory. Pure arithmetic.
 *
 * A sweep of n documents reads what it reads anyway, and of their KV caches what memory does not
 * hold: sweep + n * document - kv bytes. So each document more brings the bytes of a token down as
 * long as sweep > kv, whatever a document's size; where memory for KV caches is larger than what a
 * sweep reads, documents on disk cost more than they spread. Where they pay, memory ends it: for
 * what of each document stays in it, and its part of the page window. */
#ifndef SL_DAEMON_ENGINE_PAGING_GAIN_H
#define SL_DAEMON_ENGINE_PAGING_GAIN_H

#include <stdbool.h>
#include <stdint.h>

#include "core/model/kv_layout.h"

/* Bytes of the KV cache of a document of n_tokens; and of them, with its part of the page window,
 * what stays in memory when all else is on disk. */
void sl_paging_measure(const struct sl_kv_layout *layout, uint32_t n_tokens,
                       uint64_t *ret_document_bytes, uint64_t *ret_stays_bytes);

/* sweep_bytes: of experts that are not in the cache, and dense weights that stream. */
bool sl_paging_pays(uint64_t sweep_bytes, uint64_t kv_bytes);

#endif
