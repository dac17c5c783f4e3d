#include "core/model/tensor_load.h"

#include <math.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/kernels/formats.h"
#include "core/kernels/r16.h"
#include "core/model/config.h"
#include "core/model/phase.h"

/* Elements of a job's item where the bytes are only checked. */
#define CHECKED_AT_ONCE 8192u

static int bad_value(const struct sl_tensor_load *load, const char *what, const char *where,
                     struct sl_err *err)
{
    return sl_err_set(err, -SL_ECORRUPT, "%s: tensor %s holds %s", where, load->name, what);
}

uint64_t sl_tensor_load_unit_bytes(const struct sl_tensor_load *load)
{
    const uint64_t element_bytes = sl_dtype_size_bytes(load->info.dtype);

    if (load->form != SL_TENSOR_TILES)
        return element_bytes;
    return SL_FP8_BLOCK * load->matrix.cols * element_bytes;
}

uint64_t sl_tensor_load_chunk_bytes(const struct sl_tensor_load *load, uint64_t wanted_bytes)
{
    const uint64_t unit_bytes = sl_tensor_load_unit_bytes(load);
    uint64_t bytes = wanted_bytes / unit_bytes * unit_bytes;

    bytes = bytes ? bytes : unit_bytes;
    return bytes < load->info.size_bytes ? bytes : load->info.size_bytes;
}

/* ---- tiles -------------------------------------------------------------------------------------
 */

/* Packing of one chunk of rows. */
struct packing {
    const struct sl_matrix *matrix;
    const uint8_t *bytes;
    uint8_t *tiles;      /* of the chunk's first row */
    const float *scales; /* FP8: of the chunk's first block of rows */
    uint32_t rows;
    int rc; /* written by any thread, the same value; read after the job */
};

/* Scales are powers of two, so that their exponents are the bytes that they were stored as. */
static void scale_bytes(size_t count, const float *scales, uint8_t *ret_bytes)
{
    for (size_t i = 0; i < count; i++)
        ret_bytes[i] = (uint8_t)(sl_f32_bits(scales[i]) >> 23);
}

static void pack_blocks(void *context, size_t first, size_t end, uint32_t thread_index)
{
    struct packing *in = context;
    const uint32_t cols = in->matrix->cols, blocks = cols / SL_FP8_BLOCK;
    uint8_t scales[SL_LINEAR_COLS_MAX / SL_FP8_BLOCK];
    int rc = 0;

    (void)thread_index;
    for (size_t block = first; block < end; block++) { /* 128 rows each */
        const size_t row = block * SL_FP8_BLOCK;
        const size_t n = in->rows - row < SL_FP8_BLOCK ? in->rows - row : SL_FP8_BLOCK;
        uint8_t *tiles = in->tiles + row / SL_R16_ROWS * sl_matrix_tile_bytes(in->matrix);

        if (in->matrix->kind == SL_MATRIX_FP8) {
            scale_bytes(blocks, in->scales + block * blocks, scales);
            rc |= sl_r16_pack_fp8(n, cols, in->bytes + row * cols, scales, tiles);
        } else if (in->matrix->kind == SL_MATRIX_FP8_BLOCK) {
            rc |= sl_r16_pack_fp8_codes(n, cols, in->bytes + row * cols, tiles);
        } else if (in->matrix->kind == SL_MATRIX_BF16) {
            rc |= sl_r16_pack_bf16(n, cols, (const uint16_t *)(const void *)in->bytes + row * cols,
                                   tiles);
        } else {
            rc |= sl_r16_pack_f32(n, cols, (const float *)(const void *)in->bytes + row * cols,
                                  tiles);
        }
    }
    if (rc < 0)
        __atomic_store_n(&in->rc, -SL_ECORRUPT, __ATOMIC_RELAXED);
}

static bool pack_tiles(const struct sl_tensor_load *load, uint64_t offset_bytes,
                       uint64_t size_bytes, const uint8_t *bytes, struct sl_pool *pool)
{
    const struct sl_matrix *matrix = &load->matrix;
    const uint64_t row_bytes = (uint64_t)matrix->cols * sl_dtype_size_bytes(load->info.dtype);
    const uint64_t row = offset_bytes / row_bytes, rows = size_bytes / row_bytes;
    struct packing packing = {
        .matrix = matrix,
        .bytes = bytes,
        .tiles = (uint8_t *)load->dst + row / SL_R16_ROWS * sl_matrix_tile_bytes(matrix),
        .scales = matrix->scales
                      ? matrix->scales + row / SL_FP8_BLOCK * (matrix->cols / SL_FP8_BLOCK)
                      : NULL,
        .rows = (uint32_t)rows,
    };

    sl_assert(row % SL_FP8_BLOCK == 0 && rows * row_bytes == size_bytes);
    sl_pool_run(pool, SL_PHASE_REPACK, (rows + SL_FP8_BLOCK - 1) / SL_FP8_BLOCK, 1, pack_blocks,
                &packing);
    return packing.rc == 0;
}

/* ---- the other forms ---------------------------------------------------------------------------
 */

/* Goes from the end, so that 16 bits can widen to 32 in place. */
static bool widen(const struct sl_tensor_load *load, uint64_t offset_bytes, uint64_t size_bytes,
                  const uint8_t *bytes)
{
    const uint32_t element_bytes = sl_dtype_size_bytes(load->info.dtype);
    const uint64_t first = offset_bytes / element_bytes, n = size_bytes / element_bytes;
    float *to = (float *)load->dst + first;
    bool finite = true;

    for (uint64_t i = n; i-- > 0;) {
        uint16_t code;

        if (element_bytes == sizeof(float)) {
            memcpy(&to[i], bytes + i * sizeof(float), sizeof(float));
        } else {
            memcpy(&code, bytes + i * sizeof(code), sizeof(code));
            to[i] = sl_bf16_to_f32(code);
        }
        finite &= isfinite(to[i]) != 0;
    }
    if (offset_bytes + size_bytes == load->info.size_bytes)
        for (uint64_t i = first + n; i < load->n_padded; i++)
            ((float *)load->dst)[i] = 0;
    return finite;
}

static bool read_e8m0(const struct sl_tensor_load *load, uint64_t offset_bytes, uint64_t size_bytes,
                      const uint8_t *bytes)
{
    float *to = (float *)load->dst + offset_bytes;
    uint8_t most = 0;

    for (uint64_t i = 0; i < size_bytes; i++) {
        most = bytes[i] > most ? bytes[i] : most;
        to[i] = sl_exp2i((int)bytes[i] - (int)SL_E8M0_BIAS);
    }
    return most <= SL_E8M0_BIAS + SL_SCALE_EXPONENT_MAX; /* 255 is NaN */
}

static int read_scales(const struct sl_tensor_load *load, uint64_t offset_bytes,
                       uint64_t size_bytes, const uint8_t *bytes, const char *where,
                       struct sl_err *err)
{
    if (load->info.dtype == SL_DTYPE_F32) {
        if (sl_f32_scales_read(size_bytes / sizeof(float), (const float *)(const void *)bytes,
                               (float *)load->dst + offset_bytes / sizeof(float)) == 0)
            return 0;
        return bad_value(load, "a scale that is negative, NaN or above 2^60", where, err);
    }
    if (read_e8m0(load, offset_bytes, size_bytes, bytes))
        return 0;
    return bad_value(load, "a scale that is NaN or above 2^60", where, err);
}

static int read_table(const struct sl_tensor_load *load, uint64_t offset_bytes, uint64_t size_bytes,
                      const uint8_t *bytes, const char *where, struct sl_err *err)
{
    const uint32_t element_bytes = sl_dtype_size_bytes(load->info.dtype);
    const uint64_t first = offset_bytes / element_bytes;
    uint16_t *to = load->dst;

    for (uint64_t i = 0; i < size_bytes / element_bytes; i++) {
        const int64_t expert = element_bytes == 8 ? ((const int64_t *)(const void *)bytes)[i]
                                                  : ((const int32_t *)(const void *)bytes)[i];

        if (expert < 0 || expert >= load->n_experts)
            return sl_err_set(err, -SL_ECORRUPT,
                              "%s: tensor %s names expert %lld for token %llu, expected 0 to %u",
                              where, load->name, (long long)expert,
                              (unsigned long long)((first + i) / load->n_in_row),
                              load->n_experts - 1);
        to[first + i] = (uint16_t)expert;
    }
    return 0;
}

/* Checking what stays as it is, and moving it where it stays. */
struct check {
    const uint8_t *bytes;
    uint8_t *to;
    uint64_t n_elements;
    enum sl_dtype dtype;
    int rc; /* written by any thread, the same value; read after the job */
};

static void check_and_move(void *context, size_t first, size_t end, uint32_t thread_index)
{
    struct check *check = context;
    const uint32_t element_bytes = sl_dtype_size_bytes(check->dtype);
    const uint64_t from = first * CHECKED_AT_ONCE;
    uint64_t to = end * CHECKED_AT_ONCE;
    bool finite = true;

    (void)thread_index;
    to = to < check->n_elements ? to : check->n_elements;
    if (check->dtype == SL_DTYPE_BF16)
        for (uint64_t i = from; i < to; i++)
            finite &= (((const uint16_t *)(const void *)check->bytes)[i] & 0x7f80) != 0x7f80;
    else
        for (uint64_t i = from; i < to; i++)
            finite &= isfinite(((const float *)(const void *)check->bytes)[i]) != 0;
    memcpy(check->to + from * element_bytes, check->bytes + from * element_bytes,
           (to - from) * element_bytes);
    if (!finite)
        __atomic_store_n(&check->rc, -SL_ECORRUPT, __ATOMIC_RELAXED);
}

static bool take_bytes(const struct sl_tensor_load *load, uint64_t offset_bytes,
                       uint64_t size_bytes, const uint8_t *bytes, struct sl_pool *pool)
{
    struct check check = {.bytes = bytes,
                          .to = (uint8_t *)load->dst + offset_bytes,
                          .n_elements = size_bytes / sl_dtype_size_bytes(load->info.dtype),
                          .dtype = load->info.dtype};

    sl_pool_run(pool, SL_PHASE_REPACK, (check.n_elements + CHECKED_AT_ONCE - 1) / CHECKED_AT_ONCE,
                1, check_and_move, &check);
    return check.rc == 0;
}

int sl_tensor_load_convert(const struct sl_tensor_load *load, uint64_t offset_bytes,
                           uint64_t size_bytes, const uint8_t *bytes, struct sl_pool *pool,
                           const char *where, struct sl_err *err)
{
    switch (load->form) {
    case SL_TENSOR_TILES:
        if (pack_tiles(load, offset_bytes, size_bytes, bytes, pool))
            return 0;
        return bad_value(load, "a NaN or infinity", where, err);
    case SL_TENSOR_SCALES:
        return read_scales(load, offset_bytes, size_bytes, bytes, where, err);
    case SL_TENSOR_FLOATS:
        if (widen(load, offset_bytes, size_bytes, bytes))
            return 0;
        return bad_value(load, "a value that is not finite", where, err);
    case SL_TENSOR_BYTES:
        if (take_bytes(load, offset_bytes, size_bytes, bytes, pool))
            return 0;
        return bad_value(load, "a value that is not finite", where, err);
    case SL_TENSOR_TABLE:
        return read_table(load, offset_bytes, size_bytes, bytes, where, err);
    }
    sl_assert(!"a tensor has one of these forms");
    return 0;
}
