/* Which chat format a MODEL folder has, by its files and tensors. */
#ifndef SL_TOOLS_CLI_MODEL_PROFILE_H
#define SL_TOOLS_CLI_MODEL_PROFILE_H

#include "core/text/chat_profile.h"

/* Finds out as sl_chat_profile_detect() does. Where the files leave it to a guess, FP8 experts say
 * that it is a base model; a folder without tensors is left to the guess. Fails likewise. */
int sl_model_profile(const char *folder, struct sl_chat_profile_found *ret_found,
                     struct sl_err *err);

#endif
