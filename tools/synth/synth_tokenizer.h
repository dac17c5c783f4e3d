/* Makes a byte-level tokenizer.json of V4's form for a random checkpoint. It covers every id of the
 * vocabulary, so that every token the model makes has a text. */
#ifndef SL_TOOLS_SYNTH_SYNTH_TOKENIZER_H
#define SL_TOOLS_SYNTH_SYNTH_TOKENIZER_H

#include <stdint.h>

#include "core/base/err.h"

/* Ids 0, 1 and 2 are begin and end of sentence and padding, then come the 256 bytes and V4's other
 * special tokens, then what merges make: letter pairs, words, and words put together. On success
 * the caller frees *ret_text. Fails with -ENOMEM, or with -SL_EFORMAT for a vocabulary that cannot
 * hold the bytes and the special tokens. */
int sl_synth_tokenizer(uint32_t vocab_size, char **ret_text, struct sl_err *err);

#endif
