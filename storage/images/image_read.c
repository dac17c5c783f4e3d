#include "storage/images/image_read.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/assert.h"
#include "core/base/file.h"

/* So many files are open at once. */
#define FILES_MAX 64u

/* Verifying reads pieces of this size. */
#define PIECE_BYTES (UINT64_C(1) << 20)

/* Images are read in groups, each by a back end of its own. They take turns at the two ends of the
 * memory, so that one can be read while the one before it is taken. */
struct sl_image_reading {
    struct sl_image_chain chain;
    bool memory_lost;
    uint32_t first, n; /* the group: images of the chain */
    struct sl_io *io;
    struct sl_reader *reader;
    struct sl_read reads[FILES_MAX];
    uint32_t n_queued;
    uint32_t n_sound; /* images of the group that nothing is wrong with so far */
};

static uint64_t wanted_bytes(const struct sl_image_chain *chain, uint32_t i)
{
    const struct sl_image_header *header = &chain->images[i]->header;

    return sl_image_part_offset(header, i + 1 < chain->n_images ? SL_IMAGE_MARK : SL_IMAGE_PARTS);
}

static uint8_t *place_of(const struct sl_image_reading *g, uint32_t k)
{
    const struct sl_image_chain *chain = &g->chain;

    return k % 2 == 0 ? chain->memory
                      : chain->memory + chain->memory_bytes - wanted_bytes(chain, g->first + k);
}

/* Queues reads as far as there is room: image `k` is waited for, or in use, and the next one may
 * come beside it. */
static void queue_reads(struct sl_image_reading *g, uint32_t k)
{
    const struct sl_image_chain *chain = &g->chain;

    while (g->n_queued < g->n && g->n_queued <= k + 1) {
        const uint64_t bytes = wanted_bytes(chain, g->first + g->n_queued);

        if (g->n_queued > k && bytes + wanted_bytes(chain, g->first + k) > chain->memory_bytes)
            break;
        g->reads[g->n_queued] = (struct sl_read){
            .size_bytes = bytes, .dst = place_of(g, g->n_queued), .file_index = g->n_queued};
        sl_reader_queue(g->reader, &g->reads[g->n_queued]);
        g->n_queued++;
    }
    sl_reader_start(g->reader);
}

/* A read that has landed is its own owner. Returns 1, 0 where it has not, or how it failed. */
static int has_landed(struct sl_image_reading *g, uint32_t k, bool wait, struct sl_err *err)
{
    while (!g->reads[k].owner) {
        struct sl_read *read = sl_reader_reap(g->reader, SL_READS_OF_EXPERTS, wait);

        if (!read)
            return 0;
        read->owner = read;
    }
    return g->reads[k].rc < 0 ? sl_reader_explain(g->reader, &g->reads[k], err) : 1;
}

static int damaged(const struct sl_image_folder *folder, const struct sl_image *image,
                   const char *what, struct sl_err *err)
{
    char name[SL_IMAGE_NAME_BYTES];

    sl_image_name(image->header.prefix, name);
    return sl_err_set(err, -SL_ECORRUPT, "%s/%s: damaged: its %s", folder->path, name, what);
}

static const char *const part_faults[SL_IMAGE_PARTS] = {
    [SL_IMAGE_IDS] = "token ids do not have the checksum that it names",
    [SL_IMAGE_ENTRIES] = "entries do not have the checksum that it names",
    [SL_IMAGE_MARK] = "mark does not have the checksum that it names",
};

/* Checks what has landed for image `i` and hands it out. */
static int take_image(const struct sl_image_chain *chain, uint32_t i, const uint8_t *bytes,
                      struct sl_err *err)
{
    const struct sl_image *image = chain->images[i];
    const struct sl_image_header *header = &image->header;
    const bool is_last = i + 1 == chain->n_images;
    uint8_t expected[SL_IMAGE_HEADER_BYTES];
    struct sl_image_content content = {
        .first_token = header->first_token,
        .end_token = header->end_token,
        .entries = bytes + sl_image_part_offset(header, SL_IMAGE_ENTRIES),
        .entries_bytes = header->part_bytes[SL_IMAGE_ENTRIES],
    };
    int rc;

    sl_image_header_encode(header, expected);
    if (memcmp(bytes, expected, sizeof(expected)) != 0)
        return damaged(chain->folder, image, "header has changed", err);
    for (int part = 0; part < (is_last ? SL_IMAGE_PARTS : SL_IMAGE_MARK); part++)
        if (!sl_image_part_is_sound(header, (enum sl_image_part)part,
                                    bytes + sl_image_part_offset(header, (enum sl_image_part)part)))
            return damaged(chain->folder, image, part_faults[part], err);
    if (memcmp(bytes + sl_image_part_offset(header, SL_IMAGE_IDS),
               chain->tokens + header->first_token, header->part_bytes[SL_IMAGE_IDS]) != 0)
        return damaged(chain->folder, image, "token ids are others than its name says", err);
    if (is_last) {
        content.mark = bytes + sl_image_part_offset(header, SL_IMAGE_MARK);
        content.mark_bytes = header->part_bytes[SL_IMAGE_MARK];
    }
    rc = chain->take(chain->context, &content);
    return rc < 0 ? damaged(chain->folder, image,
                            "contents are not of the sizes that they must have", err)
                  : 0;
}

static int open_group(struct sl_image_reading *g, struct sl_err *err)
{
    const struct sl_image_chain *chain = &g->chain;
    const uint32_t depth = chain->reader->depth ? chain->reader->depth : SL_READER_DEPTH;
    char *paths[FILES_MAX] = {NULL};
    int rc = 0;

    for (uint32_t k = 0; rc == 0 && k < g->n; k++) {
        const struct sl_image *image = chain->images[g->first + k];
        int fd = sl_image_file_open(chain->folder, image, err);

        rc = fd < 0 ? fd : 0;
        if (fd >= 0)
            close(fd);
        paths[k] = sl_image_folder_path(chain->folder, image->header.prefix);
        if (rc == 0 && !paths[k])
            rc = sl_err_set(err, -ENOMEM, "%s: out of memory", chain->folder->path);
        if (rc == 0 && wanted_bytes(chain, g->first + k) > chain->memory_bytes)
            rc = sl_err_set(err, -SL_EBUDGET, "%s: larger than the memory for images", paths[k]);
        g->n_sound = rc < 0 ? k : 0;
    }
    if (rc == 0)
        rc = chain->open_io(&g->io, (const char *const *)paths, g->n, depth, err);
    if (rc == 0)
        rc = sl_reader_create(&g->reader, g->io, chain->reader, err);
    for (uint32_t k = 0; k < FILES_MAX; k++)
        free(paths[k]);
    return rc;
}

static void close_group(struct sl_image_reading *g)
{
    if (g->reader) {
        for (uint32_t k = 0; k < g->n_queued; k++)
            if (!g->reads[k].owner)
                sl_reader_cancel(g->reader, &g->reads[k]);
        while (sl_reader_reap(g->reader, SL_READS_OF_EXPERTS, true))
            ;
        g->memory_lost |= !sl_reader_drain(g->reader);
    }
    sl_reader_destroy(g->reader);
    if (g->io)
        g->io->ops->close(g->io);
    g->reader = NULL;
    g->io = NULL;
}

/* Begins the group behind the one that is open, if any. */
static int next_group(struct sl_image_reading *g, struct sl_err *err)
{
    const uint32_t first = g->first + g->n, n_left = g->chain.n_images - first;

    close_group(g);
    g->first = first;
    g->n = n_left < FILES_MAX ? n_left : FILES_MAX;
    g->n_queued = g->n_sound = 0;
    memset(g->reads, 0, sizeof(g->reads));
    return open_group(g, err);
}

int sl_image_reading_begin(struct sl_image_reading **ret_reading,
                           const struct sl_image_chain *chain, struct sl_err *err)
{
    struct sl_image_reading *g = calloc(1, sizeof(*g));

    if (!g)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", chain->folder->path);
    g->chain = *chain;
    *ret_reading = g;
    return 0;
}

int sl_image_reading_next(struct sl_image_reading *g, bool wait, struct sl_err *err)
{
    int rc = g->n_sound < g->n ? 0 : next_group(g, err);

    if (rc < 0)
        return rc;
    queue_reads(g, g->n_sound);
    rc = has_landed(g, g->n_sound, wait, err);
    if (rc <= 0)
        return rc < 0 ? rc : 1;
    rc = take_image(&g->chain, g->first + g->n_sound, place_of(g, g->n_sound), err);
    if (rc < 0)
        return rc;
    g->n_sound++;
    if (g->n_sound < g->n)
        queue_reads(g, g->n_sound); /* its place, and the next one's, are free now */
    return g->first + g->n_sound < g->chain.n_images;
}

void sl_image_reading_end(struct sl_image_reading *g, uint32_t *ret_n_sound, bool *ret_memory_lost)
{
    close_group(g);
    *ret_n_sound = g->first + g->n_sound;
    *ret_memory_lost = g->memory_lost;
    free(g);
}

/* ---- without the engine ------------------------------------------------------------------------
 */

static int verify_part(int fd, const struct sl_image_folder *folder, const struct sl_image *image,
                       enum sl_image_part part, struct sl_checksum_stream *stream, uint8_t *piece,
                       struct sl_err *err)
{
    const uint64_t stored_bytes = sl_image_part_stored_bytes(&image->header, part);
    const uint64_t offset_bytes = sl_image_part_offset(&image->header, part);

    sl_checksum_stream_reset(stream);
    for (uint64_t at = 0; at < stored_bytes; at += PIECE_BYTES) {
        const uint64_t size_bytes =
            stored_bytes - at < PIECE_BYTES ? stored_bytes - at : PIECE_BYTES;
        const int64_t n_read = sl_file_read_at(fd, piece, size_bytes, offset_bytes + at);

        if (n_read < 0)
            return sl_err_set(err, (int)n_read, "%s: cannot read an image: %s", folder->path,
                              sl_strerror((int)n_read));
        if ((uint64_t)n_read < size_bytes)
            return damaged(folder, image, "end is missing", err);
        sl_checksum_stream_add(stream, piece, size_bytes);
    }
    return sl_checksum_stream_value(stream) == image->header.checksums[part]
               ? 0
               : damaged(folder, image, part_faults[part], err);
}

int sl_image_verify(const struct sl_image_folder *folder, const struct sl_image *image,
                    struct sl_err *err)
{
    struct sl_checksum_stream *stream = sl_checksum_stream_create();
    uint8_t *piece = malloc(PIECE_BYTES);
    int fd = -1, rc = 0;

    if (!stream || !piece)
        rc = sl_err_set(err, -ENOMEM, "%s: out of memory", folder->path);
    if (rc == 0)
        rc = fd = sl_image_file_open(folder, image, err);
    rc = rc > 0 ? 0 : rc;
    for (int part = 0; rc == 0 && part < SL_IMAGE_PARTS; part++)
        rc = verify_part(fd, folder, image, (enum sl_image_part)part, stream, piece, err);
    if (fd >= 0)
        close(fd);
    free(piece);
    sl_checksum_stream_destroy(stream);
    return rc;
}

uint32_t sl_image_shared_tokens(const struct sl_image_folder *folder, const struct sl_image *image,
                                const int32_t *tokens, uint32_t first, uint32_t n_tokens)
{
    const struct sl_image_header *header = &image->header;
    const uint32_t end = header->end_token < n_tokens ? header->end_token : n_tokens;
    const uint64_t offset_bytes =
        sl_image_part_offset(header, SL_IMAGE_IDS) + UINT64_C(4) * (first - header->first_token);
    const uint64_t size_bytes = UINT64_C(4) * (end - first);
    uint32_t n_shared = 0;
    int32_t *ids;
    int fd;

    sl_assert(first >= header->first_token && first < end);
    fd = sl_image_file_open(folder, image, NULL);
    if (fd < 0)
        return 0;
    ids = malloc(size_bytes);
    if (ids && sl_file_read_at(fd, ids, size_bytes, offset_bytes) == (int64_t)size_bytes)
        while (n_shared < end - first && ids[n_shared] == tokens[first + n_shared])
            n_shared++;
    free(ids);
    close(fd);
    return n_shared;
}
