/* The three expressions by which DeepSeek-V3 and V4 cut text into words, matched by hand.
 *
 * A regular expression library asks its own Unicode tables what is a letter, and these differ from
 * one version of the library to the next. The tokenizers of Hugging Face, which made the models'
 * training text, go by Unicode 16; so do these. They are faster as well. */
#ifndef SL_TEXT_KNOWN_EXPRESSIONS_H
#define SL_TEXT_KNOWN_EXPRESSIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct sl_character_classes; /* opaque; read-only once made */

/* NULL when out of memory. The caller frees it with free(). */
struct sl_character_classes *sl_character_classes_create(void);

/* Finds the first match in text[from..n), which is never empty; *ret_start and *ret_end are set
 * where there is one. A match may look no further back than `from`. `text` is well-formed UTF-8. */
typedef bool sl_find_match_fn(const struct sl_character_classes *classes, const uint8_t *text,
                              size_t n, size_t from, size_t *ret_start, size_t *ret_end);

/* The matcher that does what the regular expression of exactly these bytes does, or NULL. */
sl_find_match_fn *sl_known_expression(const char *expression, size_t length);

#endif
