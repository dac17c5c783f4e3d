/* The images that lie in a folder, as far as their headers tell: a forest, found by prefix.
 *
 * The files are the only record of it. A file gets its name when all of it is on disk, so what a
 * name leads to is whole or was damaged later, and there is no list that could disagree. A file's
 * time of modification is when it was used last.
 *
 * In memory, and for one thread. Pointers to images are valid until the next add or remove. */
#ifndef SL_STORAGE_IMAGES_IMAGE_FOLDER_H
#define SL_STORAGE_IMAGES_IMAGE_FOLDER_H

#include "core/base/err.h"
#include "storage/images/image_format.h"

/* So many of an image's ids are in memory, to tell in a moment what it has nothing in common with.
 */
#define SL_IMAGE_FIRST_IDS 16u

struct sl_image {
    struct sl_image_header header; /* of another version, its prefix is what the name says */
    int32_t first_ids[SL_IMAGE_FIRST_IDS]; /* of a shorter image, with zeros behind; only a hint */
    uint64_t file_bytes;
    uint64_t used_ns;    /* wall clock */
    uint32_t n_children; /* that continue it */
    uint32_t n_pins;
};

struct sl_image_folder {
    char *path;
    struct sl_image *images; /* (n_images), prefixes ascending */
    uint32_t n_images, n_room;
    uint64_t bytes; /* of all of them */
};

enum sl_image_fault {
    SL_IMAGE_UNFINISHED, /* a run was ended while it wrote this */
    SL_IMAGE_DAMAGED,
    SL_IMAGE_UNREADABLE, /* the drive failed, the file is another's, or it is no regular file */
    SL_IMAGE_ORPHAN,     /* what it continues is not there */
};

/* Is told of a file that is no image that could be used; `line` names it and says why. */
typedef void sl_image_fault_fn(void *context, enum sl_image_fault fault, const char *name,
                               const char *line);

/* Reads the header of every image in a folder; other files are passed over. `folder` is zeroed and
 * needs fini() whatever comes of it. Fails with -errno or -ENOMEM. */
int sl_image_folder_scan(struct sl_image_folder *folder, const char *path,
                         sl_image_fault_fn *on_fault, void *context, struct sl_err *err);
void sl_image_folder_fini(struct sl_image_folder *folder);

/* Returns NULL if there is none. */
struct sl_image *sl_image_folder_find(const struct sl_image_folder *folder, uint64_t prefix);

/* Returns the image that `image` continues; NULL if it begins a sequence, or that one is lost. */
struct sl_image *sl_image_folder_base(const struct sl_image_folder *folder,
                                      const struct sl_image *image);

/* Adds an image, whose base is there; one of the same prefix is replaced. Fails with -ENOMEM. */
int sl_image_folder_add(struct sl_image_folder *folder, const struct sl_image *image);

/* Forgets an image; the file is the caller's to remove. */
void sl_image_folder_remove(struct sl_image_folder *folder, struct sl_image *image);

/* Returns, of the images that nothing continues and nobody pins, the one that was used the longest
 * time ago, but not that of prefix `keep`; NULL if there is none. */
struct sl_image *sl_image_folder_oldest(const struct sl_image_folder *folder, uint64_t keep);

/* Writes the file's path. The caller frees it; NULL when out of memory. */
char *sl_image_folder_path(const struct sl_image_folder *folder, uint64_t prefix);

/* Opens an image's file and compares it with what is known of it. Returns a descriptor, the
 * caller's to close, or fails with -errno or -SL_ECORRUPT, naming the file. */
int sl_image_file_open(const struct sl_image_folder *folder, const struct sl_image *image,
                       struct sl_err *err);

#endif
