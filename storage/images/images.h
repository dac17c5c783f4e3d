/* Images: what sequences left in the KV cache, on disk, found again by their tokens.
 *
 *     find() ──► load() ──► the sequence stands where the longest stored prefix of its tokens ends
 *     base() ──► begin() ──► copy into the memory given ──► commit() ──► a thread writes the file
 *
 * An image is a chunk of a sequence; images of sequences that begin alike share their bases
 * (storage/images/image_format.h). A folder may hold images of several models and numerics; they
 * find only their own, but share the limit on bytes: to keep it, the images used the longest time
 * ago go first, never one that another continues, that is pinned, or that is being continued.
 *
 * Images save time and nothing else, so nothing here stops a run: what is damaged is dropped with a
 * note, what cannot be written is not kept, with a note. A folder belongs to one process at a time.
 *
 * One thread makes all calls. */
#ifndef SL_STORAGE_IMAGES_IMAGES_H
#define SL_STORAGE_IMAGES_IMAGES_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/base/err.h"
#include "core/base/metrics.h"
#include "storage/images/image_format.h"
#include "storage/images/image_read.h"
#include "storage/io/file_writer.h"
#include "storage/io/io.h"
#include "storage/io/reader.h"

/* An image has at most so many tokens: a longer piece is cut into several, where positions are
 * multiples of this, and only the last of them has a mark. */
#define SL_IMAGE_TOKENS 8192u

struct sl_images;

/* Is told in one line what was dropped or not kept, and why. */
typedef void sl_images_note_fn(void *context, const char *line);

struct sl_images_options {
    const char *folder; /* made, readable for its owner alone, if it is not there */
    uint64_t bytes_max; /* of all images in the folder */
    struct sl_image_owner owner;
    uint64_t entries_bytes_max, mark_bytes_max; /* of one image: what the memory is for */
    struct sl_file_writer *writer;
    sl_io_open_fn *open_io;          /* reads go through it, */
    struct sl_reader_options reader; /* and with these options */
    const atomic_uint *n_ahead;      /* see storage/images/image_write.h */
    sl_images_note_fn *on_note;      /* may be NULL */
    void *note_context;
};

/* Bytes of memory that are mapped for images of these sizes: one that is written, or two that are
 * read, of which the second has no use for its mark. */
uint64_t sl_images_memory_bytes(uint64_t entries_bytes_max, uint64_t mark_bytes_max);

/* Makes the folder if it is not there, as sl_images_open() does: for who must know its drive before
 * that. */
int sl_images_make_folder(const struct sl_images_options *options, struct sl_err *err);

/* Locks the folder and takes in what lies there; drops what is damaged, and what a run that was
 * ended left unfinished. Fails with -EBUSY where another process has the folder, -errno or
 * -ENOMEM. The caller closes *ret_images. */
int sl_images_open(struct sl_images **ret_images, const struct sl_images_options *options,
                   struct sl_err *err);

/* Waits until what was committed is written. NULL is allowed. */
void sl_images_close(struct sl_images *images);

/* ---- reading -----------------------------------------------------------------------------------
 */

struct sl_images_match {
    uint32_t n_tokens; /* of the longest stored prefix that a sequence can begin at; 0: none */
    uint64_t prefix;   /* its name, for pins */
    /* So many tokens some other sequence begins with, too: an image that ends there would serve
     * both. At least n_tokens; sequences that are alike in a few more are not looked at. */
    uint32_t n_shared;
};

/* Finds the longest prefix, of n_tokens tokens at most. Reads no entries. An image that is being
 * written is not there yet. */
struct sl_images_match sl_images_find(struct sl_images *images, const int32_t *tokens,
                                      uint32_t n_tokens);

/* Reads the images of a prefix that was found, from the first on, and lets `take` have them: the
 * last one brings the mark. begin() waits for an image that is being written; each call of next()
 * takes one image, or none where it has not landed and `wait` is not set. next() returns 1 if there
 * is more to do, and 0 at the end. abandon() gives up before that. In between nothing is written;
 * the tokens are borrowed.
 *
 * begin() and next() return a negative code when they fail: that was the end, and what has been
 * taken is of no use. But for -ENOMEM, an image was bad, which has been noted and dropped: find()
 * tells what is left. */
int sl_images_load_begin(struct sl_images *images, const int32_t *tokens, uint32_t n_tokens,
                         sl_image_take_fn *take, void *context);
int sl_images_load_next(struct sl_images *images, bool wait);
void sl_images_load_abandon(struct sl_images *images);

/* All of it at once. Returns 0, or fails likewise. */
int sl_images_load(struct sl_images *images, const int32_t *tokens, uint32_t n_tokens,
                   sl_image_take_fn *take, void *context);

/* A pinned image stays, and what it continues does. Pins count, also of an image that was committed
 * and is being written; one for an image that has been dropped does nothing. */
void sl_images_pin(struct sl_images *images, uint64_t prefix);
void sl_images_unpin(struct sl_images *images, uint64_t prefix);

/* ---- writing -----------------------------------------------------------------------------------
 */

/* Returns where an image of these tokens would begin: at the end of the longest stored prefix, or
 * where that prefix's last image begins if its mark is larger than its entries and nothing
 * continues it. *ret_prefix is the name of what lies before. n_tokens: all is stored already, which
 * now counts as used. Waits for an image that is being written, since it may be that prefix. */
uint32_t sl_images_base(struct sl_images *images, const int32_t *tokens, uint32_t n_tokens,
                        uint64_t *ret_prefix);

/* A piece of a sequence to be stored: tokens first_token .. end_token, at most SL_IMAGE_TOKENS. */
struct sl_images_piece {
    const int32_t *tokens; /* the sequence's, from its first */
    uint32_t first_token, end_token;
    uint64_t entries_bytes, mark_bytes; /* the latter 0 where no sequence is to begin */
    uint8_t *entries, *mark;            /* set by begin(): where to copy them to, */
    uint64_t prefix;                    /* and its name, for pins */
};

/* Makes room for a piece that begins where base() said, or where the piece before it ended; waits
 * for an image that is being written. Returns 0, and commit() or abandon() follows, or a negative
 * code: the piece is not kept, and the reason has been noted. */
int sl_images_begin(struct sl_images *images, struct sl_images_piece *piece);

/* Lets the thread write what was copied, or keeps nothing of it. */
void sl_images_commit(struct sl_images *images);
void sl_images_abandon(struct sl_images *images);

/* Waits until what was committed is on disk, or has failed, which has been noted. */
void sl_images_wait(struct sl_images *images);

/* Returns whether base(), begin() and load_begin() would wait. */
bool sl_images_is_busy(struct sl_images *images);

/* Lets the image that is being written give way to reads no longer, as waiting for it does. */
void sl_images_hurry(struct sl_images *images);

/* ---- figures -----------------------------------------------------------------------------------
 */

struct sl_images_counters {
    uint64_t n_saved, saved_bytes;
    uint64_t n_loaded, loaded_bytes;
    uint64_t n_removed;              /* to keep the limit */
    uint64_t n_dropped;              /* damaged */
    uint64_t n_failed;               /* that were not kept: no room, or the drive failed */
    uint64_t wait_ns;                /* that the caller waited for images being written */
    uint64_t n_images, folder_bytes; /* in the folder now, of all models */
};

extern const struct sl_metrics sl_images_metrics; /* shows struct sl_images_counters */

struct sl_images_counters sl_images_counters(const struct sl_images *images);

/* ---- without a model ---------------------------------------------------------------------------
 */

/* Locks a folder of images. Returns a descriptor that holds the lock until it is closed, or fails
 * with -EBUSY or -errno. */
int sl_images_lock(const char *folder, struct sl_err *err);

#endif
