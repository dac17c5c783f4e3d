/* UTF-8, character by character, and what stands in the place of what is none. */
#ifndef SL_TEXT_UTF8_H
#define SL_TEXT_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Looks at the start of bytes[0..n), n at least 1. Returns
 *   k > 0  the first k bytes are a well-formed character,
 *   0      all n bytes are the beginning of one: more must come before it can be told,
 *   -k     the first k bytes are the longest beginning of a character that the next byte breaks:
 *          readers show them as one U+FFFD. */
static inline int sl_utf8_scan(const uint8_t *bytes, size_t n)
{
    uint8_t lead = bytes[0], low = 0x80, high = 0xBF;
    int length;

    if (lead < 0x80)
        return 1;
    if (lead < 0xC2 || lead > 0xF4)
        return -1;
    length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    /* The second byte keeps out overlong forms, surrogates and what lies beyond U+10FFFF. */
    if (lead == 0xE0)
        low = 0xA0;
    else if (lead == 0xED)
        high = 0x9F;
    else if (lead == 0xF0)
        low = 0x90;
    else if (lead == 0xF4)
        high = 0x8F;
    for (int i = 1; i < length; i++) {
        if ((size_t)i == n)
            return 0;
        if (bytes[i] < low || bytes[i] > high)
            return -i;
        low = 0x80;
        high = 0xBF;
    }
    return length;
}

/* Puts "?" in the place of every byte of a terminated text that is no part of a character, as where
 * one was cut. Returns whether there was any. */
static inline bool sl_utf8_mend(char *text)
{
    const size_t length = strlen(text);
    bool was_broken = false;

    for (size_t at = 0; at < length;) {
        const int scanned = sl_utf8_scan((const uint8_t *)text + at, length - at);
        const size_t n = scanned == 0 ? length - at : (size_t)(scanned < 0 ? -scanned : scanned);

        if (scanned <= 0) {
            memset(text + at, '?', n);
            was_broken = true;
        }
        at += n;
    }
    return was_broken;
}

#endif
