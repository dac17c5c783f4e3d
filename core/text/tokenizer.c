#include "core/text/tokenizer.h"

#include <string.h>

#include "core/base/assert.h"
#include "core/text/tokenizer_internal.h"
#include "core/text/utf8.h"

struct sl_encoder {
    const struct sl_tokenizer *tok;
    struct sl_bpe_scratch *bpe;
    struct sl_split_scratch *split;
    struct sl_token_list *out; /* of the call that is under way */
};

void sl_tokenizer_close(struct sl_tokenizer *tok)
{
    if (!tok)
        return;
    sl_bpe_destroy(tok->bpe);
    sl_splitter_destroy(tok->splitter);
    free(tok->bytes);
    free(tok->tokens);
    free(tok->added);
    for (uint32_t i = 0; i < tok->n_notes; i++)
        free(tok->notes[i]);
    free(tok);
}

uint32_t sl_tokenizer_id_count(const struct sl_tokenizer *tok)
{
    return tok->n_tokens;
}

const uint8_t *sl_tokenizer_bytes(const struct sl_tokenizer *tok, uint32_t id, size_t *ret_length)
{
    if (id >= tok->n_tokens) {
        *ret_length = 0;
        return tok->bytes;
    }
    *ret_length = tok->tokens[id].length_bytes;
    return tok->bytes + tok->tokens[id].offset_bytes;
}

const char *sl_tokenizer_note(const struct sl_tokenizer *tok, size_t index)
{
    return index < tok->n_notes ? tok->notes[index] : NULL;
}

bool sl_tokenizer_is_known(const struct sl_tokenizer *tok, uint32_t id)
{
    return id < tok->n_tokens && tok->tokens[id].flags & SL_TOKEN_KNOWN;
}

bool sl_tokenizer_is_added(const struct sl_tokenizer *tok, uint32_t id)
{
    return id < tok->n_tokens && tok->tokens[id].flags & SL_TOKEN_ADDED;
}

bool sl_tokenizer_is_special(const struct sl_tokenizer *tok, uint32_t id)
{
    return id < tok->n_tokens && tok->tokens[id].flags & SL_TOKEN_SPECIAL;
}

size_t sl_tokenizer_token_bytes_max(const struct sl_tokenizer *tok)
{
    return tok->token_bytes_max;
}

/* The first of added[low..high), all longer than `at`, whose byte there is `value` or more. */
static uint32_t first_from(const struct sl_tokenizer *tok, uint32_t low, uint32_t high, uint32_t at,
                           uint32_t value)
{
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;

        if (tok->added[middle].bytes[at] < value)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

#define N_ROUNDS 2u /* in which added tokens are looked for; as an argument it means any */

/* The longest added token of `round` that text[0..n) begins with, or NULL. Byte by byte it narrows
 * the range of those that still agree; of these the one that ends here sorts first. */
static const struct sl_added_token *match_added(const struct sl_tokenizer *tok, const uint8_t *text,
                                                size_t n, uint32_t round)
{
    const struct sl_added_token *longest = NULL;
    uint32_t low = tok->added_first[text[0]], high = tok->added_first[text[0] + 1];

    for (uint32_t length = 1; low < high; length++) {
        if (tok->added[low].length_bytes == length) {
            if (round == N_ROUNDS || tok->added[low].round == round)
                longest = &tok->added[low];
            low++;
        }
        if (length == n)
            break;
        low = first_from(tok, low, high, length, text[length]);
        high = first_from(tok, low, high, length, text[length] + 1u);
    }
    return longest;
}

int sl_tokenizer_find(const struct sl_tokenizer *tok, const char *text, uint32_t *ret_id)
{
    size_t n = strlen(text);
    const struct sl_added_token *added =
        n > 0 ? match_added(tok, (const uint8_t *)text, n, N_ROUNDS) : NULL;

    if (!added || added->length_bytes != n)
        return -ENOENT;
    *ret_id = added->id;
    return 0;
}

int sl_tokenizer_find_in(const struct sl_tokenizer *tok, const char *text, size_t length,
                         uint32_t *ret_id)
{
    for (size_t at = 0; at < length; at++) {
        const struct sl_added_token *added =
            match_added(tok, (const uint8_t *)text + at, length - at, N_ROUNDS);

        if (added) {
            *ret_id = added->id;
            return 0;
        }
    }
    return -ENOENT;
}

int sl_encoder_create(struct sl_encoder **ret_encoder, const struct sl_tokenizer *tok,
                      struct sl_err *err)
{
    struct sl_encoder *encoder = calloc(1, sizeof(*encoder));

    if (encoder) {
        encoder->tok = tok;
        encoder->bpe = sl_bpe_scratch_create(tok->bpe);
        encoder->split = sl_split_scratch_create();
    }
    if (!encoder || !encoder->bpe || !encoder->split) {
        sl_encoder_destroy(encoder);
        return sl_err_set(err, -ENOMEM, "tokenizer: out of memory");
    }
    *ret_encoder = encoder;
    return 0;
}

void sl_encoder_destroy(struct sl_encoder *encoder)
{
    if (!encoder)
        return;
    sl_bpe_scratch_destroy(encoder->bpe);
    sl_split_scratch_destroy(encoder->split);
    free(encoder);
}

static int encode_word(void *context, const uint8_t *word, size_t n)
{
    struct sl_encoder *encoder = context;

    return sl_bpe_encode(encoder->bpe, word, n, encoder->out);
}

/* How many bytes of text[0..n) from the start on are well-formed UTF-8. */
static size_t well_formed(const uint8_t *text, size_t n)
{
    size_t at = 0;
    uint64_t eight;
    int length;

    while (at < n) {
        if (n - at >= sizeof(eight)) {
            memcpy(&eight, text + at, sizeof(eight));
            if (!(eight & UINT64_C(0x8080808080808080))) {
                at += sizeof(eight);
                continue;
            }
        }
        length = sl_utf8_scan(text + at, n - at);
        if (length <= 0)
            break;
        at += (size_t)length;
    }
    return at;
}

/* How many bytes of text[0..n) from the start on belong to no character. */
static size_t malformed(const uint8_t *text, size_t n)
{
    size_t at = 0;
    int length;

    while (at < n) {
        length = sl_utf8_scan(text + at, n - at);
        if (length > 0)
            break;
        at += length == 0 ? n - at : (size_t)-length;
    }
    return at;
}

static int encode_plain(struct sl_encoder *encoder, const uint8_t *text, size_t n,
                        struct sl_err *err)
{
    size_t length;
    int rc;

    while (n > 0) {
        length = well_formed(text, n);
        rc = sl_split(encoder->tok->splitter, encoder->split, text, length, encode_word, encoder,
                      err);
        if (rc < 0)
            return rc;
        text += length;
        n -= length;
        length = malformed(text, n);
        rc = length > 0 ? encode_word(encoder, text, length) : 0;
        if (rc < 0)
            return rc;
        text += length;
        n -= length;
    }
    return 0;
}

/* The file's "normalized" flag tells which added tokens are looked for before a normalizer runs and
 * which after. There is no normalizer, but the order counts where two tokens overlap. Calls itself
 * for the second round. */
static int encode_added(struct sl_encoder *encoder, const uint8_t *text, size_t n, uint32_t round,
                        struct sl_err *err)
{
    size_t done = 0, at = 0;
    int rc;

    if (round == N_ROUNDS)
        return encode_plain(encoder, text, n, err);
    while (at < n) {
        const struct sl_added_token *added = match_added(encoder->tok, text + at, n - at, round);

        if (!added) {
            at++;
            continue;
        }
        rc = encode_added(encoder, text + done, at - done, round + 1, err);
        if (rc == 0)
            rc = sl_token_list_push(encoder->out, added->id);
        if (rc < 0)
            return rc;
        at += added->length_bytes;
        done = at;
    }
    return encode_added(encoder, text + done, n - done, round + 1, err);
}

int sl_encode(struct sl_encoder *encoder, const char *text, size_t length, unsigned flags,
              struct sl_token_list *out, struct sl_err *err)
{
    size_t n_before = out->n;
    int rc;

    sl_assert(!(flags & ~(unsigned)SL_ENCODE_ADDED));
    if (length > SL_ENCODE_BYTES_MAX)
        return sl_err_set(err, -SL_EFORMAT, "a text of %zu bytes, expected at most %u", length,
                          SL_ENCODE_BYTES_MAX);
    encoder->out = out;
    rc = encode_added(encoder, (const uint8_t *)text, length,
                      flags & SL_ENCODE_ADDED ? 0 : N_ROUNDS, err);
    if (rc < 0)
        out->n = n_before;
    /* The word encoder and the list have no message of their own. */
    return rc == -ENOMEM ? sl_err_set(err, rc, "out of memory for the tokens of a text") : rc;
}
