/* Where each routed expert of a model lies on disk: six extents in a checkpoint, as the release has
 * them, or one packed record in a store, as the kernels want it (docs/FORMAT.md).
 *
 * A map reads no data after it was opened. Opening checks that all experts are there and have the
 * sizes that the model's config asks for. Any thread may call. */
#ifndef SL_STORAGE_EXPERTS_EXPERT_MAP_H
#define SL_STORAGE_EXPERTS_EXPERT_MAP_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/err.h"
#include "core/model/expert_shape.h"
#include "core/model/weight_source.h"
#include "storage/io/extent.h"
#include "storage/store/packed_expert.h"

struct sl_checkpoint;
struct sl_store;
struct sl_expert_map;

/* Indexed by enum sl_expert_matrix. Codes and scales as core/model/expert_pack.h takes them: w1, w3
 * (moe_intermediate_size, hidden_size), w2 (hidden_size, moe_intermediate_size). */
struct sl_checkpoint_expert {
    struct sl_extent codes[SL_EXPERT_MATRICES];
    struct sl_extent scales[SL_EXPERT_MATRICES];
};

/* Makes the map of a checkpoint, which must outlive it. The dtype of the experts and of their
 * scales is the first expert's, whatever `shape` says; all others must have the same. Fails with
 * -ENOMEM or -SL_EFORMAT, naming the tensor. */
int sl_expert_map_of_checkpoint(struct sl_expert_map **ret_map, struct sl_checkpoint *checkpoint,
                                const struct sl_expert_shape *shape, struct sl_err *err);

/* Makes the map of a store, which must outlive it. Fails with -ENOMEM, or -SL_EFORMAT if the
 * store's sizes are not the model's. The store may have MTP blocks that the model leaves out. */
int sl_expert_map_of_store(struct sl_expert_map **ret_map, const struct sl_store *store,
                           const struct sl_expert_shape *shape, struct sl_err *err);

/* NULL is allowed. */
void sl_expert_map_close(struct sl_expert_map *map);

/* Its expert_dtype is that of the files. */
const struct sl_expert_shape *sl_expert_map_shape(const struct sl_expert_map *map);

/* The dtype of the scales of a checkpoint's experts. */
enum sl_dtype sl_expert_map_scale_dtype(const struct sl_expert_map *map);

bool sl_expert_map_is_packed(const struct sl_expert_map *map);

/* Returns whether experts are packed and some of them may be compressed. */
bool sl_expert_map_is_compressed(const struct sl_expert_map *map);

/* The first returns an expert of a checkpoint, the second a packed one. Each returns NULL if the
 * model has no such expert, or if its experts are of the other kind. */
const struct sl_checkpoint_expert *sl_expert_map_find(const struct sl_expert_map *map,
                                                      struct sl_expert_key key);
const struct sl_packed_expert *sl_expert_map_find_packed(const struct sl_expert_map *map,
                                                         struct sl_expert_key key);

/* Gives the aligned runs to read for an expert of a checkpoint, past the page cache: its six
 * extents are widened to whole blocks, those that touch or overlap are merged, and they are sorted
 * by file and offset. The release lays experts out so that two runs are left. The last may reach
 * past the end of its file. Returns their number, 1 to SL_EXPERT_READS_MAX. A packed expert is read
 * by its parts; w2 has reads of its own unless the record is compressed. */
#define SL_EXPERT_READS_MAX (SL_EXPERT_PARTS_MAX + 1)
uint32_t sl_checkpoint_expert_reads(const struct sl_checkpoint_expert *expert,
                                    struct sl_extent ret_reads[SL_EXPERT_READS_MAX]);

/* Returns the layer's expert that is number `i` in the order in which they lie on disk. */
uint16_t sl_expert_map_nth(const struct sl_expert_map *map, uint32_t layer_index, uint32_t i);

/* Gives the reads for an expert of either kind: the parts of a packed one, or the aligned runs of
 * one in a checkpoint, cut at the ends of the files. Returns their number. */
uint32_t sl_expert_map_reads(const struct sl_expert_map *map, struct sl_expert_key key,
                             struct sl_extent ret_reads[SL_EXPERT_READS_MAX]);

uint32_t sl_expert_map_file_count(const struct sl_expert_map *map);
const char *sl_expert_map_file_path(const struct sl_expert_map *map, uint32_t file_index);

/* Returns the paths of all files, in order, for an sl_io_open_fn; NULL when out of memory. The
 * caller frees the array but not the paths. */
const char **sl_expert_map_file_paths(const struct sl_expert_map *map);

#endif
