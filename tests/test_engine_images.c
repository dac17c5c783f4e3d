/* A session that comes from disk gives the same logits, bit for bit, as one that was never
 * disturbed: at lengths around multiples of 4, 8, 128 and the largest image, with native and exact
 * numerics, an image after every few tokens or after thousands, with and without the draft. Stores
 * of one checkpoint share images; another model of the same sizes, down to one byte, finds none.
 * Where images are damaged, what is left of them and the text computed again give the same.
 *
 * On the tiny model. SL_LONG=1 goes through all of it with tests/small, up to 40,000 tokens. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/engine/engine_images.h"
#include "storage/experts/model_identity.h"
#include "tests/engine_rig.h"
#include "tests/store_rig.h"

#define AFTER 9u /* tokens whose logits are compared behind each length */

struct world {
    const struct engine_rig *m;
    struct sl_engine_options options;
    char images[FIXTURE_PATH_BYTES];
    uint32_t n_notes;

    int32_t *tokens;
    uint32_t n_tokens;
    const uint32_t *lengths; /* (n_lengths) where images are kept */
    uint32_t n_lengths;
    float **rows; /* (n_tokens) logits of an undisturbed run; NULL where nobody looks */
    size_t row_bytes;
    uint32_t n_compared;
};

static void count_note(void *context, const char *line)
{
    (void)line;
    ((struct world *)context)->n_notes++;
}

static struct sl_engine *open_engine(const struct world *w, bool with_images)
{
    struct sl_engine_options options = w->options;
    struct sl_engine *engine;
    struct sl_err err = {0};

    options.images = with_images ? w->images : NULL;
    options.images_bytes_max = UINT64_MAX;
    options.on_note = count_note;
    options.on_note_context = (void *)(uintptr_t)w;
    if (sl_engine_open(&engine, &options, NULL, &err) < 0)
        fail_msg("%s", err.message);
    return engine;
}

static struct sl_session *new_session(const struct world *w, struct sl_engine *engine)
{
    struct sl_session *session;

    assert_int_equal(sl_session_create(&session, sl_engine_kv_pool(engine), w->n_tokens, NULL), 0);
    return session;
}

/* ---- steps -------------------------------------------------------------------------------------
 */

struct feeding {
    struct world *w;
    uint32_t first;
};

/* Keeps the rows of the first run, and compares those of all others. */
static void take_rows(void *context, const struct sl_logits_row *rows, uint32_t n_rows)
{
    const struct feeding *feeding = context;
    struct world *w = feeding->w;

    for (uint32_t i = 0; i < n_rows; i++) {
        float **row = &w->rows[feeding->first + rows[i].token_index];

        if (*row)
            assert_memory_equal(rows[i].logits, *row, w->row_bytes);
        w->n_compared += *row != NULL;
        if (!*row && (*row = malloc(w->row_bytes)))
            memcpy(*row, rows[i].logits, w->row_bytes);
    }
}

/* Brings the session to n tokens; all logits are looked at from position `from` on. */
static void feed(struct world *w, struct sl_engine *engine, struct sl_session *session, uint32_t n,
                 uint32_t from)
{
    const uint32_t at_once = sl_engine_step_tokens_max(engine, SL_STEP_LARGE);
    uint32_t done;

    while ((done = sl_session_token_count(session)) < n) {
        struct feeding feeding = {w, done};
        struct sl_span span = {.kv = sl_session_kv(session), .tokens = w->tokens + done};
        struct sl_step_request request = {
            .spans = &span, .n_spans = 1, .on_logits = take_rows, .on_logits_context = &feeding};
        struct sl_err err = {0};

        span.n_tokens = n - done < at_once ? n - done : at_once;
        if (done < from && done + span.n_tokens > from)
            span.n_tokens = from - done;
        span.logits = done >= from ? SL_LOGITS_ALL : SL_LOGITS_NONE;
        if (sl_engine_step(engine, &request, &err) < 0)
            fail_msg("%s", err.message);
    }
}

static uint32_t end_of(const struct world *w, uint32_t i)
{
    const uint32_t end = w->lengths[i] + AFTER;

    return end < w->n_tokens ? end : w->n_tokens;
}

/* Takes the undisturbed run, in steps of its own. */
static void run_undisturbed(struct world *w)
{
    struct sl_engine *engine = open_engine(w, false);
    struct sl_session *session = new_session(w, engine);

    for (uint32_t i = 0; i < w->n_lengths; i++)
        feed(w, engine, session, end_of(w, i), w->lengths[i]);
    sl_session_destroy(session);
    sl_engine_close(engine);
}

/* Keeps an image at each length. */
static void run_saving(struct world *w)
{
    struct sl_engine *engine = open_engine(w, true);
    struct sl_session *session = new_session(w, engine);

    for (uint32_t i = 0; i < w->n_lengths; i++) {
        feed(w, engine, session, w->lengths[i], i > 0 ? w->lengths[i - 1] : UINT32_MAX);
        assert_true(sl_engine_save_image(engine, session));
    }
    feed(w, engine, session, w->n_tokens, w->lengths[w->n_lengths - 1]);
    sl_session_destroy(session);
    sl_engine_close(engine);
}

/* Goes on from the longest image of at most n tokens, which is of n_expected, to token `end`. */
static void go_on(struct world *w, struct sl_engine *engine, uint32_t n, uint32_t n_expected,
                  uint32_t end)
{
    struct sl_session *session = new_session(w, engine);
    struct sl_resumed resumed;

    assert_int_equal(sl_engine_resume(engine, session, w->tokens, n, &resumed, NULL), 0);
    assert_int_equal(resumed.n_tokens, n_expected);
    assert_int_equal(sl_session_token_count(session), n_expected);
    feed(w, engine, session, end, n);
    sl_session_destroy(session);
}

static void run_resumed(struct world *w)
{
    struct sl_engine *engine = open_engine(w, true);

    for (uint32_t i = 0; i < w->n_lengths; i++)
        go_on(w, engine, w->lengths[i], w->lengths[i], end_of(w, i));
    sl_engine_close(engine);
}

/* ---- worlds ------------------------------------------------------------------------------------
 */

static void begin(struct world *w, const struct engine_rig *m, const uint32_t *lengths,
                  uint32_t n_lengths)
{
    uint64_t random = 5;

    *w = (struct world){.m = m,
                        .options = engine_rig_options(m),
                        .n_tokens = lengths[n_lengths - 1] + AFTER,
                        .lengths = lengths,
                        .n_lengths = n_lengths,
                        .row_bytes = m->row_bytes};
    snprintf(w->images, sizeof(w->images), "%.200s/images", m->folder);
    w->options.context_tokens = w->n_tokens;
    w->options.segment_tokens = 512;
    w->tokens = calloc(w->n_tokens, sizeof(*w->tokens));
    w->rows = calloc(w->n_tokens, sizeof(*w->rows));
    assert_true(w->tokens && w->rows);
    for (uint32_t i = 0; i < w->n_tokens; i++)
        w->tokens[i] = (int32_t)fixture_below(&random, m->config.vocab_size);
}

static void end(struct world *w)
{
    for (uint32_t i = 0; i < w->n_tokens; i++)
        free(w->rows[i]);
    free(w->rows);
    free(w->tokens);
    store_rig_remove(w->images);
}

static void run_all(struct world *w)
{
    run_undisturbed(w);
    assert_int_equal(w->n_compared, 0);
    run_saving(w);
    run_resumed(w);
    assert_true(w->n_compared >= 2 * w->n_lengths);
    assert_int_equal(w->n_notes, 0);
}

#define L(array) array, (uint32_t)(sizeof(array) / sizeof((array)[0]))

static const uint32_t short_lengths[] = {1,  2,  3,  4,  5,   7,   8,   9,   15,  16,  17,
                                         31, 63, 64, 65, 127, 128, 129, 255, 256, 257, 300};
static const uint32_t long_lengths[] = {8191, 8192, 8193, 8209};

static void test_short(void **state)
{
    struct world w;

    begin(&w, *state, L(short_lengths));
    run_all(&w);
    end(&w);
    begin(&w, *state, L(short_lengths));
    w.options.numerics = SL_NUMERICS_EXACT;
    run_all(&w);
    end(&w);
}

/* The tiny model has a short context: a copy of it gets a longer one. */
static void test_long(void **state)
{
    const struct engine_rig *m = *state;
    char folder[FIXTURE_PATH_BYTES + 16], command[4 * FIXTURE_PATH_BYTES];
    struct world w;

    snprintf(folder, sizeof(folder), "%s.long", m->folder);
    snprintf(command, sizeof(command),
             "cp -a %s %s && sed -i 's/\\(\"max_position_embeddings\": *\\)[0-9]*/\\165536/' "
             "%s/config.json",
             m->folder, folder, folder);
    assert_int_equal(system(command), 0);
    begin(&w, m, L(long_lengths));
    w.options.model = folder;
    w.options.cache_min = false;
    w.options.segment_tokens = 4096;
    run_saving(&w); /* whose logits are those to compare with: it takes long enough */
    run_resumed(&w);
    assert_true(w.n_compared >= AFTER);
    assert_int_equal(w.n_notes, 0);
    end(&w);
    store_rig_remove(folder);
}

static void test_small_model(void **state)
{
    static const uint32_t lengths[] = {1,    3,     4,     5,     127,   128,   129,   8191,
                                       8192, 16383, 16384, 16385, 32767, 32768, 32769, 39990};
    struct engine_rig m = *(const struct engine_rig *)*state;
    struct world w;

    if (!getenv("SL_LONG"))
        skip();
    assert_int_equal(sl_config_read(&m.config, "tests/small", NULL), 0);
    m.row_bytes = m.config.vocab_size * sizeof(float);
    begin(&w, &m, L(lengths));
    w.options.model = "tests/small";
    w.options.cache_min = false;
    w.options.draft = SL_DRAFT_NONE;
    w.options.segment_tokens = 4096;
    run_all(&w);
    end(&w);
}

/* ---- the draft ---------------------------------------------------------------------------------
 */

/* Images that were made without the model's draft serve an engine that has it loaded, and the other
 * way round. */
static void run_across(const struct engine_rig *m, enum sl_draft_kind draft)
{
    static const uint32_t lengths[] = {5, 30, 100};
    struct world w;

    for (int way = 0; way < 2; way++) {
        begin(&w, m, L(lengths));
        w.options.draft = SL_DRAFT_NONE;
        run_undisturbed(&w);
        w.options.draft = way ? draft : SL_DRAFT_NONE;
        run_saving(&w);
        w.options.draft = way ? SL_DRAFT_NONE : draft;
        run_resumed(&w);
        w.options.draft = way ? draft : SL_DRAFT_NONE;
        run_resumed(&w);
        assert_true(w.n_compared >= 3 * w.n_lengths);
        assert_int_equal(w.n_notes, 0);
        end(&w);
    }
}

static void test_across_mtp(void **state)
{
    run_across(*state, SL_DRAFT_MTP);
}

static void test_across_dspark(void **state)
{
    void *rig;

    (void)state;
    assert_int_equal(engine_rig_create_dspark(&rig), 0);
    run_across(rig, SL_DRAFT_DSPARK);
    assert_int_equal(engine_rig_destroy(&rig), 0);
}

/* ---- other models, damage ----------------------------------------------------------------------
 */

static void test_stores_share(void **state)
{
    static const uint32_t lengths[] = {30, 100};
    const struct engine_rig *m = *state;
    char plain[FIXTURE_PATH_BYTES], compressed[FIXTURE_PATH_BYTES];
    struct sl_engine *engine;
    struct world w;

    engine_rig_pack(m, "plain", 0, false, plain);
    engine_rig_pack(m, "compressed", 1, true, compressed);
    begin(&w, m, L(lengths));
    w.options.model = plain;
    run_all(&w);
    w.options.model = compressed;
    run_resumed(&w);
    w.options.model = m->folder; /* the checkpoint is another model, as far as can be told */
    engine = open_engine(&w, true);
    go_on(&w, engine, 100, 0, 105);
    sl_engine_close(engine);
    w.options.model = plain;
    w.options.numerics = SL_NUMERICS_EXACT; /* other logits, so none to compare with */
    engine = open_engine(&w, true);
    go_on(&w, engine, 100, 0, 100);
    sl_engine_close(engine);
    assert_int_equal(w.n_notes, 0);
    end(&w);
    store_rig_remove(plain);
    store_rig_remove(compressed);
}

static uint64_t identity_of(const char *folder)
{
    struct sl_model_files files;
    uint64_t identity;

    assert_int_equal(sl_model_files_open(&files, folder, NULL), 0);
    assert_int_equal(sl_model_identity(&files, folder, &identity, NULL), 0);
    sl_model_files_close(&files);
    return identity;
}

/* Changes a byte, and leaves the file's times as they were. */
static void change_byte(const char *path, uint64_t at_bytes)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    struct stat status;
    uint8_t byte;

    assert_true(fd >= 0 && fstat(fd, &status) == 0);
    assert_int_equal(pread(fd, &byte, 1, (off_t)at_bytes), 1);
    byte ^= 1;
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)at_bytes), 1);
    assert_int_equal(futimens(fd, (struct timespec[]){status.st_atim, status.st_mtim}), 0);
    close(fd);
}

/* A byte in the middle of any tensor, or of the config, makes another model; so does another time
 * of modification. A copy that keeps the times is the same model. */
static void test_identity(void **state)
{
    const struct engine_rig *m = *state;
    const uint64_t identity = identity_of(m->folder);
    char path[FIXTURE_PATH_BYTES + 32], command[3 * FIXTURE_PATH_BYTES];
    struct sl_checkpoint *checkpoint;

    assert_int_equal(identity_of(m->folder), identity);
    assert_int_equal(sl_checkpoint_open(&checkpoint, m->folder, NULL), 0);
    for (uint32_t i = 0; i < sl_checkpoint_tensor_count(checkpoint); i++) {
        const struct sl_checkpoint_tensor *tensor = sl_checkpoint_tensor_at(checkpoint, i);
        const char *shard = sl_checkpoint_file_path(checkpoint, tensor->file_index);
        const uint64_t middle = tensor->offset_bytes + tensor->info.size_bytes / 2;

        change_byte(shard, middle);
        assert_true(identity_of(m->folder) != identity);
        change_byte(shard, middle);
    }
    assert_int_equal(identity_of(m->folder), identity);
    snprintf(path, sizeof(path), "%s/config.json", m->folder);
    change_byte(path, 0);
    assert_true(identity_of(m->folder) != identity);
    change_byte(path, 0);
    snprintf(command, sizeof(command), "cp -a %s %s.copy", m->folder, m->folder);
    assert_int_equal(system(command), 0);
    snprintf(path, sizeof(path), "%s.copy", m->folder);
    assert_int_equal(identity_of(path), identity);
    snprintf(command, sizeof(command), "touch %s.copy/*.safetensors", m->folder);
    assert_int_equal(system(command), 0);
    assert_true(identity_of(path) != identity);
    store_rig_remove(path);
    sl_checkpoint_close(checkpoint);
}

/* The last of three images is damaged: those before it are what is left. */
static void test_damage(void **state)
{
    static const uint32_t lengths[] = {100, 200, 290};
    struct sl_image_folder folder = {0};
    struct sl_engine *engine;
    struct world w;

    begin(&w, *state, L(lengths));
    run_all(&w);
    assert_int_equal(sl_image_folder_scan(&folder, w.images, NULL, NULL, NULL), 0);
    for (uint32_t i = 0; i < folder.n_images; i++) {
        const struct sl_image_header *header = &folder.images[i].header;
        char *path = sl_image_folder_path(&folder, header->prefix);

        assert_non_null(path);
        if (header->end_token == 290)
            change_byte(path, sl_image_part_offset(header, SL_IMAGE_ENTRIES) + 77);
        free(path);
    }
    sl_image_folder_fini(&folder);
    engine = open_engine(&w, true);
    go_on(&w, engine, 290, 200, 299);
    assert_int_equal(w.n_notes, 1);
    go_on(&w, engine, 100, 100, 109);
    sl_engine_close(engine);
    end(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_short),       cmocka_unit_test(test_long),
        cmocka_unit_test(test_small_model), cmocka_unit_test(test_stores_share),
        cmocka_unit_test(test_across_mtp),  cmocka_unit_test(test_across_dspark),
        cmocka_unit_test(test_identity),    cmocka_unit_test(test_damage),
    };

    return cmocka_run_group_tests_name("engine_images", tests, engine_rig_create,
                                       engine_rig_destroy);
}
