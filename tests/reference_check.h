/* What the tests of the reference kernels share: comparisons, and running a kernel as the pool
 * does. */
#ifndef SL_TESTS_REFERENCE_CHECK_H
#define SL_TESTS_REFERENCE_CHECK_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>

#include <cmocka.h>

#include "core/base/cpu.h"
#include "core/kernels/formats.h"
#include "core/kernels/dispatch.h"

/* Kernels run as they do in the pool. What they are compared with runs as C has it. */
#define FLUSHED(call)                                                                              \
    do {                                                                                           \
        uint64_t float_mode = sl_cpu_flush_subnormals();                                           \
                                                                                                   \
        call;                                                                                      \
        sl_cpu_restore_float_mode(float_mode);                                                     \
    } while (0)

static inline struct sl_kernels reference(void)
{
    struct sl_kernels k;

    assert_int_equal(sl_kernels_select(&k, "ref", NULL), 0);
    return k;
}

static inline void assert_same_floats(const float *found, const float *expected, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (sl_f32_bits(found[i]) != sl_f32_bits(expected[i]))
            fail_msg("value %zu is %a, expected %a", i, (double)found[i], (double)expected[i]);
}

static inline void assert_close(double found, double expected, double tolerance)
{
    if (!(fabs(found - expected) <= tolerance))
        fail_msg("%.9g, expected %.9g within %g", found, expected, tolerance);
}

#endif
