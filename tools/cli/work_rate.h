/* How fast work goes, and how long the rest of it will take.
 *
 * The rate is that of the last quarter of the time so far, since the beginning says little about
 * the rest: caches fill, and later tokens of a text attend to more of it. Where cost grows with
 * position, the time left assumes that it keeps growing in a straight line, through the rate before
 * that quarter and the rate in it.
 *
 * The caller brings the clock. Belongs to one thread. */
#ifndef SL_TOOLS_CLI_WORK_RATE_H
#define SL_TOOLS_CLI_WORK_RATE_H

#include <stdbool.h>
#include <stdint.h>

#define SL_WORK_RATE_MARKS 32u

struct sl_work_mark {
    uint64_t ns;
    uint64_t done;
};

struct sl_work_rate {
    bool growing; /* a unit of work may cost more than those before it, never less */
    struct sl_work_mark latest;
    struct sl_work_mark marks[SL_WORK_RATE_MARKS]; /* ascending; the first is the beginning */
    uint32_t n_marks;
    uint64_t gap_ns; /* between marks: doubles whenever the list is full */
};

/* Begins measuring, with `done` of the work behind, such as tokens that need not be computed. */
struct sl_work_rate sl_work_rate_start(uint64_t now_ns, bool growing, uint64_t done);

/* Notes how much of the work is done. Times and amounts never go down. */
void sl_work_rate_note(struct sl_work_rate *rate, uint64_t now_ns, uint64_t done);

/* Returns units a second; 0 while nothing is known. */
double sl_work_rate_per_second(const struct sl_work_rate *rate);

/* Returns the seconds left for all of `total`; 0 while nothing is known, or when it is done. */
double sl_work_rate_seconds_left(const struct sl_work_rate *rate, uint64_t total);

/* Writes a duration as people say it: "50 s", "12 min", "3 h 05 min". Returns `text`. */
#define SL_SECONDS_TEXT_BYTES 32
const char *sl_seconds_format(double seconds, char text[SL_SECONDS_TEXT_BYTES]);

#endif
