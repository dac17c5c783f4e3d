/* Monotonic time. Kept behind one call so that tests can see who asks for the time. */
#ifndef SL_BASE_CLOCK_H
#define SL_BASE_CLOCK_H

#include <stdint.h>

/* Nanoseconds since an arbitrary start; never goes back. */
uint64_t sl_clock_ns(void);

/* Processor time that the calling thread has taken. */
uint64_t sl_clock_thread_ns(void);

#endif
