#include "core/model/tensor_load.h"

#include <math.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/kernels/formats.h"
#include "core/kernels/r16.h"
#include "core/model/config.h"

/* Elements of an item where they stay as they are. */
#define MOVED_AT_ONCE 8192u

/* Tiles with the same scales. */
#define BLOCK_TILES (SL_FP8_BLOCK / SL_R16_ROWS)

static int bad_value(struct sl_tensor_part *part, const char *what)
{
    return sl_err_set(&part->err, -SL_ECORRUPT, "%s: tensor %s holds %s", part->where,
                      part->load->name, what);
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

/* Scales are powers of two, so that their exponents are the bytes that they were stored as. */
static void scale_bytes(size_t count, const float *scales, uint8_t *ret_bytes)
{
    for (size_t i = 0; i < count; i++)
        ret_bytes[i] = (uint8_t)(sl_f32_bits(scales[i]) >> 23);
}

/* Packs rows that have the same scales. */
static int pack_rows(const struct sl_matrix *matrix, uint64_t row, size_t n, const uint8_t *bytes,
                     uint8_t *tiles)
{
    const uint32_t cols = matrix->cols, blocks = cols / SL_FP8_BLOCK;
    uint8_t scales[SL_LINEAR_COLS_MAX / SL_FP8_BLOCK];

    switch (matrix->kind) {
    case SL_MATRIX_FP8:
        scale_bytes(blocks, matrix->scales + row / SL_FP8_BLOCK * blocks, scales);
        return sl_r16_pack_fp8(n, cols, bytes, scales, tiles);
    case SL_MATRIX_FP8_BLOCK:
        return sl_r16_pack_fp8_codes(n, cols, bytes, tiles);
    case SL_MATRIX_BF16:
        return sl_r16_pack_bf16(n, cols, (const uint16_t *)(const void *)bytes, tiles);
    default:
        return sl_r16_pack_f32(n, cols, (const float *)(const void *)bytes, tiles);
    }
}

/* An item is a tile. */
static bool pack_tiles(const struct sl_tensor_part *part, uint64_t first, uint64_t end)
{
    const struct sl_matrix *matrix = &part->load->matrix;
    const uint64_t row_bytes = (uint64_t)matrix->cols * sl_dtype_size_bytes(part->load->info.dtype);
    const uint64_t first_row = part->offset_bytes / row_bytes;
    const uint64_t rows = part->size_bytes / row_bytes;
    uint8_t *tiles = part->load->dst;
    int rc = 0;

    sl_assert(first_row % SL_FP8_BLOCK == 0 && rows * row_bytes == part->size_bytes);
    while (first < end) {
        const uint64_t block_end = (first / BLOCK_TILES + 1) * BLOCK_TILES;
        const uint64_t next = block_end < end ? block_end : end;
        const uint64_t row = first * SL_R16_ROWS;
        const uint64_t row_end = next * SL_R16_ROWS < rows ? next * SL_R16_ROWS : rows;

        rc |= pack_rows(matrix, first_row + row, row_end - row, part->bytes + row * row_bytes,
                        tiles + (first_row / SL_R16_ROWS + first) * sl_matrix_tile_bytes(matrix));
        first = next;
    }
    return rc == 0;
}

/* ---- the other forms ---------------------------------------------------------------------------
 */

static int widen(struct sl_tensor_part *part)
{
    const struct sl_tensor_load *load = part->load;
    const uint32_t element_bytes = sl_dtype_size_bytes(load->info.dtype);
    const uint64_t first = part->offset_bytes / element_bytes;
    const uint64_t n = part->size_bytes / element_bytes;
    float *to = (float *)load->dst + first;
    bool finite = true;

    for (uint64_t i = 0; i < n; i++) {
        uint16_t code;

        if (element_bytes == sizeof(float)) {
            memcpy(&to[i], part->bytes + i * sizeof(float), sizeof(float));
        } else {
            memcpy(&code, part->bytes + i * sizeof(code), sizeof(code));
            to[i] = sl_bf16_to_f32(code);
        }
        finite &= isfinite(to[i]) != 0;
    }
    if (part->offset_bytes + part->size_bytes == load->info.size_bytes)
        for (uint64_t i = first + n; i < load->n_padded; i++)
            ((float *)load->dst)[i] = 0;
    return finite ? 0 : bad_value(part, "a value that is not finite");
}

static bool read_e8m0(const struct sl_tensor_part *part)
{
    float *to = (float *)part->load->dst + part->offset_bytes;
    uint8_t most = 0;

    for (uint64_t i = 0; i < part->size_bytes; i++) {
        most = part->bytes[i] > most ? part->bytes[i] : most;
        to[i] = sl_exp2i((int)part->bytes[i] - (int)SL_E8M0_BIAS);
    }
    return most <= SL_E8M0_BIAS + SL_SCALE_EXPONENT_MAX; /* 255 is NaN */
}

static int read_scales(struct sl_tensor_part *part)
{
    float *dst = part->load->dst;

    if (part->load->info.dtype == SL_DTYPE_F32) {
        if (sl_f32_scales_read(part->size_bytes / sizeof(float),
                               (const float *)(const void *)part->bytes,
                               dst + part->offset_bytes / sizeof(float)) == 0)
            return 0;
        return bad_value(part, "a scale that is negative, NaN or above 2^60");
    }
    return read_e8m0(part) ? 0 : bad_value(part, "a scale that is NaN or above 2^60");
}

static int read_table(struct sl_tensor_part *part)
{
    const struct sl_tensor_load *load = part->load;
    const uint32_t element_bytes = sl_dtype_size_bytes(load->info.dtype);
    const uint64_t first = part->offset_bytes / element_bytes;
    uint16_t *to = load->dst;

    for (uint64_t i = 0; i < part->size_bytes / element_bytes; i++) {
        const int64_t expert = element_bytes == 8 ? ((const int64_t *)(const void *)part->bytes)[i]
                                                  : ((const int32_t *)(const void *)part->bytes)[i];

        if (expert < 0 || expert >= load->n_experts)
            return sl_err_set(&part->err, -SL_ECORRUPT,
                              "%s: tensor %s names expert %lld for token %llu, expected 0 to %u",
                              part->where, load->name, (long long)expert,
                              (unsigned long long)((first + i) / load->n_in_row),
                              load->n_experts - 1);
        to[first + i] = (uint16_t)expert;
    }
    return 0;
}

static bool are_finite_bf16(uint64_t n, const uint16_t *codes)
{
    uint16_t bad = 0;

    for (uint64_t i = 0; i < n; i++)
        bad |= (uint16_t) - ((codes[i] & 0x7f80) == 0x7f80);
    return bad == 0;
}

static bool are_finite_f32(uint64_t n, const float *values)
{
    uint32_t bad = 0;

    for (uint64_t i = 0; i < n; i++)
        bad |= (sl_f32_bits(values[i]) & 0x7f800000u) == 0x7f800000u;
    return bad == 0;
}

/* Looks at what stays as it is, and moves it to where it stays. */
static bool move_bytes(const struct sl_tensor_part *part, uint64_t first, uint64_t end)
{
    const uint32_t element_bytes = sl_dtype_size_bytes(part->load->info.dtype);
    const uint64_t n_elements = part->size_bytes / element_bytes;
    uint8_t *dst = (uint8_t *)part->load->dst + part->offset_bytes;
    bool finite = true;

    for (uint64_t i = first; i < end; i++) {
        const uint64_t from = i * MOVED_AT_ONCE, left = n_elements - from;
        const uint64_t n = left < MOVED_AT_ONCE ? left : MOVED_AT_ONCE;
        const uint8_t *bytes = part->bytes + from * element_bytes;

        finite &= part->load->info.dtype == SL_DTYPE_BF16
                      ? are_finite_bf16(n, (const uint16_t *)(const void *)bytes)
                      : are_finite_f32(n, (const float *)(const void *)bytes);
        memcpy(dst + from * element_bytes, bytes, n * element_bytes);
    }
    return finite;
}

/* ---- a chunk -----------------------------------------------------------------------------------
 */

uint64_t sl_tensor_part_item_count(const struct sl_tensor_part *part)
{
    const struct sl_tensor_load *load = part->load;
    const uint64_t n_elements = part->size_bytes / sl_dtype_size_bytes(load->info.dtype);

    switch (load->form) {
    case SL_TENSOR_TILES:
        return sl_r16_tile_count((size_t)(n_elements / load->matrix.cols));
    case SL_TENSOR_BYTES:
        return (n_elements + MOVED_AT_ONCE - 1) / MOVED_AT_ONCE;
    default:
        return 1;
    }
}

void sl_tensor_part_convert(struct sl_tensor_part *part, uint64_t first, uint64_t end)
{
    const struct sl_tensor_load *load = part->load;
    bool sound = true;

    switch (load->form) {
    case SL_TENSOR_TILES:
        sound = pack_tiles(part, first, end);
        break;
    case SL_TENSOR_BYTES:
        sound = move_bytes(part, first, end);
        break;
    case SL_TENSOR_SCALES:
        part->rc = read_scales(part);
        break;
    case SL_TENSOR_FLOATS:
        part->rc = widen(part);
        break;
    case SL_TENSOR_TABLE:
        part->rc = read_table(part);
        break;
    }
    if (!sound)
        __atomic_store_n(&part->rc, -SL_ECORRUPT, __ATOMIC_RELAXED);
}

int sl_tensor_part_end(struct sl_tensor_part *part, struct sl_err *err)
{
    if (part->rc < 0 && part->load->form == SL_TENSOR_TILES)
        bad_value(part, "a NaN or infinity");
    if (part->rc < 0 && part->load->form == SL_TENSOR_BYTES)
        bad_value(part, "a value that is not finite");
    if (part->rc < 0 && err)
        *err = part->err;
    return part->rc;
}
