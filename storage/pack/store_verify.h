/* Verifying: compares all data of a store with the catalog's checksums, checks the zeros that fill
 * blocks, and compares all copies of the catalog with STORE/catalog.sealed.
 *
 * Compressed records are not unpacked, since their stored bytes have a checksum of their own. Data
 * are read in the order in which they lie, through the reader, past the page cache, while checksums
 * of landed pieces are computed: this runs at the drive's speed as long as one thread computes them
 * faster. Damage is reported; storage/pack/store_repair.h repairs it. One thread makes all
 * calls. */
#ifndef SL_STORAGE_PACK_STORE_VERIFY_H
#define SL_STORAGE_PACK_STORE_VERIFY_H

#include <stdatomic.h>
#include <stdint.h>

#include "core/base/err.h"
#include "core/base/progress_fn.h"
#include "storage/io/io.h"
#include "storage/store/store.h"

enum sl_store_item_kind {
    SL_STORE_COPY, /* of the catalog: catalog.mdb, or the sealed one beside a file elsewhere */
    SL_STORE_COPIED_FILE,
    SL_STORE_TAIL, /* bytes in a file behind the store's data */
    SL_STORE_TENSOR,
    SL_STORE_MATRIX,
    SL_STORE_RECORD, /* a compressed expert, as it is stored */
};

/* One thing that is verified: it has a checksum of its own, or must equal another copy. */
struct sl_store_item {
    enum sl_store_item_kind kind;
    uint32_t index;           /* of a file (0 is catalog.mdb), a copied file or a tensor */
    struct sl_expert_key key; /* the expert of a record or matrix; and the matrix's number */
    int matrix;
};

/* Is called for each damaged item. `message` names it, says where it lies and what is wrong with
 * it. */
typedef void sl_store_bad_fn(void *context, const struct sl_store_item *item, const char *message);

struct sl_verify_options {
    sl_io_open_fn *open_io;
    sl_store_bad_fn *on_bad;
    void *bad_context;
    sl_progress_fn *on_progress; /* NULL, or told how many bytes of all have been summed */
    void *progress_context;
    const atomic_bool *stop; /* NULL, or ends the work when true */
};

struct sl_verify_result {
    uint64_t n_items, n_bad;
    uint64_t read_bytes;
};

/* Verifies a store. If it is not complete, only its tensors and experts that are packed are
 * verified, but no small files. Damage is no error. Fails with -ENOMEM, as opening the files does,
 * with -ETIMEDOUT if a drive does not answer (storage/io/reader.h), or with -ECANCELED if stopped;
 * ret_result is filled in any case. */
int sl_store_verify(const struct sl_store *store, const struct sl_verify_options *options,
                    struct sl_verify_result *ret_result, struct sl_err *err);

#endif
