/* AMX tiles, for the files that are compiled for them: eight registers of up to 16 rows of up to 64
 * bytes, whose sizes are set before use, and products of whole registers.
 *
 * A product C (m, n) += A (m, k) * B has 32-bit numbers in C, and in A's rows what 32 bits hold of
 * its elements: four int8 or two BF16. B has as many rows as A has such words, and each holds, for
 * every column of C, the word that meets A's. So 16 rows of an R16 tile are the columns of C, and
 * the tokens its rows. A product takes as long as the larger of A's rows and its words in a row.
 *
 * A kernel begins with tiles_begin() and ends with tiles_end(): outside of kernels no thread has
 * tiles in use, which would make every switch of threads dearer. The compilers' own intrinsics are
 * not used: those of gcc 12 do not tell the compiler that they read memory. */
#ifndef SL_KERNELS_AVX512_TILES_AMX_H
#define SL_KERNELS_AVX512_TILES_AMX_H

#include <stddef.h>
#include <stdint.h>

#define TILES 8u
#define TILE_ROWS_MAX 16u
#define TILE_ROW_BYTES_MAX 64u

/* The processor's form. Tiles of zero rows are not used. */
struct tile_config {
    uint8_t palette; /* 1 */
    uint8_t start_row;
    uint8_t reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
_Static_assert(sizeof(struct tile_config) == 64, "as the processor has it");

/* All tiles as large as they can be. */
static inline struct tile_config whole_tiles(void)
{
    struct tile_config config = {.palette = 1};

    for (unsigned i = 0; i < TILES; i++) {
        config.rows[i] = TILE_ROWS_MAX;
        config.row_bytes[i] = TILE_ROW_BYTES_MAX;
    }
    return config;
}

/* Sets all tiles' sizes, and their contents to zero. */
static inline void tiles_begin(const struct tile_config *config)
{
    __asm__ volatile("ldtilecfg %0" : : "m"(*config));
}

static inline void tiles_end(void)
{
    __asm__ volatile("tilerelease" : : : "memory");
}

/* Tiles are named by number, which must be a literal. Strides are in bytes. */
#define TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile : :)
#define TILE_LOAD(tile, from, stride)                                                              \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile                                            \
                     :                                                                             \
                     : "r"((const void *)(from)), "r"((size_t)(stride))                            \
                     : "memory")
/* TILE_LOAD for what is not soon to be loaded again: the first-level cache keeps what it has. */
#define TILE_LOAD_ONCE(tile, from, stride)                                                         \
    __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm" #tile                                          \
                     :                                                                             \
                     : "r"((const void *)(from)), "r"((size_t)(stride))                            \
                     : "memory")
#define TILE_STORE(tile, to, stride)                                                               \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)"                                        \
                     :                                                                             \
                     : "r"((void *)(to)), "r"((size_t)(stride))                                    \
                     : "memory")

/* c += a * b, signed int8. */
#define TILE_DOT_INT8(c, a, b) __asm__ volatile("tdpbssd %%tmm" #b ", %%tmm" #a ", %%tmm" #c : :)

/* c += a * b, BF16; rounds as that instruction does. */
#define TILE_DOT_BF16(c, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c : :)

#endif
