#include "storage/io/sha256.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"

#define DIGEST_BYTES 32

struct sl_sha256 {
    EVP_MD_CTX *context;
};

struct sl_sha256 *sl_sha256_create(void)
{
    struct sl_sha256 *hash = calloc(1, sizeof(*hash));

    if (!hash)
        return NULL;
    hash->context = EVP_MD_CTX_new();
    if (!hash->context || !EVP_DigestInit_ex(hash->context, EVP_sha256(), NULL)) {
        sl_sha256_destroy(hash);
        return NULL;
    }
    return hash;
}

void sl_sha256_destroy(struct sl_sha256 *hash)
{
    if (!hash)
        return;
    EVP_MD_CTX_free(hash->context);
    free(hash);
}

/* The calls below do not fail with a context that was begun once: nothing is allocated. */
void sl_sha256_reset(struct sl_sha256 *hash)
{
    int ok = EVP_DigestInit_ex(hash->context, NULL, NULL);

    sl_assert(ok);
}

void sl_sha256_add(struct sl_sha256 *hash, const void *bytes, size_t n_bytes)
{
    int ok = EVP_DigestUpdate(hash->context, bytes, n_bytes);

    sl_assert(ok);
}

void sl_sha256_end(struct sl_sha256 *hash, char ret_hex[SL_SHA256_HEX + 1])
{
    uint8_t digest[EVP_MAX_MD_SIZE];
    unsigned n_bytes = 0;
    int ok = EVP_DigestFinal_ex(hash->context, digest, &n_bytes);

    sl_assert(ok && n_bytes == DIGEST_BYTES);
    for (unsigned i = 0; i < DIGEST_BYTES; i++)
        snprintf(ret_hex + 2 * i, 3, "%02x", digest[i]);
}

bool sl_sha256_is_hex(const char *text)
{
    return strspn(text, "0123456789abcdefABCDEF") == SL_SHA256_HEX;
}
