#include "tests/session_rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/kernels/dispatch.h"
#include "tests/kv_rig.h"

static uint64_t hash_of(const void *data, size_t size)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);

    for (size_t i = 0; i < size; i++)
        hash = (hash ^ ((const uint8_t *)data)[i]) * UINT64_C(0x100000001b3);
    return hash;
}

/* ---- steps -------------------------------------------------------------------------------------
 */

static void take_rows(void *context, const struct sl_logits_row *rows, uint32_t n_rows)
{
    struct session_step *step = context;
    struct session_model *m = step->m;

    for (uint32_t i = 0; i < n_rows; i++) {
        const uint32_t s = rows[i].span_index, at = step->first[s] + rows[i].token_index;
        const uint32_t text = step->followers[s]->text;
        uint64_t *answer = step->mtp ? &m->mtp_answers[text][at] : &m->answers[text][at];
        const uint64_t hash = hash_of(rows[i].logits, m->config.vocab_size * sizeof(float));

        if (step->learns)
            *answer = hash;
        else
            assert_int_equal(hash, *answer);
    }
    step->n_rows += n_rows;
}

void session_rig_add_span(struct session_step *step, struct session_follower *follower,
                          uint32_t n_tokens, enum sl_logits_wanted logits)
{
    struct sl_kv_cache *kv = sl_session_kv(follower->session);

    step->followers[step->n_spans] = follower;
    step->first[step->n_spans] = kv->n_tokens;
    step->spans[step->n_spans++] =
        (struct sl_span){kv, step->m->ids[follower->text] + kv->n_tokens, n_tokens, logits};
}

struct sl_step_request session_rig_request(struct session_step *step)
{
    return (struct sl_step_request){.spans = step->spans,
                                    .n_spans = step->n_spans,
                                    .on_logits = take_rows,
                                    .on_logits_context = step};
}

void session_rig_run_mtp(struct session_step *step)
{
    struct sl_step_request request;
    uint32_t n_tokens = 0;

    for (uint32_t s = 0; s < step->n_spans; s++) {
        struct session_follower *follower = step->followers[s];

        step->spans[s].tokens = step->m->ids[follower->text] + step->first[s] + 1;
        step->spans[s].n_tokens =
            follower->with_mtp ? sl_session_token_count(follower->session) - step->first[s] : 0;
        if (!follower->with_mtp)
            step->spans[s].logits = SL_LOGITS_NONE;
        n_tokens += step->spans[s].n_tokens;
    }
    if (n_tokens == 0)
        return;
    step->mtp = true;
    request = session_rig_request(step);
    assert_int_equal(sl_forward_mtp(step->m->forward, &request, NULL), 0);
}

int session_rig_run_step(struct session_step *step, struct sl_err *err)
{
    const struct sl_step_request request = session_rig_request(step);
    int rc = sl_forward_step(step->m->forward, &request, err);

    if (rc == 0)
        session_rig_run_mtp(step);
    return rc;
}

void session_rig_run_on(struct session_model *m, struct session_follower *follower,
                        uint32_t n_tokens)
{
    while (n_tokens > 0) {
        const uint32_t n = n_tokens < TOKENS_MAX ? n_tokens : TOKENS_MAX;
        struct session_step step = {.m = m};

        session_rig_add_span(&step, follower, n, SL_LOGITS_ALL);
        assert_int_equal(session_rig_run_step(&step, NULL), 0);
        assert_true(step.n_rows >= n);
        n_tokens -= n;
    }
}

/* ---- the model ---------------------------------------------------------------------------------
 */

static void make_texts(struct session_model *m)
{
    uint64_t random = 99;

    for (uint32_t i = 0; i < TEXTS; i++) {
        m->length[i] = i == 0 ? LONG : LENGTH;
        m->alike[i] = i == 0 ? LONG : 1 + fixture_below(&random, LENGTH - 100);
        for (uint32_t t = 0; t <= m->length[i]; t++)
            m->ids[i][t] = t < m->alike[i] && i > 0
                               ? m->ids[0][t]
                               : (int32_t)fixture_below(&random, m->config.vocab_size);
    }
}

static void learn_answers(struct session_model *m)
{
    for (uint32_t i = 0; i < TEXTS; i++) {
        struct session_follower follower = {.text = i, .with_mtp = true};
        struct sl_kv_pool pool;

        kv_rig_pool(&pool, &m->config, 5, SL_NUMERICS_NATIVE, 1, m->length[i]);
        assert_int_equal(sl_session_create(&follower.session, &pool, m->length[i], NULL), 0);
        for (uint32_t t = 0; t < m->length[i];) {
            const uint32_t left = m->length[i] - t, n = left < TOKENS_MAX ? left : TOKENS_MAX;
            struct session_step step = {.m = m, .learns = true};

            session_rig_add_span(&step, &follower, n, SL_LOGITS_ALL);
            assert_int_equal(session_rig_run_step(&step, NULL), 0);
            t += n;
        }
        sl_session_destroy(follower.session);
        sl_kv_pool_fini(&pool);
    }
}

static int create(void **state, uint32_t head_dim)
{
    struct session_model *m = calloc(1, sizeof(*m));
    struct sl_forward_params params = {.tokens_max = TOKENS_MAX,
                                       .context_max = LONG,
                                       .spans_max = SPANS_MAX,
                                       .prefetch = SL_PREFETCH_GATE};

    assert_non_null(m);
    fixture_config(&m->config);
    m->config.head_dim = head_dim;
    m->config.max_position_embeddings = 8192;
    m->config.compress_ratios[4] = 4; /* no released model's MTP block compresses, but it may */
    fixture_weights_init(&m->source, &m->config, 41);
    fixture_experts_init(&m->experts, &m->config, m->config.n_routed_experts, 42);
    assert_int_equal(sl_kernels_select(&m->kernels, NULL, NULL), 0);
    m->compute = (struct sl_compute){.kernels = &m->kernels, .numerics = SL_NUMERICS_NATIVE};
    assert_int_equal(sl_pool_create(&m->compute.pool, 1, NULL), 0);
    assert_int_equal(fixture_weights_load(&m->source, &m->weights, &m->config, &fixture_mtp,
                                          &sl_weights_all_resident, m->compute.pool, NULL),
                     0);
    params.config = &m->config;
    params.weights = &m->weights;
    params.compute = &m->compute;
    params.source = &m->experts.source;
    assert_int_equal(sl_forward_create(&m->forward, &params, NULL), 0);
    make_texts(m);
    learn_answers(m);
    *state = m;
    return 0;
}

int session_rig_create(void **state)
{
    return create(state, 128);
}

int session_rig_create_wide(void **state)
{
    return create(state, 512);
}

int session_rig_destroy(void **state)
{
    struct session_model *m = *state;

    sl_forward_destroy(m->forward);
    sl_weights_fini(&m->weights);
    sl_pool_destroy(m->compute.pool);
    fixture_experts_fini(&m->experts);
    fixture_weights_fini(&m->source);
    free(m);
    return 0;
}

void session_rig_pool(struct sl_kv_pool *pool, const struct session_model *m, uint64_t bytes)
{
    assert_int_equal(sl_kv_pool_init(pool, &m->config, 5, SL_NUMERICS_NATIVE, bytes, NULL), 0);
    memset(pool->pages, 0xff, (size_t)pool->n_pages * pool->layout.page_bytes);
}

/* ---- bytes -------------------------------------------------------------------------------------
 */

static uint32_t chunk_first(const struct session_image *image, uint32_t i)
{
    return i ? image->cuts[i - 1] : 0;
}

void session_rig_export(const struct sl_session *session, const struct sl_mark *mark,
                        struct session_image *image, uint64_t *random)
{
    const struct sl_kv_layout *layout =
        &sl_session_kv((struct sl_session *)(uintptr_t)session)->pool->layout;
    uint32_t at = 0;

    *image = (struct session_image){.n_tokens = sl_mark_token_count(mark)};
    while (at < image->n_tokens && image->n_cuts < 7) {
        at += 1 + fixture_below(random, image->n_tokens - at);
        image->cuts[image->n_cuts++] = at;
    }
    if (at < image->n_tokens)
        image->cuts[image->n_cuts++] = image->n_tokens;
    for (uint32_t i = 0; i < image->n_cuts; i++) {
        const uint64_t bytes = sl_chunk_bytes(layout, chunk_first(image, i), image->cuts[i]);

        assert_true(bytes <= sl_chunk_bytes_max(layout, image->cuts[i] - chunk_first(image, i)));
        image->chunks[i] = malloc(bytes + 1);
        assert_non_null(image->chunks[i]);
        image->chunks[i][bytes] = 0xa5;
        assert_int_equal(sl_session_export_chunk(session, chunk_first(image, i), image->cuts[i],
                                                 image->chunks[i], NULL),
                         0);
        assert_int_equal(image->chunks[i][bytes], 0xa5);
    }
    image->mark_bytes = sl_mark_bytes(session, mark);
    assert_true(image->mark_bytes <= sl_mark_bytes_max(layout));
    image->mark = malloc(image->mark_bytes + 1);
    assert_non_null(image->mark);
    image->mark[image->mark_bytes] = 0xa5;
    sl_session_export_mark(session, mark, image->mark);
    assert_int_equal(image->mark[image->mark_bytes], 0xa5);
}

void session_rig_check(const struct sl_session *session, const struct sl_mark *mark,
                       const struct session_image *image)
{
    const struct sl_kv_layout *layout =
        &sl_session_kv((struct sl_session *)(uintptr_t)session)->pool->layout;
    uint8_t *bytes;

    for (uint32_t i = 0; i < image->n_cuts; i++) {
        const uint64_t size = sl_chunk_bytes(layout, chunk_first(image, i), image->cuts[i]);

        bytes = malloc(size + 1);
        assert_non_null(bytes);
        assert_int_equal(
            sl_session_export_chunk(session, chunk_first(image, i), image->cuts[i], bytes, NULL),
            0);
        assert_memory_equal(bytes, image->chunks[i], size);
        free(bytes);
    }
    assert_int_equal(sl_mark_bytes(session, mark), image->mark_bytes);
    bytes = malloc(image->mark_bytes);
    assert_non_null(bytes);
    sl_session_export_mark(session, mark, bytes);
    assert_memory_equal(bytes, image->mark, image->mark_bytes);
    free(bytes);
}

int session_rig_import(const struct session_model *m, const struct session_follower *follower,
                       const struct session_image *image, struct sl_err *err)
{
    int rc =
        sl_session_import_begin(follower->session, m->ids[follower->text], image->n_tokens, err);

    if (rc < 0)
        return rc;
    for (uint32_t i = 0; i < image->n_cuts; i++)
        sl_session_import_chunk(follower->session, chunk_first(image, i), image->cuts[i],
                                image->chunks[i]);
    return sl_session_import_end(follower->session, image->n_tokens, image->mark, image->mark_bytes,
                                 err);
}

void session_rig_free(struct session_image *image)
{
    for (uint32_t i = 0; i < image->n_cuts; i++)
        free(image->chunks[i]);
    free(image->mark);
}
