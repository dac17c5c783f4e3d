/* What tests of the whole engine stand on: the tiny model of tests/fixture_model.h written as a
 * checkpoint, stores packed of it, and its logits as the forward pass gives them over sources in
 * memory. Failures are cmocka's. */
#ifndef SL_TESTS_ENGINE_RIG_H
#define SL_TESTS_ENGINE_RIG_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/engine/engine_internal.h"
#include "tests/fixture_checkpoint.h"
#include "tests/fixture_model.h"
#include "tests/io_fault.h"

#define ENGINE_RIG_TOKENS 40u
#define ENGINE_RIG_EXPERTS 40u   /* the MTP block's included */
#define ENGINE_RIG_SLOTS_MIN 15u /* likewise */

struct engine_rig {
    char folder[FIXTURE_PATH_BYTES]; /* the checkpoint; all below it goes with the rig */
    struct sl_config config;
    const struct sl_draft *draft; /* that answers; NULL: none does */
    struct fixture_weights source;
    struct fixture_experts experts;
    int32_t tokens[ENGINE_RIG_TOKENS];
    uint64_t slot_bytes;
    float *logits, *mtp_logits; /* (ENGINE_RIG_TOKENS, vocab_size) */
    size_t row_bytes, logits_bytes;
};

/* For a group of tests, which borrow the rig and leave it as it was. */
int engine_rig_create(void **state);
int engine_rig_destroy(void **state);

/* The same with the stages of DSpark in place of the MTP block, in a shard of their own,
 * ENGINE_RIG_DRAFT_SHARD; there are no mtp_logits,. */
#define ENGINE_RIG_DRAFT_SHARD "draft.safetensors"
int engine_rig_create_dspark(void **state);

/* The same as a base model: FP8 experts and float32 scales, which config.json does not tell. */
int engine_rig_create_fp8(void **state);

/* The checkpoint at the least cache there is, two sequences, reads through pread threads
 * without a probe of the drive. */
struct sl_engine_options engine_rig_options(const struct engine_rig *m);

/* The engine's sequence of that number. It and those before it are made when they are first asked
 * for, and go with the engine. */
struct sl_kv_cache *engine_rig_kv(struct sl_engine *engine, uint32_t sequence_index);

/* A store of the model, in a folder of that name below the checkpoint's; with parts of equal size
 * in n_stripes others. Where it is compressed, all its experts are. */
void engine_rig_pack(const struct engine_rig *m, const char *name, uint32_t n_stripes,
                     bool compress, char ret_folder[FIXTURE_PATH_BYTES]);

/* An sl_logits_fn: writes rows one after the other. */
struct engine_rig_rows {
    float *to;
    size_t row_bytes;
};
void engine_rig_keep_rows(void *context, const struct sl_logits_row *rows, uint32_t n_rows);

/* All rows of the model's tokens, `at_once` at a time, into (ENGINE_RIG_TOKENS, vocab_size); of
 * the MTP block as well, unless mtp_logits is NULL. */
void engine_rig_run(const struct engine_rig *m, struct sl_forward *forward, struct sl_kv_cache *kv,
                    uint32_t at_once, float *logits, float *mtp_logits);

/* Makes the engine read through a fault wrapper with an empty plan, on the wrapper's clock.
 * engine_rig_faulty() is the wrapper of the latest engine that was opened so. */
void engine_rig_make_faulty(struct sl_engine_options *options);
struct sl_io *engine_rig_faulty(void);

/* Files that this process has open. */
uint32_t engine_rig_open_file_count(void);

#endif
