#include "core/kernels/r16.h"

#include <stdbool.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/err.h"

static bool scale_is_sound(uint8_t byte)
{
    return byte <= SL_E8M0_BIAS + SL_SCALE_EXPONENT_MAX; /* 255, NaN, is above it too */
}

/* Four neighbouring bytes of four rows; as in a checkpoint, at any address. */
typedef uint32_t quads __attribute__((vector_size(16), aligned(1), may_alias));

/* Four rows of 16 bytes become four columns of quads, 64 bytes apart. */
static void transpose_quads(const uint8_t *src, size_t row_bytes, uint8_t *dst)
{
    quads a = *(const quads *)(const void *)src;
    quads b = *(const quads *)(const void *)(src + row_bytes);
    quads c = *(const quads *)(const void *)(src + 2 * row_bytes);
    quads d = *(const quads *)(const void *)(src + 3 * row_bytes);
    quads ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
    quads ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    quads cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
    quads cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);

    *(quads *)(void *)dst = __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5);
    *(quads *)(void *)(dst + 64) = __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7);
    *(quads *)(void *)(dst + 128) = __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5);
    *(quads *)(void *)(dst + 192) = __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7);
}

int sl_r16_pack_fp4(size_t cols, size_t first_tile, size_t end_tile, const uint8_t *codes,
                    const uint8_t *scales, uint8_t *tiles)
{
    const size_t n_groups = cols / SL_FP4_GROUP_COLS;
    const size_t row_bytes = cols / 2, row_scales = cols / SL_FP4_BLOCK_COLS;
    uint8_t scale_max = 0;

    sl_assert(cols % SL_FP4_GROUP_COLS == 0);
    for (size_t tile = first_tile; tile < end_tile; tile++) {
        const uint8_t *tile_codes = codes + tile * SL_R16_ROWS * row_bytes;
        const uint8_t *tile_scales = scales + tile * SL_R16_ROWS * row_scales;

        for (size_t group = 0; group < n_groups; group++) {
            uint8_t *dst = tiles + (tile * n_groups + group) * SL_FP4_GROUP_BYTES;

            for (size_t row = 0; row < SL_R16_ROWS; row++) {
                const uint8_t *scale = tile_scales + row * row_scales + group * 4;

                for (size_t block = 0; block < 4; block++) {
                    uint8_t byte = scale[block];

                    scale_max = byte > scale_max ? byte : scale_max;
                    dst[block * SL_R16_ROWS + row] =
                        byte < SL_E8M0_BIAS + SL_TINY_EXPONENT ? 0 : byte;
                }
            }
            for (size_t row = 0; row < SL_R16_ROWS; row += 4)
                for (size_t quad = 0; quad < 16; quad += 4) /* a quad is eight columns */
                    transpose_quads(tile_codes + row * row_bytes + group * 64 + quad * 4, row_bytes,
                                    dst + 64 + quad * 64 + row * 4);
        }
    }
    return scale_is_sound(scale_max) ? 0 : -SL_ECORRUPT;
}

void sl_r16_clear_fp4_rows(size_t first_row, size_t cols, uint8_t *tile)
{
    const size_t n = SL_R16_ROWS - first_row;

    for (size_t col = 0; col < cols; col += SL_FP4_GROUP_COLS, tile += SL_FP4_GROUP_BYTES) {
        for (size_t at = first_row; at < 64; at += SL_R16_ROWS)
            memset(tile + at, 0, n);
        for (size_t at = 64 + 4 * first_row; at < SL_FP4_GROUP_BYTES; at += 64)
            memset(tile + at, 0, 4 * n);
    }
}

/* Eight pairs of neighbouring bytes of a row; at any address. */
typedef uint16_t pairs __attribute__((vector_size(16), aligned(1), may_alias));
typedef uint8_t bytes16 __attribute__((vector_size(16), aligned(1), may_alias));

#define PAIRS_LOW(a, b) __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define PAIRS_HIGH(a, b) __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15)

/* Eight rows of 16 bytes become eight columns of pairs, 32 bytes apart. Rows r and r + 4 are
 * interleaved three times over, which brings each column's pairs together. Codes whose magnitude is
 * below the least become zero. Returns all NaN codes that were met, as set bytes. */
static bytes16 transpose_pairs(const uint8_t *src, size_t row_bytes, uint8_t magnitude_min,
                               uint8_t *dst)
{
    bytes16 bad = {0};
    pairs a[8], b[8];

    for (size_t row = 0; row < 8; row++) {
        bytes16 codes = *(const bytes16 *)(const void *)(src + row * row_bytes);

        a[row] = (pairs)(codes & (bytes16)((codes & 0x7f) >= magnitude_min));
        bad |= (bytes16)((codes & 0x7f) == 0x7f);
    }
    for (size_t i = 0; i < 4; i++) {
        b[2 * i] = PAIRS_LOW(a[i], a[i + 4]);
        b[2 * i + 1] = PAIRS_HIGH(a[i], a[i + 4]);
    }
    for (size_t i = 0; i < 4; i++) {
        a[2 * i] = PAIRS_LOW(b[i], b[i + 4]);
        a[2 * i + 1] = PAIRS_HIGH(b[i], b[i + 4]);
    }
    for (size_t i = 0; i < 4; i++) {
        *(pairs *)(void *)(dst + 64 * i) = PAIRS_LOW(a[i], a[i + 4]);
        *(pairs *)(void *)(dst + 64 * i + 32) = PAIRS_HIGH(a[i], a[i + 4]);
    }
    return bad;
}

static uint8_t drop_small(uint8_t code, uint8_t magnitude_min)
{
    return (code & 0x7f) < magnitude_min ? 0 : code;
}

/* Lays out columns first to end of a matrix, multiples of 16, without codes whose magnitude is
 * below the least. Returns whether none was a NaN. */
static bool lay_fp8(size_t rows, size_t cols, size_t first, size_t end, uint8_t magnitude_min,
                    const uint8_t *codes, uint8_t *tiles)
{
    const size_t whole_rows = rows / 8 * 8;
    bytes16 bad = {0};
    uint8_t any = 0;

    for (size_t row = 0; row < rows; row += row < whole_rows ? 8 : 1) {
        const uint8_t *src = codes + row * cols;
        uint8_t *dst =
            tiles + row / SL_R16_ROWS * sl_r16_fp8_tile_bytes(cols) + row % SL_R16_ROWS * 2;

        for (size_t col = first; row < whole_rows && col < end; col += 16)
            bad |= transpose_pairs(src + col, cols, magnitude_min, dst + col * SL_R16_ROWS);
        for (size_t col = first; row >= whole_rows && col < end; col += 2) {
            any |= ((src[col] & 0x7f) == 0x7f) | ((src[col + 1] & 0x7f) == 0x7f);
            dst[col * SL_R16_ROWS] = drop_small(src[col], magnitude_min);
            dst[col * SL_R16_ROWS + 1] = drop_small(src[col + 1], magnitude_min);
        }
    }
    for (size_t i = 0; i < sizeof(bad); i++)
        any |= bad[i];
    return !any;
}

static void clear_last_tile(size_t rows, size_t cols, uint8_t *tiles)
{
    if (rows % SL_R16_ROWS)
        memset(tiles + rows / SL_R16_ROWS * sl_r16_fp8_tile_bytes(cols), 0,
               sl_r16_fp8_tile_bytes(cols));
}

int sl_r16_pack_fp8(size_t rows, size_t cols, const uint8_t *codes, const uint8_t *scale_bytes,
                    uint8_t *tiles)
{
    bool sound = true;

    sl_assert(cols % SL_FP8_BLOCK == 0);
    clear_last_tile(rows, cols, tiles);
    for (size_t col = 0; col < cols; col += SL_FP8_BLOCK) {
        const uint8_t scale_byte = scale_bytes[col / SL_FP8_BLOCK];
        /* Codes whose magnitude is below this are tiny once scaled. */
        const uint8_t magnitude_min =
            sl_e4m3_magnitude_floor(SL_TINY_EXPONENT - ((int)scale_byte - (int)SL_E8M0_BIAS));

        sound &= scale_is_sound(scale_byte);
        sound &= lay_fp8(rows, cols, col, col + SL_FP8_BLOCK, magnitude_min, codes, tiles);
    }
    return sound ? 0 : -SL_ECORRUPT;
}

int sl_r16_pack_fp8_codes(size_t rows, size_t cols, const uint8_t *codes, uint8_t *tiles)
{
    sl_assert(cols % SL_FP8_BLOCK == 0);
    clear_last_tile(rows, cols, tiles);
    return lay_fp8(rows, cols, 0, cols, 0, codes, tiles) ? 0 : -SL_ECORRUPT;
}

int sl_f32_scales_read(size_t count, const float *scales, float *ret_scales)
{
    const float least = sl_exp2i(SL_F32_SCALE_EXPONENT_MIN), most = sl_exp2i(SL_SCALE_EXPONENT_MAX);

    for (size_t i = 0; i < count; i++) {
        if (!(scales[i] >= 0 && scales[i] <= most))
            return -SL_ECORRUPT;
        ret_scales[i] = scales[i] < least ? 0 : scales[i];
    }
    return 0;
}

/* Columns that a cache line holds. */
#define LINE_COLS (64 / sizeof(uint16_t))
/* Codes whose magnitude is below this are tiny. */
#define BF16_MAGNITUDE_MIN ((127 + SL_TINY_EXPONENT) << 7)

/* Lays out columns 0 to end, a multiple of 8, of four rows, without codes that are tiny. Returns
 * all codes that are not finite, as set pairs. */
static pairs lay_bf16_rows(size_t cols, size_t end, const uint16_t *codes, uint8_t *dst)
{
    pairs bad = {0}, kept[4];

    for (size_t col = 0; col < end; col += 8) {
        for (size_t row = 0; row < 4; row++) {
            pairs code = *(const pairs *)(const void *)(codes + row * cols + col);
            pairs magnitude = code & 0x7fff;

            bad |= (pairs)(magnitude >= 0x7f80);
            kept[row] = code & (pairs)(magnitude >= BF16_MAGNITUDE_MIN);
        }
        transpose_quads((const uint8_t *)kept, sizeof(kept[0]), dst + col * 2 * SL_R16_ROWS);
    }
    return bad;
}

/* Four rows and eight columns at a time, of rows that are multiples of 4: a cache line of each of
 * the tile's rows, then the next one. Rows are often a power of two apart, so that lines of all of
 * them do not stay in the cache until they are used up. Returns whether all codes were finite. */
static bool lay_bf16(size_t rows, size_t cols, size_t end, const uint16_t *codes, uint8_t *tiles)
{
    pairs bad = {0};
    bool any = false;

    for (size_t first = 0; first < rows; first += SL_R16_ROWS) {
        uint8_t *tile = tiles + first / SL_R16_ROWS * sl_r16_bf16_tile_bytes(cols);
        const size_t last = first + SL_R16_ROWS < rows ? first + SL_R16_ROWS : rows;

        for (size_t col = 0; col < end; col += LINE_COLS)
            for (size_t row = first; row < last; row += 4)
                bad |= lay_bf16_rows(cols, end - col < LINE_COLS ? end - col : LINE_COLS,
                                     codes + row * cols + col,
                                     tile + col * 2 * SL_R16_ROWS + (row - first) * 4);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        any |= bad[i] != 0;
    return !any;
}

int sl_r16_pack_bf16(size_t rows, size_t cols, const uint16_t *codes, uint8_t *tiles)
{
    const size_t whole_rows = rows / 4 * 4, whole_cols = cols / 8 * 8;
    uint16_t *dst = (uint16_t *)(void *)tiles;
    bool sound;

    sl_assert(cols % 2 == 0);
    if (rows % SL_R16_ROWS)
        memset(tiles + rows / SL_R16_ROWS * sl_r16_bf16_tile_bytes(cols), 0,
               sl_r16_bf16_tile_bytes(cols));
    sound = lay_bf16(whole_rows, cols, whole_cols, codes, tiles);
    for (size_t row = 0; row < rows; row++) {
        const uint16_t *src = codes + row * cols;
        uint16_t *tile = dst + row / SL_R16_ROWS * cols * SL_R16_ROWS;

        for (size_t col = row < whole_rows ? whole_cols : 0; col < cols; col++) {
            uint16_t code = src[col];

            sound &= (code & 0x7f80) != 0x7f80;
            tile[(col / 2 * SL_R16_ROWS + row % SL_R16_ROWS) * 2 + col % 2] =
                sl_bf16_drop_tiny(code);
        }
    }
    return sound ? 0 : -SL_ECORRUPT;
}

void sl_r16_lay_bf16(size_t cols, const uint16_t *codes, uint8_t *tile)
{
    const size_t whole = cols / 8 * 8;

    for (size_t row = 0; row < SL_R16_ROWS; row += 4)
        for (size_t col = 0; col < whole; col += 8) /* a quad is a pair of columns */
            transpose_quads((const uint8_t *)(codes + row * cols + col), cols * sizeof(*codes),
                            tile + col * 2 * SL_R16_ROWS + row * 4);
    for (size_t row = 0; row < SL_R16_ROWS; row++)
        for (size_t col = whole; col < cols; col += 2)
            memcpy(tile + col * 2 * SL_R16_ROWS + row * 4, codes + row * cols + col, 4);
}

int sl_r16_pack_f32(size_t rows, size_t cols, const float *values, uint8_t *tiles)
{
    float *dst = (float *)(void *)tiles;
    bool sound = true;

    if (rows % SL_R16_ROWS)
        memset(tiles + rows / SL_R16_ROWS * sl_r16_f32_tile_bytes(cols), 0,
               sl_r16_f32_tile_bytes(cols));
    for (size_t row = 0; row < rows; row++) {
        float *tile = dst + row / SL_R16_ROWS * cols * SL_R16_ROWS;

        for (size_t col = 0; col < cols; col++) {
            float value = values[row * cols + col];

            sound &= (sl_f32_bits(value) & 0x7f800000u) != 0x7f800000u;
            tile[col * SL_R16_ROWS + row % SL_R16_ROWS] = sl_f32_drop_tiny(value);
        }
    }
    return sound ? 0 : -SL_ECORRUPT;
}
