#include "core/base/size.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

int sl_number_parse(const char *text, double *ret_value, const char **ret_end)
{
    static const char digits[] = "0123456789";
    const char *at = text + strspn(text, digits), *exponent;
    double value;
    char *end;

    if (at == text)
        return -EINVAL;
    if (*at == '.')
        at += 1 + strspn(at + 1, digits);
    exponent = at;
    if (*exponent == 'e' || *exponent == 'E')
        exponent += 1 + (exponent[1] == '-' || exponent[1] == '+');
    if (strspn(exponent, digits) > 0)
        at = exponent + strspn(exponent, digits);
    value = strtod(text, &end);
    if (end != at) /* strtod() also takes "0x10" */
        return -EINVAL;
    *ret_value = value;
    *ret_end = at;
    return 0;
}

int sl_size_parse(const char *text, uint64_t *ret_bytes)
{
    static const char units[] = "KMGTP";
    const char *end;
    double value;

    if (sl_number_parse(text, &value, &end) < 0)
        return -EINVAL;
    if (end[0] != '\0') {
        for (size_t i = 0; units[i]; i++) {
            if ((end[0] | 0x20) == (units[i] | 0x20)) {
                value *= (double)(UINT64_C(1) << (10 * (i + 1)));
                end++;
                break;
            }
        }
        if (end[0] != '\0' && strcasecmp(end, "B") != 0 && strcasecmp(end, "iB") != 0)
            return -EINVAL;
    }
    if (!(value < 9.2e18))
        return -EINVAL;
    *ret_bytes = (uint64_t)value;
    return 0;
}

const char *sl_size_format(uint64_t bytes, char buffer[SL_SIZE_TEXT_BYTES])
{
    static const char *const units[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double value = (double)bytes / 1024;
    size_t unit = 0;

    if (bytes < 1024) {
        snprintf(buffer, SL_SIZE_TEXT_BYTES, "%u B", (unsigned)bytes);
        return buffer;
    }
    while (value >= 1024 && unit + 1 < SL_ARRAY_LEN(units)) {
        value /= 1024;
        unit++;
    }
    snprintf(buffer, SL_SIZE_TEXT_BYTES, "%.*f %s",
             value < 10    ? 2
             : value < 100 ? 1
                           : 0,
             value, units[unit]);
    return buffer;
}
