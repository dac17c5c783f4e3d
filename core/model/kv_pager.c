#include "core/model/kv_pager.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/assert.h"
#include "core/base/size.h"
#include "core/model/phase.h"

/* A read and a write go up to so many bytes: drives like large ones. */
#define RUN_BYTES (UINT64_C(1) << 20)

struct place {
    uint64_t checksum;
    uint32_t holders;
    uint32_t hint;
};

/* One read under way, of places that lie side by side. */
struct run {
    struct sl_kv_load *loads; /* (n); NULL: nobody wants it any more */
    uint32_t n, first_place;
    struct sl_err *failure;
    bool out;     /* begun, and its end not taken in */
    bool is_last; /* it was corrupt once */
};

struct sl_kv_pager {
    struct sl_kv_pager_params params;
    uint64_t place_bytes;
    uint32_t run_places; /* of a buffer */
    uint32_t n_places, n_taken;
    uint32_t next_place;  /* the search for a free one goes on there */
    struct place *places; /* (n_places) */
    uint8_t *buffers;     /* (SL_KV_READS_MAX + 1, run_places, place_bytes), the last for writing */
    struct run runs[SL_KV_READS_MAX];
    struct sl_kv_pager_counters counters;
    struct sl_arena arena;
};

/* ---- memory ------------------------------------------------------------------------------------
 */

static void carve(struct sl_kv_pager *pager, struct sl_arena *arena, uint32_t page_bytes,
                  uint64_t file_bytes)
{
    const uint64_t most = RUN_BYTES / sl_kv_place_bytes(page_bytes);
    const uint64_t n_places = file_bytes / sl_kv_place_bytes(page_bytes);

    pager->place_bytes = sl_kv_place_bytes(page_bytes);
    pager->run_places = most > 1 ? (uint32_t)most : 1;
    pager->n_places = n_places < UINT32_MAX / 2 ? (uint32_t)n_places : UINT32_MAX / 2;
    pager->places = sl_arena_take(arena, pager->n_places, sizeof(*pager->places));
    pager->buffers = sl_arena_take_aligned(arena, SL_KV_READS_MAX + 1,
                                           pager->run_places * pager->place_bytes, SL_BLOCK_BYTES);
}

uint64_t sl_kv_pager_measure(uint32_t page_bytes, uint64_t file_bytes)
{
    struct sl_kv_pager pager;
    struct sl_arena arena;

    sl_arena_init_measure(&arena);
    carve(&pager, &arena, page_bytes, file_bytes);
    return arena.used_bytes;
}

int sl_kv_pager_create(struct sl_kv_pager **ret_pager, const struct sl_kv_pager_params *params,
                       struct sl_err *err)
{
    struct sl_kv_pager *pager = calloc(1, sizeof(*pager));
    int rc;

    if (!pager)
        return sl_err_set(err, -ENOMEM, "pages of KV caches: out of memory");
    rc =
        sl_arena_reserve(&pager->arena, sl_kv_pager_measure(params->page_bytes, params->file_bytes),
                         "reads of KV caches", err);
    if (rc < 0) {
        free(pager);
        return rc;
    }
    carve(pager, &pager->arena, params->page_bytes, params->file_bytes);
    pager->params = *params;
    *ret_pager = pager;
    return 0;
}

static uint8_t *buffer(const struct sl_kv_pager *pager, uint32_t index)
{
    return pager->buffers + index * pager->run_places * pager->place_bytes;
}

void sl_kv_pager_destroy(struct sl_kv_pager *pager)
{
    struct sl_kv_file *file;
    bool is_free = true;

    if (!pager)
        return;
    file = pager->params.file;
    sl_assert(pager->n_taken == 0);
    for (uint32_t i = 0; i < SL_KV_READS_MAX; i++) {
        if (pager->runs[i].out) {
            file->ops->cancel(file, i);
            file->ops->end(file, i, true, NULL);
        }
        is_free = file->ops->is_free(file, i) && is_free;
    }
    if (is_free)
        sl_arena_fini(&pager->arena);
    free(pager);
}

struct sl_kv_pager_counters sl_kv_pager_counters(const struct sl_kv_pager *pager)
{
    struct sl_kv_pager_counters counters = pager->counters;

    counters.file_bytes = pager->n_taken * pager->place_bytes;
    return counters;
}

void sl_kv_pager_count_layer(struct sl_kv_pager *pager, uint64_t wait_ns)
{
    pager->counters.n_layers++;
    pager->counters.n_waits += wait_ns > 0;
    pager->counters.wait_ns += wait_ns;
}

/* ---- places ------------------------------------------------------------------------------------
 */

static uint32_t take_place(struct sl_kv_pager *pager)
{
    uint32_t n = pager->next_place;

    while (pager->places[n].holders > 0)
        n = n + 1 < pager->n_places ? n + 1 : 0;
    pager->places[n].holders = 1;
    pager->n_taken++;
    pager->next_place = n + 1 < pager->n_places ? n + 1 : 0;
    return n;
}

void sl_kv_pager_hold(struct sl_kv_pager *pager, uint32_t place)
{
    sl_assert(place < pager->n_places && pager->places[place].holders > 0);
    pager->places[place].holders++;
}

void sl_kv_pager_release(struct sl_kv_pager *pager, uint32_t place)
{
    sl_assert(place < pager->n_places && pager->places[place].holders > 0);
    if (--pager->places[place].holders == 0)
        pager->n_taken--;
}

uint32_t *sl_kv_pager_hint(struct sl_kv_pager *pager, uint32_t place)
{
    return &pager->places[place].hint;
}

/* How many of the places, from the first on, lie side by side, and so many as fit a buffer. */
static uint32_t run_of_places(const struct sl_kv_pager *pager, const uint32_t *places, uint32_t n)
{
    uint32_t run = 1;

    while (run < n && run < pager->run_places && places[run] == places[0] + run)
        run++;
    return run;
}

static int write_run(struct sl_kv_pager *pager, uint8_t *const *pages, const uint32_t *places,
                     uint32_t n, struct sl_err *err)
{
    struct sl_kv_file *file = pager->params.file;
    uint8_t *bytes = buffer(pager, SL_KV_READS_MAX);

    for (uint32_t i = 0; i < n; i++) {
        uint8_t *to = bytes + i * pager->place_bytes;

        memcpy(to, pages[i], pager->params.page_bytes);
        pager->places[places[i]].checksum = file->ops->checksum(to, pager->params.page_bytes);
    }
    return file->ops->write(file, places[0], n, bytes, err);
}

int sl_kv_pager_write(struct sl_kv_pager *pager, uint8_t *const *pages, uint32_t n_pages,
                      uint32_t *ret_places, struct sl_err *err)
{
    uint32_t places[SL_KV_WRITE_PAGES_MAX], n, at;
    char size[SL_SIZE_TEXT_BYTES];
    int rc = 0;

    sl_assert(n_pages <= SL_KV_WRITE_PAGES_MAX);
    if (n_pages > pager->n_places - pager->n_taken)
        return sl_err_set(err, -SL_EBUDGET, "the file for KV caches is full, with %s (--kv-disk)",
                          sl_size_format(pager->n_places * pager->place_bytes, size));
    for (n = 0; n < n_pages; n++)
        places[n] = take_place(pager);
    for (at = 0; rc == 0 && at < n_pages; at += n) {
        n = run_of_places(pager, places + at, n_pages - at);
        rc = write_run(pager, pages + at, places + at, n, err);
    }
    if (rc < 0) {
        for (uint32_t i = 0; i < n_pages; i++)
            sl_kv_pager_release(pager, places[i]);
        return rc;
    }
    pager->counters.out_bytes += (uint64_t)n_pages * pager->params.page_bytes;
    memcpy(ret_places, places, n_pages * sizeof(*places));
    return 0;
}

/* ---- reading -----------------------------------------------------------------------------------
 */

/* Returns SL_KV_READS_MAX if none is free. */
static uint32_t free_run(struct sl_kv_pager *pager)
{
    struct sl_kv_file *file = pager->params.file;
    uint32_t i = 0;

    while (i < SL_KV_READS_MAX && (pager->runs[i].out || !file->ops->is_free(file, i)))
        i++;
    return i;
}

static void set_state(const struct run *run, enum sl_kv_load_state state)
{
    for (uint32_t i = 0; i < run->n; i++)
        run->loads[i].state = state;
}

uint32_t sl_kv_pager_begin(struct sl_kv_pager *pager, struct sl_kv_load *loads, uint32_t n_loads,
                           bool urgent, struct sl_err *failure)
{
    struct sl_kv_file *file = pager->params.file;
    const uint32_t index = free_run(pager);
    uint32_t n = 1;

    if (n_loads == 0 || index == SL_KV_READS_MAX)
        return 0;
    while (n < n_loads && n < pager->run_places && loads[n].place == loads[0].place + n &&
           loads[n].state == SL_KV_LOAD_WAITING)
        n++;
    pager->runs[index] = (struct run){
        .loads = loads, .n = n, .first_place = loads[0].place, .failure = failure, .out = true};
    set_state(&pager->runs[index], SL_KV_LOAD_READING);
    file->ops->begin(file, index, loads[0].place, n, buffer(pager, index), urgent);
    return n;
}

void sl_kv_pager_start(struct sl_kv_pager *pager)
{
    pager->params.file->ops->start(pager->params.file);
}

/* A run that has landed, on its way to the pages. */
struct landed {
    const struct sl_kv_pager *pager;
    const struct run *run;
    const uint8_t *bytes;
};

/* Items are the run's pages. Each thread writes the states of its own. */
static void copy_pages(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct landed *in = context;
    const struct sl_kv_pager *pager = in->pager;
    const uint32_t page_bytes = pager->params.page_bytes;

    (void)thread_index;
    for (size_t i = first; i < end; i++) {
        const uint8_t *bytes = in->bytes + i * pager->place_bytes;
        struct sl_kv_load *load = &in->run->loads[i];

        if (pager->params.file->ops->checksum(bytes, page_bytes) !=
            pager->places[load->place].checksum) {
            load->state = SL_KV_LOAD_FAILED;
            continue;
        }
        memcpy(load->page, bytes, page_bytes);
        load->state = SL_KV_LOAD_DONE;
    }
}

/* Returns how many pages of the run were not what had been written. */
static uint32_t take_pages(struct sl_kv_pager *pager, uint32_t index)
{
    struct run *run = &pager->runs[index];
    struct landed landed = {pager, run, buffer(pager, index)};
    uint32_t n_bad = 0;

    sl_pool_run(pager->params.pool, SL_PHASE_REPACK, run->n, 4, copy_pages, &landed);
    pager->counters.in_bytes += (uint64_t)run->n * pager->params.page_bytes;
    for (uint32_t i = 0; i < run->n; i++)
        n_bad += run->loads[i].state == SL_KV_LOAD_FAILED;
    return n_bad;
}

/* Takes in the end of a run. What is corrupt is read again once. Returns false while it is under
 * way. */
static bool take_run(struct sl_kv_pager *pager, uint32_t index, bool wait)
{
    struct sl_kv_file *file = pager->params.file;
    struct run *run = &pager->runs[index];
    struct sl_err err = {0};
    const int rc = file->ops->end(file, index, wait, &err);

    if (rc == 0)
        return false;
    run->out = false;
    if (!run->loads)
        return true;
    if (rc < 0) {
        *run->failure = err;
        set_state(run, SL_KV_LOAD_FAILED);
    } else if (take_pages(pager, index) == 0) {
        return true;
    } else if (run->is_last) {
        sl_err_set(run->failure, -SL_ECORRUPT,
                   "pages of KV caches that were put on disk are corrupt there");
    } else {
        pager->counters.n_rereads++;
        run->out = run->is_last = true;
        set_state(run, SL_KV_LOAD_READING);
        file->ops->begin(file, index, run->first_place, run->n, buffer(pager, index), true);
        file->ops->start(file);
    }
    return true;
}

static bool has(const struct run *run, const struct sl_kv_load *load)
{
    return run->out && run->loads && load >= run->loads && load < run->loads + run->n;
}

/* The run to wait for: the one with the load, or any. SL_KV_READS_MAX if there is none. */
static uint32_t run_to_wait_for(const struct sl_kv_pager *pager, const struct sl_kv_load *wanted)
{
    uint32_t found = SL_KV_READS_MAX;

    for (uint32_t i = 0; i < SL_KV_READS_MAX; i++) {
        if (has(&pager->runs[i], wanted))
            return i;
        if (pager->runs[i].out)
            found = i;
    }
    return found;
}

bool sl_kv_pager_progress(struct sl_kv_pager *pager, const struct sl_kv_load *wanted)
{
    struct sl_pool *pool = pager->params.pool;
    const uint32_t waited = wanted ? run_to_wait_for(pager, wanted) : SL_KV_READS_MAX;
    const uint32_t phase = sl_pool_phase(pool, wanted ? SL_PHASE_DRIVE : SL_PHASE_REPACK);
    bool took = waited < SL_KV_READS_MAX && take_run(pager, waited, true);

    sl_pool_phase(pool, SL_PHASE_REPACK);
    for (uint32_t i = 0; i < SL_KV_READS_MAX; i++)
        if (pager->runs[i].out)
            took = take_run(pager, i, false) || took;
    sl_pool_phase(pool, phase);
    return took;
}

static bool overlaps(const struct run *run, const struct sl_kv_load *loads, uint32_t n_loads)
{
    return run->out && run->loads && run->loads < loads + n_loads && loads < run->loads + run->n;
}

void sl_kv_pager_hurry(struct sl_kv_pager *pager, const struct sl_kv_load *loads, uint32_t n_loads)
{
    for (uint32_t i = 0; i < SL_KV_READS_MAX; i++)
        if (overlaps(&pager->runs[i], loads, n_loads))
            pager->params.file->ops->hurry(pager->params.file, i);
}

void sl_kv_pager_cancel(struct sl_kv_pager *pager, const struct sl_kv_load *loads, uint32_t n_loads)
{
    for (uint32_t i = 0; i < SL_KV_READS_MAX; i++)
        if (overlaps(&pager->runs[i], loads, n_loads)) {
            pager->runs[i].loads = NULL;
            pager->params.file->ops->cancel(pager->params.file, i);
        }
}

int sl_kv_pager_read(struct sl_kv_pager *pager, uint32_t place, uint8_t *page, struct sl_err *err)
{
    struct sl_kv_load load = {.page = page, .place = place};
    struct sl_err failure = {0};

    while (load.state == SL_KV_LOAD_WAITING || load.state == SL_KV_LOAD_READING) {
        if (load.state == SL_KV_LOAD_WAITING &&
            sl_kv_pager_begin(pager, &load, 1, true, &failure) > 0)
            sl_kv_pager_start(pager);
        if (!sl_kv_pager_progress(pager, &load))
            return sl_err_set(err, -ETIMEDOUT, SL_KV_NO_BUFFER);
    }
    if (load.state == SL_KV_LOAD_DONE)
        return 0;
    if (err)
        *err = failure;
    return failure.code;
}
