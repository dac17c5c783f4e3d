/* Any bytes as a text: the ids' bytes are the text again, no added token comes unasked, and the
 * text handed out by the detokenizer is well-formed UTF-8, equal to the input where that was. Run
 * from the root of the tree: it reads tests/small/tokenizer.json, whose words our own code cuts. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/text/detokenizer.h"
#include "core/text/tokenizer.h"
#include "core/text/utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int is_well_formed(const uint8_t *text, size_t n)
{
    size_t at = 0;
    int length = 1;

    for (; at < n && length > 0; at += (size_t)length)
        length = sl_utf8_scan(text + at, n - at);
    return length > 0;
}

static void check_text(const struct sl_tokenizer *tok, const struct sl_token_list *ids,
                       const uint8_t *data, size_t size)
{
    uint8_t *text = malloc(3 * size + 1);
    struct sl_detokenizer *detok;
    const char *piece;
    size_t length, total = 0;

    sl_assert(text && sl_detokenizer_create(&detok, tok, true, NULL) == 0);
    for (size_t i = 0; i <= ids->n; i++) {
        piece = i < ids->n ? sl_detokenizer_push(detok, ids->ids[i], &length)
                           : sl_detokenizer_flush(detok, &length);
        sl_assert(length <= 3 * size - total);
        sl_assert(is_well_formed((const uint8_t *)piece, length));
        memcpy(text + total, piece, length);
        total += length;
    }
    if (is_well_formed(data, size))
        sl_assert(total == size && memcmp(text, data, size) == 0);
    sl_detokenizer_destroy(detok);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct sl_tokenizer *tok; /* both are made once and serve every input */
    static struct sl_encoder *encoder;
    struct sl_token_list ids = {0};
    size_t at, length;

    if (!encoder) {
        sl_assert(sl_tokenizer_open(&tok, "tests/small/tokenizer.json", NULL) == 0);
        sl_assert(sl_encoder_create(&encoder, tok, NULL) == 0);
    }
    for (unsigned flags = 0; flags <= SL_ENCODE_ADDED; flags++) {
        ids.n = 0;
        sl_assert(sl_encode(encoder, (const char *)data, size, flags, &ids, NULL) == 0);
        at = 0;
        for (size_t i = 0; i < ids.n; i++) {
            const uint8_t *bytes = sl_tokenizer_bytes(tok, ids.ids[i], &length);

            sl_assert(length > 0 && length <= size - at);
            sl_assert(memcmp(bytes, data + at, length) == 0);
            sl_assert(flags || !sl_tokenizer_is_added(tok, ids.ids[i]));
            at += length;
        }
        sl_assert(at == size);
        check_text(tok, &ids, data, size);
    }
    sl_token_list_fini(&ids);
    return 0;
}
