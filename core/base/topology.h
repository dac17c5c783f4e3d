/* Processors, and which of them the compute threads run on.
 *
 * Memory bandwidth is what compute threads share, so each gets a physical core of its own, and
 * thread numbers ascend node by node: then a node's threads have neighbouring shares of every job,
 * and what they touch first (sl_pool_first_touch()) lies in their node's memory. The choice is a
 * function of a description, so that it can be tried on machines that are not there. */
#ifndef SL_BASE_TOPOLOGY_H
#define SL_BASE_TOPOLOGY_H

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define SL_POOL_THREADS_MAX 256u
#define SL_TOPOLOGY_CPUS_MAX 1024u /* that are listed */

/* Processors that Linux can have, used or not: their numbers go up to this. */
#define SL_CPU_NUMBERS_MAX 8192u

/* For sched_getaffinity() and its like, which refuse a mask that is smaller than the system's own,
 * whatever is set in it: a cpu_set_t alone ends at 1,024. */
struct sl_cpu_mask {
    cpu_set_t sets[SL_CPU_NUMBERS_MAX / CPU_SETSIZE];
};

struct sl_cpu {
    uint32_t cpu_index;  /* as the system numbers them */
    uint32_t core_index; /* the same for the siblings of a core, different for different cores */
    uint32_t node_index;
};

struct sl_topology {
    uint32_t quota_cpus; /* whole processors that control groups pay for; 0: there is no quota */
    uint32_t n_cpus;     /* at least 1 */
    struct sl_cpu cpus[SL_TOPOLOGY_CPUS_MAX];
};

/* The processors that the calling thread may run on, as the system and libnuma describe them: the
 * first ones if there are more than can be listed. What they do not tell is filled in: a core for
 * each processor, one node. */
void sl_topology_read(struct sl_topology *ret_topology);

struct sl_affinity {
    uint32_t n_threads;
    bool pinned;
    struct sl_cpu cpus[SL_POOL_THREADS_MAX]; /* if pinned: (n_threads), by node, then core */
};

/* n_threads 0 means one for each core, but no more than the quota pays for: threads that wait for
 * each other all stand still once it is spent. No more than SL_POOL_THREADS_MAX are given. Siblings
 * are used when there are more threads than cores. Not pinned are more threads than processors, and
 * a single one, which the system may as well move out of others' way. */
void sl_affinity_choose(struct sl_affinity *ret_affinity, const struct sl_topology *topology,
                        uint32_t n_threads);

/* "4 threads: node 0, CPUs 0-1,8; node 1, CPUs 16", without a newline. */
void sl_affinity_print(const struct sl_affinity *affinity, FILE *out);

#endif
