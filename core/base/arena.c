#include "core/base/arena.h"

#include <errno.h>
#include <sys/mman.h>

#include "core/base/assert.h"
#include "core/base/size.h"

#define SMALL_PAGE_BYTES UINT64_C(4096)

void sl_arena_init_measure(struct sl_arena *arena)
{
    *arena = (struct sl_arena){0};
}

uint64_t sl_arena_mapped_bytes(uint64_t size_bytes)
{
    return sl_round_up(size_bytes > 0 ? size_bytes : SL_CACHE_LINE_BYTES,
                       size_bytes > SL_HUGE_PAGE_BYTES ? SL_HUGE_PAGE_BYTES : SMALL_PAGE_BYTES);
}

int sl_arena_map(struct sl_arena *arena, uint64_t size_bytes, const char *what, struct sl_err *err)
{
    char text[SL_SIZE_TEXT_BYTES];
    uint64_t mapped_bytes;
    uint8_t *base;
    uint64_t skip;

    *arena = (struct sl_arena){0};
    size_bytes = sl_arena_mapped_bytes(size_bytes);
    /* One huge page more, so that the part we keep can start on a huge page's boundary. */
    mapped_bytes = size_bytes > SL_HUGE_PAGE_BYTES ? size_bytes + SL_HUGE_PAGE_BYTES : size_bytes;
    base = mmap(NULL, mapped_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED)
        return sl_err_set(err, -ENOMEM, "%s: cannot map %s of memory", what,
                          sl_size_format(size_bytes, text));
    if (mapped_bytes > size_bytes) {
        skip = sl_round_up((uintptr_t)base, SL_HUGE_PAGE_BYTES) - (uintptr_t)base;
        if (skip)
            munmap(base, skip);
        base += skip;
        if (SL_HUGE_PAGE_BYTES > skip)
            munmap(base + size_bytes, SL_HUGE_PAGE_BYTES - skip);
        madvise(base, size_bytes, MADV_HUGEPAGE); /* a wish: without it all works, slower */
    }
    arena->base = base;
    arena->size_bytes = size_bytes;
    return 0;
}

void sl_arena_lock(struct sl_arena *arena)
{
    arena->locked = mlock2(arena->base, arena->size_bytes, MLOCK_ONFAULT) == 0;
}

int sl_arena_reserve(struct sl_arena *arena, uint64_t size_bytes, const char *what,
                     struct sl_err *err)
{
    int rc = sl_arena_map(arena, size_bytes, what, err);

    if (rc == 0)
        sl_arena_lock(arena);
    return rc;
}

int sl_arena_init(struct sl_arena *arena, uint64_t size_bytes, const char *what, struct sl_err *err)
{
    int rc = sl_arena_reserve(arena, size_bytes, what, err);

    for (uint64_t at = 0; rc == 0 && at < arena->size_bytes; at += SMALL_PAGE_BYTES)
        *(volatile uint8_t *)(arena->base + at) = 0;
    return rc;
}

void sl_arena_give_back(struct sl_arena *arena, uint8_t *first, uint64_t size_bytes, bool huge)
{
    sl_assert(first >= arena->base && size_bytes <= arena->size_bytes);
    madvise(first, size_bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    if (madvise(first, size_bytes, MADV_DONTNEED_LOCKED) == 0)
        return;
    munlock(first, size_bytes); /* before Linux 5.18 locked pages could not be given back */
    madvise(first, size_bytes, MADV_DONTNEED);
    if (arena->locked)
        mlock2(first, size_bytes, MLOCK_ONFAULT);
}

void sl_arena_fini(struct sl_arena *arena)
{
    if (arena->base)
        munmap(arena->base, arena->size_bytes);
    *arena = (struct sl_arena){0};
}

void *sl_arena_take(struct sl_arena *arena, uint64_t count, uint64_t item_bytes)
{
    return sl_arena_take_aligned(arena, count, item_bytes, SL_CACHE_LINE_BYTES);
}

void *sl_arena_take_aligned(struct sl_arena *arena, uint64_t count, uint64_t item_bytes,
                            uint64_t align_bytes)
{
    uint64_t bytes, start, end;

    /* Sizes were checked where they came in (config, command line); what overflows here was not. */
    sl_assert(sl_mul_u64(count, item_bytes, &bytes));
    start = sl_round_up(arena->used_bytes, align_bytes);
    sl_assert(start >= arena->used_bytes && sl_add_u64(start, bytes, &end));
    arena->used_bytes = end;
    if (!arena->base)
        return NULL;
    sl_assert(end <= arena->size_bytes);
    return arena->base + start;
}

struct sl_arena_pages sl_smaps_pages(FILE *smaps, uint64_t first, uint64_t end)
{
    unsigned long long from = 0, to = 0, a, b, kilobytes;
    struct sl_arena_pages pages = {0};
    char line[512];

    while (fgets(line, sizeof(line), smaps)) {
        uint64_t *bytes = &pages.resident_bytes, overlap_first, overlap_end;

        if (sscanf(line, "%llx-%llx ", &a, &b) == 2) { /* the next mapping's first line */
            from = a;
            to = b;
        }
        if (to <= from)
            continue;
        if (sscanf(line, "AnonHugePages: %llu kB", &kilobytes) == 1)
            bytes = &pages.huge_bytes;
        else if (sscanf(line, "Rss: %llu kB", &kilobytes) != 1)
            continue;
        overlap_first = from > first ? from : first;
        overlap_end = to < end ? to : end;
        if (overlap_first < overlap_end)
            *bytes += (uint64_t)((double)kilobytes * 1024 *
                                 ((double)(overlap_end - overlap_first) / (double)(to - from)));
    }
    return pages;
}

struct sl_arena_pages sl_arena_pages(const struct sl_arena *arena)
{
    FILE *smaps = fopen("/proc/self/smaps", "re");
    struct sl_arena_pages pages = {0};

    if (!smaps)
        return pages;
    pages =
        sl_smaps_pages(smaps, (uintptr_t)arena->base, (uintptr_t)arena->base + arena->size_bytes);
    fclose(smaps);
    return pages;
}
