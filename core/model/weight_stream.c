#include "core/model/weight_stream.h"

#include <errno.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/clock.h"
#include "core/base/size.h"
#include "core/model/config.h"
#include "core/model/phase.h"
#include "core/model/weight_chunks.h"

/* Chunks of 4 MiB: enough for a fast drive while the thread that packs is busy elsewhere for some
 * milliseconds. */
#define CHUNKS_MAX 32u

#define NO_LAYER UINT32_MAX
#define NO_TENSOR UINT32_MAX

enum window_state { EMPTY, LOADING, READY, FAILED };

struct window {
    struct sl_arena common, own; /* its memory; a view of the owner's arena */
    bool touched;
    enum window_state state;
    uint32_t layer_index; /* NO_LAYER if empty */
    bool in_use;
    bool urgent;                    /* somebody waits for it */
    uint32_t reread;                /* the tensor that was corrupt and is read again; NO_TENSOR */
    uint64_t serial;                /* of this load; chunks of others are of no use */
    struct sl_tensor_load *tensors; /* (SL_LAYER_TENSORS_MAX) of the layer */
    uint32_t n_tensors;
    uint32_t next_tensor; /* the chunk to be read next */
    uint64_t next_offset_bytes;
    struct sl_err failure; /* FAILED */
};

struct sl_weight_stream {
    struct sl_weight_stream_params params;
    struct window windows[SL_WINDOWS_MAX];
    uint32_t n_windows;
    struct sl_weight_chunks chunks; /* of windows: each its chunk's owner, and serial of its load */
    uint64_t serial;
    bool streams[SL_LAYERS_MAX];
    uint32_t n_streamed;
    struct sl_weight_stream_counters counters;
};

/* ---- memory ------------------------------------------------------------------------------------
 */

uint32_t sl_weight_stream_chunk_count(const struct sl_weight_stream_sizes *sizes)
{
    const uint32_t ahead = SL_WINDOWS_MIN * sizes->n_chunks;

    return ahead < CHUNKS_MAX ? ahead : CHUNKS_MAX;
}

/* A view of memory that `arena` owns. */
static struct sl_arena carve_view(struct sl_arena *arena, uint64_t size_bytes)
{
    const uint64_t bytes = sl_round_up(size_bytes, SL_BLOCK_BYTES);

    return (struct sl_arena){.base = sl_arena_take_aligned(arena, 1, bytes, SL_BLOCK_BYTES),
                             .size_bytes = bytes};
}

struct sl_weight_stream *sl_weight_stream_carve(struct sl_arena *arena,
                                                const struct sl_weight_stream_sizes *sizes)
{
    struct sl_weight_stream *stream = sl_arena_take(arena, 1, sizeof(*stream));
    struct sl_weight_stream made = {.n_windows = sizes->n_windows};

    sl_assert(made.n_windows >= SL_WINDOWS_MIN && made.n_windows <= SL_WINDOWS_MAX);
    for (uint32_t i = 0; i < made.n_windows; i++) {
        struct window *window = &made.windows[i];

        window->layer_index = NO_LAYER;
        window->common = carve_view(arena, sizes->common_bytes);
        window->own = carve_view(arena, sizes->own_bytes);
        window->tensors = sl_arena_take(arena, SL_LAYER_TENSORS_MAX, sizeof(*window->tensors));
    }
    sl_weight_chunks_carve(&made.chunks, arena, sl_weight_stream_chunk_count(sizes),
                           sizes->chunk_bytes);
    if (stream)
        *stream = made;
    return stream;
}

void sl_weight_stream_start(struct sl_weight_stream *stream,
                            const struct sl_weight_stream_params *params)
{
    sl_assert(params->n_layers <= SL_LAYERS_MAX);
    stream->params = *params;
    stream->chunks.source = params->source;
    stream->chunks.reader = params->reader;
    stream->chunks.pool = params->pool;
}

void sl_weight_stream_add(struct sl_weight_stream *stream, uint32_t layer_index)
{
    sl_assert(layer_index < stream->params.n_layers);
    stream->n_streamed += !stream->streams[layer_index];
    stream->streams[layer_index] = true;
}

struct sl_weight_stream_counters sl_weight_stream_counters(const struct sl_weight_stream *stream)
{
    return stream->counters;
}

/* ---- a window's load ---------------------------------------------------------------------------
 */

static int add_tensor(void *context, const struct sl_tensor_load *load, struct sl_err *err)
{
    struct window *window = context;

    (void)err;
    sl_assert(window->n_tensors < SL_LAYER_TENSORS_MAX); /* it was measured */
    window->tensors[window->n_tensors++] = *load;
    return 0;
}

static void fail(struct sl_weight_stream *stream, struct window *window, const struct sl_err *err)
{
    sl_weight_chunks_drop(&stream->chunks, window);
    window->serial = ++stream->serial;
    window->state = FAILED;
    window->failure = *err;
    sl_err_prefix(&window->failure, err->code, "layer %u", window->layer_index);
}

/* Begins to read the layer, from its first tensor on. */
static void begin_load(struct sl_weight_stream *stream, struct window *window, uint32_t layer_index)
{
    struct sl_layer_memory memory = {.common = &window->common,
                                     .own = &window->own,
                                     .touching = window->touched ? NULL : stream->params.pool};
    struct sl_err err;
    int rc;

    sl_weight_chunks_drop(&stream->chunks, window);
    window->state = LOADING;
    window->layer_index = layer_index;
    window->urgent = false;
    window->reread = NO_TENSOR;
    window->serial = ++stream->serial;
    window->n_tensors = window->next_tensor = 0;
    window->next_offset_bytes = 0;
    window->common.used_bytes = window->own.used_bytes = 0;
    stream->counters.n_loads++;
    rc = stream->params.list(stream->params.list_context, layer_index, &memory, add_tensor, window,
                             &err);
    window->touched = true;
    if (rc < 0)
        fail(stream, window, &err);
}

/* ---- chunks ------------------------------------------------------------------------------------
 */

/* The window whose chunk is to be read next: the one that is waited for, or of the load that was
 * begun first. NULL if all have been sent for. */
static struct window *next_to_read(struct sl_weight_stream *stream)
{
    struct window *next = NULL;

    for (uint32_t i = 0; i < stream->n_windows; i++) {
        struct window *window = &stream->windows[i];

        if (window->state == LOADING && window->next_tensor < window->n_tensors &&
            (!next || window->urgent || (!next->urgent && window->serial < next->serial)))
            next = window;
    }
    return next;
}

/* Sends for chunks, as many as there is room for. */
static void read_on(struct sl_weight_stream *stream)
{
    struct sl_weight_reader *reader = stream->params.reader;
    struct window *window;
    uint32_t n_begun = 0;

    while ((window = next_to_read(stream))) {
        struct sl_weight_chunk chunk = {.tensor = &window->tensors[window->next_tensor],
                                        .offset_bytes = window->next_offset_bytes,
                                        .owner = window,
                                        .serial = window->serial};

        if (!sl_weight_chunks_begin(&stream->chunks, &chunk, window->urgent))
            break;
        n_begun++;
        window->next_offset_bytes += chunk.size_bytes;
        if (window->next_offset_bytes == chunk.tensor->info.size_bytes) {
            window->next_tensor++;
            window->next_offset_bytes = 0;
        }
    }
    if (n_begun > 0)
        reader->ops->start(reader);
}

/* A chunk of the window's present load has come, converted or failed. */
static void took_chunk(struct sl_weight_stream *stream, struct window *window,
                       const struct sl_weight_chunk *chunk, int rc, const struct sl_err *err)
{
    const uint32_t tensor_index = (uint32_t)(chunk->tensor - window->tensors);

    if (rc == -SL_ECORRUPT && window->reread != tensor_index) {
        stream->counters.n_rereads++;
        sl_weight_chunks_drop(&stream->chunks, window);
        window->serial = ++stream->serial;
        window->reread = window->next_tensor = tensor_index;
        window->next_offset_bytes = 0;
    } else if (rc < 0) {
        fail(stream, window, err);
    } else if (tensor_index + 1 == window->n_tensors &&
               chunk->offset_bytes + chunk->size_bytes == chunk->tensor->info.size_bytes) {
        window->state = READY;
    }
}

/* Takes in the oldest chunk. Returns false if it has not landed yet, or there is none. */
static bool take_chunk(struct sl_weight_stream *stream, bool wait)
{
    struct sl_weight_chunk chunk;
    struct window *window;
    struct sl_err err = {0};
    uint64_t start_ns;
    int rc = sl_weight_chunks_take(&stream->chunks, wait, &chunk, &err);

    if (rc == 0)
        return false;
    window = &stream->windows[(const struct window *)chunk.owner - stream->windows];
    if (chunk.serial != window->serial)
        return true;
    if (rc > 0) {
        start_ns = sl_clock_ns();
        rc = sl_weight_chunks_convert(&stream->chunks, &err);
        stream->counters.pack_ns += sl_clock_ns() - start_ns;
    }
    took_chunk(stream, window, &chunk, rc, &err);
    return true;
}

/* Takes in what has landed and reads on; with `wait`, waits for a chunk at least, if there is one.
 * Returns false if there was nothing to take in. */
static bool progress(struct sl_weight_stream *stream, bool wait)
{
    struct sl_pool *pool = stream->params.pool;
    enum sl_phase phase;
    bool took;

    read_on(stream);
    phase = sl_pool_phase(pool, wait ? SL_PHASE_DRIVE : SL_PHASE_REPACK);
    took = take_chunk(stream, wait);
    sl_pool_phase(pool, SL_PHASE_REPACK);
    if (took) {
        do
            read_on(stream);
        while (take_chunk(stream, false));
    }
    sl_pool_phase(pool, phase);
    return took;
}

void sl_weight_stream_background(struct sl_weight_stream *stream)
{
    if (stream->chunks.n_out > 0 || next_to_read(stream))
        progress(stream, false);
}

void sl_weight_stream_stop(struct sl_weight_stream *stream)
{
    for (uint32_t i = 0; i < stream->n_windows; i++) {
        sl_weight_chunks_drop(&stream->chunks, &stream->windows[i]);
        stream->windows[i].serial = ++stream->serial;
        stream->windows[i].state = EMPTY;
        stream->windows[i].layer_index = NO_LAYER;
    }
    while (take_chunk(stream, true))
        ;
}

/* ---- which layer is in which window ------------------------------------------------------------
 */

static struct window *find(struct sl_weight_stream *stream, uint32_t layer_index)
{
    for (uint32_t i = 0; i < stream->n_windows; i++)
        if (stream->windows[i].layer_index == layer_index)
            return &stream->windows[i];
    return NULL;
}

/* How many layers later than `from` the layer's turn comes, if it is not its turn now. */
static uint32_t turns_until(const struct sl_weight_stream *stream, uint32_t from,
                            uint32_t layer_index)
{
    const uint32_t n = stream->params.n_layers;

    return (layer_index + n - from) % n;
}

/* The window to read another layer into: an empty one, or the one whose layer's turn comes last. */
static struct window *find_room(struct sl_weight_stream *stream, uint32_t from)
{
    struct window *best = NULL;

    for (uint32_t i = 0; i < stream->n_windows; i++) {
        struct window *window = &stream->windows[i];

        if (window->in_use)
            continue;
        if (window->layer_index == NO_LAYER || window->state == FAILED)
            return window;
        if (!best || turns_until(stream, from, window->layer_index) >
                         turns_until(stream, from, best->layer_index))
            best = window;
    }
    return best;
}

/* Begins to read the next layers that stream, from `from` on, as many as there are windows for that
 * have nothing better. */
static void read_ahead(struct sl_weight_stream *stream, uint32_t from)
{
    const uint32_t n = stream->params.n_layers;
    uint32_t n_wanted = 0;

    for (uint32_t turn = 0; turn < n && n_wanted < stream->n_windows; turn++) {
        const uint32_t layer_index = (from + turn) % n;
        struct window *room;

        if (!stream->streams[layer_index])
            continue;
        n_wanted++;
        if (find(stream, layer_index))
            continue;
        room = find_room(stream, from);
        if (!room || (room->layer_index != NO_LAYER && room->state != FAILED &&
                      turns_until(stream, from, room->layer_index) <= turn))
            break;
        begin_load(stream, room, layer_index);
    }
    read_on(stream);
}

/* Somebody waits for the window. */
static void hurry(struct sl_weight_stream *stream, struct window *window)
{
    window->urgent = true;
    sl_weight_chunks_hurry(&stream->chunks, window);
}

/* Waits until the window is no longer LOADING. */
static void wait_for(struct sl_weight_stream *stream, struct window *window)
{
    struct sl_err err;

    while (window->state == LOADING) {
        if (progress(stream, true))
            continue;
        /* Nothing is under way and nothing can be begun: late drives have all chunks. */
        sl_err_set(&err, -ETIMEDOUT,
                   "no room is left to read dense weights into: drives that did not answer may "
                   "still write to it");
        fail(stream, window, &err);
    }
}

int sl_weight_stream_acquire(struct sl_weight_stream *stream, uint32_t layer_index,
                             struct sl_err *err)
{
    struct window *window = find(stream, layer_index);

    stream->counters.n_acquired++;
    stream->counters.n_ready += window && window->state == READY;
    if (!window)
        window = find_room(stream, layer_index);
    if (window->layer_index != layer_index || window->state == FAILED)
        begin_load(stream, window, layer_index);
    sl_assert(!window->in_use);
    window->in_use = true;
    hurry(stream, window);
    read_ahead(stream, layer_index);
    wait_for(stream, window);
    if (window->state == READY)
        return 0;
    window->in_use = window->urgent = false;
    if (err)
        *err = window->failure;
    return window->failure.code;
}

void sl_weight_stream_release(struct sl_weight_stream *stream, uint32_t layer_index)
{
    struct window *window = find(stream, layer_index);

    sl_assert(window && window->in_use);
    window->in_use = window->urgent = false;
    read_ahead(stream, (layer_index + 1) % stream->params.n_layers);
}
