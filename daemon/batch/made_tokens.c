/* Owns the record:
 *
 *     u32 id   u32 number of alternatives   f64 log probability   (u32 id   u32 -   f64)...
 *
 * in the byte order of the machine, which is little-endian like all that LMDB writes there. */
#include "daemon/batch/made_tokens.h"

#include <string.h>

struct head {
    uint32_t id, n_top;
    double logprob;
};

struct alternative {
    uint32_t id, zero;
    double logprob;
};

void sl_made_tokens_fini(struct sl_made_tokens *made)
{
    sl_bytes_fini(&made->bytes);
    made->n = 0;
}

void sl_made_tokens_add(struct sl_made_tokens *made, const struct sl_generated *token)
{
    const struct head head = {token->id, token->n_top, token->logprob};

    sl_bytes_add(&made->bytes, &head, sizeof(head));
    for (uint32_t i = 0; i < token->n_top; i++) {
        const struct alternative top = {token->top_ids[i], 0, token->top_logprobs[i]};

        sl_bytes_add(&made->bytes, &top, sizeof(top));
    }
    made->n++;
}

static bool next(const char *records, size_t size_bytes, size_t *at, struct sl_generated *token)
{
    struct head head;

    if (size_bytes - *at < sizeof(head))
        return false;
    memcpy(&head, records + *at, sizeof(head));
    if (head.n_top > SL_TOP_LOGPROBS_MAX ||
        head.n_top * sizeof(struct alternative) > size_bytes - *at - sizeof(head))
        return false;
    *token = (struct sl_generated){.id = head.id, .n_top = head.n_top, .logprob = head.logprob};
    *at += sizeof(head);
    for (uint32_t i = 0; i < head.n_top; i++) {
        struct alternative top;

        memcpy(&top, records + *at, sizeof(top));
        *at += sizeof(top);
        token->top_ids[i] = top.id;
        token->top_logprobs[i] = top.logprob;
    }
    return true;
}

int sl_made_tokens_append(struct sl_made_tokens *made, const void *records, size_t size_bytes,
                          uint32_t n_vocab)
{
    struct sl_generated token;
    uint32_t n = 0;
    size_t at = 0;

    while (next(records, size_bytes, &at, &token)) {
        if (token.id >= n_vocab)
            return -SL_EFORMAT;
        for (uint32_t i = 0; i < token.n_top; i++)
            if (token.top_ids[i] >= n_vocab)
                return -SL_EFORMAT;
        n++;
    }
    if (at != size_bytes)
        return -SL_EFORMAT;
    sl_bytes_add(&made->bytes, records, size_bytes);
    made->n += n;
    return 0;
}

bool sl_made_tokens_next(const struct sl_made_tokens *made, size_t *at,
                         struct sl_generated *ret_token)
{
    return next(made->bytes.data, made->bytes.length, at, ret_token);
}
