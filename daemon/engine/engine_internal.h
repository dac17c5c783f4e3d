/* The engine's state, for the files of daemon/engine, and for benchmarks and tests, which measure
 * its parts one by one. All others use daemon/engine/engine.h. */
#ifndef SL_DAEMON_ENGINE_ENGINE_INTERNAL_H
#define SL_DAEMON_ENGINE_ENGINE_INTERNAL_H

#include "core/base/list.h"
#include "core/text/sampler.h"
#include "daemon/engine/engine.h"
#include "storage/experts/dense_reader.h"
#include "storage/experts/model_files.h"
#include "storage/images/images.h"
#include "storage/pages/page_file.h"

/* A session that is being read from images: engine_images.c's. */
struct sl_image_loading {
    struct sl_session *session;
    const struct sl_kv_layout *layout;
    bool is_open; /* the session is between import_begin() and its end */
};

struct sl_engine {
    struct sl_engine_options options; /* a reader's piece and depth as they were chosen */
    struct sl_memory_plan plan;
    struct sl_config config;
    struct sl_model_files files;
    struct sl_weight_source *source; /* reads the dense tensors of `files` */
    struct sl_expert_map *store;
    struct sl_pool *pool;
    struct sl_kernels kernels;
    struct sl_compute compute;
    struct sl_weights weights;
    struct sl_io *io;
    struct sl_reader *reader;
    uint64_t drive_bytes_per_s; /* as probed; 0: not known */
    uint32_t n_weight_slots;    /* of the dense reader */
    struct sl_dense_reader *dense_reader;
    struct sl_reader_counters loading; /* its reads before the first step */
    struct sl_expert_cache *cache;
    struct sl_draft draft; /* the model's; loaded if options.draft asks for it */
    struct sl_forward *forwards[SL_STEP_SIZES]; /* the small one may be NULL */

    struct sl_kv_pool kv_pool;
    struct sl_page_file *page_file; /* of the pool's pager; NULL: all pages are in memory */
    struct sl_link sequences;       /* of struct sl_engine_sequence */

    struct sl_images *images;  /* NULL: none are kept */
    struct sl_arena image_ids; /* of the session that is saved: (context_tokens) */
    struct sl_image_loading image_loading;

    struct sl_arena sampling_arena;
    struct sl_candidate **sampling; /* (compute threads) scratch of each */

    char *notes[SL_ENGINE_NOTES_MAX];
    uint32_t n_notes;
};

struct sl_engine_sequence {
    struct sl_kv_cache kv; /* first */
    struct sl_link link;
};

static inline struct sl_engine_sequence *sl_engine_sequence_of(const struct sl_link *link)
{
    return sl_list_item(link, struct sl_engine_sequence, link);
}

/* Returns NULL if the model's draft is left aside. */
static inline const struct sl_draft *sl_engine_loaded_draft(const struct sl_engine *engine)
{
    return engine->options.draft != SL_DRAFT_NONE ? &engine->draft : NULL;
}

/* Returns how many blocks of the draft are loaded, and how many layers have a KV cache and experts,
 * of which they are the last. */
static inline uint32_t sl_engine_draft_block_count(const struct sl_engine *engine)
{
    return sl_engine_loaded_draft(engine) ? engine->draft.n_blocks : 0;
}

static inline uint32_t sl_engine_layer_count(const struct sl_engine *engine)
{
    return engine->config.num_hidden_layers + sl_engine_draft_block_count(engine);
}

/* Adds a line to the engine's notes, of SL_ENGINE_NOTES_MAX at most. */
__attribute__((format(printf, 2, 3))) void sl_engine_add_note(struct sl_engine *engine,
                                                              const char *format, ...);

/* Opens the files that the plan's sizes come from: config, headers, and where the experts lie; and
 * settles which draft is loaded. Fails as these do, and where the options ask for another draft. */
int sl_engine_open_model(struct sl_engine *engine, struct sl_err *err);

/* Returns the parameters that the engine creates its forwards with. A caller can make another
 * forward with them; it destroys that one before the engine, and the memory (sl_forward_measure())
 * is not in the engine's plan. */
struct sl_forward_params sl_engine_forward_params(struct sl_engine *engine, enum sl_step_size size);

/* Opens the folder of images that the options name: before the thread that calls is tied to a
 * processor, since the one that writes inherits that. Fails as sl_model_identity() and
 * sl_images_open(). */
int sl_engine_images_open(struct sl_engine *engine, struct sl_err *err);

/* Pages of KV caches on disk, where the options want them: the file, to be opened with those of the
 * model, and the pager, when reader, threads and pool are there. Fail as sl_page_file_create() and
 * sl_kv_pager_create(). */
int sl_engine_pages_create(struct sl_engine *engine, struct sl_err *err);
int sl_engine_pages_start(struct sl_engine *engine, struct sl_err *err);

/* Loads every expert of the model and returns 1 if the cache has room for all; otherwise does
 * nothing and returns 0. on_progress, which may be NULL, is told how many experts of how many are
 * loaded. Fails as reads do. */
int sl_engine_load_experts(struct sl_engine *engine, sl_progress_fn *on_progress, void *context,
                           struct sl_err *err);

#endif
