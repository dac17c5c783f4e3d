/* Memory taken once, at start, and handed out from one end.
 *
 * A module writes one function that carves all it needs out of an arena. That function runs twice:
 * first on a measuring arena, which hands out NULL and only adds up; then on a mapped arena of
 * exactly that size. So sizes are computed in one place, by the code that uses them, and nothing
 * allocates afterwards. An arena belongs to one thread while it is being carved. */
#ifndef SL_BASE_ARENA_H
#define SL_BASE_ARENA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/err.h"

#define SL_CACHE_LINE_BYTES 64

struct sl_arena {
    uint8_t *base; /* NULL while measuring */
    uint64_t used_bytes;
    uint64_t size_bytes; /* of the mapping; 0 while measuring */
    bool locked;         /* mlock() succeeded */
};

/* A measuring arena: sl_arena_take() returns NULL and counts. Needs no fini. */
void sl_arena_init_measure(struct sl_arena *arena);

/* Maps `size_bytes` (rounded up to 2 MiB when larger than that) of zeroed memory, asks for huge
 * pages and tries to lock it. Not being allowed to lock is no error: see `locked`.
 * Fails with -ENOMEM; `what` names the user in the message. */
int sl_arena_init(struct sl_arena *arena, uint64_t size_bytes, const char *what,
                  struct sl_err *err);

/* Unmaps. A zeroed or measuring arena is allowed. */
void sl_arena_fini(struct sl_arena *arena);

/* count * item_bytes bytes, aligned to 64. From a measuring arena NULL; otherwise never NULL:
 * asking for more than was measured is our own mistake and asserts. */
void *sl_arena_take(struct sl_arena *arena, uint64_t count, uint64_t item_bytes);

/* As above, aligned to `align_bytes`, a power of two of at most 2 MiB. */
void *sl_arena_take_aligned(struct sl_arena *arena, uint64_t count, uint64_t item_bytes,
                            uint64_t align_bytes);

#endif
