/* Who gets how many of a step's tokens, where sequences have more of them than go in. */
#ifndef SL_DAEMON_ENGINE_STEP_SHARES_H
#define SL_DAEMON_ENGINE_STEP_SHARES_H

#include <stdint.h>

/* tokens[i] is how many sequence i has, and becomes how many it gets: as many as the others, unless
 * it has fewer. All of them together get n_total, if they have as many. The first ones get the
 * remainder, one each. */
void sl_step_shares(uint32_t *tokens, uint32_t n, uint32_t n_total);

#endif
