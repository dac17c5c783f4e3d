/* The options of a pack (its source, its store, how records are stored) and its result. */
#ifndef SL_STORAGE_PACK_PACK_OPTIONS_H
#define SL_STORAGE_PACK_PACK_OPTIONS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/base/pool.h"
#include "core/base/progress_fn.h"
#include "storage/checkpoint/checkpoint.h"
#include "storage/experts/expert_map.h"
#include "storage/io/file_writer.h"
#include "storage/store/codec.h"
#include "storage/store/store.h"

#define SL_PACK_BATCH_BYTES (UINT64_C(256) << 20)

struct sl_pack_options {
    const char *store_folder;            /* made if there is none; else a store, or empty */
    const char *checkpoint_folder;       /* or that of the store to be packed anew */
    struct sl_checkpoint *checkpoint;    /* the source, or else `from`: one is NULL */
    struct sl_store *from;               /* complete */
    const struct sl_expert_map *experts; /* of the source, all that are to be packed */
    const char *const *tensors;          /* dense ones, in the order in which they will lie */
    uint32_t n_tensors;

    /* Folders on other drives that hold a part of each record of a new store, and how the records
     * are cut (storage/store/store_layout.h). A store that was begun keeps its own folders. */
    const char *const *stripe_folders; /* (n_stripes) */
    const uint64_t *weights;           /* (1 + n_stripes) */
    uint32_t n_stripes;

    /* Shards of the checkpoint are cut off behind their headers, which frees their space, once all
     * that the store takes from them is safe. The checkpoint must have been opened with
     * sl_checkpoint_open_cut(). A store as the source is never cut. */
    bool consume;

    /* Records are compressed with zstd where that pays (storage/store/codec.h). A store that was
     * begun compressed stays so in any case; one that was begun without is refused. */
    bool compress;

    /* The folder has the data of a store whose catalog is lost; all data are written again over
     * them. */
    bool rebuild;

    struct sl_pool *pool; /* each thread takes sl_pack_thread_bytes() */
    struct sl_file_writer *writer;
    uint64_t batch_bytes; /* between two commits; but at least one tensor, or one expert a thread */

    sl_progress_fn *on_progress; /* NULL, or told how many bytes of what was left are written */
    void *progress_context;
    const atomic_bool *stop; /* NULL, or ends the work after the present batch when true */
};

struct sl_pack_result {
    uint64_t total_bytes;   /* of the store's data */
    uint64_t written_bytes; /* of these, by this run */
    uint64_t freed_bytes;   /* of the checkpoint's shards, by this run */
    bool compressed;
    uint64_t saved_bytes;      /* how much more the data would take uncompressed */
    struct sl_codec_gain gain; /* of the experts that this run wrote */
};

#endif
