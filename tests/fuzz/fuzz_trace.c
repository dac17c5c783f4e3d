/* A trace from anywhere: whatever is accepted must be safe to use, and can be replayed. The input
 * is taken as it is, and once more with the count and checksum that would end it, so that these do
 * not keep the fuzzer from the rest. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cache/cache_replay.h"
#include "cache/trace.h"
#include "core/base/assert.h"
#include "storage/io/checksum.h"

#define TOKENS_MAX 1000u
#define END_BYTES 20u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void replay(const struct sl_trace *trace)
{
    const uint32_t n_experts = trace->shape.num_hidden_layers * trace->shape.n_routed_experts;
    struct sl_slot_counters counters;
    struct sl_replay_plan *plan;

    if (n_experts > 1u << 16 ||
        sl_replay_plan_create(&plan, trace, &(struct sl_replay_steps){0}, NULL) < 0)
        return;
    if (sl_replay_run(plan, NULL, trace->shape.n_per_token, &counters, NULL) == 0) {
        sl_assert(counters.n_hits + counters.n_loads == counters.n_requests);
        sl_assert(counters.n_evictions <= counters.n_loads);
    }
    sl_replay_plan_destroy(plan);
}

static void parse(const uint8_t *bytes, size_t size)
{
    struct sl_err err = {0};
    struct sl_trace trace;
    uint64_t n_tokens = 0;

    if (sl_trace_parse(&trace, bytes, size, "fuzz", &err) < 0) {
        sl_assert(err.code < 0 && err.message[0]);
        return;
    }
    for (uint64_t i = 0; i < trace.n_steps; i++)
        n_tokens += trace.step_tokens[i];
    sl_assert(n_tokens == trace.n_tokens);
    for (uint64_t i = 0; i < n_tokens * trace.shape.num_hidden_layers * trace.shape.n_per_token;
         i++)
        sl_assert(trace.experts[i] < trace.shape.n_routed_experts);
    if (n_tokens <= TOKENS_MAX)
        replay(&trace);
    sl_trace_fini(&trace);
}

/* The tokens of all steps, as far as their sizes can be believed. */
static uint64_t count_tokens(const uint8_t *data, size_t size)
{
    uint32_t layers, experts, per_token, n;
    uint64_t n_tokens = 0;

    if (size < 40)
        return 0;
    memcpy(&layers, data + 12, 4);
    memcpy(&experts, data + 20, 4);
    memcpy(&per_token, data + 24, 4);
    for (uint64_t at = 40; at + 4 <= size;
         at += 4 + (uint64_t)n * (layers % 1025) * (per_token % 65) * (experts <= 256 ? 1 : 2)) {
        memcpy(&n, data + at, 4);
        n_tokens += n;
    }
    return n_tokens;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *ended = calloc(1, size + END_BYTES);
    uint64_t n_tokens = count_tokens(data, size), sum;

    parse(data, size);
    sl_assert(ended);
    memcpy(ended, data, size);
    memcpy(ended + size + 4, &n_tokens, 8);
    sum = sl_checksum(ended, size + 12);
    memcpy(ended + size + 12, &sum, 8);
    parse(ended, size + END_BYTES);
    free(ended);
    return 0;
}
