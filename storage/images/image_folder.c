#include "storage/images/image_folder.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/assert.h"
#include "core/base/file.h"

char *sl_image_folder_path(const struct sl_image_folder *folder, uint64_t prefix)
{
    char name[SL_IMAGE_NAME_BYTES], *path;

    sl_image_name(prefix, name);
    return asprintf(&path, "%s/%s", folder->path, name) < 0 ? NULL : path;
}

/* ---- the list ----------------------------------------------------------------------------------
 */

/* Returns where the prefix is, or would be. */
static uint32_t place_of(const struct sl_image_folder *folder, uint64_t prefix)
{
    uint32_t low = 0, high = folder->n_images;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;

        if (folder->images[middle].header.prefix < prefix)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

struct sl_image *sl_image_folder_find(const struct sl_image_folder *folder, uint64_t prefix)
{
    const uint32_t place = place_of(folder, prefix);

    return place < folder->n_images && folder->images[place].header.prefix == prefix
               ? &folder->images[place]
               : NULL;
}

struct sl_image *sl_image_folder_base(const struct sl_image_folder *folder,
                                      const struct sl_image *image)
{
    struct sl_image *base;

    if (image->header.first_token == 0)
        return NULL;
    base = sl_image_folder_find(folder, image->header.base_prefix);
    return base && base->header.end_token == image->header.first_token &&
                   base->header.version == image->header.version &&
                   sl_image_owner_equal(&base->header.owner, &image->header.owner)
               ? base
               : NULL;
}

/* Adds it without a look at its base. */
static int insert(struct sl_image_folder *folder, const struct sl_image *image)
{
    const uint32_t place = place_of(folder, image->header.prefix);

    sl_assert(!sl_image_folder_find(folder, image->header.prefix));
    if (folder->n_images == folder->n_room) {
        const uint32_t n_room = 2 * folder->n_room + 16;
        struct sl_image *images = reallocarray(folder->images, n_room, sizeof(*images));

        if (!images)
            return -ENOMEM;
        folder->images = images;
        folder->n_room = n_room;
    }
    memmove(&folder->images[place + 1], &folder->images[place],
            (folder->n_images - place) * sizeof(*folder->images));
    folder->images[place] = *image;
    folder->n_images++;
    folder->bytes += image->file_bytes;
    return 0;
}

static void take_out(struct sl_image_folder *folder, struct sl_image *image)
{
    const size_t place = (size_t)(image - folder->images);

    folder->bytes -= image->file_bytes;
    folder->n_images--;
    memmove(image, image + 1, (folder->n_images - place) * sizeof(*image));
}

void sl_image_folder_remove(struct sl_image_folder *folder, struct sl_image *image)
{
    struct sl_image *base = sl_image_folder_base(folder, image);

    if (base)
        base->n_children--;
    take_out(folder, image);
}

int sl_image_folder_add(struct sl_image_folder *folder, const struct sl_image *image)
{
    struct sl_image *old = sl_image_folder_find(folder, image->header.prefix), *base;
    struct sl_image added = *image;
    int rc;

    if (old) {
        added.n_children = old->n_children;
        added.n_pins += old->n_pins;
        sl_image_folder_remove(folder, old);
    }
    rc = insert(folder, &added);
    base = rc == 0 ? sl_image_folder_base(folder, &added) : NULL;
    if (base)
        base->n_children++;
    return rc;
}

struct sl_image *sl_image_folder_oldest(const struct sl_image_folder *folder, uint64_t keep)
{
    struct sl_image *oldest = NULL;

    for (uint32_t i = 0; i < folder->n_images; i++) {
        struct sl_image *image = &folder->images[i];

        if (image->n_children == 0 && image->n_pins == 0 && image->header.prefix != keep &&
            (!oldest || image->used_ns < oldest->used_ns))
            oldest = image;
    }
    return oldest;
}

void sl_image_folder_fini(struct sl_image_folder *folder)
{
    free(folder->path);
    free(folder->images);
    *folder = (struct sl_image_folder){0};
}

/* ---- files -------------------------------------------------------------------------------------
 */

/* Reads and checks the header of the open file `path`, whose name says `prefix`. */
static int read_header(int fd, const char *path, uint64_t prefix, struct sl_image *ret_image,
                       struct sl_err *err)
{
    uint8_t bytes[SL_IMAGE_HEADER_BYTES + sizeof(ret_image->first_ids)] = {0};
    const int64_t n_bytes = sl_file_read_at(fd, bytes, sizeof(bytes), 0);
    struct sl_image image = {.n_children = 0};
    struct stat status;

    if (n_bytes < 0 || fstat(fd, &status) < 0)
        return sl_err_set(err, n_bytes < 0 ? (int)n_bytes : -errno, "%s: cannot read: %s", path,
                          sl_strerror(n_bytes < 0 ? (int)n_bytes : -errno));
    if (n_bytes < (int64_t)SL_IMAGE_HEADER_BYTES || !sl_image_header_decode(&image.header, bytes))
        return sl_err_set(err, -SL_ECORRUPT, "%s: damaged: its header is not sound", path);
    memcpy(image.first_ids, bytes + SL_IMAGE_HEADER_BYTES, sizeof(image.first_ids));
    image.file_bytes = (uint64_t)status.st_size;
    image.used_ns =
        (uint64_t)status.st_mtim.tv_sec * 1000000000u + (uint64_t)status.st_mtim.tv_nsec;
    if (image.header.version != SL_IMAGE_VERSION)
        image.header.prefix = prefix;
    else if (image.header.prefix != prefix)
        return sl_err_set(err, -SL_ECORRUPT, "%s: damaged: it is the image of another name", path);
    else if (image.file_bytes != sl_image_file_bytes(&image.header))
        return sl_err_set(err, -SL_ECORRUPT,
                          "%s: damaged: it has %llu bytes, but its header says %llu", path,
                          (unsigned long long)image.file_bytes,
                          (unsigned long long)sl_image_file_bytes(&image.header));
    *ret_image = image;
    return 0;
}

static bool same_header(const struct sl_image_header *a, const struct sl_image_header *b)
{
    return a->version == b->version && sl_image_owner_equal(&a->owner, &b->owner) &&
           a->prefix == b->prefix && a->base_prefix == b->base_prefix &&
           a->first_token == b->first_token && a->end_token == b->end_token &&
           memcmp(a->part_bytes, b->part_bytes, sizeof(a->part_bytes)) == 0 &&
           memcmp(a->checksums, b->checksums, sizeof(a->checksums)) == 0;
}

int sl_image_file_open(const struct sl_image_folder *folder, const struct sl_image *image,
                       struct sl_err *err)
{
    char *path = sl_image_folder_path(folder, image->header.prefix);
    struct sl_image found = {.n_children = 0};
    int fd, rc;

    if (!path)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", folder->path);
    rc = fd = sl_file_open_nofollow(path, err);
    if (fd >= 0)
        rc = read_header(fd, path, image->header.prefix, &found, err);
    if (rc == 0 && !same_header(&found.header, &image->header))
        rc = sl_err_set(err, -SL_ECORRUPT, "%s: replaced since the folder was opened", path);
    if (rc < 0 && fd >= 0)
        close(fd);
    free(path);
    return rc < 0 ? rc : fd;
}

/* ---- scanning ----------------------------------------------------------------------------------
 */

struct scan {
    struct sl_image_folder *folder;
    sl_image_fault_fn *on_fault;
    void *context;
};

static void tell(const struct scan *scan, enum sl_image_fault fault, const char *name,
                 const char *line)
{
    scan->on_fault(scan->context, fault, name, line);
}

static int take_file(const struct scan *scan, const char *name, struct sl_err *err)
{
    struct sl_image image = {.n_children = 0};
    struct sl_err why = {0};
    uint64_t prefix;
    bool is_new;
    char *path;
    int fd, rc;

    if (!sl_image_name_parse(name, &prefix, &is_new))
        return 0;
    if (asprintf(&path, "%s/%s", scan->folder->path, name) < 0)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", scan->folder->path);
    if (is_new) {
        snprintf(why.message, sizeof(why.message), "%s: not finished", path);
        tell(scan, SL_IMAGE_UNFINISHED, name, why.message);
        free(path);
        return 0;
    }
    rc = fd = sl_file_open_nofollow(path, &why);
    if (fd >= 0) {
        rc = read_header(fd, path, prefix, &image, &why);
        close(fd);
    }
    free(path);
    if (rc == -ENOENT) /* removed since */
        return 0;
    if (rc < 0) {
        tell(scan, rc == -SL_ECORRUPT ? SL_IMAGE_DAMAGED : SL_IMAGE_UNREADABLE, name, why.message);
        return 0;
    }
    rc = insert(scan->folder, &image);
    return rc < 0 ? sl_err_set(err, rc, "%s: out of memory", scan->folder->path) : 0;
}

static int compare_first_tokens(const void *a, const void *b, void *images)
{
    const struct sl_image *list = images;
    const uint32_t first_a = list[*(const uint32_t *)a].header.first_token;
    const uint32_t first_b = list[*(const uint32_t *)b].header.first_token;

    return (first_a > first_b) - (first_a < first_b);
}

/* Counts children, and takes out orphans. Bases come before those that continue them, so whatever
 * continues an orphan is one as well when its turn comes. */
static int link_images(const struct scan *scan, struct sl_err *err)
{
    struct sl_image_folder *folder = scan->folder;
    const uint32_t n = folder->n_images;
    uint32_t *order = malloc((n + 1) * sizeof(*order));
    bool *is_orphan = calloc(n + 1, sizeof(*is_orphan));

    if (!order || !is_orphan) {
        free(order);
        free(is_orphan);
        return sl_err_set(err, -ENOMEM, "%s: out of memory", folder->path);
    }
    for (uint32_t i = 0; i < n; i++)
        order[i] = i;
    qsort_r(order, n, sizeof(*order), compare_first_tokens, folder->images);
    for (uint32_t k = 0; k < n; k++) {
        const struct sl_image *image = &folder->images[order[k]];
        struct sl_image *base = sl_image_folder_base(folder, image);

        is_orphan[order[k]] =
            image->header.first_token > 0 && (!base || is_orphan[base - folder->images]);
        if (base && !is_orphan[order[k]])
            base->n_children++;
    }
    for (uint32_t i = n; i-- > 0;) {
        char name[SL_IMAGE_NAME_BYTES], line[SL_ERR_MESSAGE_BYTES];

        if (!is_orphan[i])
            continue;
        sl_image_name(folder->images[i].header.prefix, name);
        snprintf(line, sizeof(line), "%s/%s: what it continues is not there", folder->path, name);
        tell(scan, SL_IMAGE_ORPHAN, name, line);
        take_out(folder, &folder->images[i]);
    }
    free(order);
    free(is_orphan);
    return 0;
}

int sl_image_folder_scan(struct sl_image_folder *folder, const char *path,
                         sl_image_fault_fn *on_fault, void *context, struct sl_err *err)
{
    const struct scan scan = {folder, on_fault, context};
    const struct dirent *entry;
    DIR *dir = opendir(path);
    int rc = 0;

    if (!dir)
        return sl_err_set(err, -errno, "%s: cannot open the folder: %s", path, sl_strerror(errno));
    folder->path = strdup(path);
    if (!folder->path)
        rc = sl_err_set(err, -ENOMEM, "%s: out of memory", path);
    while (rc == 0 && (errno = 0, entry = readdir(dir)))
        rc = take_file(&scan, entry->d_name, err);
    if (rc == 0 && errno != 0)
        rc = sl_err_set(err, -errno, "%s: cannot list the folder: %s", path, sl_strerror(errno));
    closedir(dir);
    return rc < 0 ? rc : link_images(&scan, err);
}
