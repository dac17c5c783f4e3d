/* The two sizes of steps: an engine has a forward pass for each. */
#ifndef SL_DAEMON_ENGINE_STEP_SIZE_H
#define SL_DAEMON_ENGINE_STEP_SIZE_H

/* The large forward takes as many tokens as memory allows, so that a sweep reads each expert for
 * many of them. The small one exists if small_step_tokens asks for it: its steps serve users who
 * wait for one token while a large step stands still between two layers. */
enum sl_step_size { SL_STEP_LARGE, SL_STEP_SMALL, SL_STEP_SIZES };

#endif
