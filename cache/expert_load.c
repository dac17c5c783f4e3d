/* Owns loads and staging buffers: plans an expert's reads, and follows them to their end. */
#include "cache/expert_load.h"

#include <errno.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/size.h"
#include "core/model/expert_pack.h"
#include "core/model/phase.h"

/* An extent that begins and ends inside blocks takes up to one block more than its own size rounded
 * up; merging only makes it less. */
uint64_t sl_expert_load_checkpoint_bytes(const struct sl_expert_shape *shape,
                                         enum sl_dtype scale_dtype)
{
    uint64_t bytes = 0;

    for (int i = 0; i < SL_EXPERT_MATRICES; i++) {
        bytes += sl_round_up(sl_expert_codes_bytes(shape, i), SL_BLOCK_BYTES) + SL_BLOCK_BYTES;
        bytes += sl_round_up(sl_expert_scales_bytes(shape, i, scale_dtype), SL_BLOCK_BYTES) +
                 SL_BLOCK_BYTES;
    }
    return bytes;
}

uint64_t sl_expert_load_staging_bytes(const struct sl_expert_map *store)
{
    const struct sl_expert_shape *shape = sl_expert_map_shape(store);

    if (sl_expert_map_is_packed(store))
        return sl_expert_map_is_compressed(store) ? sl_packed_expert_bytes(shape) : 0;
    return sl_expert_load_checkpoint_bytes(shape, sl_expert_map_scale_dtype(store));
}

void sl_expert_loader_init(struct sl_expert_loader *loader, const struct sl_expert_map *store,
                           struct sl_reader *reader, struct sl_pool *pool, uint32_t inflight_max,
                           enum sl_verify verify)
{
    sl_assert(inflight_max >= 1);
    *loader = (struct sl_expert_loader){
        .store = store,
        .reader = reader,
        .pool = pool,
        .staging_bytes = sl_expert_load_staging_bytes(store),
        .inflight_max = inflight_max,
    };
    sl_expert_preparer_init(&loader->preparer, store, pool, verify);
}

void sl_expert_loader_carve(struct sl_expert_loader *loader, struct sl_arena *arena)
{
    sl_expert_preparer_carve(&loader->preparer, arena);
    loader->staging =
        sl_arena_take_aligned(arena, loader->inflight_max, loader->staging_bytes, SL_BLOCK_BYTES);
    loader->loads = sl_arena_take(arena, loader->inflight_max, sizeof(*loader->loads));
}

static void hold_staging(struct sl_expert_loader *loader, struct sl_expert_load *load)
{
    if (!loader->holds_staging || load->staging_held)
        return;
    loader->holds_staging =
        sl_reader_hold(loader->reader, (uint32_t)(load - loader->loads), true) == 0;
    load->staging_held = loader->holds_staging;
}

int sl_expert_loader_attach(struct sl_expert_loader *loader)
{
    int rc = sl_reader_attach(loader->reader, loader->staging,
                              loader->inflight_max * loader->staging_bytes, loader->staging_bytes);

    if (rc < 0)
        return rc;
    loader->holds_staging = true;
    hold_staging(loader, loader->loads);
    return loader->holds_staging ? 0 : -ENOMEM;
}

/* Returns where an extent's first byte lands. The store widens its reads to whole blocks, and the
 * last block may reach past the end of the file: so a read asks for no more than its last extent.
 */
static const uint8_t *place_extent(struct sl_expert_load *load,
                                   const struct sl_extent *aligned_runs,
                                   const struct sl_extent *extent)
{
    uint32_t i = 0;
    uint64_t size_bytes;

    while (aligned_runs[i].file_index != extent->file_index ||
           extent->offset_bytes < aligned_runs[i].offset_bytes ||
           extent->offset_bytes >= aligned_runs[i].offset_bytes + aligned_runs[i].size_bytes) {
        i++;
        sl_assert(i < load->n_reads);
    }
    size_bytes = extent->offset_bytes + extent->size_bytes - aligned_runs[i].offset_bytes;
    if (load->reads[i].size_bytes < size_bytes)
        load->reads[i].size_bytes = size_bytes;
    return load->reads[i].dst + (extent->offset_bytes - aligned_runs[i].offset_bytes);
}

static uint8_t *staging_of(const struct sl_expert_loader *loader, const struct sl_expert_load *load)
{
    return loader->staging + (size_t)(load - loader->loads) * loader->staging_bytes;
}

static void plan_reads(struct sl_expert_loader *loader, struct sl_expert_load *load)
{
    const struct sl_checkpoint_expert *record =
        sl_expert_map_find(loader->store, load->landing.key);
    uint8_t *staging = staging_of(loader, load);
    uint8_t *const staging_end = staging + loader->staging_bytes;
    struct sl_extent aligned_runs[SL_EXPERT_READS_MAX];

    sl_assert(record);
    load->n_reads = sl_checkpoint_expert_reads(record, aligned_runs);
    load->n_up_reads = 0; /* a checkpoint has the scales of all three first */
    for (uint32_t i = 0; i < load->n_reads; i++) {
        sl_assert(aligned_runs[i].size_bytes <= (size_t)(staging_end - staging));
        load->reads[i] = (struct sl_read){
            .offset_bytes = aligned_runs[i].offset_bytes,
            .dst = staging,
            .owner = load,
            .file_index = aligned_runs[i].file_index,
        };
        staging += aligned_runs[i].size_bytes;
    }
    for (int matrix = 0; matrix < SL_EXPERT_MATRICES; matrix++) {
        load->landing.codes[matrix] = place_extent(load, aligned_runs, &record->codes[matrix]);
        load->landing.scales[matrix] = place_extent(load, aligned_runs, &record->scales[matrix]);
        loader->wanted_bytes += record->codes[matrix].size_bytes;
        loader->wanted_bytes += record->scales[matrix].size_bytes;
    }
}

static void add_packed_read(struct sl_expert_load *load, const struct sl_extent *extent,
                            uint8_t *dst)
{
    load->reads[load->n_reads++] = (struct sl_read){
        .offset_bytes = extent->offset_bytes,
        .size_bytes = extent->size_bytes,
        .dst = dst,
        .owner = load,
        .file_index = extent->file_index,
    };
}

/* The parts of a record, one after the other: into the slot, or to where it is unpacked from. In
 * the slot w1 and w3 can be used before w2 is there, so the part that reaches into w2 is read in
 * two. */
static void plan_packed(struct sl_expert_loader *loader, struct sl_expert_load *load)
{
    const struct sl_packed_expert *packed =
        sl_expert_map_find_packed(loader->store, load->landing.key);
    uint64_t up_bytes =
        sl_expert_matrix_offset_bytes(sl_expert_map_shape(loader->store), SL_EXPERT_W2);
    uint64_t at_bytes = 0;
    uint8_t *dst;

    sl_assert(packed);
    if (packed->compressed)
        up_bytes = UINT64_MAX; /* it is unpacked when all of it is there */
    dst = packed->compressed ? staging_of(loader, load) : load->landing.tiles;
    load->n_reads = load->n_up_reads = 0;
    for (uint32_t i = 0; i < packed->n_parts; i++) {
        struct sl_extent part = packed->parts[i];

        if (at_bytes < up_bytes && up_bytes < at_bytes + part.size_bytes) {
            part.size_bytes = up_bytes - at_bytes;
            add_packed_read(load, &part, dst + at_bytes);
            at_bytes = up_bytes;
            part.offset_bytes += part.size_bytes;
            part.size_bytes = packed->parts[i].size_bytes - part.size_bytes;
        }
        if (at_bytes >= up_bytes && load->n_up_reads == 0)
            load->n_up_reads = load->n_reads;
        add_packed_read(load, &part, dst + at_bytes);
        at_bytes += part.size_bytes;
    }
    loader->wanted_bytes += at_bytes;
}

static void queue_reads(struct sl_expert_loader *loader, struct sl_expert_load *load)
{
    const uint32_t first = load->landing.up_ready ? load->n_up_reads : 0; /* it may be in use */

    load->failed = NULL;
    load->n_reads_left = load->n_reads - first;
    load->n_up_left = load->n_up_reads - first;
    for (uint32_t i = first; i < load->n_reads; i++) {
        load->reads[i].read_class = load->read_class;
        sl_reader_queue(loader->reader, &load->reads[i]);
    }
}

void sl_expert_loader_begin(struct sl_expert_loader *loader, struct sl_expert_key key,
                            uint32_t slot_index, uint8_t *tiles, enum sl_read_class read_class)
{
    struct sl_expert_load *load = loader->loads;

    sl_assert(!sl_expert_loader_is_full(loader));
    while (load->busy)
        load++;
    load->landing.key = key;
    load->slot_index = slot_index;
    load->landing.tiles = tiles;
    load->landing.staging = staging_of(loader, load);
    load->busy = true;
    load->read_class = read_class;
    load->reread = load->cancelled = load->landing.up_ready = false;
    loader->n_busy++;
    hold_staging(loader, load);
    if (sl_expert_map_is_packed(loader->store))
        plan_packed(loader, load);
    else
        plan_reads(loader, load);
    queue_reads(loader, load);
}

static struct sl_expert_load *load_into(struct sl_expert_loader *loader, uint32_t slot_index)
{
    struct sl_expert_load *load = loader->loads;

    while (!load->busy || load->quarantined || load->slot_index != slot_index)
        load++;
    return load;
}

bool sl_expert_loader_is_up_ready(struct sl_expert_loader *loader, uint32_t slot_index)
{
    return load_into(loader, slot_index)->landing.up_ready;
}

void sl_expert_loader_set_class(struct sl_expert_loader *loader, uint32_t slot_index,
                                enum sl_read_class read_class)
{
    struct sl_expert_load *load = load_into(loader, slot_index);

    load->read_class = read_class;
    for (uint32_t i = 0; i < load->n_reads; i++)
        sl_reader_set_class(loader->reader, &load->reads[i], read_class);
}

uint64_t sl_expert_loader_begun_bytes(struct sl_expert_loader *loader, uint32_t slot_index)
{
    const struct sl_expert_load *load = load_into(loader, slot_index);
    uint64_t begun_bytes = 0;

    for (uint32_t i = 0; i < load->n_reads; i++)
        begun_bytes += sl_read_begun_bytes(&load->reads[i]);
    return begun_bytes;
}

uint64_t sl_expert_loader_cancel(struct sl_expert_loader *loader, uint32_t slot_index)
{
    struct sl_expert_load *load = load_into(loader, slot_index);
    const uint64_t begun_bytes = sl_expert_loader_begun_bytes(loader, slot_index);

    sl_assert(!load->cancelled);
    load->cancelled = true;
    loader->n_cancelled++;
    for (uint32_t i = 0; i < load->n_reads; i++)
        sl_reader_cancel(loader->reader, &load->reads[i]);
    return begun_bytes;
}

/* All reads of a load are back. Returns false if it has been sent off again. */
static bool finish(struct sl_expert_loader *loader, struct sl_expert_load *load,
                   struct sl_expert_load_end *end)
{
    char text[SL_EXPERT_TEXT_BYTES];
    int matrix = 0;

    *end = (struct sl_expert_load_end){.slot_index = load->slot_index};
    if (load->cancelled) {
        end->rc = -ECANCELED;
        loader->n_cancelled--;
    } else if (load->failed) {
        end->rc = sl_reader_explain(loader->reader, load->failed, &end->err);
    } else {
        end->rc = sl_expert_prepare(&loader->preparer, &load->landing, &matrix);
        if (end->rc < 0 && !load->reread) {
            load->reread = true;
            loader->n_rereads++;
            queue_reads(loader, load);
            return false;
        }
        if (end->rc < 0)
            sl_expert_explain_corrupt(&loader->preparer, load->landing.key, matrix, &end->err);
    }
    if (end->rc < 0 && !load->cancelled)
        sl_err_prefix(
            &end->err, end->rc, "%s",
            sl_expert_format(sl_expert_map_shape(loader->store), load->landing.key, text));
    load->busy = load->quarantined = end->quarantined = load->quarantined_reads != 0;
    loader->n_busy -= !load->busy;
    loader->n_quarantined += load->quarantined;
    return true;
}

/* The drive has answered: a load that was quarantined is free again. */
static void let_go(struct sl_expert_loader *loader, struct sl_expert_load *load,
                   struct sl_expert_load_end *end)
{
    *end = (struct sl_expert_load_end){.slot_index = load->slot_index};
    end->rc =
        load->cancelled ? -ECANCELED : sl_reader_explain(loader->reader, load->failed, &end->err);
    load->busy = load->quarantined = false;
    loader->n_busy--;
    loader->n_quarantined--;
}

/* A read is back, or back again after it was late. Returns true if *end is to be reported. */
static bool take_read(struct sl_expert_loader *loader, struct sl_read *read,
                      struct sl_expert_load_end *end)
{
    struct sl_expert_load *load = read->owner;
    const uint32_t bit = UINT32_C(1) << (read - load->reads);

    if (load->quarantined_reads & bit) {
        load->quarantined_reads &= ~bit;
        if (!load->quarantined || load->quarantined_reads != 0)
            return false;
        let_go(loader, load, end);
        return true;
    }
    if (read->rc < 0 && !load->failed)
        load->failed = read;
    if (read->late)
        load->quarantined_reads |= bit;
    load->n_reads_left--;
    if (load->n_reads_left == 0)
        return finish(loader, load, end);
    if (read - load->reads >= load->n_up_reads || load->failed || load->cancelled ||
        --load->n_up_left > 0)
        return false;
    *end = (struct sl_expert_load_end){.slot_index = load->slot_index, .up_ready = true};
    return sl_expert_prepare_up(&loader->preparer, &load->landing);
}

static struct sl_read *reap_read(struct sl_expert_loader *loader, bool wait)
{
    struct sl_read *read;
    enum sl_phase phase;

    if (!wait)
        return sl_reader_reap(loader->reader, SL_READS_OF_EXPERTS, false);
    phase = sl_pool_phase(loader->pool, SL_PHASE_DRIVE);
    read = sl_reader_reap(loader->reader, SL_READS_OF_EXPERTS, true);
    sl_pool_phase(loader->pool, phase);
    return read;
}

bool sl_expert_loader_reap(struct sl_expert_loader *loader, bool wait,
                           struct sl_expert_load_end *ret_end)
{
    struct sl_read *read;

    while ((read = reap_read(loader, wait))) {
        if (take_read(loader, read, ret_end))
            return true;
    }
    return false;
}

int sl_expert_loader_explain_quarantined(const struct sl_expert_loader *loader, struct sl_err *err)
{
    const struct sl_expert_load *load = loader->loads;

    sl_assert(loader->n_quarantined > 0);
    while (!load->quarantined)
        load++;
    if (load->cancelled)
        sl_err_set(
            err, -ETIMEDOUT, "%s: its drive did not answer",
            sl_expert_map_file_path(
                loader->store, load->reads[__builtin_ctz(load->quarantined_reads)].file_index));
    else
        sl_reader_explain(loader->reader, load->failed, err);
    return sl_err_prefix(err, -ETIMEDOUT,
                         "no room is left to read into: drives that did not answer may still write "
                         "to that of %u experts",
                         loader->n_quarantined);
}
