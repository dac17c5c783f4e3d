/* Reads images back: those of one sequence, from its first token on, each checked before anybody
 * sees it, and the next one read meanwhile. */
#ifndef SL_STORAGE_IMAGES_IMAGE_READ_H
#define SL_STORAGE_IMAGES_IMAGE_READ_H

#include "storage/images/image_folder.h"
#include "storage/io/io.h"
#include "storage/io/reader.h"

/* One image's content, valid during the call. */
struct sl_image_content {
    uint32_t first_token, end_token;
    const uint8_t *entries;
    uint64_t entries_bytes;
    const uint8_t *mark; /* the last image's; NULL for those before it */
    uint64_t mark_bytes;
};

/* Takes an image; they come in order. A negative result ends the reading: it means that the
 * content is not what it should be. */
typedef int sl_image_take_fn(void *context, const struct sl_image_content *content);

struct sl_image_chain {
    const struct sl_image_folder *folder;
    const struct sl_image *const *images; /* (n_images), each the base of the next */
    uint32_t n_images;
    const int32_t *tokens; /* that the images must hold, all of the sequence's */
    uint8_t *memory;       /* aligned to SL_BLOCK_BYTES; at least the largest image's size */
    uint64_t memory_bytes;
    sl_io_open_fn *open_io;
    const struct sl_reader_options *reader;
    sl_image_take_fn *take;
    void *context;
};

/* A chain that is being read, an image at a time; `chain` and all it points to are borrowed until
 * the end. Fails with -ENOMEM. */
struct sl_image_reading;
int sl_image_reading_begin(struct sl_image_reading **ret_reading,
                           const struct sl_image_chain *chain, struct sl_err *err);

/* Takes the next image, and sets the reads of the one behind it going. With `wait` it waits for the
 * drive; else it comes back at once where the image has not landed. Returns 1 while there are
 * images that have not been taken, 0 when all have been. Fails with -errno, -ENOMEM, -SL_EBUDGET
 * (an image is larger than the memory) or -SL_ECORRUPT, also where take() failed; then only end()
 * follows. */
int sl_image_reading_next(struct sl_image_reading *reading, bool wait, struct sl_err *err);

/* Ends it, done or not. Image number *ret_n_sound is the first one that was not taken: the one to
 * blame where next() failed. With *ret_memory_lost, a drive may still write to the memory, which
 * must never be freed or used again. */
void sl_image_reading_end(struct sl_image_reading *reading, uint32_t *ret_n_sound,
                          bool *ret_memory_lost);

/* Compares all parts of one image with their checksums. Fails with -errno, -ENOMEM or
 * -SL_ECORRUPT. */
int sl_image_verify(const struct sl_image_folder *folder, const struct sl_image *image,
                    struct sl_err *err);

/* Returns how many of the tokens from `first` on are those of the image, which holds that
 * position; 0 if it cannot be read. Only a hint, since no checksum is looked at. */
uint32_t sl_image_shared_tokens(const struct sl_image_folder *folder, const struct sl_image *image,
                                const int32_t *tokens, uint32_t first, uint32_t n_tokens);

#endif
