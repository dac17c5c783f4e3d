/* Which chat format the model in a folder was trained on.
 *
 * Releases of one architecture differ in it, so it is a property of the folder: of the encoder that
 * DeepSeek ships beside the weights, else of a chat template, else of config.json. A base model was
 * never taught a conversation and has none. */
#ifndef SL_TEXT_CHAT_PROFILE_H
#define SL_TEXT_CHAT_PROFILE_H

#include <stdbool.h>

#include "core/base/err.h"
#include "core/text/chat_render.h"

/* The encoder, in a checkpoint in a folder of its own, and in a store beside the other files. */
#define SL_CHAT_ENCODER_FOLDER "encoding"
#define SL_CHAT_ENCODER_FILE "encoding_dsv4.py"
#define SL_CHAT_TEMPLATE_FILE "chat_template.jinja"

struct sl_chat_profile_found {
    bool is_chat; /* false: a base model, and no `profile` */
    enum sl_chat_profile profile;
    const char *file; /* that told, from the folder on; static */
    bool is_guess;    /* nothing told: a base model, if its experts are FP8 */
};

/* Finds out, without a look at the tensors (tools/cli/model_profile.h has that). Fails with -errno,
 * -SL_EFORMAT or -ENOMEM if a file is there and cannot be read, or if there is no config.json. */
int sl_chat_profile_detect(const char *folder, struct sl_chat_profile_found *ret_found,
                           struct sl_err *err);

/* "v4-0731", or "none" for a base model. */
const char *sl_chat_profile_found_name(const struct sl_chat_profile_found *found);

#endif
