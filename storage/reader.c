/* Owns the pieces in flight and what becomes of each.
 *
 *     queue ──► urgent or background list ──cut──► piece ──► batch ──submit──► back end
 *                                                    ▲                           │
 *                    the rest of a short read, retry └───────────────────────────┤
 *                                    reap ◄── finished list ◄── last piece back ─┘
 *
 * A read is in a list as long as bytes of it remain to be cut. The back end is filled up after each
 * look at its completions. */
#include "storage/reader.h"

#include <errno.h>
#include <stdlib.h>

#include "core/base/assert.h"
#include "core/base/clock.h"
#include "core/base/size.h"

#define NO_PIECE UINT32_MAX
#define COMPLETIONS_MAX 32u

/* A device that keeps saying "again" has failed. */
#define AGAIN_MAX 100u

struct piece {
    struct sl_read *read;
    uint64_t offset_bytes;  /* next byte to be read; aligned */
    uint64_t end_bytes;     /* aligned */
    uint64_t reached_bytes; /* what lies before it was delivered */
    uint32_t next_free;
    uint32_t n_again;
    bool failed_once;
};

struct sl_reader {
    struct sl_io *io;
    uint32_t piece_bytes;
    struct piece *pieces; /* io->reads_max */
    uint32_t first_free_piece;
    uint32_t n_out;           /* pieces at the back end, or in the batch */
    struct sl_io_read *batch; /* io->reads_max; what the next submit takes */
    uint32_t n_batch;
    struct sl_link urgent, background; /* reads with bytes left to cut */
    struct sl_link finished;           /* reads to be handed back */
    struct sl_reader_counters counters;
};

uint64_t sl_read_span_bytes(uint64_t offset_bytes, uint64_t size_bytes)
{
    return sl_round_up(offset_bytes + size_bytes, SL_IO_ALIGN_BYTES) -
           sl_round_down(offset_bytes, SL_IO_ALIGN_BYTES);
}

static uint64_t aligned_end(const struct sl_read *read)
{
    return sl_round_up(read->offset_bytes + read->size_bytes, SL_IO_ALIGN_BYTES);
}

static void batch_add(struct sl_reader *reader, uint32_t piece_index)
{
    const struct piece *piece = &reader->pieces[piece_index];
    const struct sl_read *read = piece->read;
    uint64_t start_bytes = sl_round_down(read->offset_bytes, SL_IO_ALIGN_BYTES);

    reader->batch[reader->n_batch++] = (struct sl_io_read){
        .offset_bytes = piece->offset_bytes,
        .dst = read->dst + (piece->offset_bytes - start_bytes),
        .tag = piece_index,
        .size_bytes = (uint32_t)(piece->end_bytes - piece->offset_bytes),
        .file_index = read->file_index,
    };
    reader->counters.n_reads++;
}

static void cut_piece(struct sl_reader *reader, struct sl_read *read)
{
    uint32_t piece_index = reader->first_free_piece;
    struct piece *piece = &reader->pieces[piece_index];
    uint64_t left_bytes = aligned_end(read) - read->cut_bytes;

    reader->first_free_piece = piece->next_free;
    reader->n_out++;
    *piece = (struct piece){
        .read = read, .offset_bytes = read->cut_bytes, .reached_bytes = read->cut_bytes};
    piece->end_bytes =
        read->cut_bytes + (left_bytes < reader->piece_bytes ? left_bytes : reader->piece_bytes);
    read->cut_bytes = piece->end_bytes;
    read->n_pieces_out++;
    if (read->cut_bytes == aligned_end(read))
        sl_list_remove(&read->link);
    batch_add(reader, piece_index);
}

void sl_reader_start(struct sl_reader *reader)
{
    while (reader->first_free_piece != NO_PIECE) {
        struct sl_link *list =
            sl_list_is_empty(&reader->urgent) ? &reader->background : &reader->urgent;

        if (sl_list_is_empty(list))
            break;
        cut_piece(reader, sl_list_item(list->next, struct sl_read, link));
    }
    if (reader->n_batch > 0)
        reader->io->ops->submit(reader->io, reader->batch, reader->n_batch);
    reader->n_batch = 0;
}

void sl_reader_queue(struct sl_reader *reader, struct sl_read *read, bool urgent)
{
    sl_assert(read->size_bytes >= 1);
    sl_assert(read->file_index < reader->io->n_files);
    sl_assert((uintptr_t)read->dst % SL_IO_ALIGN_BYTES == 0);
    read->rc = 0;
    read->fail_offset_bytes = 0;
    read->cut_bytes = sl_round_down(read->offset_bytes, SL_IO_ALIGN_BYTES);
    read->n_pieces_out = 0;
    sl_list_append(urgent ? &reader->urgent : &reader->background, &read->link);
    reader->counters.wanted_bytes += read->size_bytes;
}

void sl_reader_promote(struct sl_reader *reader, struct sl_read *read)
{
    if (read->rc < 0 || read->cut_bytes == aligned_end(read))
        return; /* nothing left to cut: it may be in the finished list */
    sl_list_remove(&read->link);
    sl_list_append(&reader->urgent, &read->link);
}

/* A failed read is not cut any further; it ends when its pieces in flight are back. */
static void piece_end(struct sl_reader *reader, struct piece *piece, int rc)
{
    struct sl_read *read = piece->read;

    if (rc < 0 && read->rc == 0) {
        read->rc = rc;
        read->fail_offset_bytes = piece->reached_bytes;
        sl_list_remove(&read->link);
    }
    piece->next_free = reader->first_free_piece;
    reader->first_free_piece = (uint32_t)(piece - reader->pieces);
    reader->n_out--;
    read->n_pieces_out--;
    if (read->n_pieces_out == 0 && (read->rc < 0 || read->cut_bytes == aligned_end(read)))
        sl_list_append(&reader->finished, &read->link);
}

/* Takes in what the device delivered. Returns true when the piece is complete; else *ret_rc is 0 if
 * it came nearer to that, negative if not. */
static bool take_delivery(struct piece *piece, int32_t result, int *ret_rc)
{
    uint64_t wanted_end_bytes = piece->read->offset_bytes + piece->read->size_bytes;
    uint64_t restart_bytes;

    *ret_rc = result < 0 ? result : 0;
    if (result < 0)
        return false;
    piece->reached_bytes = piece->offset_bytes + (uint32_t)result;
    if (piece->reached_bytes >= piece->end_bytes || piece->reached_bytes >= wanted_end_bytes)
        return true;
    /* Direct reads start on a block: the block that was cut off is read again from its start. */
    restart_bytes = sl_round_down(piece->reached_bytes, SL_IO_ALIGN_BYTES);
    if (restart_bytes == piece->offset_bytes)
        *ret_rc = -SL_ECORRUPT; /* the file ends here, unless the retry knows better */
    piece->offset_bytes = restart_bytes;
    return false;
}

static void piece_landed(struct sl_reader *reader, uint32_t piece_index, int32_t result)
{
    struct piece *piece = &reader->pieces[piece_index];
    int rc;

    if (result > 0)
        reader->counters.read_bytes += (uint32_t)result;
    if (take_delivery(piece, result, &rc)) {
        piece_end(reader, piece, 0);
        return;
    }
    if (rc == -EINTR || rc == -EAGAIN) {
        piece->n_again++;
        rc = piece->n_again <= AGAIN_MAX ? 0 : -EIO;
    }
    if (rc < 0 && piece->failed_once) {
        piece_end(reader, piece, rc);
        return;
    }
    if (rc < 0) {
        piece->failed_once = true;
        reader->counters.n_retries++;
    }
    batch_add(reader, piece_index);
}

/* Returns how many pieces landed. */
static uint32_t collect(struct sl_reader *reader, bool wait)
{
    struct sl_io_completion completions[COMPLETIONS_MAX];
    uint32_t n = reader->io->ops->reap(reader->io, wait, completions, COMPLETIONS_MAX);

    for (uint32_t i = 0; i < n; i++)
        piece_landed(reader, (uint32_t)completions[i].tag, completions[i].result);
    sl_reader_start(reader);
    return n;
}

struct sl_read *sl_reader_reap(struct sl_reader *reader, bool wait)
{
    struct sl_link *link;
    uint64_t start_ns;

    sl_reader_start(reader);
    while (sl_list_is_empty(&reader->finished) && collect(reader, false) > 0)
        ;
    if (wait && sl_list_is_empty(&reader->finished) && reader->n_out > 0) {
        start_ns = sl_clock_ns();
        while (sl_list_is_empty(&reader->finished))
            collect(reader, true);
        reader->counters.wait_ns += sl_clock_ns() - start_ns;
    }
    link = sl_list_pop(&reader->finished);
    return link ? sl_list_item(link, struct sl_read, link) : NULL;
}

int sl_reader_explain(const struct sl_reader *reader, const struct sl_read *read,
                      struct sl_err *err)
{
    const char *path = reader->io->files[read->file_index].path;
    unsigned long long offset_bytes = read->offset_bytes, size_bytes = read->size_bytes;

    sl_assert(read->rc < 0);
    if (read->rc == -SL_ECORRUPT)
        return sl_err_set(
            err, read->rc,
            "%s: the file has no bytes from offset %llu on; %llu were wanted at offset %llu", path,
            (unsigned long long)read->fail_offset_bytes, size_bytes, offset_bytes);
    return sl_err_set(err, read->rc,
                      "%s: reading at offset %llu failed twice (%llu bytes wanted at %llu): %s",
                      path, (unsigned long long)read->fail_offset_bytes, size_bytes, offset_bytes,
                      sl_strerror(read->rc));
}

int sl_reader_create(struct sl_reader **ret_reader, struct sl_io *io, uint32_t piece_bytes,
                     struct sl_err *err)
{
    struct sl_reader *reader;

    sl_assert(piece_bytes > 0 && piece_bytes % SL_IO_ALIGN_BYTES == 0);
    sl_assert(piece_bytes <= INT32_MAX); /* a result must be able to say it */
    reader = calloc(1, sizeof(*reader));
    if (!reader)
        return sl_err_set(err, -ENOMEM, "reader: out of memory");
    reader->io = io;
    reader->piece_bytes = piece_bytes;
    sl_list_init(&reader->urgent);
    sl_list_init(&reader->background);
    sl_list_init(&reader->finished);
    reader->pieces = calloc(io->reads_max, sizeof(*reader->pieces));
    reader->batch = calloc(io->reads_max, sizeof(*reader->batch));
    if (!reader->pieces || !reader->batch) {
        sl_reader_destroy(reader);
        return sl_err_set(err, -ENOMEM, "reader: out of memory");
    }
    for (uint32_t i = 0; i < io->reads_max; i++)
        reader->pieces[i].next_free = i + 1 < io->reads_max ? i + 1 : NO_PIECE;
    *ret_reader = reader;
    return 0;
}

void sl_reader_destroy(struct sl_reader *reader)
{
    if (!reader)
        return;
    sl_assert(reader->n_out == 0);
    sl_assert(sl_list_is_empty(&reader->urgent));
    sl_assert(sl_list_is_empty(&reader->background));
    sl_assert(sl_list_is_empty(&reader->finished));
    free(reader->pieces);
    free(reader->batch);
    free(reader);
}

struct sl_reader_counters sl_reader_counters(const struct sl_reader *reader)
{
    return reader->counters;
}
