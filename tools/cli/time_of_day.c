#include "tools/cli/time_of_day.h"

#include <stdio.h>

int sl_parse_time_of_day(struct argp_state *state, const char *option, const char *text)
{
    unsigned hour, minute, second = 0;
    char end;
    int n = sscanf(text, "%2u:%2u%c%2u%c", &hour, &minute, &end, &second, &end);

    if ((n != 2 && n != 4) || (n == 4 && end != ':') || hour > 23 || minute > 59 || second > 59)
        argp_error(state, "%s takes a time of the day, as in 07:00, not \"%s\"", option, text);
    return (int)((hour * 60 + minute) * 60 + second);
}

time_t sl_next_time_of_day(int second, time_t now)
{
    struct tm local;
    time_t then;

    localtime_r(&now, &local);
    local.tm_hour = second / 3600;
    local.tm_min = second / 60 % 60;
    local.tm_sec = second % 60;
    local.tm_isdst = -1;
    then = mktime(&local);
    if (then > now)
        return then;
    local.tm_mday++; /* mktime() carries it over */
    local.tm_isdst = -1;
    return mktime(&local);
}
