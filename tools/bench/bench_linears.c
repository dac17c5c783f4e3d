/* Measures the linears of the released models, through the code that runs them in a step, and the
 * packing of experts. Weights are several copies of a matrix, used in turn, which together exceed
 * every cache. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/clock.h"
#include "core/base/size.h"
#include "core/model/expert_pack.h"
#include "tools/bench/bench.h"

#define TOKENS_MAX 512u

/* Copies of one matrix, and what it is multiplied with. */
struct linear {
    const struct sl_compute *compute;
    struct sl_matrix matrix;
    float *scales; /* FP8 */
    uint8_t *tiles;
    size_t copy_bytes;
    uint32_t n_copies, next;
    struct sl_act_buffer x; /* (TOKENS_MAX, cols) */
    float *y;               /* (TOKENS_MAX, rows rounded up to 16) */
    uint32_t n_tokens;
};

static void carve(struct linear *in, struct sl_arena *arena)
{
    const struct sl_matrix *m = &in->matrix;

    /* Copies have whole pages, so that each can lie on the node of its threads. */
    in->tiles = sl_arena_take_aligned(arena, in->n_copies, in->copy_bytes, SL_BLOCK_BYTES);
    in->scales = sl_arena_take(
        arena, (m->rows + SL_FP8_BLOCK - 1) / SL_FP8_BLOCK * (m->cols / SL_FP8_BLOCK + 1),
        sizeof(float));
    in->x = sl_act_buffer_carve(arena, TOKENS_MAX, m->cols,
                                m->kind == SL_MATRIX_FP4   ? SL_ACT_INT8
                                : m->kind == SL_MATRIX_F32 ? 0
                                                           : SL_ACT_BF16,
                                SL_NUMERICS_NATIVE);
    in->y = sl_arena_take(arena, TOKENS_MAX * sl_r16_padded_rows(m->rows), sizeof(float));
}

static struct linear linear_of(struct sl_bench *bench, enum sl_matrix_kind kind, uint32_t rows,
                               uint32_t cols)
{
    struct linear linear = {.compute = &bench->compute,
                            .matrix = {.kind = kind, .rows = rows, .cols = cols}};

    linear.copy_bytes = sl_r16_tile_count(rows) * sl_matrix_tile_bytes(&linear.matrix);
    linear.copy_bytes = sl_round_up(linear.copy_bytes, SL_BLOCK_BYTES);
    linear.n_copies = (uint32_t)(bench->probe.area.size_bytes / linear.copy_bytes) + 1;
    return linear;
}

static uint64_t linear_bytes(struct sl_bench *bench, enum sl_matrix_kind kind, uint32_t rows,
                             uint32_t cols)
{
    struct linear linear = linear_of(bench, kind, rows, cols);
    struct sl_arena measure;

    sl_arena_init_measure(&measure);
    carve(&linear, &measure);
    return measure.used_bytes;
}

/* One mapping serves all linears in turn: the system takes a second or more to clear a gigabyte.
 * Where there are several nodes it is cleared anew all the same, so that each thread's part comes
 * to lie on its own node. */
struct shared_area {
    struct sl_arena arena;
    bool several_nodes;
};

static bool has_several_nodes(void)
{
    struct sl_topology topology;
    bool several = false;

    sl_topology_read(&topology);
    for (uint32_t i = 0; i < topology.n_cpus; i++)
        several |= topology.cpus[i].node_index != topology.cpus[0].node_index;
    return several;
}

static struct sl_arena *area_emptied(struct shared_area *area)
{
    struct sl_arena *arena = &area->arena;

    arena->used_bytes = 0;
    if (area->several_nodes)
        sl_arena_give_back(arena, arena->base, arena->size_bytes, true);
    return arena;
}

static void linear_fill(struct linear *in, struct shared_area *area)
{
    const struct sl_compute *compute = in->compute;
    const uint32_t rows = in->matrix.rows, cols = in->matrix.cols;
    uint64_t state = 1;

    carve(in, area_emptied(area));
    for (uint32_t i = 0; i < in->n_copies; i++)
        sl_bench_fill(compute->pool, &in->matrix, in->tiles + i * in->copy_bytes);
    in->matrix.scales = in->scales;
    for (size_t i = 0; i < (rows + SL_FP8_BLOCK - 1) / SL_FP8_BLOCK * (cols / SL_FP8_BLOCK); i++)
        in->scales[i] = 0x1p-6f;
    for (size_t row = 0; row < TOKENS_MAX; row++) {
        for (size_t c = 0; c < cols; c++)
            in->x.f32[row * cols + c] = (float)(sl_bench_random(&state) % 2001) * 1e-3f - 1.0f;
        sl_act_buffer_round(&in->x, compute, 0, row);
    }
}

static uint64_t run_linear(void *context)
{
    struct linear *in = context;
    const size_t rows = sl_r16_padded_rows(in->matrix.rows);
    struct sl_linear_job job = {
        &in->matrix, sl_act_buffer_rows(&in->x, 0), in->y, rows, in->n_tokens, 0};
    uint64_t start_ns;

    in->matrix.tiles = in->tiles + in->next++ % in->n_copies * in->copy_bytes;
    start_ns = sl_clock_ns();
    sl_linear_run(in->compute, SL_PHASE_OUTSIDE, &job, 1);
    return sl_clock_ns() - start_ns;
}

static void bench_linear(struct sl_bench *bench, struct shared_area *area, const char *what,
                         enum sl_matrix_kind kind, uint32_t rows, uint32_t cols)
{
    static const uint32_t n_tokens[] = {1, 4, 8, 16, 64, TOKENS_MAX};
    static const enum sl_bench_peak peaks[] = {
        [SL_MATRIX_FP4] = SL_BENCH_INT8,       [SL_MATRIX_FP8] = SL_BENCH_BF16,
        [SL_MATRIX_FP8_BLOCK] = SL_BENCH_BF16, [SL_MATRIX_BF16] = SL_BENCH_BF16,
        [SL_MATRIX_F32] = SL_BENCH_F32,
    };
    struct linear linear = linear_of(bench, kind, rows, cols);

    if (!sl_bench_wants(bench, what))
        return;
    linear_fill(&linear, area);
    for (size_t i = 0; i < SL_ARRAY_LEN(n_tokens); i++) {
        char shape[64];
        struct sl_bench_work work = {
            .what = what,
            .shape = shape,
            .run = run_linear,
            .context = &linear,
            .bytes = sl_r16_tile_count(rows) * sl_matrix_tile_bytes(&linear.matrix),
            .multiplications = (uint64_t)rows * cols * n_tokens[i],
            .peak = peaks[kind],
            .in_bytes = n_tokens[i] == 1,
        };

        snprintf(shape, sizeof(shape), "%u x %u, %u token%s", rows, cols, n_tokens[i],
                 n_tokens[i] == 1 ? "" : "s");
        linear.n_tokens = n_tokens[i];
        sl_bench_measure(bench, &work);
    }
}

static double multiply_many(void *context)
{
    const struct linear *in = context;

    return (double)in->matrix.rows * in->matrix.cols * in->n_tokens / (double)run_linear(context);
}

int sl_bench_linear_rate(struct sl_bench *bench, enum sl_matrix_kind kind, uint32_t rows,
                         uint32_t cols, struct sl_bench_rate *ret_rate, struct sl_err *err)
{
    struct shared_area area = {.several_nodes = has_several_nodes()};
    struct linear linear = linear_of(bench, kind, rows, cols);
    int rc = sl_arena_map(&area.arena, linear_bytes(bench, kind, rows, cols), "bench", err);

    if (rc < 0)
        return rc;
    linear_fill(&linear, &area);
    linear.n_tokens = TOKENS_MAX;
    run_linear(&linear); /* what is touched for the first time is now */
    *ret_rate = sl_bench_readings(multiply_many, &linear);
    sl_arena_fini(&area.arena);
    return 0;
}

/* ---- packing -----------------------------------------------------------------------------------
 */

/* Copies of one matrix of an expert, w1, as a checkpoint has it, and room for as many packed ones.
 */
struct repack {
    struct sl_pool *pool;
    struct sl_expert_shape shape;
    enum sl_dtype scale_dtype;
    size_t code_bytes, scale_bytes, packed_bytes; /* of one copy */
    uint8_t *codes, *scales, *packed;
    uint32_t n_copies, next;
};

static void pack_tiles(void *context, size_t first, size_t end, uint32_t thread_index)
{
    struct repack *in = context;
    const struct sl_expert_rows rows = {in->codes + in->next * in->code_bytes,
                                        in->scales + in->next * in->scale_bytes, in->scale_dtype};

    (void)thread_index;
    /* Codes and scales are sound, so packing cannot fail. */
    (void)sl_expert_pack(&in->shape, SL_EXPERT_W1, &rows, first, end,
                         in->packed + in->next * in->packed_bytes);
}

static uint64_t run_repack(void *context)
{
    struct repack *in = context;
    uint64_t start_ns = sl_clock_ns();

    in->next = (in->next + 1) % in->n_copies;
    sl_pool_run(in->pool, SL_PHASE_OUTSIDE, sl_r16_tile_count(in->shape.moe_intermediate_size), 1,
                pack_tiles, in);
    return sl_clock_ns() - start_ns;
}

/* The expert with the larger matrices, with room to align three arrays. */
static uint64_t repack_bytes(struct sl_bench *bench)
{
    return bench->probe.area.size_bytes + UINT64_C(7168) * 3072 * 4 + 3 * SL_CACHE_LINE_BYTES;
}

static void bench_repack(struct sl_bench *bench, struct shared_area *area, const char *what,
                         enum sl_expert_dtype dtype, uint32_t rows, uint32_t cols)
{
    struct repack in = {
        .pool = bench->compute.pool,
        .shape = {.hidden_size = cols, .moe_intermediate_size = rows, .expert_dtype = dtype},
        .scale_dtype = dtype == SL_EXPERT_FP8 ? SL_DTYPE_F32 : SL_DTYPE_F8_E8M0,
    };
    char shape[64];
    struct sl_bench_work work = {
        .what = what,
        .shape = shape,
        .run = run_repack,
        .context = &in,
        .in_bytes = true,
    };
    struct sl_arena *arena;

    if (!sl_bench_wants(bench, work.what))
        return;
    in.code_bytes = sl_expert_codes_bytes(&in.shape, SL_EXPERT_W1);
    in.scale_bytes = sl_expert_scales_bytes(&in.shape, SL_EXPERT_W1, in.scale_dtype);
    in.packed_bytes =
        sl_round_up(sl_expert_matrix_bytes(&in.shape, SL_EXPERT_W1), SL_CACHE_LINE_BYTES);
    work.bytes = in.code_bytes + in.scale_bytes + in.packed_bytes;
    in.n_copies = (uint32_t)(bench->probe.area.size_bytes / work.bytes) + 1;
    arena = area_emptied(area);
    in.codes = sl_arena_take(arena, in.n_copies, in.code_bytes);
    in.scales = sl_arena_take(arena, in.n_copies, in.scale_bytes);
    in.packed = sl_arena_take(arena, in.n_copies, in.packed_bytes);
    sl_pool_first_touch(in.pool, in.codes, in.n_copies, in.code_bytes, 1, 0);
    memset(in.codes, 0x11, in.n_copies * in.code_bytes); /* what lay there may be no numbers */
    memset(in.scales, dtype == SL_EXPERT_FP8 ? 0 : SL_E8M0_BIAS, in.n_copies * in.scale_bytes);
    sl_pool_first_touch(in.pool, in.packed, in.n_copies, in.packed_bytes, 1, 0);
    snprintf(shape, sizeof(shape), "%u x %u, in and out", rows, cols);
    sl_bench_measure(bench, &work);
}

int sl_bench_linears(struct sl_bench *bench, struct sl_err *err)
{
    static const struct {
        const char *what;
        enum sl_matrix_kind kind;
        uint32_t rows, cols;
    } linears[] = {
        {"FP4 expert w1, Flash", SL_MATRIX_FP4, 2048, 4096},
        {"FP4 expert w2, Flash", SL_MATRIX_FP4, 4096, 2048},
        {"FP4 expert w1, Pro", SL_MATRIX_FP4, 3072, 7168},
        {"FP4 expert w2, Pro", SL_MATRIX_FP4, 7168, 3072},
        {"FP8 expert w1, Flash", SL_MATRIX_FP8_BLOCK, 2048, 4096},
        {"FP8 expert w2, Flash", SL_MATRIX_FP8_BLOCK, 4096, 2048},
        {"FP8 expert w1, Pro", SL_MATRIX_FP8_BLOCK, 3072, 7168},
        {"FP8 expert w2, Pro", SL_MATRIX_FP8_BLOCK, 7168, 3072},
        {"FP8 wq_b, Flash", SL_MATRIX_FP8, 32768, 1024},
        {"FP8 wo_b, Flash", SL_MATRIX_FP8, 4096, 8192},
        {"FP8 wq_b, Pro", SL_MATRIX_FP8, 65536, 1536},
        {"FP8 wo_b, Pro", SL_MATRIX_FP8, 7168, 16384},
        {"BF16 compressor, Flash", SL_MATRIX_BF16, 1024, 4096},
        {"BF16 head, Flash, a part", SL_MATRIX_BF16, 8192, 4096},
        {"BF16 compressor, Pro", SL_MATRIX_BF16, 1024, 7168},
        {"BF16 head, Pro, a part", SL_MATRIX_BF16, 8192, 7168},
        {"F32 mHC, Flash", SL_MATRIX_F32, 24, 16384},
        {"F32 mHC, Pro", SL_MATRIX_F32, 24, 28672},
    };
    struct shared_area area = {.several_nodes = has_several_nodes()};
    uint64_t size_bytes = repack_bytes(bench);
    int rc;

    for (size_t i = 0; i < SL_ARRAY_LEN(linears); i++) {
        uint64_t bytes = linear_bytes(bench, linears[i].kind, linears[i].rows, linears[i].cols);

        size_bytes = bytes > size_bytes ? bytes : size_bytes;
    }
    rc = sl_arena_map(&area.arena, size_bytes, "bench", err);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < SL_ARRAY_LEN(linears); i++)
        bench_linear(bench, &area, linears[i].what, linears[i].kind, linears[i].rows,
                     linears[i].cols);
    bench_repack(bench, &area, "R16 repack, FP4", SL_EXPERT_FP4, 2048, 4096);
    bench_repack(bench, &area, "R16 repack, FP4", SL_EXPERT_FP4, 3072, 7168);
    bench_repack(bench, &area, "R16 repack, FP8", SL_EXPERT_FP8, 2048, 4096);
    bench_repack(bench, &area, "R16 repack, FP8", SL_EXPERT_FP8, 3072, 7168);
    sl_arena_fini(&area.arena);
    return 0;
}
