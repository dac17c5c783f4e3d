/* Tries whether this system gives huge pages when asked, as a run does for all its large memory. */
#ifndef SL_TOOLS_CLI_HUGE_PAGES_H
#define SL_TOOLS_CLI_HUGE_PAGES_H

#include <stdint.h>

#define SL_HUGE_TRIAL_BYTES (UINT64_C(64) << 20)

/* Returns the share of SL_HUGE_TRIAL_BYTES that came in huge pages, 0 to 1; below 0 if there is no
 * memory for the trial. */
double sl_huge_pages_share(void);

#endif
