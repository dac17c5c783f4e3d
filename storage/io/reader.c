/* Owns the pieces in flight and follows each to its end.
 *
 *     queue ──► a drive's list of its class ──cut──► piece ──► batch ──submit──► back end
 *                                                      ▲                           │
 *                      the rest of a short read, retry └───────────────────────────┤
 *                                      reap ◄── finished list ◄── last piece back ─┘
 *
 * A read is in its drive's list as long as bytes of it remain to be cut. Drives are filled up after
 * each look at the back end's completions. */
#include "storage/io/reader.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/sysmacros.h>

#include "core/base/assert.h"
#include "core/base/clock.h"
#include "core/base/size.h"

#define NO_PIECE UINT32_MAX
#define COMPLETIONS_MAX 32u

/* A device that keeps saying "again" has failed. */
#define AGAIN_MAX 100u

/* Prefetch and scrub may have this share of a drive's depth in flight. */
#define BACKGROUND_SHARE 2u

/* Pieces in flight are checked for stalls this often in each stall time. */
#define CHECKS_PER_STALL 8u

struct piece {
    struct sl_read *read;   /* NULL: free */
    uint64_t offset_bytes;  /* next byte to be read; aligned */
    uint64_t end_bytes;     /* aligned */
    uint64_t reached_bytes; /* all bytes before this offset were delivered */
    uint64_t start_ns;      /* when it went to the device */
    uint32_t next_free;
    uint32_t n_again;
    bool failed_once;
    bool stalled; /* counted as such */
};

struct drive {
    struct sl_link queues[SL_READ_CLASSES]; /* reads with bytes left to cut */
    uint32_t n_out[SL_READ_CLASSES];        /* pieces at the back end, or in the batch */
    uint32_t n_out_late;                    /* those pieces whose reads are past the deadline */
    uint64_t read_bytes;                    /* delivered */
    /* Reads that have not ended, of the classes before scrub. The reader's thread writes it, others
     * only watch it: no order is needed. */
    atomic_uint n_ahead;
};

struct sl_reader {
    struct sl_io *io;
    struct sl_reader_options options;
    uint32_t depth, depth_background, depth_predicted; /* of each drive */
    struct drive *drives;                              /* io->n_drives */
    struct piece *pieces;                              /* io->reads_max */
    uint32_t first_free_piece;
    struct sl_io_read *batch; /* io->reads_max; what the next submit takes */
    uint32_t n_batch;
    struct sl_link finished[SL_READ_USERS]; /* reads to be handed back */
    uint32_t n_live[SL_READ_USERS];         /* reads that have not ended */
    uint64_t busy_since_ns[SL_READ_USERS];  /* where there are any */
    uint32_t n_out;                         /* pieces at the back end, or in the batch */
    uint64_t now_ns;                        /* at the last look at the clock */
    uint64_t check_ns;                      /* when to look for stalls next */
    struct sl_reader_counters counters[SL_READ_USERS];
};

uint64_t sl_aligned_run_bytes(uint64_t offset_bytes, uint64_t size_bytes)
{
    return sl_round_up(offset_bytes + size_bytes, SL_BLOCK_BYTES) -
           sl_round_down(offset_bytes, SL_BLOCK_BYTES);
}

static uint64_t aligned_end(const struct sl_read *read)
{
    return sl_round_up(read->offset_bytes + read->size_bytes, SL_BLOCK_BYTES);
}

static struct drive *drive_of(struct sl_reader *reader, const struct sl_read *read)
{
    return &reader->drives[reader->io->files[read->file_index].drive_index];
}

static uint32_t pieces_on(const struct drive *drive)
{
    uint32_t n = drive->n_out_late;

    for (int k = 0; k < SL_READ_CLASSES; k++)
        n += drive->n_out[k];
    return n;
}

/* Counts a read that comes (1) or goes (-1) for those who watch sl_reader_ahead(). */
static void count_ahead(struct sl_reader *reader, const struct sl_read *read, int by)
{
    if (read->read_class < SL_READ_SCRUB)
        atomic_fetch_add_explicit(&drive_of(reader, read)->n_ahead, (unsigned)by,
                                  memory_order_relaxed);
}

uint64_t sl_reader_clock_ns(const struct sl_reader *reader)
{
    const struct sl_reader_options *o = &reader->options;

    return o->clock_ns ? o->clock_ns(o->clock_context) : sl_clock_ns();
}

static void look_at_clock(struct sl_reader *reader)
{
    reader->now_ns = sl_reader_clock_ns(reader);
}

/* ---- to the device -----------------------------------------------------------------------------
 */

static void batch_add(struct sl_reader *reader, uint32_t piece_index)
{
    struct piece *piece = &reader->pieces[piece_index];
    const struct sl_read *read = piece->read;
    uint64_t start_bytes = sl_round_down(read->offset_bytes, SL_BLOCK_BYTES);

    piece->start_ns = reader->now_ns;
    piece->stalled = false;
    reader->batch[reader->n_batch++] = (struct sl_io_read){
        .offset_bytes = piece->offset_bytes,
        .dst = read->dst + (piece->offset_bytes - start_bytes),
        .tag = piece_index,
        .size_bytes = (uint32_t)(piece->end_bytes - piece->offset_bytes),
        .file_index = read->file_index,
    };
    reader->counters[read->user].n_reads++;
}

static uint32_t piece_bytes_of(const struct sl_reader *reader, enum sl_read_class read_class)
{
    const uint32_t piece_bytes = reader->options.piece_bytes;

    return read_class == SL_READ_PREDICTED && piece_bytes > SL_READER_PREDICTED_PIECE_BYTES
               ? SL_READER_PREDICTED_PIECE_BYTES
               : piece_bytes;
}

static void cut_piece(struct sl_reader *reader, struct drive *drive, struct sl_read *read)
{
    const uint32_t piece_index = reader->first_free_piece;
    struct piece *piece = &reader->pieces[piece_index];
    const uint64_t left_bytes = aligned_end(read) - read->cut_bytes;
    const uint32_t piece_bytes = piece_bytes_of(reader, read->read_class);
    const uint64_t size_bytes = left_bytes < piece_bytes ? left_bytes : piece_bytes;

    sl_assert(piece_index != NO_PIECE); /* the drives' depths add up to no more */
    drive->n_out[read->read_class]++;
    reader->n_out++;
    reader->first_free_piece = piece->next_free;
    *piece = (struct piece){.read = read,
                            .offset_bytes = read->cut_bytes,
                            .end_bytes = read->cut_bytes + size_bytes,
                            .reached_bytes = read->cut_bytes};
    read->cut_bytes = piece->end_bytes;
    read->n_pieces_out++;
    if (read->cut_bytes == aligned_end(read))
        sl_list_remove(&read->link);
    batch_add(reader, piece_index);
}

static uint32_t depth_of(const struct sl_reader *reader, int read_class)
{
    if (read_class == SL_READ_PREDICTED)
        return reader->depth_predicted;
    return read_class <= SL_READ_AHEAD ? reader->depth : reader->depth_background;
}

/* Returns the read to be cut next; NULL if there is none, or none that may start now. */
static struct sl_read *next_read(const struct sl_reader *reader, const struct drive *drive)
{
    const uint32_t n = pieces_on(drive);
    int k = 0;

    while (sl_list_is_empty(&drive->queues[k])) {
        if (drive->n_out[k] > 0 || ++k == SL_READ_CLASSES)
            return NULL;
    }
    if (n >= depth_of(reader, k))
        return NULL;
    return sl_list_item(drive->queues[k].next, struct sl_read, link);
}

void sl_reader_start(struct sl_reader *reader)
{
    look_at_clock(reader);
    for (uint32_t i = 0; i < reader->io->n_drives; i++) {
        struct sl_read *read;

        while ((read = next_read(reader, &reader->drives[i])))
            cut_piece(reader, &reader->drives[i], read);
    }
    if (reader->n_batch > 0)
        reader->io->ops->submit(reader->io, reader->batch, reader->n_batch);
    reader->n_batch = 0;
}

void sl_reader_queue(struct sl_reader *reader, struct sl_read *read)
{
    sl_assert(read->size_bytes >= 1);
    sl_assert(read->file_index < reader->io->n_files);
    sl_assert((uintptr_t)read->dst % SL_BLOCK_BYTES == 0);
    sl_assert(read->read_class < SL_READ_CLASSES && read->user < SL_READ_USERS);
    read->rc = 0;
    read->late = read->ended = false;
    read->fail_offset_bytes = 0;
    read->cut_bytes = sl_round_down(read->offset_bytes, SL_BLOCK_BYTES);
    read->n_pieces_out = 0;
    sl_list_append(&drive_of(reader, read)->queues[read->read_class], &read->link);
    if (reader->n_live[read->user]++ == 0) {
        look_at_clock(reader);
        reader->busy_since_ns[read->user] = reader->now_ns;
    }
    count_ahead(reader, read, 1);
    reader->counters[read->user].wanted_bytes += read->size_bytes;
}

void sl_reader_set_predicted_bytes(struct sl_reader *reader, uint64_t size_bytes)
{
    const uint64_t n = size_bytes / piece_bytes_of(reader, SL_READ_PREDICTED);

    reader->depth_predicted = n == 0                         ? 1
                              : n < reader->depth_background ? (uint32_t)n
                                                             : reader->depth_background;
}

void sl_reader_set_class(struct sl_reader *reader, struct sl_read *read,
                         enum sl_read_class read_class)
{
    struct drive *drive = drive_of(reader, read);

    sl_assert(read_class < SL_READ_CLASSES);
    if (read->ended)
        return;
    count_ahead(reader, read, -1);
    drive->n_out[read->read_class] -= read->n_pieces_out;
    read->read_class = read_class;
    drive->n_out[read->read_class] += read->n_pieces_out;
    count_ahead(reader, read, 1);
    if (read->rc == 0 && read->cut_bytes < aligned_end(read)) {
        sl_list_remove(&read->link);
        sl_list_append(&drive->queues[read->read_class], &read->link);
    }
}

/* ---- how a read ends ---------------------------------------------------------------------------
 */

static void end_read(struct sl_reader *reader, struct sl_read *read)
{
    read->ended = true;
    sl_list_append(&reader->finished[read->user], &read->link);
    if (--reader->n_live[read->user] == 0)
        reader->counters[read->user].busy_ns += reader->now_ns - reader->busy_since_ns[read->user];
    count_ahead(reader, read, -1);
}

/* A failed read is not cut any further; it ends when its pieces in flight are back. */
static void fail_read(struct sl_reader *reader, struct sl_read *read, int rc, uint64_t offset_bytes)
{
    if (read->rc < 0 || read->ended)
        return;
    read->rc = rc;
    read->fail_offset_bytes = offset_bytes;
    sl_list_remove(&read->link);
    if (read->n_pieces_out == 0)
        end_read(reader, read);
}

void sl_reader_cancel(struct sl_reader *reader, struct sl_read *read)
{
    fail_read(reader, read, -ECANCELED, read->cut_bytes);
}

/* Ends a read that the device has not let go of. */
static void give_up(struct sl_reader *reader, struct sl_read *read, uint64_t offset_bytes)
{
    struct drive *drive = drive_of(reader, read);

    if (read->ended)
        return;
    fail_read(reader, read, -ETIMEDOUT, offset_bytes);
    if (read->ended)
        return; /* it had nothing in flight */
    drive->n_out[read->read_class] -= read->n_pieces_out;
    drive->n_out_late += read->n_pieces_out;
    end_read(reader, read);
}

static void free_piece(struct sl_reader *reader, struct piece *piece)
{
    struct sl_read *read = piece->read;
    struct drive *drive = drive_of(reader, read);

    if (read->ended)
        drive->n_out_late--;
    else
        drive->n_out[read->read_class]--;
    piece->read = NULL;
    piece->next_free = reader->first_free_piece;
    reader->first_free_piece = (uint32_t)(piece - reader->pieces);
    reader->n_out--;
    read->n_pieces_out--;
}

static void piece_end(struct sl_reader *reader, struct piece *piece, int rc)
{
    struct sl_read *read = piece->read;

    free_piece(reader, piece);
    if (rc < 0)
        fail_read(reader, read, rc, piece->reached_bytes);
    if (read->n_pieces_out > 0)
        return;
    if (read->late) {
        read->late = false;
        sl_list_append(&reader->finished[read->user], &read->link);
    } else if (!read->ended && (read->rc < 0 || read->cut_bytes == aligned_end(read))) {
        end_read(reader, read);
    }
}

/* ---- from the device ---------------------------------------------------------------------------
 */

/* Takes in the bytes that the device delivered. Returns true when the piece is complete; else
 * *ret_rc is 0 if it came nearer to that, negative if not. */
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
    restart_bytes = sl_round_down(piece->reached_bytes, SL_BLOCK_BYTES);
    if (restart_bytes == piece->offset_bytes)
        *ret_rc = -SL_ECORRUPT; /* the file ends here, unless the retry knows better */
    piece->offset_bytes = restart_bytes;
    return false;
}

static void piece_landed(struct sl_reader *reader, uint32_t piece_index, int32_t result)
{
    struct piece *piece = &reader->pieces[piece_index];
    struct sl_reader_counters *counters = &reader->counters[piece->read->user];
    int rc;

    if (result > 0) {
        counters->read_bytes += (uint32_t)result;
        drive_of(reader, piece->read)->read_bytes += (uint32_t)result;
    }
    if (take_delivery(piece, result, &rc) || piece->read->rc < 0) {
        piece_end(reader, piece, 0); /* complete, or nobody wants the rest */
        return;
    }
    if (rc == -EINTR || rc == -EAGAIN) {
        piece->n_again++;
        rc = piece->n_again <= AGAIN_MAX ? 0 : -EIO;
    }
    if (rc == -ECANCELED) /* that is for reads that their owner gave up */
        rc = -EIO;
    if (rc < 0 && piece->failed_once) {
        piece_end(reader, piece, rc);
        return;
    }
    if (rc < 0) {
        piece->failed_once = true;
        counters->n_retries++;
    }
    batch_add(reader, piece_index);
}

/* Gives up queued reads of a drive whose late pieces take up all of its depth, since they could
 * never start. */
static void give_up_queues(struct sl_reader *reader, struct drive *drive)
{
    for (int k = 0; k < SL_READ_CLASSES; k++) {
        while (drive->n_out_late >= depth_of(reader, k) && !sl_list_is_empty(&drive->queues[k])) {
            struct sl_read *read = sl_list_item(drive->queues[k].next, struct sl_read, link);

            give_up(reader, read, read->cut_bytes);
        }
    }
}

/* Counts stalls, and gives up reads that are past the deadline. Called after all landed pieces were
 * taken in, so that a piece which a busy thread merely noticed late does not count as late. */
static void check_times(struct sl_reader *reader)
{
    const uint64_t stall_ns = reader->options.stall_ns;

    if (reader->now_ns < reader->check_ns)
        return;
    reader->check_ns = reader->now_ns + stall_ns / CHECKS_PER_STALL;
    for (uint32_t i = 0; i < reader->io->reads_max; i++) {
        struct piece *piece = &reader->pieces[i];
        uint64_t age_ns = reader->now_ns - piece->start_ns;
        struct sl_reader_counters *counters;

        if (!piece->read || age_ns <= stall_ns)
            continue;
        counters = &reader->counters[piece->read->user];
        counters->n_stalls += !piece->stalled;
        piece->stalled = true;
        if (age_ns > counters->longest_ns)
            counters->longest_ns = age_ns;
        if (age_ns > stall_ns * SL_READER_DEADLINE_STALLS)
            give_up(reader, piece->read, piece->offset_bytes);
    }
    for (uint32_t i = 0; i < reader->io->n_drives; i++)
        give_up_queues(reader, &reader->drives[i]);
}

/* Waits until something lands or it is time to look for stalls. Returns how many pieces landed. */
static uint32_t collect(struct sl_reader *reader, bool wait)
{
    struct sl_io_completion completions[COMPLETIONS_MAX];
    uint64_t wait_ns = 0;
    uint32_t n;

    if (wait && reader->check_ns > reader->now_ns)
        wait_ns = reader->check_ns - reader->now_ns;
    n = reader->io->ops->reap(reader->io, wait_ns, completions, COMPLETIONS_MAX);
    look_at_clock(reader);
    for (uint32_t i = 0; i < n; i++)
        piece_landed(reader, (uint32_t)completions[i].tag, completions[i].result);
    if (n < COMPLETIONS_MAX)
        check_times(reader);
    sl_reader_start(reader);
    return n;
}

struct sl_read *sl_reader_reap(struct sl_reader *reader, enum sl_read_user user, bool wait)
{
    struct sl_link *finished = &reader->finished[user];
    struct sl_read *read;
    uint64_t start_ns;

    sl_reader_start(reader);
    while (sl_list_is_empty(finished) && collect(reader, false) > 0)
        ;
    if (wait && sl_list_is_empty(finished) && reader->n_live[user] > 0) {
        start_ns = reader->now_ns;
        while (sl_list_is_empty(finished))
            collect(reader, true);
        reader->counters[user].wait_ns += reader->now_ns - start_ns;
    }
    if (sl_list_is_empty(finished))
        return NULL;
    read = sl_list_item(sl_list_pop(finished), struct sl_read, link);
    read->late = read->n_pieces_out > 0;
    return read;
}

const atomic_uint *sl_reader_ahead(const struct sl_reader *reader, uint64_t device)
{
    for (uint32_t i = 0; i < reader->io->n_files; i++)
        if (reader->io->files[i].device == device)
            return &reader->drives[reader->io->files[i].drive_index].n_ahead;
    return NULL;
}

uint32_t sl_reader_drive_count(const struct sl_reader *reader)
{
    return reader->io->n_drives;
}

struct sl_reader_drive sl_reader_drive(const struct sl_reader *reader, uint32_t index)
{
    struct sl_reader_drive drive = {.read_bytes = reader->drives[index].read_bytes};

    for (uint32_t i = 0; !drive.path && i < reader->io->n_files; i++)
        if (reader->io->files[i].drive_index == index)
            drive.path = reader->io->files[i].path;
    return drive;
}

bool sl_reader_drain(struct sl_reader *reader)
{
    for (int user = 0; user < SL_READ_USERS; user++)
        sl_assert(reader->n_live[user] == 0);
    while (reader->n_out > 0 && collect(reader, false) > 0)
        ;
    for (int user = 0; user < SL_READ_USERS; user++)
        while (sl_list_pop(&reader->finished[user]))
            ;
    return reader->n_out == 0;
}

int sl_reader_attach(struct sl_reader *reader, void *base, uint64_t size_bytes, uint64_t part_bytes)
{
    struct sl_io *io = reader->io;

    if (!sl_reader_drain(reader))
        return -EBUSY;
    return io->ops->attach ? io->ops->attach(io, base, size_bytes, part_bytes) : 0;
}

int sl_reader_hold(struct sl_reader *reader, uint32_t part, bool hold)
{
    struct sl_io *io = reader->io;

    return io->ops->hold ? io->ops->hold(io, part, hold) : 0;
}

int sl_reader_explain(const struct sl_reader *reader, const struct sl_read *read,
                      struct sl_err *err)
{
    const struct sl_io_file *file = &reader->io->files[read->file_index];
    const unsigned long long offset_bytes = read->offset_bytes, size_bytes = read->size_bytes;
    const unsigned long long fail_offset_bytes = read->fail_offset_bytes;
    const double deadline_s = (double)(reader->options.stall_ns * SL_READER_DEADLINE_STALLS) / 1e9;

    const int rc = read->late ? -ETIMEDOUT : read->rc;

    sl_assert(rc < 0 && rc != -ECANCELED);
    if (rc == -SL_ECORRUPT)
        sl_err_set(err, rc,
                   "the file has no bytes from offset %llu on; %llu were wanted at offset %llu",
                   fail_offset_bytes, size_bytes, offset_bytes);
    else if (rc == -ETIMEDOUT)
        sl_err_set(err, rc, "no answer for %.3g s, at offset %llu (%llu bytes wanted at %llu)",
                   deadline_s, fail_offset_bytes, size_bytes, offset_bytes);
    else
        sl_err_set(err, rc, "reading at offset %llu failed twice (%llu bytes wanted at %llu): %s",
                   fail_offset_bytes, size_bytes, offset_bytes, sl_strerror(rc));
    return sl_err_prefix(err, rc, "%s: drive %u:%u", file->path, major(file->device),
                         minor(file->device));
}

/* ---- from create to destroy --------------------------------------------------------------------
 */

static void set_options(struct sl_reader *reader, const struct sl_reader_options *options)
{
    struct sl_reader_options *o = &reader->options;
    const uint32_t depth_max = reader->io->reads_max / reader->io->n_drives;

    if (options)
        *o = *options;
    if (o->piece_bytes == 0)
        o->piece_bytes = SL_READER_PIECE_BYTES;
    if (o->stall_ns == 0)
        o->stall_ns = SL_READER_STALL_NS;
    sl_assert(o->piece_bytes % SL_BLOCK_BYTES == 0);
    sl_assert(o->piece_bytes <= INT32_MAX); /* a result must be able to say it */
    reader->depth = o->depth ? o->depth : SL_READER_DEPTH;
    if (reader->depth > depth_max)
        reader->depth = depth_max;
    reader->depth_background = reader->depth / BACKGROUND_SHARE;
    if (reader->depth_background == 0)
        reader->depth_background = 1;
    reader->depth_predicted = 1;
}

static void free_reader(struct sl_reader *reader)
{
    free(reader->drives);
    free(reader->pieces);
    free(reader->batch);
    free(reader);
}

int sl_reader_create(struct sl_reader **ret_reader, struct sl_io *io,
                     const struct sl_reader_options *options, struct sl_err *err)
{
    struct sl_reader *reader;

    sl_assert(io->n_drives >= 1 && io->reads_max >= io->n_drives);
    reader = calloc(1, sizeof(*reader));
    if (!reader)
        return sl_err_set(err, -ENOMEM, "reader: out of memory");
    reader->io = io;
    set_options(reader, options);
    for (int user = 0; user < SL_READ_USERS; user++)
        sl_list_init(&reader->finished[user]);
    reader->drives = calloc(io->n_drives, sizeof(*reader->drives));
    reader->pieces = calloc(io->reads_max, sizeof(*reader->pieces));
    reader->batch = calloc(io->reads_max, sizeof(*reader->batch));
    if (!reader->drives || !reader->pieces || !reader->batch) {
        free_reader(reader);
        return sl_err_set(err, -ENOMEM, "reader: out of memory");
    }
    for (uint32_t i = 0; i < io->n_drives; i++) {
        for (int k = 0; k < SL_READ_CLASSES; k++)
            sl_list_init(&reader->drives[i].queues[k]);
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
    for (int user = 0; user < SL_READ_USERS; user++)
        sl_assert(reader->n_live[user] == 0 && sl_list_is_empty(&reader->finished[user]));
    free_reader(reader);
}

struct sl_reader_counters sl_reader_counters(const struct sl_reader *reader, enum sl_read_user user)
{
    return reader->counters[user];
}
