/* Any bytes as a tokenizer.json: refused with one line, or a tokenizer that can be used. What opens
 * must encode a text to ids whose bytes are that text. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/text/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char text[] = "The hen,  then 1234 \xE4\xB8\xAD\xE6\x96\x87\n\n<a>b aaaa\xFF\xC3";
    struct sl_err err = {.code = 0};
    struct sl_tokenizer *tok;
    struct sl_encoder *encoder;
    struct sl_token_list ids = {0};
    size_t at = 0, length;
    int rc = sl_tokenizer_parse(&tok, (const char *)data, size, "file", &err);

    if (rc < 0) {
        sl_assert(err.code == rc);
        sl_assert(strncmp(err.message, "file", 4) == 0 || strncmp(err.message, "added", 5) == 0);
        return 0;
    }
    sl_assert(sl_encoder_create(&encoder, tok, NULL) == 0);
    for (unsigned flags = 0; flags <= SL_ENCODE_ADDED; flags++) {
        rc = sl_encode(encoder, text, sizeof(text) - 1, flags, &ids, &err);
        sl_assert(rc == 0 || (rc == -SL_EFORMAT && ids.n == 0));
        at = 0;
        for (size_t i = 0; i < ids.n; i++) {
            const uint8_t *bytes = sl_tokenizer_bytes(tok, ids.ids[i], &length);

            sl_assert(length <= sizeof(text) - 1 - at);
            sl_assert(memcmp(bytes, text + at, length) == 0);
            at += length;
        }
        sl_assert(rc < 0 || at == sizeof(text) - 1);
        ids.n = 0;
    }
    sl_token_list_fini(&ids);
    sl_encoder_destroy(encoder);
    sl_tokenizer_close(tok);
    return 0;
}
