/* The inside of an open store, for the files of this folder that make one up: storage/store/store.c
 * fills it from the catalog, storage/store/store_weights.c reads the dense tensors. */
#ifndef SL_STORAGE_STORE_STORE_INTERNAL_H
#define SL_STORAGE_STORE_STORE_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/err.h"
#include "core/model/weight_source.h"
#include "storage/io/checksum.h"
#include "storage/store/packed_expert.h"
#include "storage/store/store_format.h"

#define COPIED_FILES_MAX 16u

/* The store as a source of dense weights: one of two, of which one compares what it reads with the
 * checksums. */
struct sl_store_source {
    struct sl_weight_source source; /* first: a source is led back to this */
    struct sl_store *store;
    bool checks;
};

/* The dense tensors. */
struct sl_store_weights {
    struct sl_store_source sources[2]; /* the second one checks */
    uint32_t *by_name;                 /* numbers of the tensors, by name */
    int fd;                            /* of the dense tensors' file; -1 until opened */
    uint64_t asked_bytes;              /* up to there the system has been asked to read ahead */

    /* The tensor that is being read in order, and how far. */
    struct sl_checksum_stream *stream;
    uint32_t stream_tensor;
    uint64_t stream_bytes;
};

struct sl_store {
    char *folder;
    struct sl_store_model model;
    struct sl_store_state state;
    struct sl_store_file files[SL_STORE_FILES_MAX];
    char *paths[SL_STORE_FILES_MAX];
    uint64_t file_bytes[SL_STORE_FILES_MAX]; /* the files' real sizes */
    struct sl_store_copied_file copied[COPIED_FILES_MAX];
    uint32_t n_copied;
    struct sl_store_tensor *tensors; /* (n_tensors_done), in the order in which they lie */
    struct sl_packed_expert *experts;
    uint32_t n_read; /* entries of the kind that is being read */
    struct sl_store_weights weights;
};

/* Sets the weights to a state that fini() takes, before they are opened. */
void sl_store_weights_init(struct sl_store_weights *weights);

/* Opens the weights of a store whose catalog is read. Fails with -ENOMEM, -SL_ECORRUPT (a tensor
 * that is there twice), and as opening the file does. A missing file is no error here, since
 * storage/store/store.c has allowed it. */
int sl_store_weights_open(struct sl_store *store, struct sl_err *err);
void sl_store_weights_fini(struct sl_store_weights *weights);

#endif
