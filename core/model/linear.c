#include "core/model/linear.h"

#include "core/base/assert.h"
#include "core/model/exact.h"

/* Multiplications that are worth waking a thread for: some 20 microseconds' work. */
#define MULTIPLICATIONS_PER_SHARE 65536u

/* Shares of each thread, so that others can take over what a late thread leaves, where they stay
 * large enough: the kernels lay the activations out anew for each, which takes time where tokens
 * are many. */
#define SHARES_PER_THREAD 4u
#define TILES_PER_SHARE 2u
#define MANY_TOKENS 64u
#define TILES_PER_SHARE_MANY 8u

#define BF16_PER_LINE (SL_CACHE_LINE_BYTES / sizeof(uint16_t))

struct sl_act_buffer sl_act_buffer_carve(struct sl_arena *arena, uint64_t rows, uint32_t cols,
                                         unsigned forms, enum sl_numerics numerics)
{
    struct sl_act_buffer buffer = {
        .cols = cols,
        .bf16_stride =
            (cols + BF16_PER_LINE - 1) / BF16_PER_LINE / 2 * 2 * BF16_PER_LINE + BF16_PER_LINE,
    };

    if (numerics == SL_NUMERICS_EXACT || !(forms & SL_ACT_ROUNDED_ALONE))
        buffer.f32 = sl_arena_take(arena, rows * cols, sizeof(float));
    if (numerics == SL_NUMERICS_EXACT)
        return buffer;
    if (forms & SL_ACT_BF16)
        buffer.bf16 = sl_arena_take(arena, rows * buffer.bf16_stride, sizeof(uint16_t));
    if (forms & SL_ACT_INT8) {
        buffer.int8 = sl_arena_take(arena, rows * cols, 1);
        buffer.int8_scale = sl_arena_take(arena, rows * (cols / SL_FP4_GROUP_COLS), sizeof(float));
    }
    return buffer;
}

void sl_act_buffer_round(const struct sl_act_buffer *buffer, const struct sl_compute *compute,
                         uint32_t thread_index, size_t row)
{
    const struct sl_kernels *kernels = compute->kernels;
    const size_t cols = buffer->cols;
    const float *x = buffer->f32 + row * cols;
    uint32_t phase = SL_PHASE_OUTSIDE;

    if (thread_index == 0)
        phase = sl_pool_phase(compute->pool, SL_PHASE_QUANTISE);

    if (buffer->bf16)
        kernels->to_bf16(cols, x, buffer->bf16 + row * buffer->bf16_stride);
    if (buffer->int8)
        kernels->quantise_int8(cols, x, buffer->int8 + row * cols,
                               buffer->int8_scale + row * (cols / SL_FP4_GROUP_COLS));
    if (thread_index == 0)
        sl_pool_phase(compute->pool, phase);
}

struct sl_act_buffer sl_act_buffer_from(const struct sl_act_buffer *buffer, size_t first_row)
{
    struct sl_act_buffer from = *buffer;

    if (from.f32)
        from.f32 += first_row * buffer->cols;
    if (from.bf16)
        from.bf16 += first_row * buffer->bf16_stride;
    if (from.int8) {
        from.int8 += first_row * buffer->cols;
        from.int8_scale += first_row * (buffer->cols / SL_FP4_GROUP_COLS);
    }
    return from;
}

struct sl_act sl_act_buffer_rows(const struct sl_act_buffer *buffer, size_t first_row)
{
    const struct sl_act_buffer from = sl_act_buffer_from(buffer, first_row);

    return (struct sl_act){.f32 = from.f32,
                           .bf16 = from.bf16,
                           .stride = from.cols,
                           .bf16_stride = from.bf16_stride,
                           .int8 = from.int8,
                           .int8_scale = from.int8_scale};
}

static void run_tiles(const struct sl_compute *compute, const struct sl_linear_job *job,
                      size_t first_tile, size_t end_tile)
{
    const struct sl_matrix *m = job->matrix;
    const struct sl_kernels *k = compute->kernels;
    const uint8_t *w = m->tiles + first_tile * sl_matrix_tile_bytes(m);
    float *y = job->y + first_tile * SL_R16_ROWS;

    if (compute->numerics == SL_NUMERICS_EXACT) {
        sl_exact_matmul(m, first_tile, end_tile, job->token_count, job->x.f32, job->x.stride, y,
                        job->y_stride);
        return;
    }
    switch (m->kind) {
    case SL_MATRIX_FP4:
        k->matmul_fp4(end_tile - first_tile, m->cols, job->token_count, w, job->x.int8,
                      job->x.int8_scale, y, job->y_stride);
        return;
    case SL_MATRIX_BF16:
        k->matmul_bf16(end_tile - first_tile, m->cols, job->token_count, w, job->x.bf16,
                       job->x.bf16_stride, y, job->y_stride);
        return;
    case SL_MATRIX_F32:
        k->matmul_f32(end_tile - first_tile, m->cols, job->token_count, w, job->x.f32,
                      job->x.stride, y, job->y_stride);
        return;
    case SL_MATRIX_FP8:
        k->matmul_fp8(first_tile, end_tile - first_tile, m->cols, job->token_count, w, m->scales,
                      job->x.bf16, job->x.bf16_stride, y, job->y_stride);
        return;
    case SL_MATRIX_FP8_BLOCK:
        k->matmul_fp8_block(first_tile, end_tile - first_tile, m->cols, job->token_count, w,
                            m->scales, job->x.bf16, job->x.bf16_stride, y, job->y_stride);
        return;
    }
}

/* Runs a job whose rows are in groups: it is cut at their borders. */
static void run_groups(const struct sl_compute *compute, const struct sl_linear_job *job,
                       size_t first_tile, size_t end_tile)
{
    const size_t group_tiles = job->group_rows / SL_R16_ROWS;

    sl_assert(job->group_rows % SL_R16_ROWS == 0);
    while (first_tile < end_tile) {
        struct sl_linear_job part = *job;
        size_t group = first_tile / group_tiles, end = (group + 1) * group_tiles;

        end = end < end_tile ? end : end_tile;
        part.x.f32 += group * job->matrix->cols;
        if (part.x.bf16)
            part.x.bf16 += group * job->matrix->cols;
        run_tiles(compute, &part, first_tile, end);
        first_tile = end;
    }
}

/* Items are (part, job, sub-part), so that a thread's are its part of every job, and others can
 * take over some of the jobs. */
static void run_shares(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct sl_linear_shares *shares = context;
    const size_t n_shares = shares->n_parts * shares->n_subparts;
    size_t next;

    (void)thread_index;
    for (size_t item = first; item < end; item = next) {
        const size_t of_job = item / shares->n_subparts;
        const struct sl_linear_job *job = &shares->jobs[of_job % shares->n_jobs];
        const size_t n_tiles = sl_r16_tile_count(job->matrix->rows);
        const size_t share =
            of_job / shares->n_jobs * shares->n_subparts + item % shares->n_subparts;
        size_t first_tile, end_tile;

        next = (of_job + 1) * shares->n_subparts;
        next = next < end ? next : end;
        first_tile = n_tiles * share / n_shares;
        end_tile = n_tiles * (share + next - item) / n_shares;
        if (job->group_rows)
            run_groups(shares->compute, job, first_tile, end_tile);
        else if (first_tile < end_tile)
            run_tiles(shares->compute, job, first_tile, end_tile);
    }
}

struct sl_chain_job sl_linear_chain(struct sl_linear_shares *ret_shares,
                                    const struct sl_compute *compute, enum sl_phase phase,
                                    const struct sl_linear_job *jobs, size_t n_jobs)
{
    const size_t n_threads = sl_pool_thread_count(compute->pool);
    struct sl_linear_shares shares = {compute, jobs, n_jobs, n_threads, 1};
    uint64_t work = 0, read_bytes = 0;
    size_t n_tiles_max = 0, tiles_per_share = TILES_PER_SHARE, shares_useful;

    for (size_t i = 0; i < n_jobs; i++) {
        const struct sl_matrix *m = jobs[i].matrix;

        work += (uint64_t)m->rows * m->cols * jobs[i].token_count;
        read_bytes += sl_r16_tile_count(m->rows) * sl_matrix_tile_bytes(m);
        if (sl_r16_tile_count(m->rows) > n_tiles_max)
            n_tiles_max = sl_r16_tile_count(m->rows);
        if (jobs[i].token_count > MANY_TOKENS)
            tiles_per_share = TILES_PER_SHARE_MANY;
    }
    shares_useful = work / MULTIPLICATIONS_PER_SHARE + 1;
    for (size_t n = 2; n <= SHARES_PER_THREAD; n++)
        if (n * n_threads * tiles_per_share <= n_tiles_max && n * n_threads <= shares_useful)
            shares.n_subparts = n;
    if (shares_useful < n_threads)
        shares.n_parts = shares_useful;
    sl_pool_count(compute->pool, phase, read_bytes, work);
    *ret_shares = shares;
    return (struct sl_chain_job){.fn = run_shares,
                                 .context = ret_shares,
                                 .n_items = shares.n_parts * n_jobs * shares.n_subparts,
                                 .grain = shares.n_parts < n_threads ? n_jobs : 1,
                                 .phase = phase,
                                 .multiplications = work,
                                 .read_bytes = read_bytes};
}

void sl_linear_run(const struct sl_compute *compute, enum sl_phase phase,
                   const struct sl_linear_job *jobs, size_t n_jobs)
{
    struct sl_linear_shares shares;
    const struct sl_chain_job job = sl_linear_chain(&shares, compute, phase, jobs, n_jobs);

    sl_chains_run(compute, &job, 1, 1);
}
