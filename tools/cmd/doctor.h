/* The parts of `sluice doctor`: each looks at some things and prints a finding for each of them.
 *
 * What is read below /proc and /sys is read below `root` instead, so that the description of
 * another system can be looked at: "" is this one. */
#ifndef SL_TOOLS_CMD_DOCTOR_H
#define SL_TOOLS_CMD_DOCTOR_H

#include <stdbool.h>
#include <stdint.h>

enum sl_doctor_verdict {
    SL_DOCTOR_OK,
    SL_DOCTOR_SHORT, /* it runs, but slower than it could, or less safely */
    SL_DOCTOR_NO,    /* it cannot run */
    SL_DOCTOR_VERDICTS,
};

struct sl_doctor {
    const char *root;
    bool json; /* an object a line, or else a page */
    uint32_t n_findings[SL_DOCTOR_VERDICTS];

    /* What a run would take; without a MODEL, the budget that it would have by default. */
    uint64_t memory_bytes;
    uint32_t n_files;
};

/* `what` has no blanks at its ends and is the same in every run. `mend` is the command that mends
 * it, or says what to do where no command can; NULL for what is fine. */
void sl_doctor_find(struct sl_doctor *doctor, enum sl_doctor_verdict verdict, const char *what,
                    const char *mend, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

/* MODEL first: it says how much is needed. Looks at its files, its memory and its drives, which
 * takes a third of a second. */
void sl_doctor_model(struct sl_doctor *doctor, const char *model);

void sl_doctor_processor(struct sl_doctor *doctor); /* instructions, cores, clock */
void sl_doctor_memory(struct sl_doctor *doctor);    /* room, locking, huge pages, nodes */
void sl_doctor_system(struct sl_doctor *doctor);    /* io_uring, limits of the process */

#endif
