/* The composition root: opens a model and joins storage, cache, kernels and the forward pass.
 *
 * Only here do parts meet that know nothing of each other. An engine belongs to the thread that
 * opened it, which makes all calls, is one of the compute threads, and is tied to its processor
 * until close.
 *
 *     plan, open ──► create sequences, take steps, destroy sequences, in any order ──► close
 *
 * Texts are generated through daemon/engine/generation.h; daemon/engine/feed.h takes tokens through
 * the model where nothing is generated. */
#ifndef SL_DAEMON_ENGINE_ENGINE_H
#define SL_DAEMON_ENGINE_ENGINE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "cache/expert_cache.h"
#include "core/base/metrics.h"
#include "core/base/progress_fn.h"
#include "core/base/topology.h"
#include "core/model/forward.h"
#include "daemon/engine/memory_plan.h"
#include "daemon/engine/step_size.h"
#include "storage/io/reader.h"

/* Is told what a start does from now on, in words for a user. When it is first told about the
 * weights, the memory plan is known: see sl_engine_open(). */
typedef void sl_stage_fn(void *context, const char *doing);
#define SL_STAGE_WEIGHTS "loading dense weights"

/* Is told in one line, between steps, of something that works less well than it could. */
typedef void sl_note_fn(void *context, const char *line);

#define SL_DRAFTS_AUTO UINT32_MAX

struct sl_engine_options {
    const char *model;           /* a checkpoint folder, or a store */
    bool any_model_type;         /* run it also where config.json names another kind of model */
    uint64_t ram_bytes;          /* the whole budget; 0: what is available less a reserve */
    uint64_t cache_bytes;        /* for experts; 0: what the budget leaves */
    bool cache_min;              /* one token's working set instead */
    enum sl_dense_mode dense;    /* which dense weights stay in memory */
    bool refuse_slow;            /* fail with -SL_EBUDGET where memory holds too little for speed:
                                    see sl_memory_plan_is_slow() */
    struct sl_affinity affinity; /* of the compute threads, as sl_affinity_choose() left it */
    uint32_t segment_tokens;     /* most tokens of one step; 0: as many as memory allows */
    uint32_t small_step_tokens;  /* most tokens of a small step; 0: no forward for small steps */
    uint32_t context_tokens;     /* that each sequence can hold */
    uint32_t n_sequences;        /* most that share a step */
    uint64_t kv_bytes;           /* for KV caches; 0: what n_sequences of context_tokens take, */
    bool kv_share;         /* but with this only a share of the budget: see sl_memory_plan_make() */
    uint64_t other_bytes;  /* that the caller will take for itself, counted to the program */
    enum sl_verify verify; /* when experts of a store are verified; unless never, dense tensors are
                              verified too */
    sl_io_open_fn *io;     /* NULL: sl_io_choose() */
    /* For a piece or depth of 0, the engine takes what a probe of the drives finds, or found when
     * this store was opened before. */
    struct sl_reader_options reader;
    const struct sl_policy_ops *policy; /* of the expert cache; NULL: the default */
    enum sl_prefetch prefetch;
    const char *isa; /* NULL: the best there is */
    enum sl_numerics numerics;
    /* The draft to load, an error where the model's is another; SL_DRAFT_NONE: it is left aside. */
    enum sl_draft_kind draft;
    /* Most guesses of a text that a step checks; SL_DRAFTS_AUTO: as many as pay, and none where the
     * model has no draft. With this, `draft` need not be set. */
    uint32_t drafts;

    const char *images;        /* a folder for images of sessions; NULL: none are kept */
    uint64_t images_bytes_max; /* of all files in it */
    uint64_t kv_disk_bytes;    /* of a file there, for pages of KV caches (core/model/kv_paging.h);
                                  0: all are in memory */
    uint32_t images_every;     /* tokens of a long text between two; 0: SL_IMAGE_EVERY_TOKENS */
    bool images_optional;      /* where the folder cannot be had, a note, and none are kept */
    struct sl_file_writer *images_writer; /* NULL: sl_file_writer_private() */

    sl_note_fn *on_note; /* NULL, or told of images that were dropped or not kept */
    void *on_note_context;
    sl_stage_fn *on_stage; /* NULL, or told what is begun next */
    void *on_stage_context;
    sl_progress_fn *on_load; /* NULL, or told how many bytes of the dense weights have been read */
    void *on_load_context;
};

struct sl_engine;

/* On success the caller closes *ret_engine. Fails as the parts do, and with -SL_EBUDGET when the
 * model does not fit in memory. ret_plan, if not NULL, is filled as soon as the sizes are known,
 * even if the call fails later; until then its budget_bytes is 0. */
int sl_engine_open(struct sl_engine **ret_engine, const struct sl_engine_options *options,
                   struct sl_memory_plan *ret_plan, struct sl_err *err);

/* Makes the plan of sl_engine_open() without loading anything. A plan that does not fit is no error
 * here: *ret_verdict is then what sl_engine_open() would return, with its message in `err`. */
int sl_engine_plan(const struct sl_engine_options *options, struct sl_memory_plan *ret_plan,
                   int *ret_verdict, struct sl_err *err);

/* Destroys the sequences that are left, too. NULL is allowed. */
void sl_engine_close(struct sl_engine *engine);

/* Returns note i: one line about something that was left aside or is not available (MTP blocks of a
 * later generation, locked or registered memory, direct I/O, a folder of images). Returns NULL if
 * there are no more. */
#define SL_ENGINE_NOTES_MAX 11u
const char *sl_engine_note(const struct sl_engine *engine, uint32_t note_index);

const struct sl_config *sl_engine_config(const struct sl_engine *engine);

/* Names the instruction set of the kernels that were chosen, such as "avx512". */
const char *sl_engine_isa(const struct sl_engine *engine);

/* ---- sequences, between steps ------------------------------------------------------------------
 */

/* The memory of all sequences, the plan's line for KV caches. Sessions (core/session) are made from
 * it, and end before the engine closes. */
struct sl_kv_pool *sl_engine_kv_pool(struct sl_engine *engine);

/* Makes an empty sequence of up to capacity_tokens, at most the engine's context_tokens. It takes
 * memory as it grows: a step for which too little is left is refused. Fails as sl_kv_cache_init().
 * The caller destroys *ret_kv. */
int sl_engine_sequence_create(struct sl_engine *engine, uint32_t capacity_tokens,
                              struct sl_kv_cache **ret_kv, struct sl_err *err);

/* Gives the sequence's memory back to the pool, for others to grow in. NULL is allowed. */
void sl_engine_sequence_destroy(struct sl_engine *engine, struct sl_kv_cache *kv);

/* ---- steps -------------------------------------------------------------------------------------
 */

/* Returns the forward, for steps that are taken layer by layer; NULL if there is no small one. */
struct sl_forward *sl_engine_forward(struct sl_engine *engine, enum sl_step_size size);

/* The most tokens, and spans, of one step. */
uint32_t sl_engine_step_tokens_max(const struct sl_engine *engine, enum sl_step_size size);
uint32_t sl_engine_spans_max(const struct sl_engine *engine);

/* The most guesses of a text in one step, 0 without drafts; and whether fewer are taken where that
 * pays. */
uint32_t sl_engine_drafts_max(const struct sl_engine *engine);
bool sl_engine_drafts_are_chosen(const struct sl_engine *engine);

/* Takes a whole large step at once, with sl_forward_step(). A step that fails leaves every sequence
 * as it was. */
int sl_engine_step(struct sl_engine *engine, const struct sl_step_request *request,
                   struct sl_err *err);

/* ---- the expert cache, between steps -----------------------------------------------------------
 */

/* The hot list is kept beside a store: load() is called before the first step, save() after the
 * last one. load() brings in the experts that an earlier run saved, as far as there is room, passes
 * over those that cannot be read, and ends early when `stop` is set; `stop` and on_progress may be
 * NULL. For a checkpoint both do nothing and return 0. They fail as sl_hot_list_read() and
 * sl_hot_list_write(); the engine goes on as well as without. */
int sl_engine_load_hot_list(struct sl_engine *engine, const atomic_bool *stop,
                            sl_progress_fn *on_progress, void *context, struct sl_err *err);
int sl_engine_save_hot_list(struct sl_engine *engine, struct sl_err *err);

/* Changes the cache's size: see sl_expert_cache_resize(). */
int sl_engine_resize_cache(struct sl_engine *engine, uint64_t cache_bytes, struct sl_err *err);

/* The layers that stream: what their reads did, beside the experts'. Without what was read at the
 * start, but for its retries and stalls. */
struct sl_engine_dense {
    struct sl_weight_stream_counters layers;
    struct sl_reader_counters reads; /* rows of the embedding included */
};
struct sl_engine_dense sl_engine_dense(const struct sl_engine *engine);

/* The drives that the engine reads from. */
uint32_t sl_engine_drive_count(const struct sl_engine *engine);
struct sl_reader_drive sl_engine_drive(const struct sl_engine *engine, uint32_t index);

/* Returns the bytes a second that a probe found all drives to deliver together, now or when the
 * store was opened before; 0 if there was none, since piece and depth were given. */
uint64_t sl_engine_drive_rate(const struct sl_engine *engine);

/* KV caches on disk, beside the rest. All 0 if there are none. */
struct sl_engine_pages {
    struct sl_kv_pager_counters pager;
    struct sl_reader_counters reads;
};
struct sl_engine_pages sl_engine_pages(const struct sl_engine *engine);
extern const struct sl_metrics sl_engine_pages_metrics;

/* Bytes that a step of many texts reads whatever these are: all experts that the cache does not
 * hold, and the dense weights that stream (daemon/engine/paging_gain.h). */
uint64_t sl_engine_sweep_bytes(const struct sl_engine *engine);

/* Returns how many experts the cache holds at most. */
uint32_t sl_engine_slot_count(const struct sl_engine *engine);

/* Which experts of a layer are resident: see sl_expert_cache_resident(). */
void sl_engine_resident(const struct sl_engine *engine, uint16_t layer_index, uint8_t *ret_bits);

struct sl_expert_cache_counters sl_engine_counters(const struct sl_engine *engine);

/* Returns the paths of the files that experts are read from. The caller frees the list, which is
 * NULL when out of memory. */
const char **sl_engine_expert_paths(const struct sl_engine *engine, uint32_t *ret_n_paths);

/* ---- memory ------------------------------------------------------------------------------------
 */

/* The large areas of memory, and how much of each really is in huge pages. */
#define SL_ENGINE_AREAS 4
struct sl_engine_area {
    const char *name;
    uint64_t size_bytes;
    uint64_t resident_bytes; /* has been used so far */
    uint64_t huge_bytes;
};
void sl_engine_areas(const struct sl_engine *engine,
                     struct sl_engine_area ret_areas[SL_ENGINE_AREAS]);

#endif
