/* Measures kernels that work on one row of activations or KV entries at a time. Rows lie in the
 * caches, as they do in a step; the figure is the bytes in and out, beside reading as much from
 * memory. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/clock.h"
#include "core/base/size.h"
#include "core/model/hyper_connection.h"
#include "tools/bench/bench.h"

#define ROW_VALUES_MAX 65536u /* of an input or output of one call */
#define CALLS_EACH 32u        /* of a thread, in one job */

/* The buffers of one thread: three inputs and an output, which also serves values that are changed
 * in place. */
struct row_buffers {
    float *a, *b, *c, *y;
    const float **a_rows, **b_rows;
};

/* A kernel whose work is described by one size; `shape` says what the size counts. */
struct row_kernel {
    const char *what;
    const char *shape;  /* a format for the size */
    size_t sizes[2];    /* 0: none */
    uint32_t bytes_per; /* of the size, in and out; 0: the figure counts multiplications */
    uint32_t multiplications_per;
    void (*call)(const struct sl_kernels *k, size_t n, const struct row_buffers *b);
};

#define CALL(name)                                                                                 \
    static void call_##name(const struct sl_kernels *k, size_t n, const struct row_buffers *b)

CALL(quantise_int8)
{
    k->quantise_int8(n, b->a, (int8_t *)b->y, b->c);
}

CALL(to_bf16)
{
    k->to_bf16(n, b->a, (uint16_t *)(void *)b->y);
}

CALL(rms_factor)
{
    b->y[0] = k->rms_factor(n, b->a, 1e-6f);
}

CALL(rms_norm)
{
    k->rms_norm(n, b->a, b->b, 1e-6f, b->y);
}

CALL(swiglu)
{
    k->swiglu(n, b->a, b->b, 10.0f, 0.5f, b->y);
}

CALL(sqrt_softplus)
{
    k->sqrt_softplus(n, b->a, b->y);
}

CALL(rotate)
{
    for (size_t head = 0; head < n; head++)
        k->rotate(32, b->y + head * 512, b->a, b->b, 1.0f);
}

CALL(hadamard)
{
    for (size_t head = 0; head < n; head++)
        k->hadamard(128, b->y + head * 128);
}

CALL(hc_reduce)
{
    k->hc_reduce(4, n, b->c, b->a, b->y);
}

CALL(hc_update)
{
    k->hc_update(4, n, b->c, b->c + 4, b->a, b->y);
}

CALL(sinkhorn)
{
    const struct sl_config config = {
        .hc_mult = 4, .hc_sinkhorn_iters = (uint32_t)n, .hc_eps = 1e-6f};

    (void)k;
    memcpy(b->y, b->a, 16 * sizeof(float));
    sl_hc_sinkhorn(&config, b->y);
}

CALL(kv_encode)
{
    for (size_t i = 0; i < n; i++)
        k->kv_encode(448, 64, b->a + i * 512, (uint8_t *)b->y + i * sl_kv_entry_bytes(448, 64));
}

CALL(kv_decode)
{
    for (size_t i = 0; i < n; i++)
        k->kv_decode(448, 64, (const uint8_t *)b->c + i * sl_kv_entry_bytes(448, 64),
                     (uint16_t *)(void *)b->y + i * 512);
}

CALL(pair_rows)
{
    k->pair_rows(n / 2, 512, (const uint16_t *)(const void *)b->a, (uint8_t *)b->y, n * 32);
}

CALL(pool_rows)
{
    k->pool_rows(n, 512, b->a_rows, b->b_rows, b->y);
}

CALL(attend_softmax)
{
    k->attend_softmax(n, b->a, 16, 0.044f, b->b, (uint16_t *)(void *)b->y, n, b->c);
}

CALL(index_encode)
{
    for (size_t head = 0; head < n; head++)
        k->index_encode(128, b->a + head * 128, (uint8_t *)b->y + head * 128,
                        (uint8_t *)b->c + head * 4);
}

/* One in 67 is found, about as many as the choice of the indexer looks at. */
CALL(find_scores)
{
    k->find_scores(n, b->a, 0.97f, ROW_VALUES_MAX, (uint32_t *)(void *)b->y, b->c);
}

static const struct row_kernel kernels[] = {
    {"quantise to int8", "%zu values", {4096, 7168}, 5, 0, call_quantise_int8},
    {"round to BF16", "%zu values", {4096, 7168}, 6, 0, call_to_bf16},
    {"RMS factor", "%zu values", {16384, 28672}, 4, 0, call_rms_factor},
    {"RMS norm", "%zu values", {4096, 7168}, 12, 0, call_rms_norm},
    {"SwiGLU", "%zu values", {2048, 3072}, 12, 0, call_swiglu},
    {"router scores", "%zu experts", {256, 384}, 8, 0, call_sqrt_softplus},
    {"rope", "%zu heads of 64", {64, 128}, 64 * 4 * 2, 0, call_rotate},
    {"Hadamard", "%zu heads of 128", {64}, 128 * 4 * 2, 0, call_hadamard},
    {"mHC reduce", "4 streams of %zu", {4096, 7168}, 5 * 4, 0, call_hc_reduce},
    {"mHC update", "4 streams of %zu", {4096, 7168}, 9 * 4, 0, call_hc_update},
    {"Sinkhorn", "4 x 4, %zu rounds", {20}, 0, 2 * 16, call_sinkhorn},
    {"KV encode", "%zu entries of 448 + 64", {64}, 512 * 4 + 583, 0, call_kv_encode},
    {"KV decode", "%zu entries of 448 + 64", {64}, 583 + 512 * 2, 0, call_kv_decode},
    {"KV entries paired", "%zu entries of 512", {64}, 512 * 4, 0, call_pair_rows},
    {"compressor pooling", "%zu rows of 512", {8, 128}, 512 * 4 * 2, 0, call_pool_rows},
    {"attention softmax", "16 heads, %zu entries", {640, 1152}, 16 * 6, 0, call_attend_softmax},
    {"indexer encode", "%zu heads of 128", {64}, 128 * 5, 0, call_index_encode},
    {"indexer search", "%zu scores", {62500}, 4, 0, call_find_scores},
};

struct rows {
    const struct sl_compute *compute;
    const struct row_kernel *kernel;
    size_t size;
    struct row_buffers *buffers; /* per thread */
};

static void call_rows(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct rows *in = context;

    for (size_t i = first; i < end; i++)
        in->kernel->call(in->compute->kernels, in->size, &in->buffers[thread_index]);
}

static uint64_t run_rows(void *context)
{
    struct rows *in = context;
    uint64_t start_ns = sl_clock_ns();

    sl_pool_run(in->compute->pool, SL_PHASE_OUTSIDE,
                (size_t)CALLS_EACH * sl_pool_thread_count(in->compute->pool), 1, call_rows, in);
    return sl_clock_ns() - start_ns;
}

static float *take_random(struct sl_arena *arena, uint64_t *state)
{
    float *values = sl_arena_take(arena, ROW_VALUES_MAX, sizeof(float));

    for (size_t i = 0; values && i < ROW_VALUES_MAX; i++)
        values[i] = (float)(sl_bench_random(state) % 2001) * 1e-3f - 1.0f;
    return values;
}

static void carve(struct rows *in, struct sl_arena *arena, uint32_t n_threads)
{
    uint64_t state = 1;

    in->buffers = sl_arena_take(arena, n_threads, sizeof(*in->buffers));
    for (uint32_t i = 0; i < n_threads; i++) {
        struct row_buffers b = {
            .a = take_random(arena, &state),
            .b = take_random(arena, &state),
            .c = take_random(arena, &state),
            .y = take_random(arena, &state),
            .a_rows = sl_arena_take(arena, ROW_VALUES_MAX / 512, sizeof(*b.a_rows)),
            .b_rows = sl_arena_take(arena, ROW_VALUES_MAX / 512, sizeof(*b.b_rows)),
        };

        if (!in->buffers)
            continue;
        for (size_t row = 0; row < ROW_VALUES_MAX / 512; row++) {
            b.a_rows[row] = b.a + row * 512;
            b.b_rows[row] = b.b + row * 512;
        }
        in->buffers[i] = b;
    }
}

/* Fills the third input: weights of streams that keep their sum, or encoded entries. */
static void prepare(struct rows *in, uint32_t n_threads)
{
    for (uint32_t i = 0; i < n_threads; i++) {
        struct row_buffers *b = &in->buffers[i];

        memcpy(b->y, b->a, ROW_VALUES_MAX * sizeof(float));
        if (in->kernel->call == call_kv_decode) {
            call_kv_encode(in->compute->kernels, in->size, b);
            memcpy(b->c, b->y, ROW_VALUES_MAX * sizeof(float));
        } else {
            for (size_t n = 0; n < 20; n++)
                b->c[n] = 0.2f;
        }
    }
}

int sl_bench_rows(struct sl_bench *bench, struct sl_err *err)
{
    const uint32_t n_threads = sl_pool_thread_count(bench->compute.pool);
    struct rows in = {.compute = &bench->compute};
    struct sl_arena arena;
    char shape[64];
    struct sl_bench_work work = {
        .shape = shape, .run = run_rows, .context = &in, .peak = SL_BENCH_F32};
    int rc;

    sl_arena_init_measure(&arena);
    carve(&in, &arena, n_threads);
    rc = sl_arena_init(&arena, arena.used_bytes, "bench", err);
    if (rc < 0)
        return rc;
    carve(&in, &arena, n_threads);
    for (size_t i = 0; i < SL_ARRAY_LEN(kernels); i++) {
        for (size_t s = 0; s < 2 && kernels[i].sizes[s]; s++) {
            in.kernel = &kernels[i];
            in.size = kernels[i].sizes[s];
            prepare(&in, n_threads);
            snprintf(shape, sizeof(shape), kernels[i].shape, in.size);
            work.what = kernels[i].what;
            work.bytes = (uint64_t)in.size * kernels[i].bytes_per * CALLS_EACH * n_threads;
            work.multiplications =
                (uint64_t)in.size * kernels[i].multiplications_per * CALLS_EACH * n_threads;
            work.in_bytes = kernels[i].bytes_per > 0;
            sl_bench_measure(bench, &work);
        }
    }
    sl_arena_fini(&arena);
    return 0;
}
