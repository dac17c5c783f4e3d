/* What tests of sessions stand on: a tiny model with every kind of layer, some texts, of which all
 * begin as the first one does, and what the model answers to each when it is run alone and never
 * disturbed. Sessions follow texts, and can change over to another wherever both are still alike.
 * Failures are cmocka's. */
#ifndef SL_TESTS_SESSION_RIG_H
#define SL_TESTS_SESSION_RIG_H

#include <stdbool.h>
#include <stdint.h>

#include "core/model/forward.h"
#include "core/session/session_bytes.h"
#include "tests/fixture_model.h"

#define TEXTS 6u
#define LENGTH 600u /* of a text, but of the first: */
#define LONG 4250u  /* a table has room for 4,096 */
#define TOKENS_MAX 192u
#define SPANS_MAX 6u
#define CUTS_MAX 8u

struct session_model {
    struct sl_config config;
    struct fixture_weights source;
    struct sl_weights weights;
    struct fixture_experts experts;
    struct sl_kernels kernels;
    struct sl_compute compute;
    struct sl_forward *forward;

    int32_t ids[TEXTS][LONG + 1];
    uint32_t length[TEXTS];
    uint32_t alike[TEXTS]; /* tokens that the text has from the first one */
    /* Hashes of the logits after each token, and of the MTP block's. */
    uint64_t answers[TEXTS][LONG], mtp_answers[TEXTS][LONG];
};

/* For a group of tests, which borrow the model and leave it as it was. The wide model's entries are
 * so large that a text of LENGTH tokens has full pages. */
int session_rig_create(void **state);
int session_rig_create_wide(void **state);
int session_rig_destroy(void **state);

/* Makes a pool whose memory has been somebody else's. */
void session_rig_pool(struct sl_kv_pool *pool, const struct session_model *m, uint64_t bytes);

/* ---- steps -------------------------------------------------------------------------------------
 */

/* A session, and the text that it follows. */
struct session_follower {
    struct sl_session *session;
    uint32_t text;
    bool with_mtp;
};

/* A step of some followers, which the caller zeroes. Every row of logits is compared. */
struct session_step {
    struct session_model *m;
    struct session_follower *followers[SPANS_MAX];
    struct sl_span spans[SPANS_MAX];
    uint32_t first[SPANS_MAX]; /* positions of the spans' first tokens */
    uint32_t n_spans;
    bool mtp;    /* the pass of the MTP block is under way */
    bool learns; /* keeps the hashes instead */
    uint32_t n_rows;
};

void session_rig_add_span(struct session_step *step, struct session_follower *follower,
                          uint32_t n_tokens, enum sl_logits_wanted logits);
struct sl_step_request session_rig_request(struct session_step *step);

/* Runs the MTP block over the step that ended last, for those whose sessions use it. */
void session_rig_run_mtp(struct session_step *step);

/* Takes the whole step, with the MTP block. Fails as its beginning. */
int session_rig_run_step(struct session_step *step, struct sl_err *err);

/* Takes a session on by n tokens. */
void session_rig_run_on(struct session_model *m, struct session_follower *follower,
                        uint32_t n_tokens);

/* ---- bytes -------------------------------------------------------------------------------------
 */

/* A session as bytes: chunks that end at `cuts`, and a mark. */
struct session_image {
    uint32_t n_tokens;
    uint32_t cuts[CUTS_MAX];
    uint32_t n_cuts;
    uint8_t *chunks[CUTS_MAX], *mark;
    uint64_t mark_bytes;
};

/* The cuts are drawn. The caller frees the image. */
void session_rig_export(const struct sl_session *session, const struct sl_mark *mark,
                        struct session_image *image, uint64_t *random);
void session_rig_free(struct session_image *image);

/* The session gives the same bytes. */
void session_rig_check(const struct sl_session *session, const struct sl_mark *mark,
                       const struct session_image *image);

/* Fails as sl_session_import_begin() and sl_session_import_end(). */
int session_rig_import(const struct session_model *m, const struct session_follower *follower,
                       const struct session_image *image, struct sl_err *err);

#endif
