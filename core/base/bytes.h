/* Bytes that grow as they are added, for text that is put together from many pieces. Starts from
 * {0}; the owner calls sl_bytes_fini(). */
#ifndef SL_BASE_BYTES_H
#define SL_BASE_BYTES_H

#include <stdbool.h>
#include <stddef.h>

#include "core/base/json.h"

struct sl_bytes {
    char *data; /* not terminated */
    size_t length, capacity;
    bool out_of_memory; /* adding does nothing from then on, so that it need be asked only once */
};

void sl_bytes_fini(struct sl_bytes *bytes);

/* Empty again; the memory stays. */
void sl_bytes_clear(struct sl_bytes *bytes);

void sl_bytes_add(struct sl_bytes *bytes, const void *data, size_t length);
void sl_bytes_add_text(struct sl_bytes *bytes, const char *text);
void sl_bytes_add_format(struct sl_bytes *bytes, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Adds a value in JSON without blanks; one that is NULL counts as out of memory. */
void sl_bytes_add_json(struct sl_bytes *bytes, const json_t *value);

/* Returns the bytes as a new JSON string; NULL if they are no UTF-8, or when out of memory. */
json_t *sl_bytes_string(const struct sl_bytes *bytes);

#endif
