/* Owns a ring of buffers: reads are queued at its head, and checksums are computed at its tail, in
 * the same order.
 *
 *     items ──cut──► pieces:  [summed] tail ► [landed] [landed] [in flight] ... ◄ head */
#include "storage/pack/store_verify.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/base/arena.h"
#include "core/base/assert.h"
#include "core/base/size.h"
#include "storage/io/checksum.h"
#include "storage/io/reader.h"
#include "storage/store/catalog_read.h"
#include "storage/store/store_copies.h"
#include "storage/pack/store_identity.h"

#define PIECE_BYTES (UINT64_C(4) << 20)
#define PIECES_MAX 16u
#define READS_IN_FLIGHT_MAX 64u

struct piece {
    struct sl_read read;
    struct sl_store_item item;
    bool first, last; /* of its item */
    bool landed;
};

/* The place of the next piece to be read. */
struct cursor {
    struct sl_store_item item;
    struct sl_extent extents[SL_EXPERT_PARTS_MAX];
    uint32_t n_extents, extent_index;
    uint64_t extent_bytes;                               /* done of that extent */
    uint32_t tensor_index, expert_number, matrix_number; /* of the next item */
};

struct verifier {
    const struct sl_store *store;
    const struct sl_verify_options *o;
    struct sl_io *io;
    struct sl_reader *reader;
    struct sl_checksum_stream *stream;
    struct sl_arena arena; /* in huge pages, which reads go to and sums run over faster */
    uint8_t *buffers;      /* (PIECES_MAX, PIECE_BYTES) */
    struct piece pieces[PIECES_MAX];
    uint64_t head, tail; /* counts of pieces queued and summed */
    struct cursor cursor;
    bool item_failed;    /* damage of the item being summed was reported */
    uint64_t left_bytes; /* of it, without the zeros behind it */
    bool zeros_bad;      /* these bytes are not all zero */
    uint64_t total_bytes;
    struct sl_verify_result result;
};

/* Returns the item's bytes, not counting the zeros behind it up to the next block. */
static uint64_t bytes_of(const struct sl_store *store, const struct sl_store_item *item)
{
    if (item->kind == SL_STORE_TENSOR)
        return sl_store_tensor(store, item->index)->extent.size_bytes;
    return item->kind == SL_STORE_RECORD
               ? sl_packed_expert_stored_bytes(sl_store_expert(store, item->key))
               : sl_expert_matrix_bytes(&sl_store_model(store)->shape, item->matrix);
}

static uint64_t checksum_of(const struct sl_store *store, const struct sl_store_item *item)
{
    if (item->kind == SL_STORE_TENSOR)
        return sl_store_tensor(store, item->index)->checksum;
    return item->kind == SL_STORE_RECORD
               ? sl_store_expert(store, item->key)->stored_checksum
               : sl_store_expert(store, item->key)->checksums[item->matrix];
}

/* Gives the item's extents in whole blocks, since the rest of the last block must be zeros and
 * belongs to nothing else. */
static uint32_t extents_of(const struct sl_store *store, const struct sl_store_item *item,
                           struct sl_extent extents[SL_EXPERT_PARTS_MAX])
{
    uint32_t n = 1;

    if (item->kind == SL_STORE_MATRIX)
        n = sl_packed_expert_matrix(sl_store_expert(store, item->key),
                                    &sl_store_model(store)->shape, item->matrix, extents);
    else if (item->kind == SL_STORE_RECORD) {
        const struct sl_packed_expert *expert = sl_store_expert(store, item->key);

        memcpy(extents, expert->parts, expert->n_parts * sizeof(*extents));
        n = expert->n_parts;
    } else {
        extents[0] = sl_store_tensor(store, item->index)->extent;
    }
    extents[n - 1].size_bytes = sl_round_up(extents[n - 1].size_bytes, SL_BLOCK_BYTES);
    return n;
}

/* Reports damage, such as "layer 3, expert 17, w2: ", followed by the error. */
static void report(struct verifier *v, const struct sl_store_item *item, const char *error)
{
    const struct sl_expert_shape *shape = &sl_store_model(v->store)->shape;
    char message[SL_ERR_MESSAGE_BYTES + SL_STORE_NAME_BYTES], text[SL_EXPERT_TEXT_BYTES];

    if (item->kind == SL_STORE_COPIED_FILE || item->kind == SL_STORE_COPY ||
        item->kind == SL_STORE_TAIL)
        snprintf(message, sizeof(message), "%s", error);
    else if (item->kind == SL_STORE_TENSOR)
        snprintf(message, sizeof(message), "tensor %s: %s",
                 sl_store_tensor(v->store, item->index)->name, error);
    else if (item->kind == SL_STORE_RECORD)
        snprintf(message, sizeof(message), "%s: %s", sl_expert_format(shape, item->key, text),
                 error);
    else
        snprintf(message, sizeof(message), "%s, %s: %s", sl_expert_format(shape, item->key, text),
                 sl_expert_matrix_name(item->matrix), error);
    v->result.n_bad++;
    v->o->on_bad(v->o->bad_context, item, message);
}

/* ---- small files and ends of files ------------------------------------------------------------
 */

static int verify_copied_file(struct verifier *v, uint32_t index, struct sl_err *err)
{
    const struct sl_store_item item = {.kind = SL_STORE_COPIED_FILE, .index = index};
    struct sl_err found = {0};
    int rc = sl_copied_file_check(v->store, index, &found);

    v->result.n_items++;
    if (rc == -ENOMEM)
        return sl_err_set(err, rc, "%s", found.message);
    if (rc < 0)
        report(v, &item, found.message);
    return 0;
}

/* Checks that a copy of the catalog (catalog.mdb, or the one beside a data file) has the same
 * entries as the sealed one. */
static int verify_copy(struct verifier *v, uint32_t index, const struct sl_catalog_entries *sealed,
                       struct sl_err *err)
{
    const struct sl_store_item item = {.kind = SL_STORE_COPY, .index = index};
    char *path = index == 0 ? sl_store_path(sl_store_folder(v->store), SL_STORE_CATALOG_FILE)
                            : sl_store_copy_path(sl_store_file_path(v->store, index), index);
    struct sl_catalog_entries copy = {0};
    struct sl_err found = {0};
    int rc = -ENOMEM;

    v->result.n_items++;
    if (path)
        rc = index == 0 ? sl_catalog_read(&copy, path, &found)
                        : sl_catalog_entries_read(&copy, path, &found);
    if (rc == -ENOMEM)
        sl_err_set(err, rc, "%s: out of memory", sl_store_folder(v->store));
    else if (rc < 0)
        report(v, &item, found.message);
    else if (!sl_catalog_entries_same(&copy, sealed)) {
        sl_err_set(&found, -SL_ECORRUPT, "%s: does not say what %s/%s says", path,
                   sl_store_folder(v->store), SL_STORE_SEALED_FILE);
        report(v, &item, found.message);
    }
    sl_catalog_entries_fini(&copy);
    free(path);
    return rc == -ENOMEM ? rc : 0;
}

static int verify_copies(struct verifier *v, struct sl_err *err)
{
    struct sl_catalog_entries sealed;
    int rc = sl_store_sealed_read(&sealed, sl_store_folder(v->store), err);

    if (rc == 0)
        rc = verify_copy(v, 0, &sealed, err);
    for (uint32_t i = 2; i < sl_store_file_count(v->store) && rc == 0; i++)
        rc = verify_copy(v, i, &sealed, err);
    sl_catalog_entries_fini(&sealed);
    return rc;
}

/* Checks that a file does not end behind the store's data. One that is too short fails when its
 * data are read. */
static void verify_tail(struct verifier *v, uint32_t index)
{
    const struct sl_store_item item = {.kind = SL_STORE_TAIL, .index = index};
    const char *path = sl_store_file_path(v->store, index);
    const uint64_t end_bytes = sl_store_file_end_bytes(v->store, index);
    struct sl_err found = {0};
    struct stat status;

    if (stat(path, &status) < 0 || (uint64_t)status.st_size <= end_bytes)
        return;
    v->result.n_items++;
    sl_err_set(&found, -SL_ECORRUPT,
               "%s: the file has %llu bytes, but the store's data end at %llu", path,
               (unsigned long long)status.st_size, (unsigned long long)end_bytes);
    report(v, &item, found.message);
}

static int verify_others(struct verifier *v, struct sl_err *err)
{
    int rc = verify_copies(v, err);

    for (uint32_t i = 0; i < sl_store_copied_file_count(v->store) && rc == 0; i++)
        rc = verify_copied_file(v, i, err);
    for (uint32_t i = 0; i < sl_store_file_count(v->store) && rc == 0; i++)
        verify_tail(v, i);
    return rc;
}

/* ---- pieces -----------------------------------------------------------------------------------
 */

/* Moves on within the experts: to the next matrix in the order of the record, or to the next
 * compressed record as a whole. */
static void next_of_expert(struct verifier *v)
{
    struct cursor *c = &v->cursor;

    c->item = (struct sl_store_item){
        .kind = SL_STORE_MATRIX,
        .key = sl_store_expert_at(&sl_store_model(v->store)->shape, c->expert_number),
        .matrix = sl_expert_matrix_order[c->matrix_number]};
    if (sl_store_expert(v->store, c->item.key)->compressed)
        c->item.kind = SL_STORE_RECORD;
    else
        c->matrix_number = (c->matrix_number + 1) % SL_EXPERT_MATRICES;
    c->expert_number += c->matrix_number == 0;
}

/* Moves on to the next item: tensors first, then experts. */
static bool next_item(struct verifier *v)
{
    const struct sl_store_state *state = sl_store_state(v->store);
    struct cursor *c = &v->cursor;

    if (c->tensor_index < state->n_tensors_done) {
        c->item = (struct sl_store_item){.kind = SL_STORE_TENSOR, .index = c->tensor_index++};
    } else if (c->expert_number < state->n_experts_done) {
        next_of_expert(v);
    } else {
        return false;
    }
    c->n_extents = extents_of(v->store, &c->item, c->extents);
    c->extent_index = 0;
    c->extent_bytes = 0;
    return true;
}

/* Queues the next piece; returns false if there is none. */
static bool queue_piece(struct verifier *v)
{
    struct piece *piece = &v->pieces[v->head % PIECES_MAX];
    struct cursor *c = &v->cursor;
    const struct sl_extent *extent;
    uint64_t left_bytes;

    if (c->extent_index == c->n_extents && !next_item(v))
        return false;
    extent = &c->extents[c->extent_index];
    left_bytes = extent->size_bytes - c->extent_bytes;
    *piece = (struct piece){
        .read = {.offset_bytes = extent->offset_bytes + c->extent_bytes,
                 .size_bytes = left_bytes < PIECE_BYTES ? left_bytes : PIECE_BYTES,
                 .dst = v->buffers + v->head % PIECES_MAX * PIECE_BYTES,
                 .owner = piece,
                 .file_index = extent->file_index,
                 .read_class = SL_READ_SCRUB},
        .item = c->item,
        .first = c->extent_index == 0 && c->extent_bytes == 0,
    };
    /* Extents start at blocks: a piece and its buffer are aligned alike. */
    sl_assert(piece->read.offset_bytes % SL_BLOCK_BYTES == 0);
    c->extent_bytes += piece->read.size_bytes;
    if (c->extent_bytes == extent->size_bytes) {
        c->extent_index++;
        c->extent_bytes = 0;
    }
    piece->last = c->extent_index == c->n_extents;
    sl_reader_queue(v->reader, &piece->read);
    v->head++;
    return true;
}

static void compare(struct verifier *v, const struct sl_store_item *item)
{
    uint64_t found = sl_checksum_stream_value(v->stream), expected = checksum_of(v->store, item);
    struct sl_extent extents[SL_EXPERT_PARTS_MAX];
    struct sl_err err;

    if (found == expected && !v->zeros_bad)
        return;
    extents_of(v->store, item, extents);
    if (found == expected)
        sl_err_set(&err, -SL_ECORRUPT,
                   "%s: from offset %llu on the checksum is right, but what follows up to the next "
                   "block is not zero",
                   sl_store_file_path(v->store, extents[0].file_index),
                   (unsigned long long)extents[0].offset_bytes);
    else
        sl_err_set(&err, -SL_ECORRUPT,
                   "%s: from offset %llu on the checksum is %016llx, expected %016llx",
                   sl_store_file_path(v->store, extents[0].file_index),
                   (unsigned long long)extents[0].offset_bytes, (unsigned long long)found,
                   (unsigned long long)expected);
    report(v, item, err.message);
}

/* Adds the item's bytes to the checksum; those behind its end must be zeros. */
static void sum_bytes(struct verifier *v, const struct piece *piece)
{
    const uint8_t *bytes = piece->read.dst;
    uint64_t n = piece->read.size_bytes < v->left_bytes ? piece->read.size_bytes : v->left_bytes;

    sl_checksum_stream_add(v->stream, bytes, n);
    v->left_bytes -= n;
    for (uint64_t i = n; i < piece->read.size_bytes; i++)
        v->zeros_bad |= bytes[i] != 0;
}

/* Adds the piece at the tail, which has landed, to the checksum. */
static void sum_piece(struct verifier *v)
{
    const struct piece *piece = &v->pieces[v->tail++ % PIECES_MAX];
    struct sl_err err;

    if (piece->first) {
        sl_checksum_stream_reset(v->stream);
        v->item_failed = false;
        v->left_bytes = bytes_of(v->store, &piece->item);
        v->zeros_bad = false;
        v->result.n_items++;
    }
    if (piece->read.rc < 0 && !v->item_failed) {
        v->item_failed = true;
        sl_reader_explain(v->reader, &piece->read, &err);
        report(v, &piece->item, err.message);
    }
    if (!v->item_failed)
        sum_bytes(v, piece);
    if (piece->last && !v->item_failed)
        compare(v, &piece->item);
    v->result.read_bytes += piece->read.size_bytes;
    if (v->o->on_progress)
        v->o->on_progress(v->o->progress_context, v->result.read_bytes, v->total_bytes);
}

/* A drive that does not answer ends the work, since its piece's buffer can never be used again. */
static int reap_piece(struct verifier *v, struct sl_err *err)
{
    struct sl_read *read = sl_reader_reap(v->reader, SL_READS_OF_EXPERTS, true);

    sl_assert(read); /* there is one in flight */
    if (read->late)
        return sl_reader_explain(v->reader, read, err);
    ((struct piece *)read->owner)->landed = true;
    return 0;
}

static int verify_data(struct verifier *v, struct sl_err *err)
{
    bool more = true, stopped = false;
    int rc;

    while (more || v->tail < v->head) {
        stopped = stopped || (v->o->stop && atomic_load(v->o->stop));
        more = more && !stopped;
        while (more && v->head - v->tail < PIECES_MAX)
            more = queue_piece(v);
        sl_reader_start(v->reader);
        if (v->tail == v->head)
            break;
        while (!v->pieces[v->tail % PIECES_MAX].landed) {
            rc = reap_piece(v, err);
            if (rc < 0)
                return rc;
        }
        sum_piece(v);
    }
    return stopped ? sl_err_set(err, -ECANCELED, "%s: stopped", sl_store_folder(v->store)) : 0;
}

/* ---- all of it --------------------------------------------------------------------------------
 */

/* A store in which nothing is packed yet may have no files, and nothing is read from it. */
static int open_files(struct verifier *v, struct sl_err *err)
{
    const struct sl_reader_options options = {.depth = READS_IN_FLIGHT_MAX};
    const char *paths[SL_STORE_FILES_MAX];
    int rc;

    for (uint32_t i = 0; i < sl_store_file_count(v->store); i++)
        paths[i] = sl_store_file_path(v->store, i);
    rc = v->o->open_io(&v->io, paths, sl_store_file_count(v->store), READS_IN_FLIGHT_MAX, err);
    if (rc < 0)
        return rc;
    v->stream = sl_checksum_stream_create();
    if (!v->stream)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", sl_store_folder(v->store));
    rc = sl_arena_map(&v->arena, PIECES_MAX * PIECE_BYTES, "buffers to verify in", err);
    if (rc < 0)
        return rc;
    v->buffers = sl_arena_take(&v->arena, PIECES_MAX, PIECE_BYTES);
    return sl_reader_create(&v->reader, v->io, &options, err);
}

static int verify(struct verifier *v, struct sl_err *err)
{
    const struct sl_store_state *state = sl_store_state(v->store);
    int rc;

    if (state->n_tensors_done == 0 && state->n_experts_done == 0)
        return 0;
    if (state->complete && (rc = verify_others(v, err)) < 0)
        return rc;
    for (uint32_t i = 0; i < sl_store_file_count(v->store); i++)
        v->total_bytes += sl_store_file(v->store, i)->size_bytes;
    v->total_bytes -= sl_store_saved_bytes(v->store);
    rc = open_files(v, err);
    return rc == 0 ? verify_data(v, err) : rc;
}

int sl_store_verify(const struct sl_store *store, const struct sl_verify_options *options,
                    struct sl_verify_result *ret_result, struct sl_err *err)
{
    struct verifier *v = calloc(1, sizeof(*v));
    bool drained = true;
    int rc;

    *ret_result = (struct sl_verify_result){0};
    if (!v)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", sl_store_folder(store));
    v->store = store;
    v->o = options;
    rc = verify(v, err);
    if (v->reader) {
        while (sl_reader_reap(v->reader, SL_READS_OF_EXPERTS, true))
            ; /* if it ended early */
        drained = sl_reader_drain(v->reader);
    }
    sl_reader_destroy(v->reader);
    if (v->io)
        v->io->ops->close(v->io);
    sl_checksum_stream_destroy(v->stream);
    if (drained)
        sl_arena_fini(&v->arena);
    *ret_result = v->result;
    free(v);
    return rc;
}
