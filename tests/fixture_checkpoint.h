/* Small checkpoint folders for tests, and ways to spoil them.
 *
 * A test lists tensors, writes them as shards (laid out as in the release: by dtype, then by name)
 * and an index, and may then damage a file. What goes wrong here (a full disk) is an assertion. */
#ifndef SL_TESTS_FIXTURE_CHECKPOINT_H
#define SL_TESTS_FIXTURE_CHECKPOINT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "core/model/weight_source.h"

#define FIXTURE_PATH_BYTES 256

struct fixture_tensor {
    char name[96];
    enum sl_dtype dtype;
    uint32_t n_dims;
    uint64_t shape[SL_TENSOR_DIMS_MAX]; /* as in struct sl_tensor_info */
};

/* Zeroed is empty. */
struct fixture_list {
    struct fixture_tensor *tensors;
    uint32_t count;
};

/* cols 0 makes a vector. */
void fixture_add(struct fixture_list *list, enum sl_dtype dtype, uint64_t rows, uint64_t cols,
                 const char *name_format, ...) __attribute__((format(printf, 5, 6)));

/* The six tensors of experts 0 .. n_experts - 1 of block `prefix` ("layers.0", "mtp.0"). */
void fixture_add_experts(struct fixture_list *list, const char *prefix, uint32_t n_experts,
                         uint64_t hidden_size, uint64_t moe_intermediate_size);

/* Likewise of FP8 experts, with scales of this dtype. */
void fixture_add_fp8_experts(struct fixture_list *list, const char *prefix, uint32_t n_experts,
                             uint64_t hidden_size, uint64_t moe_intermediate_size,
                             enum sl_dtype scale_dtype);

/* Empties the list. */
void fixture_fini(struct fixture_list *list);

/* A new folder under $TMPDIR or /tmp; remove() deletes it with the files in it. */
void fixture_folder_create(char folder[FIXTURE_PATH_BYTES]);
void fixture_folder_remove(const char *folder);

/* Byte i of a tensor's data as fixture_write_shard() fills it in. */
uint8_t fixture_byte(const char *tensor_name, uint64_t i);

/* Sorts the list and writes it. A sparse shard has its true size, and a hole for data. */
void fixture_write_shard(const char *folder, const char *file, struct fixture_list *list,
                         bool sparse);

/* A shard with this header, whatever it says, and so many zero bytes after it. */
void fixture_write_header(const char *folder, const char *file, const char *header,
                          uint64_t data_bytes);

void fixture_write_text(const char *folder, const char *file, const char *text);

/* FIXTURE_INDEX: begin, add each shard's list, end. */
FILE *fixture_index_begin(const char *folder);
void fixture_index_add(FILE *index, const struct fixture_list *list, const char *file);
void fixture_index_end(FILE *index);

/* A sound model to start from: one layer and one MTP block with three experts each and a few other
 * tensors, in two shards with an index. */
#define FIXTURE_SHARD_1 "model-00001-of-00002.safetensors"
#define FIXTURE_SHARD_2 "model-00002-of-00002.safetensors"
#define FIXTURE_INDEX "model.safetensors.index.json"
#define FIXTURE_MODEL_EXPERTS 3
#define FIXTURE_MODEL_HIDDEN 128
#define FIXTURE_MODEL_INTER 256

struct fixture_model {
    char folder[FIXTURE_PATH_BYTES];
    struct fixture_list first, second; /* what the two shards hold: embed.weight, layers.0's
                                          experts; norm.weight, a tid2eid, mtp.0's experts */
};

void fixture_model_create(struct fixture_model *model);
void fixture_model_remove(struct fixture_model *model);

/* Damage. patch() replaces the first `from` within the file's first 64 KiB by `to`, of the same
 * length; size_bytes may also be larger than the file. */
void fixture_unlink(const char *folder, const char *file);
void fixture_truncate(const char *folder, const char *file, uint64_t size_bytes);
void fixture_flip_byte(const char *folder, const char *file, uint64_t offset_bytes);
void fixture_patch(const char *folder, const char *file, const char *from, const char *to);
uint64_t fixture_file_size(const char *folder, const char *file);

#endif
