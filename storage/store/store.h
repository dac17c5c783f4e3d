/* A packed store, open for reading: what its catalog says, checked.
 *
 *     STORE/config.json, tokenizer.json   as in the checkpoint
 *     STORE/dense.bin                     dense tensors in the order in which they are loaded
 *     STORE/experts-1.bin                 a record for each expert; or parts of it, with those on
 *                                         other drives in experts-2.bin and so on
 *     STORE/catalog.sealed                what lies where, with checksums
 * (storage/store/store_copies.h)
 *
 * docs/FORMAT.md describes every byte. Opening reads the whole catalog and trusts none of it: it is
 * of a version that we know, complete, and every extent lies inside its file, which is no link. The
 * store then answers from memory, and any thread may ask. Of data it reads dense tensors only,
 * through its weight source; experts are the cache's (storage/experts/expert_map.h). */
#ifndef SL_STORAGE_STORE_STORE_H
#define SL_STORAGE_STORE_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/err.h"
#include "core/model/expert_key.h"
#include "core/model/weight_source.h"
#include "storage/store/packed_expert.h"
#include "storage/store/store_format.h"

struct sl_store;

/* True if the folder holds a catalog: a store, whole or not, of whatever version. */
bool sl_store_is(const char *folder);

/* What a store is opened for, and so what is asked of it. */
enum sl_store_use {
    SL_STORE_RUN,    /* complete */
    SL_STORE_RESUME, /* as sluice pack left it: only what is said to be done is there; by who has
                        the store's lock */
    SL_STORE_REPAIR, /* complete, but files may be shorter than the catalog says */
    SL_STORE_MOVED,  /* likewise, and any may be missing */
};

/* Fails with -errno, -ENOMEM, -SL_ECORRUPT, -SL_EFORMAT (no store, or one that is not complete) or
 * -SL_EUNSUPPORTED (made by a newer sluice). The caller closes *ret_store. */
int sl_store_open(struct sl_store **ret_store, const char *folder, enum sl_store_use use,
                  struct sl_err *err);

/* NULL is allowed. */
void sl_store_close(struct sl_store *store);

const char *sl_store_folder(const struct sl_store *store);
const struct sl_store_model *sl_store_model(const struct sl_store *store);
const struct sl_store_state *sl_store_state(const struct sl_store *store);

/* File 0 holds the dense tensors. */
uint32_t sl_store_file_count(const struct sl_store *store);
const char *sl_store_file_path(const struct sl_store *store, uint32_t file_index);
const struct sl_store_file *sl_store_file(const struct sl_store *store, uint32_t file_index);

/* Where the file ends: with the last block of what the catalog says is in it. */
uint64_t sl_store_file_end_bytes(const struct sl_store *store, uint32_t file_index);

uint32_t sl_store_copied_file_count(const struct sl_store *store);
const struct sl_store_copied_file *sl_store_copied_file(const struct sl_store *store, uint32_t i);

/* As they lie; of a store that is not complete, n_tensors_done of them. */
const struct sl_store_tensor *sl_store_tensor(const struct sl_store *store, uint32_t tensor_index);

/* The model has this expert, and it is done. */
const struct sl_packed_expert *sl_store_expert(const struct sl_store *store,
                                               struct sl_expert_key key);

/* What the experts that are done would take in addition if none were compressed. */
uint64_t sl_store_saved_bytes(const struct sl_store *store);

/* The experts in the order of their records. */
static inline uint32_t sl_store_expert_count(const struct sl_expert_shape *shape)
{
    return (shape->num_hidden_layers + shape->n_mtp_layers) * shape->n_routed_experts;
}
static inline struct sl_expert_key sl_store_expert_at(const struct sl_expert_shape *shape,
                                                      uint32_t number)
{
    return (struct sl_expert_key){(uint16_t)(number / shape->n_routed_experts),
                                  (uint16_t)(number % shape->n_routed_experts)};
}

/* The dense tensors as core's weight source; lives as long as the store. One thread reads. A tensor
 * read from first byte to last, in order, is held against its checksum, unless `check` is false:
 * the read that completes it then fails with -SL_ECORRUPT. */
struct sl_weight_source *sl_store_weights(struct sl_store *store, bool check);

#endif
