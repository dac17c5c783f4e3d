/* The source of a pack: whether it is there, whether it is what an earlier run packed, and when a
 * shard of it may be freed.
 *
 * A pack item is one dense tensor, or one expert after the last of these: the order of packing. One
 * thread. */
#ifndef SL_STORAGE_PACK_STORE_SOURCE_H
#define SL_STORAGE_PACK_STORE_SOURCE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/err.h"
#include "storage/store/store.h"
#include "storage/pack/store_packer.h"

/* How much of a shard is needed. */
struct sl_shard_use {
    uint32_t n_pack_items; /* none from this one on reads it; 0: none at all */
    bool freed;
};

/* Opens the files of a source that is a store. Fails with -errno. */
int sl_packer_open_source(struct sl_packer *p, struct sl_err *err);

/* All that is not packed yet is there; with `consume`, p->shards is made, and every shard that will
 * be freed can be. Fails with -SL_EFORMAT, naming the shard, -errno or -ENOMEM. */
int sl_packer_check_source(struct sl_packer *p, struct sl_err *err);

/* Two fine-tunes of one model have the same config and the same index. So this compares a sample of
 * what an earlier run packed with the source: the sizes of all dense tensors, and where the pack is
 * to be finished its last item, made again. Before shards are freed it compares every item whose
 * source is still there, and reads back and syncs what the store has of it. Fails with -SL_EFORMAT
 * where they differ, -SL_ECORRUPT if the store is damaged, -ECANCELED if stopped, and as reading
 * does. */
int sl_packer_check_earlier(struct sl_packer *p, struct sl_store *store, struct sl_err *err);

/* With `consume`: gives back the space of the shards whose last item is committed, if there are
 * any. Their headers stay, so that a later run can tell what was in them. */
bool sl_packer_frees(const struct sl_packer *p);
int sl_packer_free_shards(struct sl_packer *p, struct sl_err *err);

/* With `consume`: what will be given back, for sl_store_layout_check_space(), to be freed by the
 * caller. Returns how many, or -ENOMEM. */
int sl_packer_space_back(const struct sl_packer *p, struct sl_space_back **ret_back,
                         struct sl_err *err);

#endif
