/* The entries of a store's catalog: their meaning, their keys and their bytes.
 *
 * Pure functions over memory; docs/FORMAT.md describes every byte. Numbers are little-endian of
 * fixed width. Decoding trusts nothing but the length that it is given. An accepted value is sound
 * in itself (known layout; sizes that are not zero, aligned, free of overflow);
 * storage/store/store.c checks that it fits the files and the model. */
#ifndef SL_STORAGE_STORE_STORE_FORMAT_H
#define SL_STORAGE_STORE_STORE_FORMAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/model/expert_key.h"
#include "core/model/weight_source.h"
#include "storage/store/packed_expert.h"

#define SL_STORE_VERSION 2u

/* Layouts of expert records (core/model/expert_shape.h): whether they are FP4 or FP8, and whether
 * some may be compressed (storage/store/codec.h). */
#define SL_STORE_LAYOUT_FP4 1u
#define SL_STORE_LAYOUT_FP4_ZSTD 2u
#define SL_STORE_LAYOUT_FP8 3u
#define SL_STORE_LAYOUT_FP8_ZSTD 4u

static inline uint32_t sl_store_layout_of(enum sl_expert_dtype dtype, bool compress)
{
    return (dtype == SL_EXPERT_FP8 ? SL_STORE_LAYOUT_FP8 : SL_STORE_LAYOUT_FP4) + compress;
}

static inline bool sl_store_layout_compresses(uint32_t layout)
{
    return layout == SL_STORE_LAYOUT_FP4_ZSTD || layout == SL_STORE_LAYOUT_FP8_ZSTD;
}

#define SL_STORE_TENSORS_MAX 65536u
#define SL_STORE_NAME_BYTES 256u
#define SL_STORE_PATH_BYTES 1024u

/* The most data files of a store: the first holds the dense tensors, each other one a part of every
 * expert. */
#define SL_STORE_FILES_MAX (1 + SL_EXPERT_PARTS_MAX)

/* Key "model". Written first; never changed. */
struct sl_store_model {
    uint32_t format_version;
    uint32_t layout;          /* fits shape.expert_dtype, which is not stored on its own */
    uint64_t config_checksum; /* of config.json's bytes */
    uint64_t index_checksum;  /* of the checkpoint's index: see sl_store_identify() */
    struct sl_expert_shape shape;
    uint32_t n_files;
    uint32_t n_tensors;
};

/* Key "state": how much of the store is on disk, in the order of packing. */
struct sl_store_state {
    uint32_t n_tensors_done;
    uint32_t n_experts_done;
    bool complete;
};

/* Key "file 0", ...: a data file. */
struct sl_store_file {
    char path[SL_STORE_PATH_BYTES]; /* see sl_store_file_is_sound() */
    uint64_t size_bytes;            /* when it is whole */
};

/* Key "carried NAME": a copied file, one of these names. A checkpoint has the encoder of the chat
 * format in a folder of its own, a store beside the others. */
#define SL_STORE_COPIED_NAMES 6u
#define SL_STORE_ENCODER_FOLDER "encoding"
#define SL_STORE_ENCODER_FILE "encoding_dsv4.py"
extern const char *const sl_store_copied_names[SL_STORE_COPIED_NAMES];
struct sl_store_copied_file {
    char name[SL_STORE_NAME_BYTES];
    uint64_t size_bytes;
    uint64_t checksum;
};

/* Key "tensor NUMBER", from 0 on in the order in which they lie. */
struct sl_store_tensor {
    char name[SL_STORE_NAME_BYTES];
    struct sl_tensor_info info;
    struct sl_extent extent; /* of its bytes alone; begins at a block */
    uint64_t checksum;
};

/* Key "expert LAYER NUMBER": a struct sl_packed_expert. */

/* File "hot": experts worth loading first, the most wanted first. */
#define SL_STORE_HOT_MAX 65536u

/* File "probe": the pieces and depth that read the drives best (storage/store/probe_memory.h). */
struct sl_store_probe {
    uint64_t drives_checksum; /* of the names of the probed drives and file systems */
    uint64_t bytes_per_s;
    uint32_t piece_bytes; /* whole blocks */
    uint32_t depth;
};
#define SL_STORE_PIECE_BYTES_MAX (UINT32_C(64) << 20)
#define SL_STORE_DEPTH_MAX 256u

/* The first is large enough for any value but the hot list's; the second is what that list
 * takes. */
#define SL_STORE_VALUE_BYTES_MAX 2048u
#define SL_STORE_HOT_BYTES(n_keys) (4 * (size_t)(n_keys))

#define SL_STORE_KEY_BYTES 320u
#define SL_STORE_KEY_MODEL "model"
#define SL_STORE_KEY_STATE "state"
#define SL_STORE_PREFIX_FILE "file "
#define SL_STORE_PREFIX_COPIED "carried "
#define SL_STORE_PREFIX_TENSOR "tensor "
#define SL_STORE_PREFIX_EXPERT "expert "

/* Write a key to `key`. Numbers are padded with zeros, so that keys sort in the order of the
 * numbers. */
void sl_store_file_key(char key[SL_STORE_KEY_BYTES], uint32_t file_index);
void sl_store_copied_file_key(char key[SL_STORE_KEY_BYTES], const char *name);
void sl_store_tensor_key(char key[SL_STORE_KEY_BYTES], uint32_t tensor_index);
void sl_store_expert_key(char key[SL_STORE_KEY_BYTES], struct sl_expert_key expert);

/* Each returns how many bytes it wrote. */
size_t sl_store_model_encode(const struct sl_store_model *model,
                             uint8_t value[SL_STORE_VALUE_BYTES_MAX]);
size_t sl_store_state_encode(const struct sl_store_state *state,
                             uint8_t value[SL_STORE_VALUE_BYTES_MAX]);
size_t sl_store_file_encode(const struct sl_store_file *file,
                            uint8_t value[SL_STORE_VALUE_BYTES_MAX]);
size_t sl_store_copied_file_encode(const struct sl_store_copied_file *copied,
                                   uint8_t value[SL_STORE_VALUE_BYTES_MAX]);
size_t sl_store_tensor_encode(const struct sl_store_tensor *tensor,
                              uint8_t value[SL_STORE_VALUE_BYTES_MAX]);
size_t sl_store_expert_encode(const struct sl_packed_expert *expert,
                              uint8_t value[SL_STORE_VALUE_BYTES_MAX]);
size_t sl_store_probe_encode(const struct sl_store_probe *probe,
                             uint8_t value[SL_STORE_VALUE_BYTES_MAX]);
size_t sl_store_hot_encode(const struct sl_expert_key *keys, uint32_t n_keys, uint8_t *value);

/* Each returns false for bytes that the encoder would not have written. Of a model of another
 * format version, only the version is read and the rest is zero. */
bool sl_store_model_decode(struct sl_store_model *model, const uint8_t *value, size_t size_bytes);
bool sl_store_state_decode(struct sl_store_state *state, const uint8_t *value, size_t size_bytes);
bool sl_store_file_decode(struct sl_store_file *file, const uint8_t *value, size_t size_bytes);
bool sl_store_copied_file_decode(struct sl_store_copied_file *copied, const uint8_t *value,
                                 size_t size_bytes);
bool sl_store_tensor_decode(struct sl_store_tensor *tensor, const uint8_t *value,
                            size_t size_bytes);
bool sl_store_expert_decode(struct sl_packed_expert *expert, const uint8_t *value,
                            size_t size_bytes);
bool sl_store_probe_decode(struct sl_store_probe *probe, const uint8_t *value, size_t size_bytes);

/* Returns whether file `file_index` may have this path: dense.bin and experts-1.bin lie in the
 * store's own folder, each other one is experts-N.bin in a folder with an absolute path. */
bool sl_store_file_is_sound(const struct sl_store_file *file, uint32_t file_index);

/* Takes at most n_max keys; *ret_n_keys says how many. */
bool sl_store_hot_decode(struct sl_expert_key *keys, uint32_t n_max, uint32_t *ret_n_keys,
                         const uint8_t *value, size_t size_bytes);

#endif
