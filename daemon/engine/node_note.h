/* The note to the user where memory nodes are too full for what is to lie on them. */
#ifndef SL_DAEMON_ENGINE_NODE_NOTE_H
#define SL_DAEMON_ENGINE_NODE_NOTE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/nodes.h"
#include "core/base/pool.h"

#define SL_NODE_NOTE_BYTES 256

/* Writes a note if dense weights lie elsewhere than on the nodes of the threads that read them, or
 * if a node has less memory left than its threads' share of the expert cache, which comes as it is
 * used; not where the user has chosen where memory comes from. `dense` is what sl_weights_look()
 * counted. Returns whether there is one. */
bool sl_node_note(const struct sl_pool *pool, const struct sl_placement *dense,
                  uint64_t cache_bytes, char text[SL_NODE_NOTE_BYTES]);

#endif
