/* Shares a step's tokens out among sequences that have more of them than the step takes. */
#ifndef SL_DAEMON_ENGINE_STEP_SHARES_H
#define SL_DAEMON_ENGINE_STEP_SHARES_H

#include <stdint.h>

/* tokens[i] says how many tokens sequence i has, and is set to how many it gets: as many as the
 * others, unless it has fewer. Together they get n_total, or all they have if that is less. What is
 * left over after dividing goes to the first ones, one each. */
void sl_step_shares(uint32_t *tokens, uint32_t n, uint32_t n_total);

#endif
