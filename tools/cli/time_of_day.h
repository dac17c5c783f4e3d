/* Times of day in options, such as --until 07:00. */
#ifndef SL_TOOLS_CLI_TIME_OF_DAY_H
#define SL_TOOLS_CLI_TIME_OF_DAY_H

#include <argp.h>
#include <time.h>

/* Returns the second of the day, or ends with argp_error(). */
int sl_parse_time_of_day(struct argp_state *state, const char *option, const char *text);

/* Returns when the clock shows that second next, here. */
time_t sl_next_time_of_day(int second, time_t now);

#endif
