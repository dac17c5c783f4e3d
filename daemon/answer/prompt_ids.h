/* From a request's conversation or prompts to token ids. */
#ifndef SL_DAEMON_ANSWER_PROMPT_IDS_H
#define SL_DAEMON_ANSWER_PROMPT_IDS_H

#include "core/base/bytes.h"
#include "core/model/config.h"
#include "core/text/token_list.h"
#include "daemon/protocol/request.h"

struct sl_prompt_ids {
    struct sl_token_list *lists; /* (n) */
    uint32_t n;
};

/* Makes the ids of each of the request's prompts, or of its conversation. Returns 0, or -1 with the
 * refusal; the caller calls sl_prompt_ids_fini() in either case. */
int sl_prompt_ids_make(struct sl_prompt_ids *ids, const struct sl_request *request,
                       const struct sl_tokenizer *tok, const struct sl_config *config,
                       struct sl_refusal *refusal);
void sl_prompt_ids_fini(struct sl_prompt_ids *ids);

/* The text with which an answer has to begin that must be a call: it is part of the prompt, and the
 * parser gets it too. Empty where it need not be one. */
void sl_forced_call_text(const struct sl_request *request, struct sl_bytes *out);

#endif
