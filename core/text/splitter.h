/* Cutting text into words by regular expressions; its .c is the one file that includes pcre2.h.
 *
 * A splitter is a sequence of expressions. The first cuts the text into what it matches and what
 * lies between; the second cuts each of these pieces as if it were a text of its own; and so on.
 * Nothing is dropped: the words in order are the text. This is what `tokenizer.json` calls a
 * Sequence of Split steps with behaviour Isolated.
 *
 * The expressions of DeepSeek-V3 and V4 are matched by our own code, by Unicode 16 on every system
 * (core/text/known_expressions.h). Others are compiled as they are given, with Unicode properties
 * and, where the platform has it, PCRE2's just-in-time compiler. They may come from a hostile file:
 * matching is bounded, and an expression that exceeds the bound is an error.
 *
 * struct sl_splitter is filled once and then only read, by any number of threads, each with a
 * struct sl_split_scratch of its own. */
#ifndef SL_TEXT_SPLITTER_H
#define SL_TEXT_SPLITTER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/err.h"

#define SL_SPLIT_STEPS_MAX 16

struct sl_splitter;
struct sl_split_scratch;

/* NULL when out of memory. The caller destroys it. */
struct sl_splitter *sl_splitter_create(void);
void sl_splitter_destroy(struct sl_splitter *splitter); /* NULL is allowed */

/* Appends an expression; at most SL_SPLIT_STEPS_MAX may be added. Fails with -SL_EFORMAT, the
 * message holding PCRE2's own and the offset, or -ENOMEM. `where` names the expression. */
int sl_splitter_add(struct sl_splitter *splitter, const char *expression, size_t length,
                    const char *where, struct sl_err *err);

/* Whether an expression is left to PCRE2, whose Unicode tables are the host's. */
bool sl_splitter_asks_pcre2(const struct sl_splitter *splitter);

/* NULL when out of memory. The caller destroys it. */
struct sl_split_scratch *sl_split_scratch_create(void);
void sl_split_scratch_destroy(struct sl_split_scratch *scratch); /* NULL is allowed */

/* Takes one word, never empty. A negative result ends the splitting and is handed up. */
typedef int sl_split_fn(void *context, const uint8_t *word, size_t n);

/* Calls fn for each word of text[0..n), which must be well-formed UTF-8. Fails with fn's result,
 * -SL_EFORMAT (an expression exceeded its bound) or -ENOMEM. */
int sl_split(const struct sl_splitter *splitter, struct sl_split_scratch *scratch,
             const uint8_t *text, size_t n, sl_split_fn *fn, void *context, struct sl_err *err);

#endif
