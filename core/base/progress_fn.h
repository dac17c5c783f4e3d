/* How long work tells how far it is. Called by the thread that does or drives the work, as often as
 * it likes; what is worth showing is the receiver's to decide. */
#ifndef SL_BASE_PROGRESS_FN_H
#define SL_BASE_PROGRESS_FN_H

#include <stdint.h>

typedef void sl_progress_fn(void *context, uint64_t done, uint64_t total);

#endif
