/* The energy that the processors' packages took, as RAPL counts it where the system lets us read
 * that (/sys/class/powercap; only root may, on many). */
#ifndef SL_TOOLS_CLI_ENERGY_H
#define SL_TOOLS_CLI_ENERGY_H

#include <stdint.h>

#define SL_ENERGY_PACKAGES_MAX 16u

struct sl_energy {
    uint32_t n; /* packages that can be read */
    struct {
        uint64_t start_uj, range_uj; /* the counter begins anew after that much */
        uint32_t number;
    } packages[SL_ENERGY_PACKAGES_MAX];
};

struct sl_energy sl_energy_start(void);

/* Joules since the start, of all packages; below 0 where none can be read. Where so much time has
 * passed that a counter has begun anew more than once, too little is counted. */
double sl_energy_joules(const struct sl_energy *energy);

#endif
