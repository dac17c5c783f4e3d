/* Linears with AVX-512: BF16 dot products for FP8 and BF16 weights, and F32 weights. The order of
 * summation is that of core/kernels/kernels.h.
 *
 * A dot product adds its odd element and then its even one to one sum, and a chain of the block
 * order has every other column. So weights and activations are brought into chain order: for each
 * four columns a word with columns 2 and 0, which goes to the even chain, and one with 3 and 1,
 * which goes to the odd chain. FP8 weights come so out of the decoder.
 *
 * Few tokens: weights go from memory through the decoder straight into the dot products, and speed
 * is that of memory. More tokens: a block of columns at a time, its activations brought together
 * first (rows lie a power of two apart and would evict each other), the weights of two tiles
 * decoded once for all tokens, and the chains of six tokens by two tiles kept in registers: each
 * activation that is loaded serves two products, each weight six. */
#include "kernels-avx512/avx512.h"

#include "core/kernels/formats.h"
#include "kernels-avx512/fp8_decoder.h"
#include "kernels-avx512/vectors.h"

/* ---- FP8 and BF16 x BF16 -----------------------------------------------------------------------
 */

#define BLOCK_COLS 128u
#define CHAIN_COLS SL_BLOCK_ORDER_COLS
#define TOKENS_FEW 8u
#define TILES_FEW 4u /* at most, of few tokens: one tile's chains alone would wait */
#define TILES_AT_ONCE 2u
#define TOKENS_AT_ONCE 6u
#define BF16_TOKENS_MAX 64u

/* Where weights come from: the matrix, or a block that was decoded into chain order before. */
enum weights { FP8, BF16, CHAINS };

/* How FP8 weights are scaled: each as it is decoded, or the sum of each block of 128 columns. */
enum scaling { SCALE_WEIGHTS, SCALE_BLOCKS };

/* Where fp8_decode() finds two pairs of columns of 16 rows: in each quarter columns 2 and 0 of four
 * rows, and then 3 and 1. */
static ALWAYS_INLINE __m512i chain_order(void)
{
    return _mm512_set_epi8(
        31, 63, 29, 61, 27, 59, 25, 57, 30, 62, 28, 60, 26, 58, 24, 56, /* rows 12 to 15 */
        23, 55, 21, 53, 19, 51, 17, 49, 22, 54, 20, 52, 18, 50, 16, 48, /* rows 8 to 11 */
        15, 47, 13, 45, 11, 43, 9, 41, 14, 46, 12, 44, 10, 42, 8, 40,   /* rows 4 to 7 */
        7, 39, 5, 37, 3, 35, 1, 33, 6, 38, 4, 36, 2, 34, 0, 32);        /* rows 0 to 3 */
}

/* The halves of each word change places. */
static ALWAYS_INLINE __m512i swapped_halves(void)
{
    return _mm512_broadcast_i32x4(
        _mm_setr_epi8(2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
}

/* Two pairs of columns of 16 rows, into chain order. */
static ALWAYS_INLINE void bf16_decode(__m512i first, __m512i second, __m512i ret_chains[2])
{
    ret_chains[0] =
        _mm512_mask_shuffle_epi8(second, UINT64_C(0xcccccccccccccccc), first, swapped_halves());
    ret_chains[1] =
        _mm512_mask_shuffle_epi8(first, UINT64_C(0x3333333333333333), second, swapped_halves());
}

/* Weights are asked for this far ahead, since the processor's own prefetching ends with each page.
 * What lies beyond a matrix is asked for too, which has no effect. */
#define AHEAD_BYTES 2048u

static ALWAYS_INLINE void ask_for(const uint8_t *weights)
{
    _mm_prefetch((const char *)weights, _MM_HINT_T0);
}

/* Columns 4 * quad to 4 * quad + 3 of a tile. */
static ALWAYS_INLINE void load_quad(enum weights kind, struct fp8_decoder decoder,
                                    const uint8_t *tile, size_t quad, __m512i ret_chains[2])
{
    const uint8_t *at = tile + quad * (kind == FP8 ? 64 : 128);

    if (kind == FP8) {
        fp8_decode(decoder, chain_order(), at, ret_chains);
    } else if (kind == BF16) {
        bf16_decode(_mm512_loadu_si512(at), _mm512_loadu_si512(at + 64), ret_chains);
    } else {
        ret_chains[0] = _mm512_loadu_si512(at);
        ret_chains[1] = _mm512_loadu_si512(at + 64);
    }
}

static ALWAYS_INLINE __m512 dot_bf16(__m512 acc, __m512i w, __m512i x)
{
    return _mm512_dpbf16_ps(acc, (__m512bh)w, (__m512bh)x);
}

/* Adds 32 columns of n_tiles tiles and n tokens to acc, and asks for weights `ahead` bytes on. x in
 * chain order. */
static ALWAYS_INLINE void add_chains(enum weights kind, struct fp8_decoder decoder, size_t n_tiles,
                                     size_t n, const uint8_t *w, size_t tile_bytes, size_t ahead,
                                     const uint16_t *x, size_t x_stride,
                                     __m512 acc[TOKENS_FEW][TILES_FEW])
{
    __m512 chains[TOKENS_FEW][TILES_FEW][2];

    for (size_t t = 0; t < n; t++)
        for (size_t tile = 0; tile < n_tiles; tile++)
            chains[t][tile][0] = chains[t][tile][1] = _mm512_setzero_ps();
    for (size_t quad = 0; quad < CHAIN_COLS / 4; quad++) {
        __m512i weights[TILES_FEW][2];

        for (size_t tile = 0; tile < n_tiles; tile++) {
            if (kind == FP8)
                ask_for(w + tile * tile_bytes + quad * 64 + ahead);
            if (kind == BF16) {
                ask_for(w + tile * tile_bytes + quad * 128 + ahead);
                ask_for(w + tile * tile_bytes + quad * 128 + 64 + ahead);
            }
            load_quad(kind, decoder, w + tile * tile_bytes, quad, weights[tile]);
        }
        for (size_t chain = 0; chain < 2; chain++) {
            for (size_t t = 0; t < n; t++) {
                __m512i both = broadcast4(x + t * x_stride + quad * 4 + chain * 2);

                for (size_t tile = 0; tile < n_tiles; tile++)
                    chains[t][tile][chain] =
                        dot_bf16(chains[t][tile][chain], weights[tile][chain], both);
            }
        }
    }
    for (size_t t = 0; t < n; t++)
        for (size_t tile = 0; tile < n_tiles; tile++)
            acc[t][tile] =
                _mm512_add_ps(acc[t][tile], _mm512_add_ps(chains[t][tile][0], chains[t][tile][1]));
}

/* Adds n_cols columns (a multiple of 32) of n_tiles tiles, tile_bytes apart, to n tokens. x in
 * chain order. */
static ALWAYS_INLINE void add_columns(enum weights kind, enum scaling scaling, size_t n_tiles,
                                      size_t n, size_t n_cols, const uint8_t *w, size_t tile_bytes,
                                      const float *scale, const uint16_t *x, size_t x_stride,
                                      float *y, size_t y_stride)
{
    const size_t block_bytes = kind == FP8 ? CHAIN_COLS * ROWS : CHAIN_COLS * ROWS * 2;
    const size_t bytes_of_col = block_bytes / CHAIN_COLS;
    /* From the end of these columns to where the next tiles have them. */
    const size_t to_next_tiles = n_tiles * tile_bytes - n_cols * bytes_of_col;
    __m512 sums[TOKENS_FEW][TILES_FEW];
    struct fp8_decoder decoder;

    for (size_t t = 0; t < n; t++)
        for (size_t tile = 0; tile < n_tiles; tile++)
            sums[t][tile] = _mm512_loadu_ps(y + t * y_stride + tile * ROWS);
    if (kind == FP8 && scaling == SCALE_BLOCKS)
        decoder = fp8_decoder_for(1.0f);
    for (size_t c = 0; c < n_cols; c += BLOCK_COLS) {
        const size_t end = n_cols - c < BLOCK_COLS ? n_cols : c + BLOCK_COLS;
        __m512 dots[TOKENS_FEW][TILES_FEW];

        if (kind == FP8 && scaling == SCALE_WEIGHTS)
            decoder = fp8_decoder_for(scale[c / BLOCK_COLS]);
        for (size_t t = 0; scaling == SCALE_BLOCKS && t < n; t++)
            for (size_t tile = 0; tile < n_tiles; tile++)
                dots[t][tile] = _mm512_setzero_ps();
        for (size_t first = c; first < end; first += CHAIN_COLS, w += block_bytes) {
            /* BF16 tiles, which are twice as long, are read no faster with it. */
            const bool in_tile = kind != FP8 || (n_cols - first) * bytes_of_col > AHEAD_BYTES;

            add_chains(kind, decoder, n_tiles, n, w, tile_bytes,
                       in_tile ? AHEAD_BYTES : AHEAD_BYTES + to_next_tiles, x + first, x_stride,
                       scaling == SCALE_BLOCKS ? dots : sums);
        }
        for (size_t t = 0; scaling == SCALE_BLOCKS && t < n; t++)
            for (size_t tile = 0; tile < n_tiles; tile++)
                sums[t][tile] = _mm512_fmadd_ps(
                    dots[t][tile], _mm512_set1_ps(scale[c / BLOCK_COLS]), sums[t][tile]);
    }
    for (size_t t = 0; t < n; t++)
        for (size_t tile = 0; tile < n_tiles; tile++)
            _mm512_storeu_ps(y + t * y_stride + tile * ROWS, sums[t][tile]);
}

/* Activations in chain order, token after token: x (n_tokens, n_cols) to (n_tokens, stride), with
 * zeros up to a multiple of 32 columns. */
static void gather(size_t n_tokens, size_t n_cols, const uint16_t *x, size_t x_stride,
                   uint16_t *panel, size_t stride)
{
    const __m512i order =
        _mm512_broadcast_i32x4(_mm_setr_epi8(4, 5, 0, 1, 6, 7, 2, 3, 12, 13, 8, 9, 14, 15, 10, 11));

    for (size_t t = 0; t < n_tokens; t++, x += x_stride, panel += stride) {
        for (size_t c = 0; c < n_cols; c += CHAIN_COLS) {
            size_t n = n_cols - c < CHAIN_COLS ? n_cols - c : CHAIN_COLS;
            __m512i some = _mm512_maskz_loadu_epi16(~UINT32_C(0) >> (CHAIN_COLS - n), x + c);

            _mm512_storeu_si512(panel + c, _mm512_shuffle_epi8(some, order));
        }
    }
}

/* A matrix of one kind and scaling, both constants where it is used. */
struct matrix {
    enum weights kind;
    enum scaling scaling;
    size_t tile_count, cols;
    const uint8_t *w;
    const float *scale;
};

static ALWAYS_INLINE size_t bytes_of_cols(const struct matrix *m, size_t cols)
{
    return m->kind == FP8 ? sl_r16_fp8_tile_bytes(cols) : sl_r16_bf16_tile_bytes(cols);
}

/* ---- more tokens -------------------------------------------------------------------------------
 */

/* Decodes n_cols columns (up to 128) of a tile, with zeros up to a multiple of 32. */
static ALWAYS_INLINE void decode_block(enum weights kind, struct fp8_decoder decoder, size_t n_cols,
                                       const uint8_t *w, const uint8_t *next,
                                       __m512i chains[BLOCK_COLS / 2])
{
    size_t quad = 0;

    for (; quad < n_cols / 4; quad++) {
        ask_for(next + quad * (kind == FP8 ? 64 : 128));
        if (kind == BF16)
            ask_for(next + quad * 128 + 64);
        load_quad(kind, decoder, w, quad, &chains[2 * quad]);
    }
    if (n_cols % 4) {
        bf16_decode(_mm512_loadu_si512(w + quad * 128), _mm512_setzero_si512(), &chains[2 * quad]);
        quad++;
    }
    for (; quad % (CHAIN_COLS / 4); quad++)
        chains[2 * quad] = chains[2 * quad + 1] = _mm512_setzero_si512();
}

/* Adds n_cols columns of decoded weights of one or two tiles to n (1 to 6) tokens. A constant count
 * keeps the chains in registers. */
static ALWAYS_INLINE void add_decoded(enum scaling scaling, size_t n_tiles, size_t n, size_t n_cols,
                                      const __m512i *weights, const float *scale, const uint16_t *x,
                                      float *y, size_t y_stride)
{
    const uint8_t *w = (const uint8_t *)weights;
    const size_t tile_bytes = sl_r16_bf16_tile_bytes(BLOCK_COLS);

    switch (n) {
#define CASE(constant)                                                                             \
    case constant:                                                                                 \
        add_columns(CHAINS, scaling, n_tiles, constant, n_cols, w, tile_bytes, scale, x,           \
                    BLOCK_COLS, y, y_stride);                                                      \
        return;
        CASE(1)
        CASE(2)
        CASE(3)
        CASE(4)
        CASE(5)
        CASE(6)
#undef CASE
    }
}

static void add_one_tile(enum scaling scaling, size_t n, size_t n_cols, const __m512i *weights,
                         const float *scale, const uint16_t *x, float *y, size_t y_stride)
{
    if (scaling == SCALE_BLOCKS)
        add_decoded(SCALE_BLOCKS, 1, n, n_cols, weights, scale, x, y, y_stride);
    else
        add_decoded(SCALE_WEIGHTS, 1, n, n_cols, weights, scale, x, y, y_stride);
}

static void add_two_tiles(enum scaling scaling, size_t n, size_t n_cols, const __m512i *weights,
                          const float *scale, const uint16_t *x, float *y, size_t y_stride)
{
    if (scaling == SCALE_BLOCKS)
        add_decoded(SCALE_BLOCKS, 2, n, n_cols, weights, scale, x, y, y_stride);
    else
        add_decoded(SCALE_WEIGHTS, 2, n, n_cols, weights, scale, x, y, y_stride);
}

/* Adds n_cols columns from c on, up to 128 of one block, of all tiles to up to 64 tokens. */
static ALWAYS_INLINE void add_block(struct matrix m, size_t c, size_t n_cols, size_t n_tokens,
                                    const uint16_t *x, size_t x_stride, float *y, size_t y_stride)
{
    const size_t tile_bytes = bytes_of_cols(&m, m.cols);
    const size_t n_whole = (n_cols + CHAIN_COLS - 1) / CHAIN_COLS * CHAIN_COLS;
    const float *scale = m.kind == FP8 ? m.scale + c / BLOCK_COLS : NULL;
    _Alignas(64) uint16_t x_block[BF16_TOKENS_MAX * BLOCK_COLS];
    __m512i weights[TILES_AT_ONCE][BLOCK_COLS / 2];
    struct fp8_decoder decoder;

    if (m.kind == FP8)
        decoder = fp8_decoder_for(m.scaling == SCALE_WEIGHTS ? *scale : 1.0f);
    gather(n_tokens, n_cols, x + c, x_stride, x_block, BLOCK_COLS);
    for (size_t tile = 0; tile < m.tile_count; tile += TILES_AT_ONCE) {
        size_t n_tiles = m.tile_count - tile < TILES_AT_ONCE ? m.tile_count - tile : TILES_AT_ONCE;

        for (size_t i = 0; i < n_tiles; i++) {
            const uint8_t *at = m.w + (tile + i) * tile_bytes + bytes_of_cols(&m, c);

            decode_block(m.kind, decoder, n_cols, at, at + TILES_AT_ONCE * tile_bytes, weights[i]);
        }
        for (size_t t = 0; t < n_tokens; t += TOKENS_AT_ONCE) {
            size_t n = n_tokens - t < TOKENS_AT_ONCE ? n_tokens - t : TOKENS_AT_ONCE;

            (n_tiles == 2 ? add_two_tiles : add_one_tile)(m.scaling, n, n_whole, weights[0], scale,
                                                          x_block + t * BLOCK_COLS,
                                                          y + t * y_stride + tile * ROWS, y_stride);
        }
    }
}

/* ---- few tokens --------------------------------------------------------------------------------
 */

#define PANEL_FEW 8192u /* activations of all tokens */

/* Adds n_cols columns (a multiple of 32) from c on, of all tiles, n_tiles at a time, to n tokens.
 */
static ALWAYS_INLINE void add_few(struct matrix m, size_t n_tiles, size_t n, size_t c,
                                  size_t n_cols, const uint16_t *panel, size_t stride, float *y,
                                  size_t y_stride)
{
    const size_t tile_bytes = bytes_of_cols(&m, m.cols);
    const uint8_t *w = m.w + bytes_of_cols(&m, c);
    const float *scale = m.kind == FP8 ? m.scale + c / BLOCK_COLS : NULL;
    size_t tile = 0;

    for (; tile + n_tiles <= m.tile_count; tile += n_tiles)
        add_columns(m.kind, m.scaling, n_tiles, n, n_cols, w + tile * tile_bytes, tile_bytes, scale,
                    panel, stride, y + tile * ROWS, y_stride);
    for (; n_tiles > 1 && tile < m.tile_count; tile++)
        add_columns(m.kind, m.scaling, 1, n, n_cols, w + tile * tile_bytes, tile_bytes, scale,
                    panel, stride, y + tile * ROWS, y_stride);
}

/* Adds n_cols columns from c on, as many as the panel holds of n_tokens. */
static ALWAYS_INLINE void add_panel(struct matrix m, size_t n_tokens, size_t c, size_t n_cols,
                                    const uint16_t *x, size_t x_stride, float *y, size_t y_stride)
{
    _Alignas(64) uint16_t panel[PANEL_FEW];
    const size_t stride = n_cols;

    gather(n_tokens, n_cols, x + c, x_stride, panel, stride);
    switch (n_tokens) {
#define CASE(n, n_tiles)                                                                           \
    case n:                                                                                        \
        add_few(m, n_tiles, n, c, n_cols, panel, stride, y, y_stride);                             \
        return;
        CASE(1, 4)
        CASE(2, 4)
        CASE(3, 2)
        CASE(4, 2)
        CASE(5, 1)
        CASE(6, 1)
        CASE(7, 1)
        CASE(8, 1)
#undef CASE
    }
}

/* ---- entries -----------------------------------------------------------------------------------
 */

static ALWAYS_INLINE void matmul(struct matrix m, size_t token_count, const uint16_t *x,
                                 size_t x_stride, float *y, size_t y_stride)
{
    const size_t cols_whole = m.cols / CHAIN_COLS * CHAIN_COLS;

    clear_rows(token_count, m.tile_count, y, y_stride);
    if (token_count <= TOKENS_FEW) {
        const size_t cols_few = PANEL_FEW / token_count / BLOCK_COLS * BLOCK_COLS;

        for (size_t c = 0; c < cols_whole; c += cols_few)
            add_panel(m, token_count, c, cols_whole - c < cols_few ? cols_whole - c : cols_few, x,
                      x_stride, y, y_stride);
        if (cols_whole < m.cols)
            add_block(m, cols_whole, m.cols - cols_whole, token_count, x, x_stride, y, y_stride);
        return;
    }
    for (size_t t = 0; t < token_count; t += BF16_TOKENS_MAX) {
        size_t n = token_count - t < BF16_TOKENS_MAX ? token_count - t : BF16_TOKENS_MAX;

        for (size_t c = 0; c < m.cols; c += BLOCK_COLS)
            add_block(m, c, m.cols - c < BLOCK_COLS ? m.cols - c : BLOCK_COLS, n, x + t * x_stride,
                      x_stride, y + t * y_stride, y_stride);
    }
}

/* A block of rows at a time. */
static ALWAYS_INLINE void matmul_fp8(enum scaling scaling, size_t first_tile, size_t tile_count,
                                     size_t cols, size_t token_count, const uint8_t *w,
                                     const float *scale, const uint16_t *x, size_t x_stride,
                                     float *y, size_t y_stride)
{
    for (size_t i = 0, n; i < tile_count; i += n) {
        const size_t tile = first_tile + i;

        n = sl_fp8_tiles_of_block(tile, first_tile + tile_count);
        matmul((struct matrix){FP8, scaling, n, cols, w + i * sl_r16_fp8_tile_bytes(cols),
                               scale + tile / SL_FP8_BLOCK_TILES * (cols / SL_FP8_BLOCK)},
               token_count, x, x_stride, y + i * ROWS, y_stride);
    }
}

void sl_matmul_fp8_avx512bf16(size_t first_tile, size_t tile_count, size_t cols, size_t token_count,
                              const uint8_t *restrict w, const float *restrict scale,
                              const uint16_t *restrict x, size_t x_stride, float *restrict y,
                              size_t y_stride)
{
    matmul_fp8(SCALE_WEIGHTS, first_tile, tile_count, cols, token_count, w, scale, x, x_stride, y,
               y_stride);
}

void sl_matmul_fp8_block_avx512bf16(size_t first_tile, size_t tile_count, size_t cols,
                                    size_t token_count, const uint8_t *restrict w,
                                    const float *restrict scale, const uint16_t *restrict x,
                                    size_t x_stride, float *restrict y, size_t y_stride)
{
    matmul_fp8(SCALE_BLOCKS, first_tile, tile_count, cols, token_count, w, scale, x, x_stride, y,
               y_stride);
}

void sl_matmul_bf16_avx512bf16(size_t tile_count, size_t cols, size_t token_count,
                               const uint8_t *restrict w, const uint16_t *restrict x,
                               size_t x_stride, float *restrict y, size_t y_stride)
{
    matmul((struct matrix){BF16, SCALE_WEIGHTS, tile_count, cols, w, NULL}, token_count, x,
           x_stride, y, y_stride);
}

/* ---- proof -------------------------------------------------------------------------------------
 */

bool sl_avx512_dot_bf16_is_two_fmas(void)
{
    uint64_t state = 1;

    for (int round = 0; round < 4096; round++) {
        uint32_t w[16], x[16];
        float acc[16], got[16];

        for (int i = 0; i < 16; i++) {
            /* Exponents 2^-48 to 2^48 for the factors: whatever the linears may meet. */
            uint16_t half[4];

            for (int h = 0; h < 4; h++) {
                state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
                half[h] = (uint16_t)((state >> 33 & 0x807f) | (79 + (state >> 49) % 97) << 7);
            }
            w[i] = half[0] | (uint32_t)half[1] << 16;
            x[i] = half[2] | (uint32_t)half[3] << 16;
            /* Near to the products, so that the roundings show. */
            acc[i] = sl_bf16_to_f32(half[0]) * sl_bf16_to_f32(half[2]) * (1.0f + (float)i / 7);
        }
        _mm512_storeu_ps(
            got, dot_bf16(_mm512_loadu_ps(acc), _mm512_loadu_si512(w), _mm512_loadu_si512(x)));
        for (int i = 0; i < 16; i++) {
            float odd = __builtin_fmaf(sl_f32_from_bits(w[i] & 0xffff0000u),
                                       sl_f32_from_bits(x[i] & 0xffff0000u), acc[i]);
            float both =
                __builtin_fmaf(sl_f32_from_bits(w[i] << 16), sl_f32_from_bits(x[i] << 16), odd);

            if (sl_f32_bits(got[i]) != sl_f32_bits(both))
                return false;
        }
    }
    return true;
}

/* ---- F32 ---------------------------------------------------------------------------------------
 */

#define F32_TOKENS_MAX 8u

/* Up to eight tokens, whose values are taken from their rows as they lie: rows that are powers of
 * two apart share a set of the first-level cache, in which eight of them have room. A product is
 * rounded before it is added, as in the reference: no FMA. */
static ALWAYS_INLINE void f32_tokens(size_t n_tokens, size_t cols, const float *w, const float *x,
                                     size_t x_stride, float *y, size_t y_stride)
{
    __m512 sum[F32_TOKENS_MAX];

    for (size_t t = 0; t < n_tokens; t++)
        sum[t] = _mm512_setzero_ps();
    for (size_t c = 0; c < cols; c++, w += ROWS) {
        const __m512 column = _mm512_loadu_ps(w);

        for (size_t t = 0; t < n_tokens; t++)
            sum[t] =
                _mm512_add_ps(sum[t], _mm512_mul_ps(column, _mm512_set1_ps(x[t * x_stride + c])));
    }
    for (size_t t = 0; t < n_tokens; t++)
        _mm512_storeu_ps(y + t * y_stride, sum[t]);
}

void sl_matmul_f32_avx512(size_t tile_count, size_t cols, size_t token_count,
                          const uint8_t *restrict w, const float *restrict x, size_t x_stride,
                          float *restrict y, size_t y_stride)
{
    const float *tile = (const float *)(const void *)w;

    for (size_t i = 0; i < tile_count; i++, tile += cols * ROWS, y += ROWS) {
        for (size_t t = 0, n; t < token_count; t += n) {
            const size_t left = token_count - t;
            const float *from = x + t * x_stride;
            float *to = y + t * y_stride;

            n = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
            if (n == 8) /* constants, so that the sums are registers */
                f32_tokens(8, cols, tile, from, x_stride, to, y_stride);
            else if (n == 4)
                f32_tokens(4, cols, tile, from, x_stride, to, y_stride);
            else if (n == 2)
                f32_tokens(2, cols, tile, from, x_stride, to, y_stride);
            else
                f32_tokens(1, cols, tile, from, x_stride, to, y_stride);
        }
    }
}
