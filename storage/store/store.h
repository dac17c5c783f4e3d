/* A packed store, open for reading: its catalog's entries, which were checked.
 *
 *     STORE/config.json, tokenizer.json   as in the checkpoint
 *     STORE/dense.bin                     dense tensors in the order in which they are loaded
 *     STORE/experts-1.bin                 a record for each expert; or parts of it, with those on
 *                                         other drives in experts-2.bin and so on
 *     STORE/catalog.sealed                the catalog (storage/store/store_copies.h)
 *
 * docs/FORMAT.md describes every byte. Opening reads the whole catalog and trusts none of it: it is
 * of a version that we know, complete, and every extent lies inside its file, which is no link. The
 * store then answers from memory, and any thread may ask. It reads no data but dense tensors,
 * through its weight source; experts are read by the cache (storage/experts/expert_map.h). */
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

/* Returns whether the folder holds a catalog: of a store that is complete or not, of any
 * version. */
bool sl_store_is(const char *folder);

/* The purpose that a store is opened for, which decides what must be there. */
enum sl_store_use {
    SL_STORE_RUN,    /* complete */
    SL_STORE_RESUME, /* as sluice pack left it, with only the items that the state counts as packed;
                        the caller has the store's lock */
    SL_STORE_REPAIR, /* complete, but files may be shorter than the catalog says */
    SL_STORE_MOVED,  /* complete, but files may be shorter than the catalog says, or missing */
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

/* Returns where the file ends: with the last block of the data that the catalog has in it. */
uint64_t sl_store_file_end_bytes(const struct sl_store *store, uint32_t file_index);

uint32_t sl_store_copied_file_count(const struct sl_store *store);
const struct sl_store_copied_file *sl_store_copied_file(const struct sl_store *store, uint32_t i);

/* Returns a tensor by its number, in the order in which they lie. A store that is not complete has
 * only n_tensors_done of them. */
const struct sl_store_tensor *sl_store_tensor(const struct sl_store *store, uint32_t tensor_index);

/* Returns the number of the tensor of that name, or n_tensors_done if there is none. */
uint32_t sl_store_find_tensor(const struct sl_store *store, const char *name);

/* Follows the bytes of one tensor at a time, which are given in order from the first one, and
 * compares them with its checksum: returns 1 when the last byte was given and they are the same,
 * -SL_ECORRUPT if they are not, and 0 before. One that was not followed from the beginning is not
 * compared. */
int sl_store_check_tensor(struct sl_store *store, uint32_t tensor_index, uint64_t offset_bytes,
                          uint64_t size_bytes, const void *bytes, struct sl_err *err);

/* Returns an expert, which the model must have and which must be packed already. */
const struct sl_packed_expert *sl_store_expert(const struct sl_store *store,
                                               struct sl_expert_key key);

/* Returns how many bytes more the packed experts would take if none were compressed. */
uint64_t sl_store_saved_bytes(const struct sl_store *store);

/* Numbers the experts in the order of their records. */
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

/* Returns the dense tensors as core's weight source, which lives as long as the store and is for
 * one thread. One with `check` and one without exist beside each other. With it, a tensor that is
 * read from first byte to last, in order, is compared with its checksum: if they differ, the read
 * that completes it fails with -SL_ECORRUPT. */
struct sl_weight_source *sl_store_weights(struct sl_store *store, bool check);

#endif
