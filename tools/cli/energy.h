/* The energy that the processors' packages take, as RAPL counts it where the system lets us read
 * that (/sys/class/powercap; on many only root may).
 *
 * A counter begins anew after some 60 kJ, in minutes of work, so it has to be noted now and then.
 */
#ifndef SL_TOOLS_CLI_ENERGY_H
#define SL_TOOLS_CLI_ENERGY_H

#include <stdint.h>

#define SL_ENERGY_PACKAGES_MAX 16u

struct sl_energy {
    uint32_t n; /* packages that can be read */
    uint64_t noted_ns, sum_uj;
    struct {
        uint64_t last_uj, range_uj; /* the counter begins anew after that much */
        uint32_t number;
    } packages[SL_ENERGY_PACKAGES_MAX];
};

struct sl_energy sl_energy_start(void);

/* To be called often; looks every ten seconds. */
void sl_energy_note(struct sl_energy *energy);

/* Returns joules since the start, of all packages; below 0 where none can be read. */
double sl_energy_joules(struct sl_energy *energy);

#endif
