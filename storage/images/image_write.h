/* The thread that writes images while the engine's thread computes.
 *
 * It writes in small pieces, one at a time, and begins none while reads of a higher class are
 * queued or in flight on the drive: a demand waits for one piece at most. When somebody waits for
 * the image, it goes on in any case, since then nobody demands.
 *
 * An image is written under another name, synced, renamed, and the folder synced: it is there whole
 * or not at all. One thread makes all calls. */
#ifndef SL_STORAGE_IMAGES_IMAGE_WRITE_H
#define SL_STORAGE_IMAGES_IMAGE_WRITE_H

#include <stdatomic.h>
#include <stdbool.h>

#include "storage/images/image_folder.h"
#include "storage/io/file_writer.h"

struct sl_image_writer;

/* `files`, `folder_path` and `n_ahead` are borrowed. *n_ahead counts the reads to give way to; NULL
 * where there are none on this drive. Fails with -ENOMEM or -EAGAIN (no thread to be had). */
int sl_image_writer_create(struct sl_image_writer **ret_writer, struct sl_file_writer *files,
                           const char *folder_path, const atomic_uint *n_ahead, struct sl_err *err);

/* Waits for an image that is being written. NULL is allowed. */
void sl_image_writer_destroy(struct sl_image_writer *writer);

struct sl_image_job {
    /* Checksums are filled in by the writer, and so is the file's header. */
    struct sl_image_header header;
    /* (sl_image_file_bytes()) aligned to SL_BLOCK_BYTES: the file, with its parts in their places;
     * the writer's until the job has ended. */
    uint8_t *bytes;
    uint64_t *removed; /* (n_removed) images whose files are to go first; the caller's to free */
    uint32_t n_removed;
};

/* Begins a job; none is under way. */
void sl_image_writer_begin(struct sl_image_writer *writer, const struct sl_image_job *job);

/* Lets the job that is under way no longer give way to reads: somebody waits for its end. */
void sl_image_writer_hurry(struct sl_image_writer *writer);

/* Returns whether the job has ended, or with `wait` waits until it has. There was one. *ret_job
 * is the job, *ret_rc and `err` what came of it: 0, or -errno of the drive. */
bool sl_image_writer_end(struct sl_image_writer *writer, bool wait, struct sl_image_job *ret_job,
                         int *ret_rc, struct sl_err *err);

#endif
