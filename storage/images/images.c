/* Owns the folder's lock, the memory of one image, and the decision what stays. */
#include "storage/images/images.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "core/base/arena.h"
#include "core/base/assert.h"
#include "core/base/clock.h"
#include "storage/images/image_folder.h"
#include "storage/images/image_write.h"

struct sl_images {
    struct sl_images_options options; /* the caller's strings in it are not used after open() */
    int lock_fd;
    struct sl_image_folder folder;
    struct sl_image_writer *writer;
    struct sl_checksum_stream *stream;
    struct sl_arena arena;
    uint8_t *memory;
    uint64_t memory_bytes;
    bool memory_lost;        /* a drive may write to it for ever */
    bool is_begun;           /* between begin() and commit() */
    bool is_writing;         /* after commit(), until the job's end was seen */
    struct sl_image_job job; /* being begun, or written */
    uint32_t job_pins;       /* of the image that is being written */
    struct {
        struct sl_image_reading *reading; /* NULL: nothing is */
        const struct sl_image **chain;    /* (n_images) */
        uint32_t n_images;
    } load;
    uint64_t used_ns; /* the latest time of use that was given out */
    struct sl_images_counters counters;
};

__attribute__((format(printf, 2, 3))) static void note(const struct sl_images *images,
                                                       const char *format, ...)
{
    char line[SL_ERR_MESSAGE_BYTES];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(line, sizeof(line), format, arguments);
    va_end(arguments);
    if (images->options.on_note)
        images->options.on_note(images->options.note_context, line);
}

/* ---- use ---------------------------------------------------------------------------------------
 */

/* Times of use differ, so that what was used in one moment still has an order. */
static uint64_t next_use(struct sl_images *images)
{
    struct timespec now;
    uint64_t now_ns;

    clock_gettime(CLOCK_REALTIME, &now);
    now_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    images->used_ns = now_ns > images->used_ns ? now_ns : images->used_ns + 1;
    return images->used_ns;
}

/* The file remembers it for the next process. If it cannot, that process knows an earlier use. */
static void mark_used(struct sl_images *images, struct sl_image *image)
{
    char *path = sl_image_folder_path(&images->folder, image->header.prefix);
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}};

    image->used_ns = next_use(images);
    times[1] = (struct timespec){.tv_sec = (time_t)(image->used_ns / 1000000000u),
                                 .tv_nsec = (long)(image->used_ns % 1000000000u)};
    if (path)
        utimensat(AT_FDCWD, path, times, AT_SYMLINK_NOFOLLOW);
    free(path);
}

void sl_images_pin(struct sl_images *images, uint64_t prefix)
{
    struct sl_image *image = sl_image_folder_find(&images->folder, prefix);

    if (image)
        image->n_pins++;
    else if (images->is_writing && images->job.header.prefix == prefix)
        images->job_pins++;
}

void sl_images_unpin(struct sl_images *images, uint64_t prefix)
{
    struct sl_image *image = sl_image_folder_find(&images->folder, prefix);

    if (image && image->n_pins > 0)
        image->n_pins--;
    else if (images->is_writing && images->job.header.prefix == prefix && images->job_pins > 0)
        images->job_pins--;
}

/* ---- dropping ----------------------------------------------------------------------------------
 */

static void remove_file(const struct sl_images *images, const char *name)
{
    char *path;

    if (asprintf(&path, "%s/%s", images->folder.path, name) < 0)
        return;
    images->options.writer->ops->remove(images->options.writer, path);
    free(path);
}

/* Forgets an image and all that continue it. Their files go where `why` is damage; where the drive
 * has failed, they may be good another time. */
static void drop(struct sl_images *images, uint64_t prefix, bool with_file)
{
    struct sl_image *image = sl_image_folder_find(&images->folder, prefix);
    char name[SL_IMAGE_NAME_BYTES];

    for (uint32_t i = 0; image->n_children > 0 && i < images->folder.n_images; i++) {
        const struct sl_image *other = &images->folder.images[i];

        if (sl_image_folder_base(&images->folder, other) != image)
            continue;
        drop(images, other->header.prefix, with_file);
        image = sl_image_folder_find(&images->folder, prefix);
        i = UINT32_MAX; /* the list has changed: from its beginning again */
    }
    sl_image_folder_remove(&images->folder, image);
    images->counters.n_dropped++;
    if (!with_file)
        return;
    sl_image_name(prefix, name);
    remove_file(images, name);
}

/* An sl_image_fault_fn. */
static void on_fault(void *context, enum sl_image_fault fault, const char *name, const char *line)
{
    struct sl_images *images = context;

    if (fault != SL_IMAGE_UNFINISHED) {
        images->counters.n_dropped++;
        note(images, "%s; %s", line,
             fault == SL_IMAGE_UNREADABLE ? "it is not used" : "it is dropped");
    }
    if (fault != SL_IMAGE_UNREADABLE)
        remove_file(images, name);
}

/* ---- opening -----------------------------------------------------------------------------------
 */

static uint64_t file_bytes_max(uint64_t entries_bytes_max, uint64_t mark_bytes_max)
{
    const struct sl_image_header largest = {
        .part_bytes = {4 * SL_IMAGE_TOKENS, entries_bytes_max, mark_bytes_max}};

    return sl_image_file_bytes(&largest);
}

static uint64_t memory_bytes(uint64_t entries_bytes_max, uint64_t mark_bytes_max)
{
    return file_bytes_max(entries_bytes_max, 0) + file_bytes_max(entries_bytes_max, mark_bytes_max);
}

uint64_t sl_images_memory_bytes(uint64_t entries_bytes_max, uint64_t mark_bytes_max)
{
    return sl_arena_mapped_bytes(memory_bytes(entries_bytes_max, mark_bytes_max));
}

int sl_images_lock(const char *folder, struct sl_err *err)
{
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC), rc;

    if (fd < 0)
        return sl_err_set(err, -errno, "%s: cannot open the folder of images: %s", folder,
                          sl_strerror(errno));
    if (flock(fd, LOCK_EX | LOCK_NB) == 0)
        return fd;
    rc = errno == EWOULDBLOCK
             ? sl_err_set(err, -EBUSY,
                          "%s: another process uses these images: wait for it, or name another "
                          "folder",
                          folder)
             : sl_err_set(err, -errno, "%s: cannot lock the folder of images: %s", folder,
                          sl_strerror(errno));
    close(fd);
    return rc;
}

int sl_images_make_folder(const struct sl_images_options *o, struct sl_err *err)
{
    int rc;

    if (access(o->folder, F_OK) == 0)
        return 0;
    rc = o->writer->ops->make_folder(o->writer, o->folder);
    return rc < 0 ? sl_write_error(err, rc, o->folder, "make the folder of images")
                  : sl_write_name(o->writer, o->folder, err);
}

static int take_memory(struct sl_images *images, struct sl_err *err)
{
    const struct sl_images_options *o = &images->options;
    int rc;

    images->memory_bytes = memory_bytes(o->entries_bytes_max, o->mark_bytes_max);
    rc = sl_arena_reserve(&images->arena, images->memory_bytes, "images", err);
    if (rc == 0)
        images->memory =
            sl_arena_take_aligned(&images->arena, images->memory_bytes, 1, SL_BLOCK_BYTES);
    return rc;
}

int sl_images_open(struct sl_images **ret_images, const struct sl_images_options *options,
                   struct sl_err *err)
{
    struct sl_images *images = calloc(1, sizeof(*images));
    int rc;

    if (!images)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", options->folder);
    images->options = *options;
    images->lock_fd = -1;
    images->stream = sl_checksum_stream_create();
    rc = images->stream ? sl_images_make_folder(options, err)
                        : sl_err_set(err, -ENOMEM, "%s: out of memory", options->folder);
    if (rc == 0 && (rc = sl_images_lock(options->folder, err)) >= 0) {
        images->lock_fd = rc;
        rc = sl_image_folder_scan(&images->folder, options->folder, on_fault, images, err);
    }
    if (rc == 0)
        rc = take_memory(images, err);
    if (rc == 0)
        rc = sl_image_writer_create(&images->writer, options->writer, images->folder.path,
                                    options->n_ahead, err);
    if (rc < 0) {
        sl_images_close(images);
        return rc;
    }
    *ret_images = images;
    return 0;
}

void sl_images_close(struct sl_images *images)
{
    if (!images)
        return;
    sl_images_wait(images);
    sl_image_writer_destroy(images->writer);
    if (!images->memory_lost)
        sl_arena_fini(&images->arena);
    sl_image_folder_fini(&images->folder);
    sl_checksum_stream_destroy(images->stream);
    free(images->job.removed);
    if (images->lock_fd >= 0)
        close(images->lock_fd);
    free(images);
}

/* ---- what is being written ---------------------------------------------------------------------
 */

/* Takes in the job that has ended. */
static void take_in(struct sl_images *images, bool wait)
{
    struct sl_image image = {.n_children = 0};
    struct sl_image_job job;
    struct sl_err err;
    int rc;

    if (!images->is_writing || !sl_image_writer_end(images->writer, wait, &job, &rc, &err))
        return;
    images->is_writing = false;
    free(job.removed);
    if (rc < 0) {
        images->counters.n_failed++;
        note(images, "%s; this image is not kept", err.message);
        return;
    }
    image.header = job.header;
    memcpy(image.first_ids, job.bytes + SL_IMAGE_HEADER_BYTES, sizeof(image.first_ids));
    image.file_bytes = sl_image_file_bytes(&job.header);
    image.used_ns = next_use(images);
    image.n_pins = images->job_pins;
    if (sl_image_folder_add(&images->folder, &image) < 0)
        return; /* the next process finds it */
    images->counters.n_saved++;
    images->counters.saved_bytes += image.file_bytes;
}

void sl_images_wait(struct sl_images *images)
{
    uint64_t start_ns;

    if (!images->is_writing)
        return;
    start_ns = sl_clock_ns();
    take_in(images, true);
    images->counters.wait_ns += sl_clock_ns() - start_ns;
}

bool sl_images_is_busy(struct sl_images *images)
{
    take_in(images, false);
    return images->is_writing;
}

void sl_images_hurry(struct sl_images *images)
{
    if (images->is_writing)
        sl_image_writer_hurry(images->writer);
}

/* ---- finding -----------------------------------------------------------------------------------
 */

/* Whether the image is of this model, and of a version that we know. */
static bool is_ours(const struct sl_images *images, const struct sl_image *image)
{
    return image->header.version == SL_IMAGE_VERSION &&
           sl_image_owner_equal(&image->header.owner, &images->options.owner);
}

static int compare_numbers(const void *a, const void *b)
{
    const uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;

    return (left > right) - (left < right);
}

/* Returns the image of the longest prefix of the tokens; with `with_mark`, the longest that has a
 * mark. */
static struct sl_image *longest(struct sl_images *images, const int32_t *tokens, uint32_t n_tokens,
                                bool with_mark)
{
    const struct sl_image_folder *folder = &images->folder;
    uint32_t *ends = malloc((folder->n_images + 1) * sizeof(*ends));
    uint32_t n_ends = 0, n_added = 0;
    struct sl_image *found = NULL;

    if (!ends) /* as if nothing were stored */
        return NULL;
    for (uint32_t i = 0; i < folder->n_images; i++)
        if (is_ours(images, &folder->images[i]) && folder->images[i].header.end_token <= n_tokens)
            ends[n_ends++] = folder->images[i].header.end_token;
    qsort(ends, n_ends, sizeof(*ends), compare_numbers);
    sl_image_prefix_begin(images->stream, &images->options.owner);
    for (uint32_t i = 0; i < n_ends; i++) {
        struct sl_image *image;

        if (ends[i] == n_added)
            continue;
        sl_image_prefix_add(images->stream, tokens + n_added, ends[i] - n_added);
        n_added = ends[i];
        image = sl_image_folder_find(folder, sl_checksum_stream_value(images->stream));
        if (image && is_ours(images, image) && image->header.end_token == n_added &&
            (!with_mark || image->header.part_bytes[SL_IMAGE_MARK] > 0))
            found = image;
    }
    free(ends);
    return found;
}

/* So many images that hold the end of a prefix are looked into for what is shared. */
#define CANDIDATES_MAX 16u

/* Whether the first ids of the image are the tokens', so that it is worth a look at its file. */
static bool begins_alike(const struct sl_image *image, const int32_t *tokens, uint32_t n_tokens)
{
    return n_tokens - image->header.first_token >= SL_IMAGE_FIRST_IDS &&
           memcmp(image->first_ids, tokens + image->header.first_token, sizeof(image->first_ids)) ==
               0;
}

/* Whether the image begins where one of those begins or ends that `found` consists of: then it is
 * of the same tokens up to there. */
static bool begins_in(const struct sl_images *images, const struct sl_image *image,
                      const struct sl_image *found)
{
    const struct sl_image *base = sl_image_folder_base(&images->folder, image);

    while (found && found != base)
        found = sl_image_folder_base(&images->folder, found);
    return found == base;
}

static uint32_t count_shared(const struct sl_images *images, const struct sl_image *found,
                             const int32_t *tokens, uint32_t n_tokens)
{
    const uint32_t n_found = found ? found->header.end_token : 0;
    uint32_t n_most = n_found, n_looked = 0;

    for (uint32_t i = 0; i < images->folder.n_images && n_looked < CANDIDATES_MAX; i++) {
        const struct sl_image *image = &images->folder.images[i];
        const uint32_t first = image->header.first_token;
        uint32_t n;

        if (!is_ours(images, image) || first > n_found || image->header.end_token <= n_found ||
            n_found == n_tokens || !begins_alike(image, tokens, n_tokens) ||
            !begins_in(images, image, found))
            continue;
        n_looked++;
        n = first + sl_image_shared_tokens(&images->folder, image, tokens, first, n_tokens);
        n_most = n > n_most ? n : n_most;
    }
    return n_most;
}

/* The images of the prefix, from the first on. Returns NULL when out of memory. */
static const struct sl_image **chain_of(const struct sl_images *images, const struct sl_image *last,
                                        uint32_t *ret_n_images)
{
    const struct sl_image **chain;
    uint32_t n = 0;

    for (const struct sl_image *i = last; i; i = sl_image_folder_base(&images->folder, i))
        n++;
    chain = malloc((n + 1) * sizeof(*chain));
    if (!chain)
        return NULL;
    *ret_n_images = n;
    for (const struct sl_image *i = last; i; i = sl_image_folder_base(&images->folder, i))
        chain[--n] = i;
    return chain;
}

struct sl_images_match sl_images_find(struct sl_images *images, const int32_t *tokens,
                                      uint32_t n_tokens)
{
    struct sl_images_match match = {.n_tokens = 0};
    const struct sl_image *begin, *shared;

    if (images->memory_lost)
        return match;
    take_in(images, false);
    begin = longest(images, tokens, n_tokens, true);
    shared = longest(images, tokens, n_tokens, false);
    if (begin) {
        match.n_tokens = begin->header.end_token;
        match.prefix = begin->header.prefix;
    }
    match.n_shared = count_shared(images, shared, tokens, n_tokens);
    return match;
}

/* Ends the reading; `rc` is what came of it. */
static void end_load(struct sl_images *images, int rc, const struct sl_err *err)
{
    uint32_t n_sound;

    sl_image_reading_end(images->load.reading, &n_sound, &images->memory_lost);
    images->load.reading = NULL;
    for (uint32_t i = 0; rc == 0 && i < images->load.n_images; i++) {
        const struct sl_image *image = images->load.chain[i];

        mark_used(images, sl_image_folder_find(&images->folder, image->header.prefix));
        images->counters.n_loaded++;
        images->counters.loaded_bytes += image->file_bytes;
    }
    if (rc < 0 && rc != -ECANCELED) {
        note(images, "%s; %s", err->message,
             rc == -SL_ECORRUPT ? "it is dropped" : "it is not used");
        drop(images, images->load.chain[n_sound]->header.prefix, rc == -SL_ECORRUPT);
    }
    free(images->load.chain);
}

int sl_images_load_begin(struct sl_images *images, const int32_t *tokens, uint32_t n_tokens,
                         sl_image_take_fn *take, void *context)
{
    const struct sl_image *last;
    struct sl_image_chain chain = {
        .folder = &images->folder,
        .tokens = tokens,
        .memory = images->memory,
        .memory_bytes = images->memory_bytes,
        .open_io = images->options.open_io,
        .reader = &images->options.reader,
        .take = take,
        .context = context,
    };
    int rc;

    sl_images_wait(images);
    sl_assert(!images->load.reading && !images->is_begun);
    last = longest(images, tokens, n_tokens, true);
    sl_assert(last && last->header.end_token == n_tokens);
    images->load.chain = chain_of(images, last, &images->load.n_images);
    if (!images->load.chain)
        return -ENOMEM;
    chain.images = images->load.chain;
    chain.n_images = images->load.n_images;
    rc = sl_image_reading_begin(&images->load.reading, &chain, NULL);
    if (rc < 0)
        free(images->load.chain);
    return rc;
}

int sl_images_load_next(struct sl_images *images, bool wait)
{
    struct sl_err err;
    int rc = sl_image_reading_next(images->load.reading, wait, &err);

    if (rc <= 0)
        end_load(images, rc, &err);
    return rc;
}

void sl_images_load_abandon(struct sl_images *images)
{
    end_load(images, -ECANCELED, NULL);
}

int sl_images_load(struct sl_images *images, const int32_t *tokens, uint32_t n_tokens,
                   sl_image_take_fn *take, void *context)
{
    int rc = sl_images_load_begin(images, tokens, n_tokens, take, context);

    while (rc == 0 && (rc = sl_images_load_next(images, true)) > 0)
        rc = 0;
    return rc;
}

/* ---- saving ------------------------------------------------------------------------------------
 */

/* Whether an image of n_tokens tokens begins where this one does, instead of continuing it. A mark
 * is large, and what others continue never goes: a conversation that has one after each turn would
 * never stop growing. So a few entries are written once more instead, and the image before goes
 * like any other that is used no more. */
static bool is_taken_in(const struct sl_image *image, uint32_t n_tokens)
{
    const struct sl_image_header *header = &image->header;
    const uint32_t cut = (header->first_token / SL_IMAGE_TOKENS + 1) * SL_IMAGE_TOKENS;

    return image->n_children == 0 && n_tokens <= cut &&
           header->part_bytes[SL_IMAGE_ENTRIES] < header->part_bytes[SL_IMAGE_MARK];
}

uint32_t sl_images_base(struct sl_images *images, const int32_t *tokens, uint32_t n_tokens,
                        uint64_t *ret_prefix)
{
    struct sl_image *image;

    sl_images_wait(images);
    image = longest(images, tokens, n_tokens, true);
    if (image && image->header.end_token == n_tokens)
        mark_used(images, image);
    else /* one that ends here without a mark is replaced */
        image = longest(images, tokens, n_tokens - 1, false);
    if (image && image->header.end_token < n_tokens && is_taken_in(image, n_tokens))
        image = sl_image_folder_base(&images->folder, image);
    *ret_prefix = image ? image->header.prefix : 0;
    return image ? image->header.end_token : 0;
}

/* Chooses what goes, so that the new image fits the limit. Their files are removed by the thread,
 * before it writes. */
static int make_room(struct sl_images *images, uint64_t file_bytes)
{
    struct sl_image_job *job = &images->job;
    const uint64_t bytes_max = images->options.bytes_max;
    struct sl_image *oldest = NULL;
    char size[SL_SIZE_TEXT_BYTES], limit[SL_SIZE_TEXT_BYTES];

    while (file_bytes <= bytes_max && images->folder.bytes > bytes_max - file_bytes &&
           (oldest = sl_image_folder_oldest(&images->folder, job->header.base_prefix))) {
        uint64_t *removed = reallocarray(job->removed, job->n_removed + 1, sizeof(*job->removed));

        if (!removed)
            break;
        job->removed = removed;
        job->removed[job->n_removed++] = oldest->header.prefix;
        sl_image_folder_remove(&images->folder, oldest);
        images->counters.n_removed++;
    }
    if (file_bytes <= bytes_max && images->folder.bytes <= bytes_max - file_bytes)
        return 0;
    note(images,
         "%s: no room for an image of %s: the limit is %s, and others are in use; it is "
         "not kept",
         images->folder.path, sl_size_format(file_bytes, size), sl_size_format(bytes_max, limit));
    return -ENOSPC;
}

/* Removes at once what make_room() chose. */
static void remove_chosen(struct sl_images *images)
{
    struct sl_image_job *job = &images->job;

    for (uint32_t i = 0; i < job->n_removed; i++) {
        char name[SL_IMAGE_NAME_BYTES];

        sl_image_name(job->removed[i], name);
        remove_file(images, name);
    }
    free(job->removed);
    job->removed = NULL;
}

int sl_images_begin(struct sl_images *images, struct sl_images_piece *piece)
{
    struct sl_image_header *header = &images->job.header;
    uint64_t file_bytes;

    sl_images_wait(images);
    sl_assert(!images->is_begun && !images->load.reading);
    sl_assert(piece->first_token < piece->end_token);
    sl_assert(piece->end_token - piece->first_token <= SL_IMAGE_TOKENS);
    if (images->memory_lost)
        return -EIO; /* the read that lost it has been noted */
    images->job = (struct sl_image_job){.bytes = images->memory};
    images->job_pins = 0;
    *header = (struct sl_image_header){
        .version = SL_IMAGE_VERSION,
        .owner = images->options.owner,
        .first_token = piece->first_token,
        .end_token = piece->end_token,
        .part_bytes = {UINT64_C(4) * (piece->end_token - piece->first_token), piece->entries_bytes,
                       piece->mark_bytes},
    };
    file_bytes = sl_image_file_bytes(header);
    sl_assert(file_bytes <= images->memory_bytes);
    sl_image_prefix_begin(images->stream, &header->owner);
    sl_image_prefix_add(images->stream, piece->tokens, piece->first_token);
    header->base_prefix = sl_checksum_stream_value(images->stream);
    sl_image_prefix_add(images->stream, piece->tokens + piece->first_token,
                        piece->end_token - piece->first_token);
    header->prefix = sl_checksum_stream_value(images->stream);
    if (piece->first_token > 0 && !sl_image_folder_find(&images->folder, header->base_prefix))
        return -ENOENT; /* the piece before it was not kept, which has been noted */
    if (make_room(images, file_bytes) < 0) {
        images->counters.n_failed++;
        remove_chosen(images);
        return -ENOSPC;
    }
    memcpy(images->memory + sl_image_part_offset(header, SL_IMAGE_IDS),
           piece->tokens + piece->first_token, header->part_bytes[SL_IMAGE_IDS]);
    piece->entries = images->memory + sl_image_part_offset(header, SL_IMAGE_ENTRIES);
    piece->mark = images->memory + sl_image_part_offset(header, SL_IMAGE_MARK);
    piece->prefix = header->prefix;
    images->is_begun = true;
    return 0;
}

void sl_images_commit(struct sl_images *images)
{
    sl_assert(images->is_begun);
    images->is_begun = false;
    images->is_writing = true;
    sl_image_writer_begin(images->writer, &images->job);
    images->job.removed = NULL; /* now the job's */
}

void sl_images_abandon(struct sl_images *images)
{
    sl_assert(images->is_begun);
    images->is_begun = false;
    remove_chosen(images);
}

/* ---- figures -----------------------------------------------------------------------------------
 */

static const struct sl_metric metrics[] = {
#define COUNTER(field, name, unit, help)                                                           \
    {                                                                                              \
        name, unit, help, offsetof(struct sl_images_counters, field), false                        \
    }
    COUNTER(n_saved, "images_saved", SL_METRIC_COUNT, "Images that were written"),
    COUNTER(saved_bytes, "images_saved_bytes", SL_METRIC_BYTES, "Bytes of images written"),
    COUNTER(n_loaded, "images_loaded", SL_METRIC_COUNT, "Images that were read"),
    COUNTER(loaded_bytes, "images_loaded_bytes", SL_METRIC_BYTES, "Bytes of images read"),
    COUNTER(n_removed, "images_removed", SL_METRIC_COUNT, "Images that made room for others"),
    COUNTER(n_dropped, "images_dropped", SL_METRIC_COUNT, "Images that were damaged"),
    COUNTER(n_failed, "images_failed", SL_METRIC_COUNT, "Images that could not be kept"),
    COUNTER(wait_ns, "images_wait_seconds", SL_METRIC_NANOSECONDS,
            "Time that the model waited for images being written"),
#undef COUNTER
    {"images", SL_METRIC_COUNT, "Images in the folder",
     offsetof(struct sl_images_counters, n_images), true},
    {"images_bytes", SL_METRIC_BYTES, "Bytes of all images in the folder",
     offsetof(struct sl_images_counters, folder_bytes), true},
};

const struct sl_metrics sl_images_metrics = {metrics, SL_ARRAY_LEN(metrics)};

struct sl_images_counters sl_images_counters(const struct sl_images *images)
{
    struct sl_images_counters counters = images->counters;

    counters.n_images = images->folder.n_images;
    counters.folder_bytes = images->folder.bytes;
    return counters;
}
