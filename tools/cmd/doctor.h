/* The parts of `sluice doctor`: each checks some things and prints a finding for each of them.
 *
 * Files of /proc and /sys are read below `root`, so that tests can check the description of another
 * system; "" is this one. */
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

    /* The memory that a run would take; without a MODEL, the default budget. */
    uint64_t memory_bytes;
    uint32_t n_files;
};

/* Prints a finding. `what` names the thing, has no blanks at its ends and is the same in every run.
 * `mend` is the command that mends it, or says what to do where no command can; NULL if it is
 * fine. */
void sl_doctor_find(struct sl_doctor *doctor, enum sl_doctor_verdict verdict, const char *what,
                    const char *mend, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

/* Checks MODEL's files, memory and drives, which takes a third of a second. To be called first,
 * since the other parts compare with what MODEL needs. */
void sl_doctor_model(struct sl_doctor *doctor, const char *model);

void sl_doctor_processor(struct sl_doctor *doctor); /* instructions, cores, clock */
void sl_doctor_memory(struct sl_doctor *doctor);    /* room, locking, huge pages, nodes */
void sl_doctor_system(struct sl_doctor *doctor);    /* io_uring, limits of the process */

#endif
