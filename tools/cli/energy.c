#include "tools/cli/energy.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/base/file.h"

static bool read_number(uint32_t number, const char *name, uint64_t *ret_value)
{
    char path[96], *text;
    size_t length;

    snprintf(path, sizeof(path), "/sys/class/powercap/intel-rapl:%u/%s", number, name);
    if (sl_file_read_all(path, 4096, &text, &length, NULL) < 0)
        return false;
    *ret_value = strtoull(text, NULL, 10);
    free(text);
    return length > 0;
}

struct sl_energy sl_energy_start(void)
{
    struct sl_energy energy = {.n = 0};

    for (uint32_t i = 0; i < SL_ENERGY_PACKAGES_MAX; i++) {
        energy.packages[energy.n].number = i;
        energy.n += read_number(i, "energy_uj", &energy.packages[energy.n].start_uj) &&
                    read_number(i, "max_energy_range_uj", &energy.packages[energy.n].range_uj);
    }
    return energy;
}

double sl_energy_joules(const struct sl_energy *energy)
{
    double joules = 0;

    for (uint32_t i = 0; i < energy->n; i++) {
        const uint64_t start_uj = energy->packages[i].start_uj;
        uint64_t now_uj;

        if (!read_number(energy->packages[i].number, "energy_uj", &now_uj))
            return -1;
        if (now_uj < start_uj)
            now_uj += energy->packages[i].range_uj;
        joules += (double)(now_uj - start_uj) / 1e6;
    }
    return energy->n > 0 ? joules : -1;
}
