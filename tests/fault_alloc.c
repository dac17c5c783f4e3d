#include "tests/fault_alloc.h"

#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* volatile: compilers know that malloc() does not read our variables, and drop stores before it. */
static _Thread_local volatile struct {
    uint64_t until; /* allocations up to and including the one that fails; 0: none will */
    int64_t live_count;
    bool persist;
    bool happened;
} fault;

/* Written by any thread that allocates; read when none does. */
static atomic_uint_fast64_t total_count;

void fault_alloc_set(uint64_t nth, bool persist)
{
    fault.until = nth;
    fault.persist = persist;
    fault.happened = false;
}

bool fault_alloc_happened(void)
{
    return fault.happened;
}

uint64_t fault_alloc_total_count(void)
{
    return atomic_load_explicit(&total_count, memory_order_relaxed);
}

int64_t fault_alloc_live_count(void)
{
    return fault.live_count;
}

bool fault_alloc_works(void)
{
    /* Through a pointer that the compiler knows nothing of: it would use the malloc below at once,
     * though another may have taken its place. */
    void *(*volatile allocate)(size_t) = malloc;
    void *block;

    fault_alloc_set(1, false);
    block = allocate(1);
    free(block);
    fault_alloc_set(0, false);
    return !block;
}

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define OTHER_ALLOCATOR
#endif
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define OTHER_ALLOCATOR
#endif

#ifndef OTHER_ALLOCATOR

/* The C library's own, under the names it keeps for programs that replace malloc. */
void *__libc_malloc(size_t size_bytes);
void *__libc_calloc(size_t count, size_t item_bytes);
void *__libc_realloc(void *block, size_t size_bytes);
void *__libc_memalign(size_t align_bytes, size_t size_bytes);
void __libc_free(void *block);

static bool must_fail(void)
{
    atomic_fetch_add_explicit(&total_count, 1, memory_order_relaxed);
    if (fault.until == 0 || --fault.until > 0)
        return false;
    fault.until = fault.persist;
    fault.happened = true;
    errno = ENOMEM;
    return true;
}

static void *counted(void *block)
{
    fault.live_count += block != NULL;
    return block;
}

void *malloc(size_t size_bytes)
{
    return must_fail() ? NULL : counted(__libc_malloc(size_bytes));
}

void *calloc(size_t count, size_t item_bytes)
{
    return must_fail() ? NULL : counted(__libc_calloc(count, item_bytes));
}

void *realloc(void *block, size_t size_bytes)
{
    void *larger;

    if (must_fail())
        return NULL;
    larger = __libc_realloc(block, size_bytes);
    return block ? larger : counted(larger);
}

void *aligned_alloc(size_t align_bytes, size_t size_bytes)
{
    return must_fail() ? NULL : counted(__libc_memalign(align_bytes, size_bytes));
}

int posix_memalign(void **ret_block, size_t align_bytes, size_t size_bytes)
{
    void *block = must_fail() ? NULL : counted(__libc_memalign(align_bytes, size_bytes));

    if (!block)
        return ENOMEM;
    *ret_block = block;
    return 0;
}

/* The C library keeps no other name for its own. */
void *mmap(void *address, size_t size_bytes, int protection, int flags, int fd, off_t offset_bytes)
{
    if (must_fail())
        return MAP_FAILED;
    return (void *)syscall(SYS_mmap, address, size_bytes, protection, flags, fd, offset_bytes);
}

void free(void *block)
{
    fault.live_count -= block != NULL;
    __libc_free(block);
}

#endif
