/* One UTF-8 character, or what stands in its place. */
#ifndef SL_TEXT_UTF8_H
#define SL_TEXT_UTF8_H

#include <stddef.h>
#include <stdint.h>

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

#endif
