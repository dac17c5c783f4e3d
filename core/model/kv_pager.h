/* Pages of KV caches on disk: which places of the file are taken, by how many holders, and reads of
 * them.
 *
 *                  write                       begin           progress
 *     page ──► buffer ──► places of the file ─────► read ──► checksum, copy ──► page
 *
 * A page that is written is never changed there: a place is taken, read any number of times, and
 * free again when its last holder lets go. Reads go by way of buffers of their own, several places
 * at a time where these lie side by side, so a late drive never writes to a page.
 *
 * Nothing is allocated after creation. The thread that drives the forward pass makes all calls; the
 * pool's threads check and copy. */
#ifndef SL_MODEL_KV_PAGER_H
#define SL_MODEL_KV_PAGER_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/err.h"
#include "core/base/pool.h"
#include "core/model/kv_file.h"

/* So many reads are under way at most; the file has as many numbers for them. */
#define SL_KV_READS_MAX 32u

struct sl_kv_pager;

struct sl_kv_pager_params {
    struct sl_kv_file *file; /* borrowed, as the pool */
    struct sl_pool *pool;
    uint32_t page_bytes;
    uint64_t file_bytes; /* the file grows up to this */
};

/* Bytes of memory that create() will map. */
uint64_t sl_kv_pager_measure(uint32_t page_bytes, uint64_t file_bytes);

/* Fails with -ENOMEM. The caller destroys *ret_pager. */
int sl_kv_pager_create(struct sl_kv_pager **ret_pager, const struct sl_kv_pager_params *params,
                       struct sl_err *err);

/* No place is held and no read wanted. Cancels what is under way and waits for it. Where a drive
 * that did not answer may still write to a buffer, the buffers are left to it. NULL is allowed. */
void sl_kv_pager_destroy(struct sl_kv_pager *pager);

/* ---- places ------------------------------------------------------------------------------------
 */

/* Writes pages, and gives the place of each, of which the caller is the one holder. Blocks. Fails
 * with -SL_EBUDGET where the file has no room, or as writing does; then nothing is taken. */
int sl_kv_pager_write(struct sl_kv_pager *pager, uint8_t *const *pages, uint32_t n_pages,
                      uint32_t *ret_places, struct sl_err *err);

/* Pages that go to disk in one call at most. */
#define SL_KV_WRITE_PAGES_MAX 256u

/* One more holder, and one less. */
void sl_kv_pager_hold(struct sl_kv_pager *pager, uint32_t place);
void sl_kv_pager_release(struct sl_kv_pager *pager, uint32_t place);

/* A number that whoever reads may remember with a place; anything at first. */
uint32_t *sl_kv_pager_hint(struct sl_kv_pager *pager, uint32_t place);

/* ---- reading -----------------------------------------------------------------------------------
 */

enum sl_kv_load_state {
    SL_KV_LOAD_WAITING,
    SL_KV_LOAD_READING,
    SL_KV_LOAD_DONE,
    SL_KV_LOAD_FAILED
};

/* A page to be read. It stays where it is from begin() until it is done, failed or cancelled. */
struct sl_kv_load {
    uint8_t *page;
    uint32_t place;
    enum sl_kv_load_state state;
};

/* Begins to read the first ones of n loads, all of them waiting: as many as lie side by side and
 * fit a buffer. Returns how many: 0 where no buffer is free. Whatever fails is told in *failure,
 * which stays as long. sl_kv_pager_start() sends it off. */
uint32_t sl_kv_pager_begin(struct sl_kv_pager *pager, struct sl_kv_load *loads, uint32_t n_loads,
                           bool urgent, struct sl_err *failure);
void sl_kv_pager_start(struct sl_kv_pager *pager);

/* Takes in what has landed, whoever began it. With `wanted`, which is not done, waits until that
 * is, or where it has not begun, until a buffer is free. Returns false if nothing could be taken
 * in. */
bool sl_kv_pager_progress(struct sl_kv_pager *pager, const struct sl_kv_load *wanted);

/* Somebody waits for these, and nobody wants them any more. */
void sl_kv_pager_hurry(struct sl_kv_pager *pager, const struct sl_kv_load *loads, uint32_t n_loads);
void sl_kv_pager_cancel(struct sl_kv_pager *pager, const struct sl_kv_load *loads,
                        uint32_t n_loads);

/* The cause where progress() took nothing in: late drives have all buffers. */
#define SL_KV_NO_BUFFER                                                                            \
    "no buffer is left to read KV caches into: drives that did not answer may still write to them"

/* Reads one page here and now. Fails as the file's end(), with -SL_ECORRUPT or -ETIMEDOUT. */
int sl_kv_pager_read(struct sl_kv_pager *pager, uint32_t place, uint8_t *page, struct sl_err *err);

struct sl_kv_pager_counters {
    uint64_t out_bytes, in_bytes; /* of pages written, and read */
    uint64_t n_rereads;           /* of runs that came back corrupt */
    uint64_t n_layers;            /* that steps asked for with pages on disk; */
    uint64_t n_waits, wait_ns;    /* of these, that were waited for */
    uint64_t file_bytes;          /* that are taken now */
};
struct sl_kv_pager_counters sl_kv_pager_counters(const struct sl_kv_pager *pager);

/* A step has asked for a layer, and waited so long. */
void sl_kv_pager_count_layer(struct sl_kv_pager *pager, uint64_t wait_ns);

#endif
