/* The source of a pack: checks that it is complete, checks that an earlier run packed the same one,
 * and knows when a shard of it may be freed.
 *
 * A pack item is one dense tensor or one expert. Items are numbered in the order of packing,
 * tensors first. One thread makes all calls. */
#ifndef SL_STORAGE_PACK_STORE_SOURCE_H
#define SL_STORAGE_PACK_STORE_SOURCE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/err.h"
#include "storage/store/store.h"
#include "storage/pack/store_packer.h"

/* How long a shard is needed. */
struct sl_shard_use {
    uint32_t n_pack_items; /* none from this one on reads it; 0: none at all */
    bool freed;
};

/* Opens the files of a source that is a store. Fails with -errno. */
int sl_packer_open_source(struct sl_packer *p, struct sl_err *err);

/* Checks that the source has every item that is not packed yet. With `consume`, makes p->shards and
 * checks that every shard that will be freed can be. Fails with -SL_EFORMAT, naming the shard,
 * -errno or -ENOMEM. */
int sl_packer_check_source(struct sl_packer *p, struct sl_err *err);

/* Two fine-tunes of one model have the same config and the same index. So this compares a sample of
 * the items that an earlier run packed with the source: the sizes of all dense tensors, and, if the
 * store is not complete, the last packed item, made again. Before shards are freed, it compares
 * every item whose source is still there, reads it back from the store and syncs it. Fails with
 * -SL_EFORMAT where they differ, -SL_ECORRUPT if the store is damaged, -ECANCELED if stopped, and
 * as reading does. */
int sl_packer_check_earlier(struct sl_packer *p, struct sl_store *store, struct sl_err *err);

/* With `consume`, sl_packer_frees() tells whether there are shards whose last item is committed,
 * and sl_packer_free_shards() gives back their space. Their headers stay, so that a later run knows
 * which tensors were in them. */
bool sl_packer_frees(const struct sl_packer *p);
int sl_packer_free_shards(struct sl_packer *p, struct sl_err *err);

/* With `consume`, lists the space that will be given back, for sl_store_layout_check_space(). The
 * caller frees the list. Returns its length, or -ENOMEM. */
int sl_packer_space_back(const struct sl_packer *p, struct sl_space_back **ret_back,
                         struct sl_err *err);

#endif
