/* Byte-pair encoding: from the bytes of one word to token ids.
 *
 * A word starts as one token per byte. Again and again the pair of neighbours whose merge has the
 * lowest rank is joined (the leftmost of several), until no neighbours can be merged. How text is
 * cut into words is not decided here (core/text/splitter.h).
 *
 * struct sl_bpe is filled once and then only read, by any number of threads. What a thread needs
 * for itself (a cache of words, working memory) is its struct sl_bpe_scratch. */
#ifndef SL_TEXT_BPE_H
#define SL_TEXT_BPE_H

#include <stddef.h>
#include <stdint.h>

#include "core/text/token_list.h"

struct sl_bpe;
struct sl_bpe_scratch;

/* byte_ids: the token of each single byte. At most n_merges_max merges can be added. NULL when out
 * of memory. The caller destroys it. */
struct sl_bpe *sl_bpe_create(const uint32_t byte_ids[256], size_t n_merges_max);
void sl_bpe_destroy(struct sl_bpe *bpe); /* NULL is allowed */

/* Tokens `left` and `right`, side by side, become `merged`. A lower rank goes first; no two merges
 * may share one. Of two merges of the same pair the last one counts. */
void sl_bpe_add_merge(struct sl_bpe *bpe, uint32_t left, uint32_t right, uint32_t rank,
                      uint32_t merged);

/* For one thread, and for this `bpe` alone, which must outlive it. NULL when out of memory. */
struct sl_bpe_scratch *sl_bpe_scratch_create(const struct sl_bpe *bpe);
void sl_bpe_scratch_destroy(struct sl_bpe_scratch *scratch); /* NULL is allowed */

/* Appends the tokens of word[0..n) to *out; n is at least 1 and below 2^32. The bytes may be
 * anything. Time grows as n log n. Returns 0 or -ENOMEM; then *out is as it was. */
int sl_bpe_encode(struct sl_bpe_scratch *scratch, const uint8_t *word, size_t n,
                  struct sl_token_list *out);

#endif
