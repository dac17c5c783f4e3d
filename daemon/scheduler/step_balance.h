/* How many rows a step of a batch is filled with: as many as are computed in the time in which the
 * drives read what the step needs. With fewer the cores wait, with more the drives do.
 *
 * Told what each step took, it keeps the rate of the drives and, by a line through the last steps,
 * the time that a row takes and the time that any step takes, which is that of reading the dense
 * weights from memory:
 *
 *     computing = step_ns + rows x row_ns          reading = bytes / rate
 *
 * A step in which hardly anybody waited for the drives does not show their rate. They are then
 * taken for a little faster each time, so that the rows become fewer until somebody waits again.
 *
 * Where there is little or nothing to read, steps are long enough to make little of what any step
 * takes. Pure: no clock, no memory of its own. */
#ifndef SL_DAEMON_SCHEDULER_STEP_BALANCE_H
#define SL_DAEMON_SCHEDULER_STEP_BALANCE_H

#include <stdint.h>

/* The least rows, and those before anything was measured: as many as ask for nearly all experts of
 * the released models. Fewer would be read for as much, or nearly, and all else that a step costs
 * would be spread over less. Where the cores are slower than the drives even then, longer steps
 * take longer and do as much more. */
#define SL_BALANCE_ROWS_MIN 256u

/* The figures of one step. */
struct sl_balance_sample {
    uint32_t n_rows;
    uint64_t elapsed_ns;
    uint64_t wait_ns; /* of that, waiting for the drives */
    uint64_t busy_ns; /* in which reads were under way */
    uint64_t read_bytes;
};

/* Zeroed: nothing is known. bytes_per_ns may be set before the first step. */
struct sl_step_balance {
    double bytes_per_ns;                    /* of the drives, all together; 0: not known */
    double fastest;                         /* that they have been seen, likewise */
    double read_bytes;                      /* of a step, lately */
    double n, rows, ns, rows_rows, rows_ns; /* sums over the last steps, older ones fading */
};

/* Takes in a step that ended well. */
void sl_step_balance_add(struct sl_step_balance *balance, const struct sl_balance_sample *sample);

/* Returns how many rows the next step is to have; at least SL_BALANCE_ROWS_MIN. */
uint32_t sl_step_balance_rows(const struct sl_step_balance *balance);

#endif
