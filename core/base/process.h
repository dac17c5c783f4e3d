/* The memory that this process has. */
#ifndef SL_BASE_PROCESS_H
#define SL_BASE_PROCESS_H

#include <stdint.h>
#include <stdio.h>

struct sl_process_memory {
    /* Resident bytes, with programs and libraries counted whole: the process will have that as
     * soon as it has run all of its code. */
    uint64_t bytes;
    uint64_t own_bytes; /* of these, what no file holds: the system cannot take it back */
};

/* Gives memory that was freed back to the system first. All 0 if the system does not tell. */
struct sl_process_memory sl_process_memory(void);

/* Takes the figures from the text of /proc/PID/smaps. */
struct sl_process_memory sl_smaps_process_memory(FILE *smaps);

#endif
