#include "core/base/topology.h"

#include <numa.h>
#include <stdlib.h>

#include "core/base/assert.h"
#include "core/base/cgroup.h"

/* The core's lowest processor stands for it. */
static uint32_t core_of(uint32_t cpu_index)
{
    char path[96];
    uint32_t first = cpu_index;
    FILE *file;

    snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%u/topology/thread_siblings_list",
             cpu_index);
    file = fopen(path, "re");
    if (!file)
        return cpu_index;
    if (fscanf(file, "%u", &first) != 1)
        first = cpu_index;
    fclose(file);
    return first;
}

void sl_topology_read(struct sl_topology *ret_topology)
{
    bool has_nodes = numa_available() >= 0;
    struct sl_cpu_mask allowed = {0};
    struct sl_cgroup_limits limits;

    sl_cgroup_read("", &limits);
    ret_topology->quota_cpus = limits.cpus;
    ret_topology->n_cpus = 0;
    if (sched_getaffinity(0, sizeof(allowed), allowed.sets) != 0)
        allowed = (struct sl_cpu_mask){0};
    for (uint32_t i = 0; i < SL_CPU_NUMBERS_MAX && ret_topology->n_cpus < SL_TOPOLOGY_CPUS_MAX;
         i++) {
        int node;

        if (!CPU_ISSET_S(i, sizeof(allowed), allowed.sets))
            continue;
        node = has_nodes ? numa_node_of_cpu((int)i) : 0;
        ret_topology->cpus[ret_topology->n_cpus++] =
            (struct sl_cpu){i, core_of(i), node > 0 ? (uint32_t)node : 0};
    }
    if (ret_topology->n_cpus == 0) /* the system does not tell */
        ret_topology->cpus[ret_topology->n_cpus++] = (struct sl_cpu){0};
}

struct candidate {
    struct sl_cpu cpu;
    uint32_t sibling; /* 0 for the first processor of its core, ... */
};

static int compare(uint32_t a, uint32_t b)
{
    return (a > b) - (a < b);
}

static int by_position(const void *left, const void *right)
{
    const struct candidate *a = left, *b = right;
    int order = compare(a->cpu.node_index, b->cpu.node_index);

    if (order == 0)
        order = compare(a->cpu.core_index, b->cpu.core_index);
    return order ? order : compare(a->sibling, b->sibling);
}

static int by_sibling(const void *left, const void *right)
{
    const struct candidate *a = left, *b = right;
    int order = compare(a->sibling, b->sibling);

    return order ? order : by_position(left, right);
}

void sl_affinity_choose(struct sl_affinity *ret_affinity, const struct sl_topology *topology,
                        uint32_t n_threads)
{
    struct candidate candidates[SL_TOPOLOGY_CPUS_MAX];
    uint32_t n_cores = 0;

    sl_assert(topology->n_cpus >= 1 && topology->n_cpus <= SL_TOPOLOGY_CPUS_MAX);
    for (uint32_t i = 0; i < topology->n_cpus; i++) {
        const struct sl_cpu *cpu = &topology->cpus[i];

        candidates[i] = (struct candidate){*cpu, 0};
        for (uint32_t j = 0; j < i; j++)
            candidates[i].sibling += topology->cpus[j].core_index == cpu->core_index;
        n_cores += candidates[i].sibling == 0;
    }
    if (n_threads == 0)
        n_threads =
            topology->quota_cpus && topology->quota_cpus < n_cores ? topology->quota_cpus : n_cores;
    ret_affinity->n_threads = n_threads < SL_POOL_THREADS_MAX ? n_threads : SL_POOL_THREADS_MAX;
    n_threads = ret_affinity->n_threads;
    ret_affinity->pinned = n_threads > 1 && n_threads <= topology->n_cpus;
    if (!ret_affinity->pinned)
        return;
    qsort(candidates, topology->n_cpus, sizeof(candidates[0]), by_sibling);
    qsort(candidates, n_threads, sizeof(candidates[0]), by_position);
    for (uint32_t i = 0; i < n_threads; i++)
        ret_affinity->cpus[i] = candidates[i].cpu;
}

/* "0-3,8" of the threads first <= i < end. */
static void print_cpus(const struct sl_affinity *affinity, uint32_t first, uint32_t end, FILE *out)
{
    bool used[SL_CPU_NUMBERS_MAX + 1] = {false};
    const char *separator = " ";

    for (uint32_t i = first; i < end; i++)
        used[affinity->cpus[i].cpu_index] = true;
    for (uint32_t cpu = 0; cpu < SL_CPU_NUMBERS_MAX; cpu++) {
        uint32_t last = cpu;

        if (!used[cpu])
            continue;
        while (used[last + 1])
            last++;
        fprintf(out, last > cpu ? "%s%u-%u" : "%s%u", separator, cpu, last);
        separator = ",";
        cpu = last;
    }
}

void sl_affinity_print(const struct sl_affinity *affinity, FILE *out)
{
    const char *separator = ": ";

    fprintf(out, "%u thread%s", affinity->n_threads, affinity->n_threads == 1 ? "" : "s");
    if (!affinity->pinned)
        fprintf(out, ", not pinned");
    for (uint32_t i = 0, end; affinity->pinned && i < affinity->n_threads; i = end) {
        uint32_t node = affinity->cpus[i].node_index;

        for (end = i; end < affinity->n_threads && affinity->cpus[end].node_index == node; end++)
            ;
        fprintf(out, "%snode %u, CPU%s", separator, node, end - i == 1 ? "" : "s");
        print_cpus(affinity, i, end, out);
        separator = "; ";
    }
}
