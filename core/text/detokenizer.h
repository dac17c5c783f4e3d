/* Detokenizer: token ids to text as they are made, in whole UTF-8 characters.
 *
 * A character may be spread over several tokens. Its bytes are held back until it is complete;
 * bytes that belong to no character come out as U+FFFD. So the text handed out is always
 * well-formed, and its pieces joined are what decoding all ids at once gives. (For the exact bytes
 * see sl_tokenizer_bytes().) Ids without text give none.
 *
 * Belongs to one thread at a time. Nothing allocates after create. */
#ifndef SL_TEXT_DETOKENIZER_H
#define SL_TEXT_DETOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/err.h"
#include "core/text/tokenizer.h"

struct sl_detokenizer;

/* Tokens that the file marks as special are left out unless show_special is set. `tok` must outlive
 * it. Fails with -ENOMEM. The caller destroys it. */
int sl_detokenizer_create(struct sl_detokenizer **ret_detok, const struct sl_tokenizer *tok,
                          bool show_special, struct sl_err *err);
void sl_detokenizer_destroy(struct sl_detokenizer *detok); /* NULL is allowed */

/* Bytes of text that one call of push() gives at most. */
size_t sl_detokenizer_text_bytes_max(const struct sl_tokenizer *tok);

/* Takes one id. Returns the text that is complete now, *ret_length bytes, often none; valid until
 * the next call. */
const char *sl_detokenizer_push(struct sl_detokenizer *detok, uint32_t id, size_t *ret_length);

/* The end: what was held back comes out as U+FFFD. Ready for another text afterwards. */
const char *sl_detokenizer_flush(struct sl_detokenizer *detok, size_t *ret_length);

#endif
