/* A conversation as it is given to the model: control tokens, and the text between them.
 *
 * Text from users must never become a control token, whatever it spells. So a prompt is a list of
 * pieces that remember which they are, and only becomes token ids piece by piece. Neighbouring
 * pieces of text are one piece, since cutting a text in two changes its tokens at the cut. */
#ifndef SL_TEXT_CHAT_PROMPT_H
#define SL_TEXT_CHAT_PROMPT_H

#include <stdbool.h>
#include <stddef.h>

#include "core/base/err.h"
#include "core/text/tokenizer.h"

struct sl_chat_piece {
    size_t end; /* in `bytes`; it begins where the piece before it ends */
    bool control;
};

/* Starts from {0}; the owner calls sl_chat_prompt_fini(). */
struct sl_chat_prompt {
    char *bytes; /* not terminated */
    size_t length, capacity;
    struct sl_chat_piece *pieces;
    size_t n_pieces, pieces_capacity;
    bool out_of_memory; /* adding does nothing from then on, so that it need be asked only once */
};

void sl_chat_prompt_fini(struct sl_chat_prompt *prompt);

/* Text of any origin. */
void sl_chat_prompt_add(struct sl_chat_prompt *prompt, const char *text, size_t length);

/* One control token, as the tokenizer spells it. */
void sl_chat_prompt_add_control(struct sl_chat_prompt *prompt, const char *token);

/* Text of the chat format itself, in which these control tokens (NULL ends them) are meant. */
void sl_chat_prompt_add_format(struct sl_chat_prompt *prompt, const char *text,
                               const char *const *tokens);

/* Appends the ids to *out. Fails as sl_encode() does, or with -SL_EUNSUPPORTED for a control token
 * that the tokenizer lacks; *out may then have some. `encoder` is of the same tokenizer. */
int sl_chat_prompt_encode(const struct sl_chat_prompt *prompt, const struct sl_tokenizer *tok,
                          struct sl_encoder *encoder, struct sl_token_list *out,
                          struct sl_err *err);

#endif
