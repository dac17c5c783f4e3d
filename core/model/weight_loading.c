#include "core/model/weight_loading.h"

#include "core/base/assert.h"
#include "core/base/size.h"
#include "core/kernels/r16.h"
#include "core/model/phase.h"
#include "core/model/weight_chunks.h"

/* Chunks, large enough for a job of many threads. */
#define CHUNK_BYTES (UINT64_C(4) << 20)

/* Each thread touches so much of its share before the drives are looked at again. */
#define TOUCH_BYTES SL_HUGE_PAGE_BYTES

struct sl_weight_list {
    struct sl_tensor_load *tensors; /* (n_max) */
    uint32_t n_tensors, n_max;
    struct sl_weight_chunks chunks;

    struct sl_weight_loading loading; /* while it is loaded */
    uint32_t next_tensor;             /* the chunk to be read next */
    uint64_t next_offset_bytes;
    uint32_t touch_tensor; /* the memory to be touched next: of this tensor, */
    uint32_t touch_part;   /* TOUCH_BYTES of each thread's share */
    uint64_t loaded_bytes, total_bytes;
};

/* ---- sizes -------------------------------------------------------------------------------------
 */

void sl_weight_loading_measure(struct sl_weight_loading_sizes *sizes,
                               const struct sl_tensor_load *tensor)
{
    const uint64_t chunk_bytes = sl_tensor_load_chunk_bytes(tensor, CHUNK_BYTES);

    sizes->n_tensors++;
    sizes->total_bytes += tensor->info.size_bytes;
    if (chunk_bytes > sizes->chunk_bytes)
        sizes->chunk_bytes = chunk_bytes;
}

/* There are as many chunks as fit, and no more than a small model fills, but two at least: one is
 * converted while the other is read. Where nothing is loaded there are none. */
static uint32_t chunk_count(const struct sl_weight_loading_sizes *sizes)
{
    uint64_t fit, filled, n;

    if (sizes->chunk_bytes == 0)
        return 0;
    fit = SL_WEIGHT_LOADING_BYTES / sl_weight_chunk_memory_bytes(sizes->chunk_bytes);
    filled = sizes->total_bytes / sizes->chunk_bytes;
    n = fit < filled ? fit : filled;
    n = n < SL_WEIGHT_LOADING_SLOTS ? n : SL_WEIGHT_LOADING_SLOTS;
    return n < 2 ? 2 : (uint32_t)n;
}

struct sl_weight_list *sl_weight_list_carve(struct sl_arena *arena,
                                            const struct sl_weight_loading_sizes *sizes)
{
    struct sl_weight_list *list = sl_arena_take(arena, 1, sizeof(*list));
    struct sl_weight_list made = {.n_max = sizes->n_tensors};

    made.tensors = sl_arena_take(arena, made.n_max, sizeof(*made.tensors));
    sl_weight_chunks_carve(&made.chunks, arena, chunk_count(sizes), sizes->chunk_bytes);
    if (list)
        *list = made;
    return list;
}

uint64_t sl_weight_loading_bytes(const struct sl_weight_loading_sizes *sizes)
{
    struct sl_arena measure;

    sl_arena_init_measure(&measure);
    sl_weight_list_carve(&measure, sizes);
    return sl_arena_mapped_bytes(measure.used_bytes);
}

int sl_weight_list_add(void *context, const struct sl_tensor_load *tensor, struct sl_err *err)
{
    struct sl_weight_list *list = context;

    (void)err;
    sl_assert(list->n_tensors < list->n_max); /* it was measured */
    list->tensors[list->n_tensors++] = *tensor;
    list->total_bytes += tensor->info.size_bytes;
    return 0;
}

/* ---- touching ----------------------------------------------------------------------------------
 * The system clears pages as they are touched, which takes about as long as packing what goes
 * there. Linears are touched thread by thread, each its own share, so that this lies on its node.
 */

/* Touches the next few MiB of one tensor. Returns false if there is no more of it. */
static bool touch_part(struct sl_weight_list *list, const struct sl_tensor_load *tensor)
{
    const bool tiles = tensor->form == SL_TENSOR_TILES;
    const uint64_t item_bytes = tiles ? sl_matrix_tile_bytes(&tensor->matrix) : SL_HUGE_PAGE_BYTES;
    const uint64_t n_items = tiles ? sl_r16_tile_count(tensor->matrix.rows)
                                   : tensor->info.size_bytes / SL_HUGE_PAGE_BYTES;

    return (tiles || tensor->form == SL_TENSOR_BYTES) &&
           sl_pool_first_touch_part(list->loading.pool, tensor->dst, n_items, item_bytes,
                                    list->touch_part++ * TOUCH_BYTES, TOUCH_BYTES);
}

/* Touches the next few MiB of the tensors before `end`. Returns false if all of them are. */
static bool touch_on(struct sl_weight_list *list, uint32_t end)
{
    while (list->touch_tensor < end) {
        if (touch_part(list, &list->tensors[list->touch_tensor]))
            return true;
        list->touch_tensor++;
        list->touch_part = 0;
    }
    return false;
}

/* ---- reading and converting --------------------------------------------------------------------
 */

/* Sends for chunks, as many as there is room for, and lets the drives go on. */
static void read_on(struct sl_weight_list *list)
{
    struct sl_weight_reader *reader = list->loading.reader;

    while (list->next_tensor < list->n_tensors) {
        struct sl_weight_chunk chunk = {.tensor = &list->tensors[list->next_tensor],
                                        .offset_bytes = list->next_offset_bytes};

        if (!sl_weight_chunks_begin(&list->chunks, &chunk, true))
            break;
        list->next_offset_bytes += chunk.size_bytes;
        if (list->next_offset_bytes == chunk.tensor->info.size_bytes) {
            list->next_tensor++;
            list->next_offset_bytes = 0;
        }
    }
    reader->ops->start(reader);
}

static int convert(struct sl_weight_list *list, const struct sl_weight_chunk *chunk,
                   struct sl_err *err)
{
    int rc;

    while (touch_on(list, (uint32_t)(chunk->tensor - list->tensors) + 1))
        list->loading.reader->ops->start(list->loading.reader);
    rc = sl_weight_chunks_convert(&list->chunks, err);
    if (rc < 0)
        return rc;
    list->loaded_bytes += chunk->size_bytes;
    if (list->loading.on_progress)
        list->loading.on_progress(list->loading.on_progress_context, list->loaded_bytes,
                                  list->total_bytes);
    return 0;
}

/* For while nothing has landed. Returns false if there is nothing to do. */
static bool do_other_work(struct sl_weight_list *list)
{
    return touch_on(list, list->n_tensors) ||
           (list->loading.on_wait && list->loading.on_wait(list->loading.on_wait_context));
}

/* Ends all reads that are out. */
static void stop(struct sl_weight_list *list)
{
    struct sl_weight_chunk chunk;

    sl_weight_chunks_drop(&list->chunks, NULL);
    while (sl_weight_chunks_take(&list->chunks, true, &chunk, NULL) != 0)
        ;
}

int sl_weight_list_load(struct sl_weight_list *list, const struct sl_weight_loading *loading,
                        struct sl_err *err)
{
    struct sl_weight_chunk chunk;
    int rc = 0;

    list->loading = *loading;
    list->chunks.source = loading->source;
    list->chunks.reader = loading->reader;
    list->chunks.pool = loading->pool;
    while (rc == 0 && list->loaded_bytes < list->total_bytes) {
        read_on(list);
        rc = sl_weight_chunks_take(&list->chunks, false, &chunk, err);
        if (rc == 0 && do_other_work(list))
            continue;
        if (rc == 0)
            rc = sl_weight_chunks_take(&list->chunks, true, &chunk, err);
        if (rc > 0)
            rc = convert(list, &chunk, err);
    }
    stop(list);
    return rc;
}
