/* Tokenizer: text to token ids and back, as a model's tokenizer.json says.
 *
 * Understood is byte-level BPE in the form that DeepSeek-V3 and V4 use: a `BPE` model with merges,
 * a pre-tokenizer Sequence of regular expressions that ends in ByteLevel, no normalizer, a
 * ByteLevel decoder, added tokens that match literally. Everything comes from the file. What is
 * known to change a token and not done here is refused with the key's name: another post-processor
 * than ByteLevel, since it puts tokens around a text (here whoever builds a prompt puts the
 * begin-of-sentence token there), truncation, padding, dropout and the like. Keys that are not
 * known are told in a note.
 *
 * Text is bytes. Malformed UTF-8 and zero bytes are text as well: each run of bytes that belongs to
 * no character is a word of its own. Joining the bytes of the ids gives back exactly what was
 * encoded, always.
 *
 * Added tokens (`<｜User｜>`, `</think>`, `｜DSML｜`) are a conversation's structure, and text from
 * outside must not be able to forge it. So encoding never yields one, whatever the text holds,
 * unless SL_ENCODE_ADDED asks for it; whether the file calls the token "special" makes no
 * difference, for V4 marks only four of its control tokens so. A prompt is therefore built from
 * pieces: structure by id (sl_tokenizer_find), text between two such ids by one call of
 * sl_encode(), since cutting a text in two changes its tokens at the cut.
 *
 * A tokenizer is read-only once it is open and any number of threads may use it. Encoding needs a
 * struct sl_encoder, which belongs to one thread at a time. */
#ifndef SL_TEXT_TOKENIZER_H
#define SL_TEXT_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/err.h"
#include "core/text/token_list.h"

#define SL_TOKENIZER_FILE_BYTES_MAX (64u << 20)
#define SL_TOKENIZER_IDS_MAX (1u << 20) /* every id is below */
#define SL_ADDED_TOKEN_BYTES_MAX 256u
#define SL_ENCODE_BYTES_MAX (256u << 20) /* in one call */

struct sl_tokenizer;
struct sl_encoder;

/* Opens `path`: a tokenizer.json, or a folder that holds one. On success the caller owns *ret_tok.
 * Fails with -errno, -ENOMEM, -SL_EFORMAT (broken) or -SL_EUNSUPPORTED (another kind of tokenizer).
 */
int sl_tokenizer_open(struct sl_tokenizer **ret_tok, const char *path, struct sl_err *err);

/* Parses a tokenizer.json in memory, which is not kept. `where` names it in errors. */
int sl_tokenizer_parse(struct sl_tokenizer **ret_tok, const char *json, size_t length,
                       const char *where, struct sl_err *err);

/* NULL is allowed. Encoders and detokenizers go first. */
void sl_tokenizer_close(struct sl_tokenizer *tok);

/* One more than the highest id. A model's vocab_size may be larger: rows that no text stands for.
 */
uint32_t sl_tokenizer_id_count(const struct sl_tokenizer *tok);

/* Things about the file that a user should know, though it can be used: one line each, `index` from
 * 0 on, NULL past the last. They stay the tokenizer's. */
const char *sl_tokenizer_note(const struct sl_tokenizer *tok, size_t index);

/* Whether some text stands for the id. */
bool sl_tokenizer_is_known(const struct sl_tokenizer *tok, uint32_t id);

/* The id of the first added token that is spelled out in text[0..length). Returns 0, or -ENOENT if
 * there is none. */
int sl_tokenizer_find_in(const struct sl_tokenizer *tok, const char *text, size_t length,
                         uint32_t *ret_id);

/* The id of the added token that is exactly `text`. Returns 0, or -ENOENT if there is none. */
int sl_tokenizer_find(const struct sl_tokenizer *tok, const char *text, uint32_t *ret_id);

/* The bytes of a token, which stay the tokenizer's; they need not be whole characters. An id
 * without text, however high, has none: the length is then 0. Never NULL. */
const uint8_t *sl_tokenizer_bytes(const struct sl_tokenizer *tok, uint32_t id, size_t *ret_length);

/* Whether this is an added token: a control token or another that stands outside the vocabulary. */
bool sl_tokenizer_is_added(const struct sl_tokenizer *tok, uint32_t id);

/* Whether the file marks this added token as special: not to be shown to a reader. */
bool sl_tokenizer_is_special(const struct sl_tokenizer *tok, uint32_t id);

/* The length in bytes of the longest token. */
size_t sl_tokenizer_token_bytes_max(const struct sl_tokenizer *tok);

/* For one thread at a time; `tok` must outlive it. Fails with -ENOMEM. The caller destroys it. */
int sl_encoder_create(struct sl_encoder **ret_encoder, const struct sl_tokenizer *tok,
                      struct sl_err *err);
void sl_encoder_destroy(struct sl_encoder *encoder); /* NULL is allowed */

enum sl_encode_flag {
    SL_ENCODE_ADDED = 1u << 0, /* added tokens in the text become their ids: leftmost, longest */
};

/* Appends the ids of text[0..length) to *out. Fails with -SL_EFORMAT (longer than
 * SL_ENCODE_BYTES_MAX, or an expression of the file exceeded its bound) or -ENOMEM; then *out has
 * as many ids as before. */
int sl_encode(struct sl_encoder *encoder, const char *text, size_t length, unsigned flags,
              struct sl_token_list *out, struct sl_err *err);

#endif
