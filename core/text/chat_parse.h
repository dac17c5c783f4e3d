/* From what the model writes to reasoning, answer and calls, as it is written.
 *
 * The parser takes the text behind the prompt, control tokens spelled out, in pieces of any size,
 * and gives each part as soon as it is certain which part it is. A call is given when it is
 * complete. Nothing is lost: a call that is cut off or not well formed is given as text of the
 * answer, as it was written. Only what marks the parts is left out, and the blank lines in front of
 * a block of calls.
 *
 *     reasoning ──</think>──► answer ──<｜DSML｜──► calls ──</｜DSML｜tool_calls>──► answer
 *         └───────────────────<｜DSML｜──────────────►▲
 *
 * One thread. The memory that it takes is bounded by the text. */
#ifndef SL_TEXT_CHAT_PARSE_H
#define SL_TEXT_CHAT_PARSE_H

#include <stdbool.h>
#include <stddef.h>

#include "core/base/err.h"

enum sl_chat_part {
    SL_CHAT_PART_REASONING, /* `text` is some of it */
    SL_CHAT_PART_ANSWER,
    SL_CHAT_PART_CALL, /* `text` is the arguments, a JSON object */
};

struct sl_chat_event {
    enum sl_chat_part part;
    const char *text; /* valid during the call; not terminated, but for a call */
    size_t length;
    const char *name;  /* of the function, terminated; of a call alone */
    bool is_corrected; /* a call in which text that is no JSON became a string */
};

typedef void sl_chat_event_fn(void *context, const struct sl_chat_event *event);

struct sl_chat_parser;

/* Where the text begins depends on how the prompt ends: in the reasoning behind <think>, else in
 * the answer. Fails with -ENOMEM. The caller destroys it. */
int sl_chat_parser_create(struct sl_chat_parser **ret_parser, bool in_reasoning,
                          sl_chat_event_fn *on_event, void *context, struct sl_err *err);
void sl_chat_parser_destroy(struct sl_chat_parser *parser); /* NULL is allowed */

/* Both fail with -ENOMEM, and then some of the text is lost. */
int sl_chat_parser_push(struct sl_chat_parser *parser, const char *text, size_t length,
                        struct sl_err *err);

/* The end of the text. What was held back is given now. */
int sl_chat_parser_finish(struct sl_chat_parser *parser, struct sl_err *err);

/* True while the answer is being written: where stop strings count. */
bool sl_chat_parser_in_answer(const struct sl_chat_parser *parser);

#endif
