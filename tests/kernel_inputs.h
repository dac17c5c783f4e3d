/* What the tests of kernels feed them: reproducible numbers of many kinds, and memory between guard
 * pages. Also what the codes of the small formats mean, by definition.
 *
 * A guarded buffer is handed out anew for each case, of any size up to what it was opened with. It
 * touches an unreadable page on one side, and on the other has a margin of pattern bytes that
 * guarded_is_intact() looks at. */
#ifndef SL_TESTS_KERNEL_INPUTS_H
#define SL_TESTS_KERNEL_INPUTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- numbers -----------------------------------------------------------------------------------
 */

struct rng {
    uint64_t state;
};

/* $SL_SEED, or the seed that every run uses otherwise. */
uint64_t inputs_seed(void);

uint64_t rng_next(struct rng *rng);

/* 0 <= result < n. */
size_t rng_below(struct rng *rng, size_t n);

enum input_kind {
    INPUT_PLAIN, /* uniform within +-4 */
    INPUT_WIDE,  /* any exponent from -60 to the largest that the kernel takes */
    INPUT_TINY,  /* subnormals, and both sides of every border near 2^-48 and 2^-40 */
    INPUT_LARGE, /* everything at the largest magnitude, half of it with one sign */
    INPUT_TIES,  /* often halfway between two numbers of a small format */
    INPUT_ZERO,  /* zeros of both signs */
    INPUT_MIXED, /* each 32 values of one of the kinds above */
    INPUT_KINDS,
};

const char *input_kind_name(enum input_kind kind);

/* Magnitudes stay below 2^(exponent_max + 1); nothing is infinite or NaN. */
void fill_floats(struct rng *rng, enum input_kind kind, int exponent_max, size_t count, float *x);

/* A checkpoint's rows of FP4 (two codes a byte) and their E8M0 bytes, up to 2^60. */
void fill_fp4(struct rng *rng, enum input_kind kind, size_t n_bytes, uint8_t *codes,
              size_t n_scales, uint8_t *scale_bytes);

/* FP8 codes without NaN, and E8M0 bytes up to 2^60. */
void fill_fp8(struct rng *rng, enum input_kind kind, size_t n_codes, uint8_t *codes,
              size_t n_scales, uint8_t *scale_bytes);

/* The value of a code; those of e4m3 include 0x7f and 0xff, as +-480. */
double value_of_bf16(uint32_t code);
double value_of_e4m3(uint32_t code);
double value_of_e2m1(uint32_t code);

/* ---- memory ------------------------------------------------------------------------------------
 */

enum guard_side { GUARD_AFTER, GUARD_BEFORE, GUARD_SIDES };

struct guarded {
    uint8_t *data; /* as placed last */
    size_t size_bytes;
    uint8_t *room; /* between the two guard pages */
    size_t room_bytes;
    enum guard_side side;
};

void guarded_open(struct guarded *buffer, size_t size_bytes_max);
void guarded_close(struct guarded *buffer);

/* Hands out size_bytes next to the guard page of `side`, all bytes and the margin set to the
 * pattern. Aligned as far as size_bytes is (GUARD_AFTER) or to a page (GUARD_BEFORE). */
void *guarded_place(struct guarded *buffer, size_t size_bytes, enum guard_side side);

/* True if the margin, and every byte of the buffer outside `n_rows` rows of row_bytes at
 * stride_bytes, still holds the pattern. */
bool guarded_is_intact(const struct guarded *buffer, size_t n_rows, size_t row_bytes,
                       size_t stride_bytes);

#endif
