/* One pass over the layers, as the parts of the forward pass see it: the tokens of all spans one
 * after the other, their residual streams and their angles. Internal to core/model. */
#ifndef SL_MODEL_STEP_H
#define SL_MODEL_STEP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/model/compute.h"
#include "core/model/config.h"
#include "core/model/kv_cache.h"
#include "core/model/rope.h"

/* Tokens of a span are neighbours in the step and in their sequence. */
struct sl_step_token {
    struct sl_kv_cache *kv;
    uint32_t position;
    uint32_t span_first; /* step index of its span's first token */
    uint32_t sees_first; /* no token of its sequence before this one has left entries in windows */
    int32_t id;
};

struct sl_step {
    const struct sl_config *config;
    const struct sl_compute *compute;
    const struct sl_step_token *tokens; /* (n_tokens) */
    uint32_t n_tokens;
    uint32_t block_tokens; /* 0; or the step drafts, and each span is a block of so many tokens that
                              see each other and leave nothing in the KV caches */
    float *streams;        /* (n_tokens, hc_mult, hidden_size) */
    const atomic_bool *stop; /* NULL, or true when the step is to be given up */

    /* By sl_rope_kind. Angles (n_tokens, qk_rope_head_dim / 2), frequency (qk_rope_head_dim / 2).
     */
    const float *cosine[SL_ROPE_KINDS];
    const float *sine[SL_ROPE_KINDS];
    const float *frequency[SL_ROPE_KINDS];
};

/* Tokens whose activations are in memory at once inside a layer. Enough that a weight block that is
 * expanded serves many tokens; the buffers of a chunk of Pro's attention take some 200 MB. Between
 * chunks a step can be stopped. */
#define SL_CHUNK_TOKENS 256u

/* The end of the chunk that begins with token `first`. Blocks are whole in their chunk. */
static inline uint32_t sl_step_chunk_end(const struct sl_step *step, uint32_t first)
{
    const uint32_t rest = step->block_tokens ? SL_CHUNK_TOKENS % step->block_tokens : 0;
    const uint32_t most = SL_CHUNK_TOKENS - rest;

    return step->n_tokens - first < most ? step->n_tokens : first + most;
}

static inline bool sl_step_is_stopped(const struct sl_step *step)
{
    return step->stop && atomic_load_explicit(step->stop, memory_order_relaxed);
}

/* Step index of the token at `position` of token i's sequence; -1 when an earlier step had it. */
static inline int64_t sl_step_index_of(const struct sl_step *step, uint32_t i, uint32_t position)
{
    uint32_t span_first = step->tokens[i].span_first;
    uint32_t span_position = step->tokens[span_first].position;

    return position >= span_position ? (int64_t)span_first + (position - span_position) : -1;
}

#endif
