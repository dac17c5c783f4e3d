/* From a conversation to the prompt that V4 was trained on.
 *
 * There is more than one such format: which one a model wants is a property of its folder. Messages
 * come as the OpenAI chat API has them, with the extensions named below. The rules are those of the
 * encoder that DeepSeek ships beside the weights; docs/CHAT.md tells them. */
#ifndef SL_TEXT_CHAT_RENDER_H
#define SL_TEXT_CHAT_RENDER_H

#include <stdbool.h>

#include "core/base/err.h"
#include "core/base/json.h"
#include "core/text/chat_prompt.h"

enum sl_chat_profile {
    SL_CHAT_V4_PREVIEW, /* V4-Pro and V4-Flash of April 2026 */
    SL_CHAT_V4_0731,    /* V4-Flash-0731, V4-Pro-0813 */
    SL_CHAT_PROFILES,
};

/* "v4-preview" and so on. */
const char *sl_chat_profile_name(enum sl_chat_profile profile);
int sl_chat_profile_find(enum sl_chat_profile *ret_profile, const char *name, struct sl_err *err);

/* How hard the model is asked to think; a word means another text in each profile, or none. */
enum sl_chat_effort { SL_CHAT_EFFORT_DEFAULT, SL_CHAT_LOW, SL_CHAT_HIGH, SL_CHAT_MAX };

struct sl_chat_options {
    enum sl_chat_profile profile;
    bool thinking;
    bool keep_thinking; /* of earlier turns; it is kept anyway where the conversation has tools */
    bool no_bos;
    enum sl_chat_effort effort;
};

/* Renders `messages`, an array, into an empty prompt, up to where the model's answer begins. Roles
 * are system, user, assistant, tool, developer and latest_reminder. Beside `content` (a string, or
 * a list of text parts), `tool_calls` and `tool_call_id`, a message may have `reasoning_content`,
 * `tools`, `response_format`, `task` and `wo_eos`, or `prefix`, which leaves the last answer open
 * to be continued. Fails with -SL_EFORMAT and a line that names the message, or -ENOMEM. The caller
 * calls sl_chat_prompt_fini() in either case. */
int sl_chat_render(struct sl_chat_prompt *prompt, const json_t *messages,
                   const struct sl_chat_options *options, struct sl_err *err);

#endif
