#include "tools/cli/npy.h"

#include <string.h>

#include "core/base/assert.h"

#define HEADER_BYTES 128

void sl_npy_start(FILE *stream, const char *type, uint32_t n_dims, const uint32_t *shape)
{
    char header[HEADER_BYTES];
    int at;

    sl_assert(n_dims >= 1 && n_dims <= 3);
    /* Version 1.0: magic, length of the text as 16 bits, the text padded to 64 in all. */
    memcpy(header, "\x93NUMPY\x01\x00", 8);
    header[8] = (char)(HEADER_BYTES - 10);
    header[9] = 0;
    at = 10 + snprintf(header + 10, HEADER_BYTES - 10,
                       "{'descr': '%s', 'fortran_order': False, 'shape': (", type);
    for (uint32_t i = 0; i < n_dims; i++)
        at += snprintf(header + at, (size_t)(HEADER_BYTES - at), i ? ", %u" : "%u", shape[i]);
    if (n_dims == 1) /* a tuple of one */
        header[at++] = ',';
    at += snprintf(header + at, (size_t)(HEADER_BYTES - at), "), }");
    sl_assert(at < HEADER_BYTES);
    memset(header + at, ' ', (size_t)(HEADER_BYTES - at));
    header[HEADER_BYTES - 1] = '\n';
    fwrite(header, 1, sizeof(header), stream);
}
