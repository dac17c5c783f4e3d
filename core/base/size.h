/* Numbers and sizes as people write them, and arithmetic on sizes that come from files. */
#ifndef SL_BASE_SIZE_H
#define SL_BASE_SIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Records are aligned to this on disk, and direct reads and writes want it. */
#define SL_BLOCK_BYTES UINT64_C(4096)

/* Parses the decimal number that `text` begins with, such as "4096", "0.5" or "1e-3"; *ret_end is
 * what follows it. Returns 0, or -EINVAL for anything else, signs, white space, hexadecimal digits
 * and words such as "inf" included. */
int sl_number_parse(const char *text, double *ret_value, const char **ret_end);

/* Parses "4096", "512M", "1.5G", "2T" (powers of 1024; an ending "B" or "iB" is allowed, case does
 * not matter). Returns 0, or -EINVAL when the text is not a size or does not fit in 64 bits. */
int sl_size_parse(const char *text, uint64_t *ret_bytes);

/* Writes `bytes` for a person: "583 B", "12.7 MiB", "1.51 TiB". Returns `buffer`. */
#define SL_SIZE_TEXT_BYTES 24
const char *sl_size_format(uint64_t bytes, char buffer[SL_SIZE_TEXT_BYTES]);

/* The "s" of a noun of which there are `n`. */
static inline const char *sl_plural(uint64_t n)
{
    return n == 1 ? "" : "s";
}

/* Elements of an array, not of a pointer. */
#define SL_ARRAY_LEN(array) (sizeof(array) / sizeof((array)[0]))

/* product = a * b and sum = a + b; false if it does not fit. */
static inline bool sl_mul_u64(uint64_t a, uint64_t b, uint64_t *product)
{
    return !__builtin_mul_overflow(a, b, product);
}

static inline bool sl_add_u64(uint64_t a, uint64_t b, uint64_t *sum)
{
    return !__builtin_add_overflow(a, b, sum);
}

/* `multiple` is a power of two. */
static inline uint64_t sl_round_up(uint64_t value, uint64_t multiple)
{
    return (value + multiple - 1) & ~(multiple - 1);
}

static inline uint64_t sl_round_down(uint64_t value, uint64_t multiple)
{
    return value & ~(multiple - 1);
}

#endif
