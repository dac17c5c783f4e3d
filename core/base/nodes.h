/* Memory nodes (NUMA): which of them this process may take memory from, what they have left, and
 * where pages lie. On machines of one node, and where the system does not tell, there is nothing
 * to be said, and every call does so. */
#ifndef SL_BASE_NODES_H
#define SL_BASE_NODES_H

#include <stdbool.h>
#include <stdint.h>

#define SL_NODES_MAX 1024u /* that Linux can have */

struct sl_node_mask {
    unsigned long bits[SL_NODES_MAX / (8 * sizeof(unsigned long))];
};

void sl_node_mask_add(struct sl_node_mask *mask, uint32_t node_index);
bool sl_node_mask_has(const struct sl_node_mask *mask, uint32_t node_index);
uint32_t sl_node_mask_count(const struct sl_node_mask *mask);

/* The nodes that this process may take memory from: those of its cpuset, less those that a policy
 * which binds it (numactl --membind) leaves out. Empty where the system does not tell. */
void sl_nodes_allowed(struct sl_node_mask *ret_allowed);

struct sl_node_memory {
    uint64_t total_bytes;
    uint64_t free_bytes;
    uint64_t available_bytes; /* free, or file cache that the system can take back */
};

/* `root` goes before every path, as in core/base/cgroup.h. All 0 for a node that is not there. */
struct sl_node_memory sl_node_memory_read(const char *root, uint32_t node_index);

/* Whether memory comes from the node of the thread that touches it first: the user has not chosen
 * another policy for the whole process (numactl). */
bool sl_nodes_follow_touch(void);

/* Has the pages of fresh memory, of whole pages, come from the nodes of `mask` in turn. Where the
 * user has chosen a policy, that holds instead. */
void sl_nodes_spread(void *base, uint64_t size_bytes, const struct sl_node_mask *mask);

/* Counts of pages that were looked at. */
struct sl_placement {
    uint64_t n_pages;
    uint64_t n_elsewhere; /* not on the node that they should be on */
};

/* Looks at one page of each frame of `frame_bytes` (aligned to that; a page, or a huge page) that
 * lies inside the memory whole, and adds to the counts. Pages that nobody has touched do not
 * count. */
void sl_placement_add(struct sl_placement *placement, const void *base, uint64_t size_bytes,
                      uint64_t frame_bytes, uint32_t node_index);

#endif
