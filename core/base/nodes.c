#include "core/base/nodes.h"

#include <limits.h>
#include <numaif.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "core/base/size.h"

#define LONG_BITS (8 * sizeof(unsigned long))

/* Pages that the system is asked about in one call. */
#define PAGES_AT_ONCE 256u

/* The kernel reads one bit less than it is told. */
#define MASK_BITS (SL_NODES_MAX + 1)

/* The rest of a policy's number are flags. */
#define MODE_MASK 0xfff

void sl_node_mask_add(struct sl_node_mask *mask, uint32_t node_index)
{
    if (node_index < SL_NODES_MAX)
        mask->bits[node_index / LONG_BITS] |= 1ul << node_index % LONG_BITS;
}

bool sl_node_mask_has(const struct sl_node_mask *mask, uint32_t node_index)
{
    return node_index < SL_NODES_MAX &&
           (mask->bits[node_index / LONG_BITS] >> node_index % LONG_BITS & 1) != 0;
}

uint32_t sl_node_mask_count(const struct sl_node_mask *mask)
{
    uint32_t n = 0;

    for (uint32_t node = 0; node < SL_NODES_MAX; node++)
        n += sl_node_mask_has(mask, node);
    return n;
}

void sl_nodes_allowed(struct sl_node_mask *ret_allowed)
{
    struct sl_node_mask bound = {0};
    int mode = MPOL_DEFAULT;

    *ret_allowed = (struct sl_node_mask){0};
    if (get_mempolicy(NULL, ret_allowed->bits, MASK_BITS, NULL, MPOL_F_MEMS_ALLOWED) != 0) {
        *ret_allowed = (struct sl_node_mask){0};
        return;
    }
    if (get_mempolicy(&mode, bound.bits, MASK_BITS, NULL, 0) != 0 ||
        (mode & MODE_MASK) != MPOL_BIND)
        return;
    for (size_t i = 0; i < sizeof(bound.bits) / sizeof(bound.bits[0]); i++)
        ret_allowed->bits[i] &= bound.bits[i];
}

/* Lines of a node's meminfo are "Node 1 MemFree:  1234 kB". */
struct sl_node_memory sl_node_memory_read(const char *root, uint32_t node_index)
{
    struct sl_node_memory memory = {0};
    unsigned long long kilobytes;
    char path[PATH_MAX], line[256], key[64];
    FILE *file;

    snprintf(path, sizeof(path), "%s/sys/devices/system/node/node%u/meminfo", root, node_index);
    file = fopen(path, "re");
    while (file && fgets(line, sizeof(line), file)) {
        const uint64_t bytes =
            sscanf(line, "Node %*u %63s %llu", key, &kilobytes) == 2 ? kilobytes << 10 : 0;

        if (bytes == 0)
            continue;
        if (strcmp(key, "MemTotal:") == 0)
            memory.total_bytes = bytes;
        if (strcmp(key, "MemFree:") == 0)
            memory.free_bytes = bytes;
        if (strcmp(key, "MemFree:") == 0 || strcmp(key, "Active(file):") == 0 ||
            strcmp(key, "Inactive(file):") == 0 || strcmp(key, "SReclaimable:") == 0)
            memory.available_bytes += bytes;
    }
    if (file)
        fclose(file);
    return memory;
}

bool sl_nodes_follow_touch(void)
{
    int mode;

    return get_mempolicy(&mode, NULL, 0, NULL, 0) == 0 && (mode & MODE_MASK) == MPOL_DEFAULT;
}

void sl_nodes_spread(void *base, uint64_t size_bytes, const struct sl_node_mask *mask)
{
    if (sl_node_mask_count(mask) > 1 && sl_nodes_follow_touch())
        mbind(base, size_bytes, MPOL_INTERLEAVE, mask->bits, MASK_BITS, 0); /* a wish */
}

static void look(struct sl_placement *placement, void **pages, uint32_t n_pages,
                 uint32_t node_index)
{
    int nodes[PAGES_AT_ONCE];

    if (n_pages == 0 || move_pages(0, n_pages, pages, NULL, nodes, 0) != 0)
        return;
    for (uint32_t i = 0; i < n_pages; i++) {
        placement->n_pages += nodes[i] >= 0;
        placement->n_elsewhere += nodes[i] >= 0 && (uint32_t)nodes[i] != node_index;
    }
}

void sl_placement_add(struct sl_placement *placement, const void *base, uint64_t size_bytes,
                      uint64_t frame_bytes, uint32_t node_index)
{
    const uintptr_t end = (uintptr_t)base + size_bytes;
    void *pages[PAGES_AT_ONCE];
    uint32_t n_pages = 0;

    for (uintptr_t at = sl_round_up((uintptr_t)base, frame_bytes);
         at < end && end - at >= frame_bytes; at += frame_bytes) {
        pages[n_pages++] = (void *)at;
        if (n_pages == PAGES_AT_ONCE) {
            look(placement, pages, n_pages, node_index);
            n_pages = 0;
        }
    }
    look(placement, pages, n_pages, node_index);
}
