/* The class of every character in Unicode 16, as far as cutting text into words needs it. The
 * host's own tables are of another Unicode version on every system, and tokens must not depend on
 * them. */
#ifndef SL_TEXT_UNICODE_CLASSES_H
#define SL_TEXT_UNICODE_CLASSES_H

#include <stdint.h>

enum sl_unicode_class {
    SL_UNICODE_OTHER,  /* control, format, unassigned and private characters, surrogates */
    SL_UNICODE_LETTER, /* \p{L} and \p{M}: letters and the marks on them */
    SL_UNICODE_SIGN,   /* \p{P} and \p{S}: punctuation and symbols */
    SL_UNICODE_NUMBER, /* \p{N} */
    SL_UNICODE_SPACE,  /* \s: the property White_Space */
};

#define SL_UNICODE_CLASS_RANGES 1986

/* Ascending; each is the first code point of a range, times 8, plus the class of the range, which
 * ends where the next one begins. Code points before the first are of class SL_UNICODE_OTHER, and
 * the last range goes on to U+10FFFF. */
extern const uint32_t sl_unicode_classes[SL_UNICODE_CLASS_RANGES];

#endif
