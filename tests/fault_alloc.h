/* Allocations that fail on request.
 *
 * Linking this file puts a counting malloc, calloc, realloc, aligned_alloc, posix_memalign, free
 * and mmap in front of the C library's, for all code of the test program, shared libraries
 * included. Sanitizers and valgrind bring their own allocator; there nothing can be made to fail,
 * and fault_alloc_works() says so. Failures and live_count are per thread. */
#ifndef SL_TESTS_FAULT_ALLOC_H
#define SL_TESTS_FAULT_ALLOC_H

#include <stdbool.h>
#include <stdint.h>

/* The nth allocation from now on fails (1 is the next), and with `persist` all after it; 0 turns
 * it off. */
void fault_alloc_set(uint64_t nth, bool persist);

/* True if an allocation has failed since fault_alloc_set(). */
bool fault_alloc_happened(void);

/* Allocations so far, memory maps included, of all threads together. */
uint64_t fault_alloc_total_count(void);

/* Allocations not yet freed, without memory maps: equal before and after a call that leaks nothing.
 */
int64_t fault_alloc_live_count(void);

bool fault_alloc_works(void);

#endif
