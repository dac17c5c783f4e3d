/* Linears with AMX: FP8 and BF16 weights as BF16 tiles. The instruction's order of summation is the
 * block order of core/kernels/kernels.h; a block is one product of tiles.
 *
 * Up to 256 tokens at a time, a chunk of columns at a time: the weights of two R16 tiles after the
 * other, decoded where they are FP8, meet the activations of all tokens, two tiles of tokens at a
 * time: each tile that is loaded serves two products. Decoded weights stay in the first-level cache
 * and the chunk's activations in the second-level one, out of which they are loaded past the first.
 * Sums of all tokens and of as many rows as there is room for wait in a buffer until all columns
 * are in: the outputs' rows may lie a power of two apart. Multiplying is so fast that reading
 * decides: weights are read once for 256 tokens and activations once for all rows that have room,
 * and what comes next of both is asked for in between. */
#include "kernels-avx512/amx.h"

#include <stdbool.h>

#include "kernels-avx512/avx512.h"
#include "kernels-avx512/fp8_decoder.h"
#include "kernels-avx512/tiles_amx.h"

#define TILE_COLS SL_BLOCK_ORDER_COLS /* of one product */
#define TILE_BYTES (TILE_ROWS_MAX * TILE_ROW_BYTES_MAX)

/* Fewer are multiplied by AVX-512. */
#define FP8_TOKENS_MIN 2u
#define BF16_TOKENS_MIN 3u

#define TOKENS_MAX 256u
#define CHUNK_COLS 256u
#define CHUNK_STEPS (CHUNK_COLS / TILE_COLS)   /* of products */
#define BLOCK_STEPS (SL_FP8_BLOCK / TILE_COLS) /* of a block of columns with one scale */
#define SUM_TILES 512u                         /* of 16 rows and 16 tokens */

enum weights { FP8, BF16 };
enum scaling { SCALE_WEIGHTS, SCALE_BLOCKS };

/* Constant where it is used, as far as kind and scaling go. */
struct matrix {
    enum weights kind;
    enum scaling scaling;
    size_t first_tile, tile_count, cols;
    const uint8_t *w;   /* from first_tile on */
    const float *scale; /* of the whole matrix */
};

static ALWAYS_INLINE size_t bytes_of_cols(const struct matrix *m, size_t cols)
{
    return m->kind == FP8 ? sl_r16_fp8_tile_bytes(cols) : sl_r16_bf16_tile_bytes(cols);
}

/* Scales from column c on of the rows of an R16 tile. */
static ALWAYS_INLINE const float *scale_of(const struct matrix *m, size_t tile, size_t c)
{
    return m->scale + ((m->first_tile + tile) / SL_FP8_BLOCK_TILES * m->cols + c) / SL_FP8_BLOCK;
}

/* Where fp8_decode() finds two pairs of columns of 16 rows: as they lie. */
static ALWAYS_INLINE __m512i pair_order(void)
{
    return _mm512_set_epi8(63, 62, 61, 60, 59, 58, 57, 56, 31, 30, 29, 28, 27, 26, 25, 24, /**/
                           55, 54, 53, 52, 51, 50, 49, 48, 23, 22, 21, 20, 19, 18, 17, 16, /**/
                           47, 46, 45, 44, 43, 42, 41, 40, 15, 14, 13, 12, 11, 10, 9, 8,   /**/
                           39, 38, 37, 36, 35, 34, 33, 32, 7, 6, 5, 4, 3, 2, 1, 0);
}

/* The 32 columns of a product, of an R16 tile. */
static ALWAYS_INLINE void decode_cols(struct fp8_decoder decoder, const uint8_t *codes, uint8_t *to)
{
    for (size_t c = 0; c < TILE_COLS; c += 4, codes += 64, to += 128) {
        __m512i numbers[2];

        fp8_decode(decoder, pair_order(), codes, numbers);
        _mm512_store_si512(to, numbers[0]);
        _mm512_store_si512(to + 64, numbers[1]);
    }
}

static ALWAYS_INLINE struct fp8_decoder decoder_of(enum scaling scaling, float scale)
{
    return fp8_decoder_for(scaling == SCALE_WEIGHTS ? scale : 1.0f);
}

/* Activations as tiles: up to 16 rows of x (n_tokens, n_cols) to (n_cols / 32, 16, 32), rounded up,
 * with zeros where tokens or columns are missing. */
static void fill_panel(size_t n_tokens, size_t n_cols, const uint16_t *x, size_t x_stride,
                       uint8_t *panel)
{
    for (size_t i = 0; i < TILE_ROWS_MAX; i++) {
        const uint16_t *row = x + i * x_stride;
        uint8_t *to = panel + i * TILE_ROW_BYTES_MAX;

        for (size_t c = 0; c < n_cols; c += TILE_COLS, to += TILE_BYTES) {
            size_t n = i >= n_tokens ? 0 : n_cols - c < TILE_COLS ? n_cols - c : TILE_COLS;
            __mmask32 some = n ? ~UINT32_C(0) >> (TILE_COLS - n) : 0;

            _mm512_store_si512(to, _mm512_maskz_loadu_epi16(some, row + c));
        }
    }
}

/* Tiles 0 to 3 hold sums, of 16 tokens and 16 rows each. */
#define SUMS (TILE_ROWS_MAX * ROWS)

static ALWAYS_INLINE void clear_sums(void)
{
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
}

static ALWAYS_INLINE void load_sums(const float *sums)
{
    TILE_LOAD(0, sums, TILE_ROW_BYTES_MAX);
    TILE_LOAD(1, sums + SUMS, TILE_ROW_BYTES_MAX);
    TILE_LOAD(2, sums + 2 * SUMS, TILE_ROW_BYTES_MAX);
    TILE_LOAD(3, sums + 3 * SUMS, TILE_ROW_BYTES_MAX);
}

static ALWAYS_INLINE void store_sums(float *sums)
{
    TILE_STORE(0, sums, TILE_ROW_BYTES_MAX);
    TILE_STORE(1, sums + SUMS, TILE_ROW_BYTES_MAX);
    TILE_STORE(2, sums + 2 * SUMS, TILE_ROW_BYTES_MAX);
    TILE_STORE(3, sums + 3 * SUMS, TILE_ROW_BYTES_MAX);
}

/* ---- many tokens -------------------------------------------------------------------------------
 * Two tiles of tokens and two R16 tiles at a time: (2, 2, 16, 16) sums. */

/* A chunk of columns of 16 tokens, where they lie or brought together. */
struct tokens {
    const uint8_t *at;
    size_t row_bytes, step_bytes; /* to the next token, and to the next 32 columns */
};

/* A chunk of columns of all tokens. */
struct chunk {
    size_t c, n_cols, n_steps;
    size_t n_pairs;    /* of tiles of tokens */
    ptrdiff_t to_next; /* bytes from a row's columns to those of the next chunk */
    struct tokens tokens[TOKENS_MAX / TILE_ROWS_MAX];
};

/* A chunk of two R16 tiles. */
struct weights_of {
    const uint8_t *codes[2]; /* FP8, as they lie */
    const float *scale[2];   /* of their blocks of 128 columns */
    uint8_t *decoded[2];     /* where they go */
    const uint8_t *w[2];     /* BF16, decoded or as they lie */
};

/* Lines of the cache to ask for with each step: weights of the next two R16 tiles, and the next
 * chunk's columns of some tokens of each tile. */
struct ahead {
    const uint8_t *w[2];
    size_t w_bytes;
    ptrdiff_t to_next; /* bytes from a row's columns to those of the next chunk */
    size_t first_row, end_row;
};

/* Sums in the tiles, which nobody has stored yet. */
struct waiting {
    float *sums;     /* where they belong; NULL if there are none */
    float factor[2]; /* SCALE_BLOCKS: of each R16 tile */
    bool is_first;   /* SCALE_BLOCKS: nothing is there to be added to */
};

/* All products of some R16 tiles and tokens share this. */
struct run {
    const struct matrix *m;
    const struct chunk *chunk;
    struct waiting waiting;
    _Alignas(64) float dots[4 * SUMS]; /* SCALE_BLOCKS: sums of a block that are to be scaled */
};

/* Lines of one step. */
static ALWAYS_INLINE void ask_for_more(const struct ahead *ahead, struct tokens first,
                                       struct tokens second, size_t step)
{
    const char *x[2] = {(const char *)first.at + step * first.step_bytes + ahead->to_next,
                        (const char *)second.at + step * second.step_bytes + ahead->to_next};

    for (size_t i = step * ahead->w_bytes; i < (step + 1) * ahead->w_bytes; i += 64) {
        _mm_prefetch((const char *)ahead->w[0] + i, _MM_HINT_T1);
        _mm_prefetch((const char *)ahead->w[1] + i, _MM_HINT_T1);
    }
    for (size_t i = ahead->first_row; i < ahead->end_row; i++) {
        _mm_prefetch(x[0] + i * first.row_bytes, _MM_HINT_T1);
        _mm_prefetch(x[1] + i * second.row_bytes, _MM_HINT_T1);
    }
}

/* Adds the sums of a block of 128 columns, scaled: a quarter of them. */
static ALWAYS_INLINE void add_scaled(const struct waiting *done, const float *dots, size_t part)
{
    const __m512 factor = _mm512_set1_ps(done->factor[part % 2]);

    for (size_t i = part * SUMS; i < (part + 1) * SUMS; i += ROWS) {
        __m512 sum = done->is_first ? _mm512_setzero_ps() : _mm512_load_ps(done->sums + i);

        _mm512_store_ps(done->sums + i, _mm512_fmadd_ps(_mm512_load_ps(dots + i), factor, sum));
    }
}

#define STORE_SUMS(tile, to)                                                                       \
    do {                                                                                           \
        if (to)                                                                                    \
            TILE_STORE(tile, (to) + (tile)*SUMS, TILE_ROW_BYTES_MAX);                              \
    } while (0)

#define BEGIN_SUMS(tile, from)                                                                     \
    do {                                                                                           \
        if (from)                                                                                  \
            TILE_LOAD(tile, (from) + (tile)*SUMS, TILE_ROW_BYTES_MAX);                             \
        else                                                                                       \
            TILE_ZERO(tile);                                                                       \
    } while (0)

/* The products of 32 columns. Activations, of which there are more than the first-level cache
 * holds, are loaded so as not to drive the weights out of it. With the first of several products
 * the sums before them are stored and those to go on with are loaded, one tile after the other:
 * the processor multiplies meanwhile. */
static ALWAYS_INLINE void multiply(struct tokens first, struct tokens second, const uint8_t *w,
                                   const uint8_t *next_w, size_t step, bool begins, float *done,
                                   const float *sums)
{
    TILE_LOAD_ONCE(4, first.at + step * first.step_bytes, first.row_bytes);
    TILE_LOAD(6, w + step * TILE_BYTES, TILE_ROW_BYTES_MAX);
    if (begins) {
        STORE_SUMS(0, done);
        BEGIN_SUMS(0, sums);
    }
    TILE_DOT_BF16(0, 4, 6);
    TILE_LOAD(7, next_w + step * TILE_BYTES, TILE_ROW_BYTES_MAX);
    if (begins) {
        STORE_SUMS(1, done);
        BEGIN_SUMS(1, sums);
    }
    TILE_DOT_BF16(1, 4, 7);
    TILE_LOAD_ONCE(5, second.at + step * second.step_bytes, second.row_bytes);
    if (begins) {
        STORE_SUMS(2, done);
        BEGIN_SUMS(2, sums);
    }
    TILE_DOT_BF16(2, 5, 6);
    if (begins) {
        STORE_SUMS(3, done);
        BEGIN_SUMS(3, sums);
    }
    TILE_DOT_BF16(3, 5, 7);
}

/* Adds a chunk of two tiles of tokens to their sums. Those who come first decode the weights, a
 * step ahead of what is multiplied, which goes on meanwhile. */
static ALWAYS_INLINE void add_chunk(struct run *run, bool decode, const struct tokens *x,
                                    const struct weights_of *weights, struct ahead ahead,
                                    float *sums)
{
    const enum scaling scaling = run->m->scaling;
    const size_t n_steps = run->chunk->n_steps;
    const bool is_first = run->chunk->c == 0;
    const struct tokens first = x[0], second = x[1];
    const struct weights_of w = *weights;
    struct waiting waiting = run->waiting;
    struct fp8_decoder decoders[2];

#pragma GCC unroll 2 /* or the decoders are no registers */
    for (size_t i = 0; i < 2; i++) {
        decoders[i] = decoder_of(scaling, decode ? w.scale[i][0] : 1.0f);
        if (decode)
            decode_cols(decoders[i], w.codes[i], w.decoded[i]);
    }
    for (size_t step = 0; step < n_steps; step++) {
        const size_t next = step + 1, block = step / BLOCK_STEPS;

#pragma GCC unroll 2
        for (size_t i = 0; i < 2; i++) {
            if (!decode || next == n_steps)
                continue;
            if (next % BLOCK_STEPS == 0)
                decoders[i] = decoder_of(scaling, w.scale[i][block + 1]);
            decode_cols(decoders[i], w.codes[i] + next * TILE_COLS * ROWS,
                        w.decoded[i] + next * TILE_BYTES);
        }
        if (scaling == SCALE_WEIGHTS) {
            multiply(first, second, w.w[0], w.w[1], step, step == 0, waiting.sums,
                     is_first ? NULL : sums);
        } else {
            multiply(first, second, w.w[0], w.w[1], step, step % BLOCK_STEPS == 0,
                     waiting.sums ? run->dots : NULL, NULL);
            if (waiting.sums)
                add_scaled(&waiting, run->dots, step % BLOCK_STEPS);
            if (next % BLOCK_STEPS == 0)
                waiting = (struct waiting){
                    sums, {w.scale[0][block], w.scale[1][block]}, is_first && block == 0};
        }
        ask_for_more(&ahead, first, second, step);
    }
    waiting.sums = sums;
    run->waiting = waiting;
}

/* Stores what waits in the tiles. */
static ALWAYS_INLINE void end_run(struct run *run)
{
    float *to = run->m->scaling == SCALE_BLOCKS ? run->dots : run->waiting.sums;

    store_sums(to);
    for (size_t part = 0; run->m->scaling == SCALE_BLOCKS && part < 4; part++)
        add_scaled(&run->waiting, run->dots, part);
}

/* The weights of R16 tile `tile` and the next, or of that one twice if it is the last; `room` is
 * for BF16 tiles that are made. */
static ALWAYS_INLINE struct weights_of find_weights(const struct matrix *m,
                                                    const struct chunk *chunk, size_t tile,
                                                    size_t end, uint8_t *room)
{
    const size_t tile_bytes = bytes_of_cols(m, m->cols);
    struct weights_of weights;

    for (size_t i = 0; i < 2; i++) {
        const size_t at = tile + i < end ? tile + i : tile;
        const uint8_t *from = m->w + at * tile_bytes + bytes_of_cols(m, chunk->c);
        uint8_t *to = room + i * CHUNK_STEPS * TILE_BYTES;

        weights.codes[i] = weights.w[i] = from;
        weights.decoded[i] = to;
        if (m->kind == FP8) {
            weights.w[i] = to;
            weights.scale[i] = scale_of(m, at, chunk->c);
        } else if (chunk->n_cols % TILE_COLS) {
            memset(to, 0, chunk->n_steps * TILE_BYTES);
            copy_row(to, from, bytes_of_cols(m, chunk->n_cols));
            weights.w[i] = to;
        }
    }
    return weights;
}

/* The weights after those of two R16 tiles: of the next two, or of the first two in the next chunk,
 * or those after all of these tiles. */
static ALWAYS_INLINE const uint8_t *weights_after(const struct matrix *m, const struct chunk *chunk,
                                                  size_t tile, size_t first, size_t end)
{
    const size_t tile_bytes = bytes_of_cols(m, m->cols);

    if (tile + 2 < end)
        return m->w + (tile + 2) * tile_bytes + bytes_of_cols(m, chunk->c);
    if (chunk->c + chunk->n_cols < m->cols)
        return m->w + first * tile_bytes + bytes_of_cols(m, chunk->c + chunk->n_cols);
    return m->w + end * tile_bytes;
}

/* Adds a chunk to the sums of some R16 tiles, two by two, and all tokens. */
static ALWAYS_INLINE void add_rows(struct run *run, size_t first, size_t end, float *sums)
{
    const struct matrix *m = run->m;
    const struct chunk *chunk = run->chunk;
    const size_t tile_bytes = bytes_of_cols(m, m->cols),
                 run_bytes = bytes_of_cols(m, chunk->n_cols);
    const size_t n_tile_pairs = (end - first + 1) / 2;
    const size_t rows = (TILE_ROWS_MAX + n_tile_pairs - 1) / n_tile_pairs;
    _Alignas(64) uint8_t room[2 * CHUNK_STEPS * TILE_BYTES];

    for (size_t i = 0; i < n_tile_pairs; i++) {
        const size_t tile = first + 2 * i;
        const struct weights_of weights = find_weights(m, chunk, tile, end, room);
        const uint8_t *next = weights_after(m, chunk, tile, first, end);
        struct ahead ahead = {{next, next + tile_bytes},
                              (run_bytes / (chunk->n_pairs * chunk->n_steps) + 63) / 64 * 64,
                              chunk->to_next,
                              i * rows,
                              (i + 1) * rows < TILE_ROWS_MAX ? (i + 1) * rows : TILE_ROWS_MAX};

        for (size_t pair = 0; pair < chunk->n_pairs; pair++, sums += 4 * SUMS) {
            ahead.w[0] = next + pair * chunk->n_steps * ahead.w_bytes;
            ahead.w[1] = ahead.w[0] + tile_bytes;
            if (m->kind == FP8 && pair == 0) /* constants, once more */
                add_chunk(run, true, &chunk->tokens[0], &weights, ahead, sums);
            else
                add_chunk(run, false, &chunk->tokens[2 * pair], &weights, ahead, sums);
        }
    }
}

/* Finds a chunk's activations. Those that begin with lines of the cache are tiles as they lie;
 * others, and those of less than 16 tokens, are brought together in the panel. */
static void find_tokens(size_t n_tokens, const uint16_t *x, size_t x_stride, uint8_t *panel,
                        struct chunk *chunk)
{
    const bool in_place = (uintptr_t)x % TILE_ROW_BYTES_MAX == 0 && x_stride % TILE_COLS == 0 &&
                          chunk->n_cols % TILE_COLS == 0;
    size_t n = 0;

    for (size_t t = 0; t < n_tokens; t += TILE_ROWS_MAX, panel += CHUNK_STEPS * TILE_BYTES, n++) {
        const uint16_t *at = x + t * x_stride + chunk->c;

        if (in_place && n_tokens - t >= TILE_ROWS_MAX) {
            chunk->tokens[n] =
                (struct tokens){(const uint8_t *)at, x_stride * sizeof(*x), TILE_COLS * sizeof(*x)};
            continue;
        }
        fill_panel(n_tokens - t, chunk->n_cols, at, x_stride, panel);
        chunk->tokens[n] = (struct tokens){panel, TILE_ROW_BYTES_MAX, TILE_BYTES};
    }
    if (n % 2) /* the last one twice: two cost little more, and there is room for their sums */
        chunk->tokens[n] = chunk->tokens[n - 1];
    chunk->n_pairs = (n + 1) / 2;
}

/* Sums of n R16 tiles to y: a token's go to neighbouring places. */
static void give_sums(size_t n_tiles, size_t n_tokens, size_t n_pairs, const float *sums, float *y,
                      size_t y_stride)
{
    for (size_t t = 0; t < n_tokens; t++) {
        const float *from = sums + t / TILE_ROWS_MAX * 2 * SUMS + t % TILE_ROWS_MAX * ROWS;

        for (size_t tile = 0; tile < n_tiles; tile++)
            _mm512_storeu_ps(
                y + t * y_stride + tile * ROWS,
                _mm512_load_ps(from + tile / 2 * n_pairs * 4 * SUMS + tile % 2 * SUMS));
    }
}

/* Up to 256 tokens. */
static ALWAYS_INLINE void multiply_tokens(const struct matrix *m, size_t n_tokens,
                                          const uint16_t *x, size_t x_stride, float *y,
                                          size_t y_stride)
{
    const size_t n_pairs = (n_tokens + 2 * TILE_ROWS_MAX - 1) / (2 * TILE_ROWS_MAX);
    const size_t at_once = SUM_TILES / n_pairs / 2 / 2 * 2;
    _Alignas(64) uint8_t panel[TOKENS_MAX / TILE_ROWS_MAX * CHUNK_STEPS * TILE_BYTES];
    _Alignas(64) float sums[SUM_TILES * SUMS];

    for (size_t first = 0; first < m->tile_count; first += at_once) {
        const size_t end = m->tile_count - first < at_once ? m->tile_count : first + at_once;
        struct chunk chunk;
        struct run run = {.m = m, .chunk = &chunk};

        for (size_t c = 0; c < m->cols; c += CHUNK_COLS) {
            const bool is_last = c + CHUNK_COLS >= m->cols;

            chunk.c = c;
            chunk.n_cols = is_last ? m->cols - c : CHUNK_COLS;
            chunk.n_steps = (chunk.n_cols + TILE_COLS - 1) / TILE_COLS;
            chunk.to_next =
                (is_last ? -(ptrdiff_t)c : (ptrdiff_t)CHUNK_COLS) * (ptrdiff_t)sizeof(*x);
            find_tokens(n_tokens, x, x_stride, panel, &chunk);
            add_rows(&run, first, end, sums);
        }
        end_run(&run);
        give_sums(end - first, n_tokens, n_pairs, sums, y + first * ROWS, y_stride);
    }
}

/* ---- few tokens --------------------------------------------------------------------------------
 * Up to 16 are one tile, and multiplying is nothing beside reading. Four R16 tiles are read from
 * front to back, and what lies a little further on is asked for all the while. */

#define FEW_COLS 4096u /* whose activations stay in the second-level cache */
#define FEW_W 4u
#define AHEAD_BYTES 2048u

/* Adds the products of a tile of tokens and those of n_w R16 tiles to tiles 0 to 3. */
static ALWAYS_INLINE void multiply_few(size_t n_w, const uint8_t *x, const uint8_t *const *w)
{
    TILE_LOAD(4, x, TILE_ROW_BYTES_MAX);
    TILE_LOAD(6, w[0], TILE_ROW_BYTES_MAX);
    TILE_DOT_BF16(0, 4, 6);
    if (n_w == 1)
        return;
    TILE_LOAD(7, w[1], TILE_ROW_BYTES_MAX);
    TILE_DOT_BF16(1, 4, 7);
    TILE_LOAD(6, w[2], TILE_ROW_BYTES_MAX);
    TILE_DOT_BF16(2, 4, 6);
    TILE_LOAD(7, w[3], TILE_ROW_BYTES_MAX);
    TILE_DOT_BF16(3, 4, 7);
}

/* BF16 tiles of n_cols columns (up to 32) from c on of n_w R16 tiles, which share their scales.
 * Lines `ahead` bytes on are asked for in turn, as memory is read best. */
static ALWAYS_INLINE void find_few(const struct matrix *m, size_t n_w, size_t tile, size_t c,
                                   size_t n_cols, size_t ahead, struct fp8_decoder *decoder,
                                   uint8_t (*room)[TILE_BYTES], const uint8_t *w[FEW_W])
{
    const size_t tile_bytes = bytes_of_cols(m, m->cols);
    const uint8_t *from = m->w + tile * tile_bytes + bytes_of_cols(m, c);

    if (m->kind == FP8 && m->scaling == SCALE_WEIGHTS && c % SL_FP8_BLOCK == 0)
        *decoder = decoder_of(m->scaling, *scale_of(m, tile, c));
    for (size_t at = 0; at < bytes_of_cols(m, TILE_COLS); at += 64)
        for (size_t i = 0; i < n_w; i++)
            _mm_prefetch((const char *)from + i * tile_bytes + at + ahead, _MM_HINT_T0);
    for (size_t i = 0; i < n_w; i++, from += tile_bytes) {
        w[i] = m->kind == FP8 || n_cols < TILE_COLS ? room[i] : from;
        if (m->kind == FP8) {
            decode_cols(*decoder, from, room[i]);
        } else if (n_cols < TILE_COLS) {
            memset(room[i], 0, sizeof(room[i]));
            copy_row(room[i], from, bytes_of_cols(m, n_cols));
        }
    }
}

/* y = or, unless c is 0, += the products of n_cols columns from c on of n_w R16 tiles. Columns are
 * decoded while those before are multiplied, a few at a time, so that asking never ceases. */
static ALWAYS_INLINE void few_tiles(const struct matrix *m, size_t n_w, size_t tile, size_t c,
                                    size_t n_cols, size_t n_tokens, const uint8_t *x, float *y,
                                    size_t y_stride)
{
    const size_t end = c + n_cols;
    /* From the end of these columns to where the next R16 tiles have them. */
    const size_t to_next_tiles = n_w * bytes_of_cols(m, m->cols) - bytes_of_cols(m, n_cols);
    _Alignas(64) uint8_t room[2][FEW_W][TILE_BYTES];
    _Alignas(64) float sums[FEW_W * SUMS], dots[FEW_W * SUMS];
    const uint8_t *w[2][FEW_W];
    struct fp8_decoder decoder =
        decoder_of(m->scaling, m->kind == FP8 ? *scale_of(m, tile, c) : 1.0f);

    for (size_t i = 0; i < n_w; i++)
        for (size_t t = 0; t < n_tokens; t++)
            _mm512_store_ps(sums + i * SUMS + t * ROWS,
                            c ? _mm512_loadu_ps(y + t * y_stride + i * ROWS) : _mm512_setzero_ps());
    if (m->scaling == SCALE_WEIGHTS)
        load_sums(sums);
    find_few(m, n_w, tile, c, n_cols < TILE_COLS ? n_cols : TILE_COLS, AHEAD_BYTES, &decoder,
             room[0], w[0]);
    for (size_t now = 0; c < end; c += TILE_COLS, x += TILE_BYTES, now = !now) {
        const size_t next = c + TILE_COLS;

        if (next < end)
            find_few(m, n_w, tile, next, end - next < TILE_COLS ? end - next : TILE_COLS,
                     bytes_of_cols(m, end - next) > AHEAD_BYTES ? AHEAD_BYTES
                                                                : AHEAD_BYTES + to_next_tiles,
                     &decoder, room[!now], w[!now]);
        if (m->scaling == SCALE_BLOCKS && c % SL_FP8_BLOCK == 0)
            clear_sums();
        multiply_few(n_w, x, w[now]);
        if (m->scaling == SCALE_WEIGHTS || next % SL_FP8_BLOCK)
            continue;
        store_sums(dots);
        for (size_t i = 0; i < n_w; i++)
            for (size_t at = i * SUMS; at < i * SUMS + n_tokens * ROWS; at += ROWS)
                _mm512_store_ps(sums + at, _mm512_fmadd_ps(_mm512_load_ps(dots + at),
                                                           _mm512_set1_ps(*scale_of(m, tile, c)),
                                                           _mm512_load_ps(sums + at)));
    }
    if (m->scaling == SCALE_WEIGHTS)
        store_sums(sums);
    for (size_t i = 0; i < n_w; i++)
        for (size_t t = 0; t < n_tokens; t++)
            _mm512_storeu_ps(y + t * y_stride + i * ROWS,
                             _mm512_load_ps(sums + i * SUMS + t * ROWS));
}

static ALWAYS_INLINE void multiply_few_tokens(const struct matrix *m, size_t n_tokens,
                                              const uint16_t *x, size_t x_stride, float *y,
                                              size_t y_stride)
{
    _Alignas(64) uint8_t panel[FEW_COLS / TILE_COLS * TILE_BYTES];

    for (size_t c = 0; c < m->cols; c += FEW_COLS) {
        const size_t n_cols = m->cols - c < FEW_COLS ? m->cols - c : FEW_COLS;

        fill_panel(n_tokens, n_cols, x + c, x_stride, panel);
        for (size_t tile = 0, n; tile < m->tile_count; tile += n) {
            /* Four that have the same scales. */
            n = sl_fp8_tiles_of_block(m->first_tile + tile, m->first_tile + m->tile_count);
            n = n < FEW_W ? 1 : FEW_W;
            if (n == FEW_W)
                few_tiles(m, FEW_W, tile, c, n_cols, n_tokens, panel, y + tile * ROWS, y_stride);
            else
                few_tiles(m, 1, tile, c, n_cols, n_tokens, panel, y + tile * ROWS, y_stride);
        }
    }
}

/* Tiles of activations and of sums have as many rows as there are tokens, weights all of theirs. */
static struct tile_config tiles_of_few(size_t n_tokens)
{
    struct tile_config config = whole_tiles();

    for (unsigned i = 0; i <= 4; i++)
        config.rows[i] = (uint8_t)n_tokens;
    return config;
}

static ALWAYS_INLINE void matmul(struct matrix m, size_t token_count, const uint16_t *x,
                                 size_t x_stride, float *y, size_t y_stride)
{
    const struct tile_config config =
        token_count <= TILE_ROWS_MAX ? tiles_of_few(token_count) : whole_tiles();

    tiles_begin(&config);
    if (token_count <= TILE_ROWS_MAX)
        multiply_few_tokens(&m, token_count, x, x_stride, y, y_stride);
    for (size_t t = 0; token_count > TILE_ROWS_MAX && t < token_count; t += TOKENS_MAX)
        multiply_tokens(&m, token_count - t < TOKENS_MAX ? token_count - t : TOKENS_MAX,
                        x + t * x_stride, x_stride, y + t * y_stride, y_stride);
    tiles_end();
}

/* ---- activations where they lie ----------------------------------------------------------------
 * Where either operand is small, as in attention, bringing activations together and keeping sums in
 * a buffer would cost more than they save: rows of x are tiles as they are, and sums stay in tiles
 * over all columns. Rows that begin within a line of the cache would be loaded six times slower. */

#define FEW_TILES 4u
#define FEW_TOKENS 64u
#define FEW_TOKENS_COLS_MAX 4096u

/* Rows of x stay in the cache until all R16 tiles have met them: two tiles of them in the
 * first-level one if they are short enough, and R16 tiles are loaded past it. */
#define FIRST_LEVEL_COLS_MAX 512u

static size_t rows_at_once(size_t cols)
{
    return cols <= FIRST_LEVEL_COLS_MAX ? 2 * TILE_ROWS_MAX : 4 * TILE_ROWS_MAX;
}

static bool is_small(size_t tile_count, size_t cols, size_t token_count, const uint16_t *x,
                     size_t x_stride)
{
    if (cols % TILE_COLS || token_count % TILE_ROWS_MAX || (uintptr_t)x % TILE_ROW_BYTES_MAX ||
        x_stride % TILE_COLS)
        return false;
    return tile_count <= FEW_TILES || (token_count <= FEW_TOKENS && cols <= FEW_TOKENS_COLS_MAX);
}

/* One or two tiles of tokens, one or two R16 tiles. */
static ALWAYS_INLINE void multiply_in_place(bool two_x, bool two_w, size_t cols, const uint8_t *w,
                                            const uint16_t *x, size_t x_stride, float *y,
                                            size_t y_stride)
{
    const size_t x_bytes = x_stride * sizeof(*x), y_bytes = y_stride * sizeof(*y);
    const uint8_t *next_w = w + sl_r16_bf16_tile_bytes(cols);
    const uint16_t *next_x = x + TILE_ROWS_MAX * x_stride;
    float *next_y = y + TILE_ROWS_MAX * y_stride;

    clear_sums();
    for (size_t c = 0; c < cols; c += TILE_COLS, w += TILE_BYTES, next_w += TILE_BYTES) {
        TILE_LOAD(4, x + c, x_bytes);
        TILE_LOAD_ONCE(6, w, TILE_ROW_BYTES_MAX);
        TILE_DOT_BF16(0, 4, 6);
        if (two_w) {
            TILE_LOAD_ONCE(7, next_w, TILE_ROW_BYTES_MAX);
            TILE_DOT_BF16(1, 4, 7);
        }
        if (two_x) {
            TILE_LOAD(5, next_x + c, x_bytes);
            TILE_DOT_BF16(2, 5, 6);
            if (two_w)
                TILE_DOT_BF16(3, 5, 7);
        }
    }
    TILE_STORE(0, y, y_bytes);
    if (two_w)
        TILE_STORE(1, y + ROWS, y_bytes);
    if (two_x)
        TILE_STORE(2, next_y, y_bytes);
    if (two_x && two_w)
        TILE_STORE(3, next_y + ROWS, y_bytes);
}

static void matmul_in_place(size_t tile_count, size_t cols, size_t token_count, const uint8_t *w,
                            const uint16_t *x, size_t x_stride, float *y, size_t y_stride)
{
    const struct tile_config config = whole_tiles();
    const size_t at_once = rows_at_once(cols);

    tiles_begin(&config);
    for (size_t first = 0, end; first < token_count; first = end) {
        end = token_count - first < at_once ? token_count : first + at_once;

        for (size_t tile = 0; tile < tile_count; tile += 2) {
            const uint8_t *tile_w = w + tile * sl_r16_bf16_tile_bytes(cols);
            const bool two_w = tile + 1 < tile_count;

            for (size_t t = first; t < end; t += 2 * TILE_ROWS_MAX) {
                const uint16_t *tile_x = x + t * x_stride;
                float *tile_y = y + t * y_stride + tile * ROWS;
                const bool two_x = t + TILE_ROWS_MAX < end;

                if (two_x && two_w) /* constants, once more */
                    multiply_in_place(true, true, cols, tile_w, tile_x, x_stride, tile_y, y_stride);
                else
                    multiply_in_place(two_x, two_w, cols, tile_w, tile_x, x_stride, tile_y,
                                      y_stride);
            }
        }
    }
    tiles_end();
}

/* ---- entries -----------------------------------------------------------------------------------
 */

void sl_matmul_fp8_amx(size_t first_tile, size_t tile_count, size_t cols, size_t token_count,
                       const uint8_t *restrict w, const float *restrict scale,
                       const uint16_t *restrict x, size_t x_stride, float *restrict y,
                       size_t y_stride)
{
    if (token_count < FP8_TOKENS_MIN)
        sl_matmul_fp8_avx512bf16(first_tile, tile_count, cols, token_count, w, scale, x, x_stride,
                                 y, y_stride);
    else
        matmul((struct matrix){FP8, SCALE_WEIGHTS, first_tile, tile_count, cols, w, scale},
               token_count, x, x_stride, y, y_stride);
}

void sl_matmul_fp8_block_amx(size_t first_tile, size_t tile_count, size_t cols, size_t token_count,
                             const uint8_t *restrict w, const float *restrict scale,
                             const uint16_t *restrict x, size_t x_stride, float *restrict y,
                             size_t y_stride)
{
    if (token_count < FP8_TOKENS_MIN)
        sl_matmul_fp8_block_avx512bf16(first_tile, tile_count, cols, token_count, w, scale, x,
                                       x_stride, y, y_stride);
    else
        matmul((struct matrix){FP8, SCALE_BLOCKS, first_tile, tile_count, cols, w, scale},
               token_count, x, x_stride, y, y_stride);
}

void sl_matmul_bf16_amx(size_t tile_count, size_t cols, size_t token_count,
                        const uint8_t *restrict w, const uint16_t *restrict x, size_t x_stride,
                        float *restrict y, size_t y_stride)
{
    if (is_small(tile_count, cols, token_count, x, x_stride))
        matmul_in_place(tile_count, cols, token_count, w, x, x_stride, y, y_stride);
    else if (token_count < BF16_TOKENS_MIN)
        sl_matmul_bf16_avx512bf16(tile_count, cols, token_count, w, x, x_stride, y, y_stride);
    else
        matmul((struct matrix){BF16, SCALE_WEIGHTS, 0, tile_count, cols, w, NULL}, token_count, x,
               x_stride, y, y_stride);
}

/* ---- proof -------------------------------------------------------------------------------------
 */

/* BF16 numbers of near sizes, so that roundings show, of about 2^exponent. */
static void fill_near(uint64_t *state, int exponent, size_t count, uint16_t *numbers)
{
    for (size_t i = 0; i < count; i++) {
        *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        numbers[i] = (uint16_t)((*state >> 33 & 0x807f) |
                                (uint64_t)(127 + exponent + (int)(*state >> 49 & 3)) << 7);
    }
}

/* The contract's sum of token t and row r: w as a tile has it, x (16, 32). */
static float in_block_order(float sum, size_t t, size_t r, const uint16_t *w, const uint16_t *x)
{
    float chains[2] = {0, 0};

    for (size_t c = 0; c < TILE_COLS; c++)
        chains[c % 2] = __builtin_fmaf(sl_bf16_to_f32(w[c / 2 * 2 * ROWS + 2 * r + c % 2]),
                                       sl_bf16_to_f32(x[t * TILE_COLS + c]), chains[c % 2]);
    return sum + (chains[0] + chains[1]);
}

bool sl_amx_dot_bf16_is_block_order(void)
{
    const struct tile_config config = whole_tiles();
    uint64_t state = 1;

    for (int round = 0; round < 64; round++) {
        /* Factors of 2^-46 to 2^49: whatever the linears may meet. */
        const int exponent = round * 3 / 2 - 46;
        uint16_t w[TILE_COLS * ROWS], x[TILE_ROWS_MAX * TILE_COLS];
        float sums[TILE_ROWS_MAX * ROWS], got[TILE_ROWS_MAX * ROWS];

        fill_near(&state, exponent, TILE_COLS * ROWS, w);
        fill_near(&state, (int)(state >> 40) % 40 - 20, TILE_ROWS_MAX * TILE_COLS, x);
        for (size_t i = 0; i < TILE_ROWS_MAX * ROWS; i++)
            sums[i] = got[i] = sl_bf16_to_f32(w[i]) * sl_bf16_to_f32(x[i]) * (1.0f + (float)i / 7);
        tiles_begin(&config);
        TILE_LOAD(0, got, TILE_ROW_BYTES_MAX);
        TILE_LOAD(4, x, TILE_ROW_BYTES_MAX);
        TILE_LOAD(6, w, TILE_ROW_BYTES_MAX);
        TILE_DOT_BF16(0, 4, 6);
        TILE_STORE(0, got, TILE_ROW_BYTES_MAX);
        tiles_end();
        for (size_t i = 0; i < TILE_ROWS_MAX * ROWS; i++)
            if (sl_f32_bits(got[i]) !=
                sl_f32_bits(in_block_order(sums[i], i / ROWS, i % ROWS, w, x)))
                return false;
    }
    return true;
}
