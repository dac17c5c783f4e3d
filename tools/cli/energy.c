#include "tools/cli/energy.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/base/clock.h"
#include "core/base/file.h"

#define NOTE_NS UINT64_C(10000000000)

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
    struct sl_energy energy = {.noted_ns = sl_clock_ns()};

    for (uint32_t i = 0; i < SL_ENERGY_PACKAGES_MAX; i++) {
        energy.packages[energy.n].number = i;
        energy.n += read_number(i, "energy_uj", &energy.packages[energy.n].last_uj) &&
                    read_number(i, "max_energy_range_uj", &energy.packages[energy.n].range_uj);
    }
    return energy;
}

static void add_up(struct sl_energy *energy)
{
    energy->noted_ns = sl_clock_ns();
    for (uint32_t i = 0; i < energy->n; i++) {
        const uint64_t last_uj = energy->packages[i].last_uj;
        uint64_t now_uj;

        if (!read_number(energy->packages[i].number, "energy_uj", &now_uj))
            continue;
        energy->packages[i].last_uj = now_uj;
        energy->sum_uj += now_uj - last_uj + (now_uj < last_uj ? energy->packages[i].range_uj : 0);
    }
}

void sl_energy_note(struct sl_energy *energy)
{
    if (sl_clock_ns() - energy->noted_ns >= NOTE_NS)
        add_up(energy);
}

double sl_energy_joules(struct sl_energy *energy)
{
    add_up(energy);
    return energy->n > 0 ? (double)energy->sum_uj / 1e6 : -1;
}
