/* Random bytes from the system, as names and seeds. */
#ifndef SL_BASE_RANDOM_H
#define SL_BASE_RANDOM_H

#include <stddef.h>
#include <stdint.h>

/* Fills `name` with size - 1 random letters and digits, and a zero byte; `size` is 33 at most. 24
 * of them are never drawn twice. */
void sl_random_name(char *name, size_t size);

/* A number small enough to be exact where numbers are doubles. */
uint64_t sl_random_seed(void);

#endif
