/* What tests of packed stores stand on: a small checkpoint with experts and dense tensors of odd
 * sizes, packed by calling the packer itself. Failures are cmocka's. */
#ifndef SL_TESTS_STORE_RIG_H
#define SL_TESTS_STORE_RIG_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/checkpoint/checkpoint.h"
#include "storage/store/store.h"
#include "storage/pack/store_verify.h"
#include "storage/pack/store_write.h"
#include "tests/fixture_checkpoint.h"

#define STORE_RIG_TENSORS 4u
#define STORE_RIG_SHARDS 4u /* the last has nothing that is packed */

extern const struct sl_expert_shape store_rig_shape; /* two layers and an MTP block */
extern const char *const store_rig_tensors[STORE_RIG_TENSORS];

struct store_rig {
    char root[FIXTURE_PATH_BYTES]; /* all below it goes with the rig */
    char checkpoint_folder[FIXTURE_PATH_BYTES];
    char store_folder[FIXTURE_PATH_BYTES]; /* not made yet */
    struct sl_checkpoint *checkpoint;
    struct sl_expert_map *experts;
    struct sl_pool *pool; /* of one thread: writes come in one order */
    bool compress;        /* false after store_rig_open(): what options ask for */
};

/* Another `weights` gives other bytes under the same config and index. */
void store_rig_open(struct store_rig *rig, uint8_t weights);
void store_rig_close(struct store_rig *rig);

/* Opens the checkpoint again, as it is now; or as it was at first. */
void store_rig_reopen(struct store_rig *rig);
void store_rig_refill(struct store_rig *rig);

/* Writes root/name to `path`. */
void store_rig_path(const struct store_rig *rig, const char *name, char path[FIXTURE_PATH_BYTES]);

/* The real file writer, but that it syncs nothing: faster, where no power is cut. */
struct sl_file_writer *store_rig_writer(void);

/* Options as a plain pack into `store_folder` has them, with a commit about every tensor and every
 * second expert. */
struct sl_pack_options store_rig_options(const struct store_rig *rig, const char *store_folder);

/* Makes the options those of packing a store anew: it is opened, and options->from then the
 * caller's to close. */
void store_rig_of_store(struct sl_pack_options *options, const char *store_folder);

/* An sl_progress_fn: sets the atomic_bool `context` from half of the way on. */
void store_rig_stop_at_half(void *context, uint64_t done, uint64_t total);

/* The error's line has this text in it. */
void store_rig_assert_says(const struct sl_err *err, const char *text);

/* Opens the store, which fails and says `text`. */
void store_rig_assert_refused(const char *store_folder, int code, const char *text);

/* Packs, which succeeds. */
void store_rig_pack(const struct store_rig *rig, const char *store_folder);

/* Fails the test unless both stores are complete and the same: files byte for byte, catalogs key
 * for key. */
void store_rig_assert_same(const char *store_a, const char *store_b);

/* Deletes a folder with all below it; there need not be one. */
void store_rig_remove(const char *folder);

/* Puts a value into a store's catalog, all copies of it; NULL keeps what is there but for byte
 * `size_bytes`, which becomes other. */
void store_rig_put(const char *store_folder, const char *key, const void *value, size_t size_bytes);

/* What sl_store_verify() found. */
#define STORE_RIG_DAMAGE_MAX 48u
struct store_rig_damage {
    struct sl_store_item items[STORE_RIG_DAMAGE_MAX];
    uint32_t n_items;
    char message[SL_ERR_MESSAGE_BYTES]; /* the last */
};

/* Verifies a store, and makes what was found again from the rig's checkpoint. */
void store_rig_verify(const char *store_folder, struct store_rig_damage *found);
int store_rig_repair(const struct store_rig *from, const char *store_folder,
                     const struct store_rig_damage *found, struct sl_err *err);

/* For single tests: a rig whose store_folder is packed; *state is the struct store_fixture. */
struct store_fixture {
    struct store_rig rig;
    char other[FIXTURE_PATH_BYTES]; /* where a second store may be */
};
int store_fixture_create(void **state);
int store_fixture_destroy(void **state);

#endif
