#include "daemon/engine/node_note.h"

#include <stdio.h>

#include "core/base/size.h"

/* One page in so many may lie elsewhere without a note: they change no speed that is measured. */
#define PAGES_PER_STRAY 100u

/* The system keeps a part of each node free and takes memory from other nodes before it touches
 * that: by its own rules about a hundredth of a small node, and 256 MiB of a large one. */
#define KEPT_SHARE 64u
#define KEPT_BYTES_MAX (UINT64_C(256) << 20)

static uint64_t left_on(const struct sl_node_memory *memory)
{
    uint64_t kept = memory->total_bytes / KEPT_SHARE;

    if (kept > KEPT_BYTES_MAX)
        kept = KEPT_BYTES_MAX;
    return memory->available_bytes > kept ? memory->available_bytes - kept : 0;
}

bool sl_node_note(const struct sl_pool *pool, const struct sl_placement *dense,
                  uint64_t cache_bytes, char text[SL_NODE_NOTE_BYTES])
{
    const uint32_t n_threads = sl_pool_thread_count(pool);
    char left[SL_SIZE_TEXT_BYTES], share[SL_SIZE_TEXT_BYTES];

    if (!sl_nodes_follow_touch())
        return false;
    if (dense->n_elsewhere * PAGES_PER_STRAY > dense->n_pages) {
        snprintf(text, SL_NODE_NOTE_BYTES,
                 "%.0f %% of the dense weights lie on other memory nodes than the threads that "
                 "read them, which is slower: those nodes are full, or may not be used",
                 100.0 * (double)dense->n_elsewhere / (double)dense->n_pages);
        return true;
    }
    for (uint32_t node = 0; node < SL_NODES_MAX; node++) {
        const uint64_t wanted = cache_bytes / n_threads * sl_pool_threads_on_node(pool, node);
        struct sl_node_memory memory;

        if (wanted == 0)
            continue;
        memory = sl_node_memory_read("", node);
        if (memory.total_bytes == 0 || left_on(&memory) >= wanted)
            continue;
        snprintf(text, SL_NODE_NOTE_BYTES,
                 "memory node %u has %s left for %s of the expert cache; the rest comes from other "
                 "nodes, which is slower",
                 node, sl_size_format(left_on(&memory), left), sl_size_format(wanted, share));
        return true;
    }
    return false;
}
