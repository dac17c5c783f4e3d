/* What tests of images stand on: a folder, and sequences whose entries and marks follow from their
 * tokens, so that whoever gets wrong ones is found out. Failures are cmocka's. */
#ifndef SL_TESTS_IMAGE_RIG_H
#define SL_TESTS_IMAGE_RIG_H

#include "storage/images/images.h"
#include "tests/fixture_checkpoint.h"

#define IMAGE_RIG_MARK_BYTES 20u
#define IMAGE_RIG_ENTRY_BYTES 3u /* of each token */

struct image_rig {
    char root[FIXTURE_PATH_BYTES];   /* all below it goes with the rig */
    char folder[FIXTURE_PATH_BYTES]; /* of images; not made yet */
    struct sl_images_options options;
    struct sl_images *images; /* NULL while closed */
    uint32_t n_notes;         /* since the rig was opened */
    char note[SL_ERR_MESSAGE_BYTES];
};

/* By the real writer, but that it syncs nothing; pread threads; no limit. The images are not open
 * yet. */
void image_rig_init(struct image_rig *rig);
void image_rig_fini(struct image_rig *rig);

void image_rig_open(struct image_rig *rig);
void image_rig_close(struct image_rig *rig);

/* Makes n tokens: the first n_same are those of every seed. */
void image_rig_tokens(int32_t *tokens, uint32_t n, uint32_t n_same, uint64_t seed);

/* Saves an image of the first n tokens, as a session does, and waits for it. Returns whether all of
 * it was kept. */
bool image_rig_save(struct image_rig *rig, const int32_t *tokens, uint32_t n);

/* Loads the longest prefix of at most n tokens, again with less where an image is bad. Returns its
 * length; whatever was loaded is right. */
uint32_t image_rig_load(struct image_rig *rig, const int32_t *tokens, uint32_t n);

/* The path of the image of the first n tokens. */
void image_rig_path(const struct image_rig *rig, const int32_t *tokens, uint32_t n,
                    char path[FIXTURE_PATH_BYTES]);

/* How many files of images, whole or not, are in the folder. */
uint32_t image_rig_file_count(const struct image_rig *rig);

#endif
