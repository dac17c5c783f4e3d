/* Assertions that stay on in release builds.
 *
 * Our own mistakes assert; those of a disk, a peer, a file or a user are error
 * values (core/base/err.h). One fact per assertion. sl_dassert() is for inner loops: it is checked
 * in sanitizer and debug builds only. */
#ifndef SL_BASE_ASSERT_H
#define SL_BASE_ASSERT_H

#include <stdio.h>
#include <stdlib.h>

#define sl_assert(condition)                                                                       \
    do {                                                                                           \
        if (__builtin_expect(!(condition), 0)) {                                                   \
            fprintf(stderr, "%s:%d: assertion failed: %s\n", __FILE__, __LINE__, #condition);      \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

#ifdef SL_DEBUG
#define sl_dassert(condition) sl_assert(condition)
#else
#define sl_dassert(condition) ((void)0)
#endif

#endif
