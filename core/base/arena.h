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
#include <stdio.h>

#include "core/base/err.h"

#define SL_CACHE_LINE_BYTES 64
#define SL_HUGE_PAGE_BYTES (UINT64_C(2) << 20)

struct sl_arena {
    uint8_t *base; /* NULL while measuring */
    uint64_t used_bytes;
    uint64_t size_bytes; /* of the mapping; 0 while measuring */
    bool locked;         /* mlock() succeeded */
};

/* A measuring arena: sl_arena_take() returns NULL and counts. Needs no fini. */
void sl_arena_init_measure(struct sl_arena *arena);

/* Bytes of memory that an arena of this size takes. */
uint64_t sl_arena_mapped_bytes(uint64_t size_bytes);

/* Maps `size_bytes` (rounded up to 2 MiB when larger than that) of zeroed memory and asks for huge
 * pages. Fails with -ENOMEM; `what` names the user in the message. */
int sl_arena_map(struct sl_arena *arena, uint64_t size_bytes, const char *what, struct sl_err *err);

/* Tries to lock all of it, pages that nobody has touched as soon as somebody does: what is reserved
 * costs nothing before it is used. Not being allowed to is no error: see `locked`. */
void sl_arena_lock(struct sl_arena *arena);

/* Both, for memory that is touched as it comes to be used. */
int sl_arena_reserve(struct sl_arena *arena, uint64_t size_bytes, const char *what,
                     struct sl_err *err);

/* Maps an arena like sl_arena_map(), and touches all of it here and now. */
int sl_arena_init(struct sl_arena *arena, uint64_t size_bytes, const char *what,
                  struct sl_err *err);

/* Gives the memory of whole pages inside the arena back to the system. It can be used again at any
 * time, and is zeroed then; what lies there belongs to the arena's user all the while. With `huge`
 * it is to come in huge pages again, otherwise in small ones. */
void sl_arena_give_back(struct sl_arena *arena, uint8_t *first, uint64_t size_bytes, bool huge);

/* Unmaps. A zeroed or measuring arena is allowed. */
void sl_arena_fini(struct sl_arena *arena);

/* count * item_bytes bytes, aligned to 64. From a measuring arena NULL; otherwise never NULL:
 * asking for more than was measured is our own mistake and asserts. */
void *sl_arena_take(struct sl_arena *arena, uint64_t count, uint64_t item_bytes);

/* Takes memory like sl_arena_take(), aligned to `align_bytes`, a power of two of at most 2 MiB. */
void *sl_arena_take_aligned(struct sl_arena *arena, uint64_t count, uint64_t item_bytes,
                            uint64_t align_bytes);

/* How much of the arena has been touched, and how much of that lies in huge pages. All 0 if the
 * system does not tell. Takes a while on large arenas: for figures at the end. */
struct sl_arena_pages {
    uint64_t resident_bytes;
    uint64_t huge_bytes;
};
struct sl_arena_pages sl_arena_pages(const struct sl_arena *arena);

/* The figures for first <= address < end, from the text of /proc/PID/smaps. A mapping that also
 * holds other memory counts by its share. */
struct sl_arena_pages sl_smaps_pages(FILE *smaps, uint64_t first, uint64_t end);

#endif
