#include "cache/trace.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/file.h"
#include "storage/io/checksum.h"

_Static_assert(SL_EXPERT_FP4 == 0 && SL_EXPERT_FP8 == 1, "written as numbers");

#define VERSION 1u
#define HEADER_BYTES 40u
#define END_BYTES 20u
#define FILE_BYTES_MAX (UINT64_C(2) << 30)

static const char magic[8] = "SLTRACE";

static uint32_t expert_number_bytes(const struct sl_trace_shape *shape)
{
    return shape->n_routed_experts <= 256 ? 1 : 2;
}

uint64_t sl_trace_expert_bytes(const struct sl_trace_shape *shape)
{
    uint64_t weights = 3 * (uint64_t)shape->hidden_size * shape->moe_intermediate_size;

    return shape->expert_dtype == SL_EXPERT_FP8 ? weights + weights / (128 * 128) * sizeof(float)
                                                : weights / 2 + weights / 32;
}

/* ---- writing -----------------------------------------------------------------------------------
 */

struct sl_trace_writer {
    FILE *file;
    struct sl_trace_shape shape;
    struct sl_checksum_stream *checksum;
    uint64_t n_tokens;
    uint32_t next_layer, step_tokens;
    bool broken; /* a layer was left out: the run failed inside a step */
};

static void put_bytes(struct sl_trace_writer *writer, const void *bytes, size_t n)
{
    sl_checksum_stream_add(writer->checksum, bytes, n);
    fwrite(bytes, 1, n, writer->file); /* errors stick to the stream */
}

static void put_number(struct sl_trace_writer *writer, uint64_t value, uint32_t n_bytes)
{
    uint8_t bytes[8];

    for (uint32_t i = 0; i < n_bytes; i++)
        bytes[i] = (uint8_t)(value >> 8 * i);
    put_bytes(writer, bytes, n_bytes);
}

int sl_trace_writer_create(struct sl_trace_writer **ret_writer, FILE *stream,
                           const struct sl_trace_shape *shape, struct sl_err *err)
{
    struct sl_checksum_stream *checksum = sl_checksum_stream_create();
    struct sl_trace_writer *writer = malloc(sizeof(*writer));

    if (!writer || !checksum) {
        free(writer);
        sl_checksum_stream_destroy(checksum);
        return sl_err_set(err, -ENOMEM, "trace: out of memory");
    }
    *writer = (struct sl_trace_writer){.file = stream, .shape = *shape, .checksum = checksum};
    put_bytes(writer, magic, sizeof(magic));
    put_number(writer, VERSION, 4);
    put_number(writer, shape->num_hidden_layers, 4);
    put_number(writer, shape->num_hash_layers, 4);
    put_number(writer, shape->n_routed_experts, 4);
    put_number(writer, shape->n_per_token, 4);
    put_number(writer, shape->hidden_size, 4);
    put_number(writer, shape->moe_intermediate_size, 4);
    put_number(writer, shape->expert_dtype, 4);
    *ret_writer = writer;
    return 0;
}

void sl_trace_writer_add(struct sl_trace_writer *writer, uint32_t layer_index, uint32_t n_tokens,
                         const uint16_t *experts)
{
    const uint32_t number_bytes = expert_number_bytes(&writer->shape);
    const size_t n = (size_t)n_tokens * writer->shape.n_per_token;

    sl_assert(layer_index < writer->shape.num_hidden_layers && n_tokens >= 1);
    writer->broken |= layer_index != writer->next_layer;
    if (layer_index == 0) {
        put_number(writer, n_tokens, 4);
        writer->step_tokens = n_tokens;
        writer->n_tokens += n_tokens;
    }
    sl_assert(n_tokens == writer->step_tokens);
    for (size_t i = 0; i < n; i++)
        put_number(writer, experts[i], number_bytes);
    writer->next_layer = (layer_index + 1) % writer->shape.num_hidden_layers;
}

int sl_trace_writer_finish(struct sl_trace_writer *writer, struct sl_err *err)
{
    int rc = 0;

    if (!writer)
        return 0;
    put_number(writer, 0, 4);
    put_number(writer, writer->n_tokens, 8);
    put_number(writer, sl_checksum_stream_value(writer->checksum), 8);
    if (writer->broken || writer->next_layer != 0)
        rc = sl_err_set(err, -EIO, "the run ended inside a step, so its trace is of no use");
    sl_checksum_stream_destroy(writer->checksum);
    free(writer);
    return rc;
}

/* ---- reading -----------------------------------------------------------------------------------
 */

struct input {
    const uint8_t *bytes;
    size_t at, size;
    const char *where;
};

/* The caller has seen to it that they are there. */
static uint64_t get_number(struct input *in, uint32_t n_bytes)
{
    uint64_t value = 0;

    for (uint32_t i = 0; i < n_bytes; i++)
        value |= (uint64_t)in->bytes[in->at++] << 8 * i;
    return value;
}

static int get_header(struct input *in, struct sl_trace_shape *shape, struct sl_err *err)
{
    uint32_t version, dtype;

    if (in->size < HEADER_BYTES + END_BYTES || memcmp(in->bytes, magic, sizeof(magic)) != 0)
        return sl_err_set(err, -SL_EFORMAT, "%s: not a trace", in->where);
    in->at = sizeof(magic);
    version = (uint32_t)get_number(in, 4);
    if (version != VERSION)
        return sl_err_set(err, -SL_EFORMAT, "%s: a trace of version %u, not %u", in->where, version,
                          VERSION);
    shape->num_hidden_layers = (uint32_t)get_number(in, 4);
    shape->num_hash_layers = (uint32_t)get_number(in, 4);
    shape->n_routed_experts = (uint32_t)get_number(in, 4);
    shape->n_per_token = (uint32_t)get_number(in, 4);
    shape->hidden_size = (uint32_t)get_number(in, 4);
    shape->moe_intermediate_size = (uint32_t)get_number(in, 4);
    dtype = (uint32_t)get_number(in, 4);
    shape->expert_dtype = dtype == SL_EXPERT_FP8 ? SL_EXPERT_FP8 : SL_EXPERT_FP4;
    if (dtype > SL_EXPERT_FP8 || shape->num_hidden_layers == 0 ||
        shape->num_hidden_layers > SL_TRACE_LAYERS_MAX ||
        shape->num_hash_layers > shape->num_hidden_layers || shape->n_routed_experts > 65536 ||
        shape->n_per_token == 0 || shape->n_per_token > SL_TRACE_PER_TOKEN_MAX ||
        shape->n_per_token > shape->n_routed_experts || shape->hidden_size == 0 ||
        shape->moe_intermediate_size == 0)
        return sl_err_set(err, -SL_ECORRUPT, "%s: sizes in the header that no model has",
                          in->where);
    return 0;
}

/* Walks over the steps without looking at the experts: counts, and checks that they end at the
 * end. */
static int count_steps(struct input *in, struct sl_trace *trace, struct sl_err *err)
{
    const uint64_t token_bytes = (uint64_t)trace->shape.num_hidden_layers *
                                 trace->shape.n_per_token * expert_number_bytes(&trace->shape);
    const size_t end = in->size - END_BYTES;
    uint64_t n_tokens, sum;

    while (in->at < end) {
        if (end - in->at < 4)
            return sl_err_set(err, -SL_ECORRUPT, "%s: ends inside a step", in->where);
        n_tokens = get_number(in, 4);
        if (n_tokens == 0 || n_tokens > (end - in->at) / token_bytes)
            return sl_err_set(err, -SL_ECORRUPT, "%s: a step of %llu tokens at byte %zu", in->where,
                              (unsigned long long)n_tokens, in->at - 4);
        in->at += n_tokens * token_bytes;
        trace->n_tokens += n_tokens;
        trace->n_steps++;
    }
    sum = sl_checksum(in->bytes, in->size - 8);
    if (get_number(in, 4) != 0 || get_number(in, 8) != trace->n_tokens || get_number(in, 8) != sum)
        return sl_err_set(err, -SL_ECORRUPT,
                          "%s: its last bytes are not the count and checksum of the others",
                          in->where);
    if (trace->n_tokens == 0)
        return sl_err_set(err, -SL_ECORRUPT, "%s: holds no token", in->where);
    return 0;
}

/* The experts of n_tokens tokens in one layer, to where token-major order has them. */
static int get_layer(struct input *in, const struct sl_trace *trace, uint32_t n_tokens,
                     uint16_t *to, struct sl_err *err)
{
    const struct sl_trace_shape *shape = &trace->shape;
    const uint32_t k = shape->n_per_token, number_bytes = expert_number_bytes(shape);

    for (uint32_t i = 0; i < n_tokens; i++, to += (size_t)k * shape->num_hidden_layers) {
        for (uint32_t s = 0; s < k; s++) {
            to[s] = (uint16_t)get_number(in, number_bytes);
            if (to[s] >= shape->n_routed_experts || (s > 0 && to[s] <= to[s - 1]))
                return sl_err_set(err, -SL_ECORRUPT, "%s: expert %u of %u, after %u, at byte %zu",
                                  in->where, to[s], shape->n_routed_experts, s > 0 ? to[s - 1] : 0,
                                  in->at - number_bytes);
        }
    }
    return 0;
}

static int get_steps(struct input *in, struct sl_trace *trace, struct sl_err *err)
{
    const uint32_t layers = trace->shape.num_hidden_layers, k = trace->shape.n_per_token;
    uint16_t *to = trace->experts;
    int rc = 0;

    for (uint64_t step = 0; step < trace->n_steps; step++) {
        uint32_t n_tokens = (uint32_t)get_number(in, 4);

        trace->step_tokens[step] = n_tokens;
        for (uint32_t layer = 0; layer < layers && rc == 0; layer++)
            rc = get_layer(in, trace, n_tokens, to + (size_t)layer * k, err);
        if (rc < 0)
            return rc;
        to += (size_t)n_tokens * layers * k;
    }
    return 0;
}

int sl_trace_parse(struct sl_trace *ret_trace, const uint8_t *bytes, size_t size_bytes,
                   const char *where, struct sl_err *err)
{
    struct input in = {bytes, 0, size_bytes, where};
    struct sl_trace trace = {.n_tokens = 0};
    int rc;

    if ((rc = get_header(&in, &trace.shape, err)) < 0 || (rc = count_steps(&in, &trace, err)) < 0)
        return rc;
    trace.step_tokens = calloc(trace.n_steps, sizeof(*trace.step_tokens));
    trace.experts = calloc(trace.n_tokens, sizeof(*trace.experts) * trace.shape.num_hidden_layers *
                                               trace.shape.n_per_token);
    in.at = HEADER_BYTES;
    rc = trace.step_tokens && trace.experts ? get_steps(&in, &trace, err)
                                            : sl_err_set(err, -ENOMEM, "%s: out of memory", where);
    if (rc < 0)
        sl_trace_fini(&trace);
    else
        *ret_trace = trace;
    return rc;
}

int sl_trace_read(struct sl_trace *ret_trace, const char *path, struct sl_err *err)
{
    size_t size_bytes;
    char *bytes;
    int rc = sl_input_read_all(path, FILE_BYTES_MAX, &bytes, &size_bytes, err);

    if (rc < 0)
        return rc;
    rc = sl_trace_parse(ret_trace, (const uint8_t *)bytes, size_bytes, path, err);
    free(bytes);
    return rc;
}

void sl_trace_fini(struct sl_trace *trace)
{
    free(trace->step_tokens);
    free(trace->experts);
    *trace = (struct sl_trace){.n_tokens = 0};
}
