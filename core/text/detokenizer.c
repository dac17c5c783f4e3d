#include "core/text/detokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "core/text/utf8.h"

#define HELD_BYTES_MAX 3 /* a character's bytes but the last */

static const char replacement[] = "\xEF\xBF\xBD"; /* U+FFFD */
#define REPLACEMENT_BYTES (sizeof(replacement) - 1)

struct sl_detokenizer {
    const struct sl_tokenizer *tok;
    bool show_special;
    size_t n_held; /* bytes at the start of `in`, the beginning of a character */
    uint8_t *in;   /* what was held back and one token */
    char *out;     /* at worst one U+FFFD for each byte of `in` */
};

size_t sl_detokenizer_text_bytes_max(const struct sl_tokenizer *tok)
{
    return (sl_tokenizer_token_bytes_max(tok) + HELD_BYTES_MAX) * REPLACEMENT_BYTES;
}

int sl_detokenizer_create(struct sl_detokenizer **ret_detok, const struct sl_tokenizer *tok,
                          bool show_special, struct sl_err *err)
{
    size_t in_bytes = sl_tokenizer_token_bytes_max(tok) + HELD_BYTES_MAX;
    struct sl_detokenizer *detok =
        malloc(sizeof(*detok) + in_bytes + sl_detokenizer_text_bytes_max(tok));

    if (!detok)
        return sl_err_set(err, -ENOMEM, "detokenizer: out of memory");
    *detok = (struct sl_detokenizer){.tok = tok,
                                     .show_special = show_special,
                                     .in = (uint8_t *)(detok + 1),
                                     .out = (char *)(detok + 1) + in_bytes};
    *ret_detok = detok;
    return 0;
}

void sl_detokenizer_destroy(struct sl_detokenizer *detok)
{
    free(detok);
}

/* Turns in[0..n) into text and keeps what may still become a character, unless this is the end. */
static const char *convert(struct sl_detokenizer *detok, size_t n, bool at_end, size_t *ret_length)
{
    size_t at = 0, out = 0;
    int length;

    while (at < n) {
        length = sl_utf8_scan(detok->in + at, n - at);
        if (length == 0 && !at_end)
            break;
        if (length > 0) {
            memcpy(detok->out + out, detok->in + at, (size_t)length);
            out += (size_t)length;
            at += (size_t)length;
        } else {
            memcpy(detok->out + out, replacement, REPLACEMENT_BYTES);
            out += REPLACEMENT_BYTES;
            at += length == 0 ? n - at : (size_t)-length;
        }
    }
    detok->n_held = n - at;
    memmove(detok->in, detok->in + at, detok->n_held);
    *ret_length = out;
    return detok->out;
}

const char *sl_detokenizer_push(struct sl_detokenizer *detok, uint32_t id, size_t *ret_length)
{
    size_t n = 0;
    const uint8_t *bytes = sl_tokenizer_bytes(detok->tok, id, &n);

    if (!detok->show_special && sl_tokenizer_is_special(detok->tok, id))
        n = 0;
    memcpy(detok->in + detok->n_held, bytes, n);
    return convert(detok, detok->n_held + n, false, ret_length);
}

const char *sl_detokenizer_flush(struct sl_detokenizer *detok, size_t *ret_length)
{
    return convert(detok, detok->n_held, true, ret_length);
}
