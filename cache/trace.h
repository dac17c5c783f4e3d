/* Traces: what each token asked for in each layer, kept in a file.
 *
 * A trace is of one run over some text. It says which steps the run took its tokens in, and for
 * each token the experts that it was routed to; not what was in the cache. So the same trace can be
 * replayed with any cache, policy and segment (cache/cache_replay.h). Files are little-endian:
 *
 *     header   "SLTRACE" and a zero byte; version, then what is below (0: FP4, 1: FP8): 8 x u32
 *     steps    u32 n_tokens, at least 1; (n_layers, n_tokens, n_per_token) experts, ascending for
 *              each token: u8 where the model has no more than 256, else u16
 *     end      u32 zero; u64 tokens of all steps; u64 XXH3 of all bytes before it
 *
 * One thread at a time uses a writer or a trace. */
#ifndef SL_CACHE_TRACE_H
#define SL_CACHE_TRACE_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "core/base/err.h"
#include "core/model/expert_key.h"

#define SL_TRACE_LAYERS_MAX 1024u
#define SL_TRACE_PER_TOKEN_MAX 64u

/* The model that was run; names as in config.json, but n_per_token for num_experts_per_tok. */
struct sl_trace_shape {
    uint32_t num_hidden_layers;
    uint32_t num_hash_layers;
    uint32_t n_routed_experts;
    uint32_t n_per_token;
    uint32_t hidden_size;
    uint32_t moe_intermediate_size;
    enum sl_expert_dtype expert_dtype;
};

/* ---- writing -----------------------------------------------------------------------------------
 */

struct sl_trace_writer;

/* Writes the beginning to `stream`, which stays the caller's and must live as long. Fails with
 * -ENOMEM. finish() follows. */
int sl_trace_writer_create(struct sl_trace_writer **ret_writer, FILE *stream,
                           const struct sl_trace_shape *shape, struct sl_err *err);

/* One layer of a step: layers in their order, all of a step with the same tokens. What cannot be
 * written shows in the stream's ferror(). */
void sl_trace_writer_add(struct sl_trace_writer *writer, uint32_t layer_index, uint32_t n_tokens,
                         const uint16_t *experts);

/* Writes the end and frees the writer; NULL is allowed. Without a whole last step it fails with
 * -EIO, and what was written will be refused as a trace. */
int sl_trace_writer_finish(struct sl_trace_writer *writer, struct sl_err *err);

/* ---- reading -----------------------------------------------------------------------------------
 */

struct sl_trace {
    struct sl_trace_shape shape;
    uint64_t n_tokens;
    uint64_t n_steps;
    uint32_t *step_tokens; /* (n_steps) */
    uint16_t *experts;     /* (n_tokens, num_hidden_layers, n_per_token) */
};

/* Nothing in the file is believed: fails with -SL_EFORMAT (no trace, or of another version) or
 * -SL_ECORRUPT (cut short, or changed), with -errno or -ENOMEM. The caller ends with fini(). */
int sl_trace_read(struct sl_trace *ret_trace, const char *path, struct sl_err *err);

/* Reads a trace from memory; `where` names it in errors. */
int sl_trace_parse(struct sl_trace *ret_trace, const uint8_t *bytes, size_t size_bytes,
                   const char *where, struct sl_err *err);

/* A zeroed trace is allowed. */
void sl_trace_fini(struct sl_trace *trace);

/* Bytes of one expert as a checkpoint stores it. */
uint64_t sl_trace_expert_bytes(const struct sl_trace_shape *shape);

#endif
