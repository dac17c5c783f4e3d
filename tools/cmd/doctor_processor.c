/* Checks the processor for a run: its instructions, how many cores it may use, and its clock. */
#include <glob.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/topology.h"
#include "core/kernels/dispatch.h"
#include "tools/cmd/doctor.h"

#define WORD_BYTES 64u
#define GOVERNORS "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"

static void find_instructions(struct sl_doctor *doctor)
{
    const char *masked = getenv("SLUICE_ISA");
    struct sl_kernels best, used;
    struct sl_err err = {0};

    if (sl_kernels_select(&best, NULL, &err) < 0)
        return; /* the plain C ones are always there */
    if (masked && *masked && sl_kernels_select(&used, masked, &err) < 0)
        sl_doctor_find(doctor, SL_DOCTOR_NO, "instructions", "unset SLUICE_ISA", "SLUICE_ISA: %s",
                       err.message);
    else if (masked && *masked && strcmp(used.isa, best.isa) != 0)
        sl_doctor_find(doctor, SL_DOCTOR_SHORT, "instructions", "unset SLUICE_ISA",
                       "%s, by SLUICE_ISA; the processor has %s", used.isa, best.isa);
    else if (strcmp(best.isa, "ref") == 0)
        sl_doctor_find(doctor, SL_DOCTOR_SHORT, "instructions",
                       "(another processor: one with AVX2, AVX-512 or NEON)",
                       "plain C only, which is several times slower");
    else
        sl_doctor_find(doctor, SL_DOCTOR_OK, "instructions", NULL, "%s", best.isa);
}

static void find_cores(struct sl_doctor *doctor)
{
    struct sl_topology topology, unlimited;
    struct sl_affinity affinity, whole;

    sl_topology_read(&topology);
    unlimited = topology;
    unlimited.quota_cpus = 0;
    sl_affinity_choose(&affinity, &topology, 0);
    sl_affinity_choose(&whole, &unlimited, 0);
    if (affinity.n_threads < whole.n_threads)
        sl_doctor_find(doctor, SL_DOCTOR_SHORT, "cores",
                       "sudo systemctl set-property UNIT CPUQuota=  (docker: leave --cpus out)",
                       "a control group pays for %u of %u", affinity.n_threads, whole.n_threads);
    else
        sl_doctor_find(doctor, SL_DOCTOR_OK, "cores", NULL, "%u, a thread on each",
                       affinity.n_threads);
}

/* Reads a file of one word; gives "" if it cannot be read. */
static void read_word(const char *path, char word[WORD_BYTES])
{
    char *text;
    size_t length;

    word[0] = '\0';
    if (sl_file_read_all(path, WORD_BYTES - 1, &text, &length, NULL) < 0)
        return;
    snprintf(word, WORD_BYTES, "%.*s", (int)strcspn(text, "\n"), text);
    free(text);
}

/* Returns whether the governor keeps the clock low. For most drivers powersave is the lowest clock
 * there is. Drivers that choose the clock themselves also have modes called powersave and
 * performance, and a preference file beside the governor: for them powersave is the default, and
 * fast. */
static bool is_slow(const char *governor_path)
{
    char path[PATH_MAX + 64], word[WORD_BYTES];
    const int folder_length = (int)(strrchr(governor_path, '/') - governor_path);

    read_word(governor_path, word);
    if (strcmp(word, "powersave") != 0)
        return strcmp(word, "conservative") == 0 || strcmp(word, "userspace") == 0;
    snprintf(path, sizeof(path), "%.*s/energy_performance_preference", folder_length,
             governor_path);
    read_word(path, word);
    return word[0] == '\0' || strcmp(word, "power") == 0 || strcmp(word, "balance_power") == 0;
}

static void find_clock(struct sl_doctor *doctor)
{
    char pattern[PATH_MAX], word[WORD_BYTES];
    glob_t found;
    size_t n_slow = 0;

    snprintf(pattern, sizeof(pattern), "%s" GOVERNORS, doctor->root);
    if (glob(pattern, 0, NULL, &found) != 0) {
        sl_doctor_find(doctor, SL_DOCTOR_OK, "clock", NULL,
                       "set by the firmware or the host: no governor here");
        return;
    }
    for (size_t i = 0; i < found.gl_pathc; i++)
        n_slow += is_slow(found.gl_pathv[i]);
    read_word(found.gl_pathv[0], word);
    if (n_slow > 0)
        sl_doctor_find(doctor, SL_DOCTOR_SHORT, "clock",
                       "echo performance | sudo tee "
                       "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
                       "%zu of %zu processors are kept slow by their governor", n_slow,
                       found.gl_pathc);
    else
        sl_doctor_find(doctor, SL_DOCTOR_OK, "clock", NULL, "governor %s", word);
    globfree(&found);
}

void sl_doctor_processor(struct sl_doctor *doctor)
{
    find_instructions(doctor);
    find_cores(doctor);
    find_clock(doctor);
}
