/* numpy's .npy files: an array's shape and type, then its values as they are in memory. */
#ifndef SL_TOOLS_CLI_NPY_H
#define SL_TOOLS_CLI_NPY_H

#include <stdint.h>
#include <stdio.h>

#define SL_NPY_F32 "<f4"
#define SL_NPY_I32 "<i4"

/* Writes the header of an array of that type and shape, up to three sizes; the caller writes its
 * values behind it. */
void sl_npy_start(FILE *stream, const char *type, uint32_t n_dims, const uint32_t *shape);

#endif
