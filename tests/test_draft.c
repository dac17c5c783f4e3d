/* The draft of a checkpoint: its kind is found by its tensors; every tensor of DSpark's stages is
 * checked for being there, its shape and its type; they load, and give the bytes that were
 * measured. Running without them reads nothing of them: every read of the process goes through
 * pread() here, and those of the shard that holds the stages are counted. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/model/dense_list.h"
#include "core/model/weights.h"
#include "tests/engine_rig.h"

/* ---- reads that are counted --------------------------------------------------------------------
 */

static struct stat watched;         /* a file; st_ino 0: none */
static uint64_t watched_from_bytes; /* where counting begins in it */
static _Atomic uint64_t n_watched_reads, n_reads;

ssize_t pread(int fd, void *dst, size_t size_bytes, off_t offset_bytes)
{
    struct stat status;

    n_reads++;
    if (fstat(fd, &status) == 0 && status.st_ino == watched.st_ino &&
        status.st_dev == watched.st_dev && (uint64_t)offset_bytes + size_bytes > watched_from_bytes)
        n_watched_reads++;
    return syscall(SYS_pread64, fd, dst, size_bytes, offset_bytes);
}

/* Counts reads of the draft's shard behind its header. */
static void watch_draft(const struct engine_rig *m)
{
    char path[FIXTURE_PATH_BYTES + 32];
    uint64_t length;
    int fd;

    snprintf(path, sizeof(path), "%s/" ENGINE_RIG_DRAFT_SHARD, m->folder);
    fd = open(path, O_RDONLY);
    assert_true(fd >= 0);
    assert_int_equal(read(fd, &length, sizeof(length)), sizeof(length));
    close(fd);
    assert_int_equal(stat(path, &watched), 0);
    watched_from_bytes = sizeof(length) + length;
    n_watched_reads = n_reads = 0;
}

static bool has_note(const struct sl_engine *engine, const char *text)
{
    uint32_t n = 0;

    for (uint32_t i = 0; sl_engine_note(engine, i); i++)
        n += strstr(sl_engine_note(engine, i), text) != NULL;
    return n == 1;
}

/* The answer is that of the layers alone, from a prompt and token by token, whatever is prefetched.
 */
static void test_running_reads_nothing_of_it(void **state)
{
    const struct engine_rig *m = *state;
    struct sl_engine_options options = engine_rig_options(m);
    float *logits = calloc(1, m->logits_bytes);
    struct sl_engine *engine;
    struct sl_err err;

    assert_non_null(logits);
    for (int prefetch = 0; prefetch < 3; prefetch++) {
        options.prefetch = (enum sl_prefetch)prefetch;
        watch_draft(m);
        assert_int_equal(sl_engine_open(&engine, &options, NULL, &err), 0);
        assert_true(has_note(engine, "3 stages of DSpark"));
        for (uint32_t s = 0; s < 2; s++) {
            engine_rig_run(m, sl_engine_forward(engine, SL_STEP_LARGE), engine_rig_kv(engine, s),
                           s ? 1 : 16, logits, NULL);
            assert_memory_equal(logits, m->logits, m->logits_bytes);
        }
        sl_engine_close(engine);
        assert_true(n_reads > ENGINE_RIG_TOKENS);
        assert_int_equal(n_watched_reads, 0);
    }
    options.draft = SL_DRAFT_MTP;
    assert_int_equal(sl_engine_open(&engine, &options, NULL, &err), -SL_EUNSUPPORTED);
    assert_non_null(strstr(err.message, "no MTP block of a kind"));
    free(logits);
}

/* Headers are not counted, and a byte behind them is. */
static void test_the_count_counts(void **state)
{
    const struct engine_rig *m = *state;
    struct sl_checkpoint *checkpoint;
    struct sl_weight_source *source;
    uint8_t byte;

    watch_draft(m);
    assert_int_equal(sl_checkpoint_open(&checkpoint, m->folder, NULL), 0);
    assert_int_equal(n_watched_reads, 0);
    source = sl_checkpoint_weights(checkpoint);
    assert_int_equal(source->ops->read(source, "mtp.1.attn_norm.weight", 0, 1, &byte, NULL), 0);
    assert_int_equal(n_watched_reads, 1);
    sl_checkpoint_close(checkpoint);
}

/* ---- kinds and checks --------------------------------------------------------------------------
 */

static void test_kinds(void **state)
{
    const struct engine_rig *m = *state;
    struct sl_config config = m->config;
    struct fixture_weights weights;
    struct sl_draft draft;

    fixture_weights_init(&weights, &config, 5);
    draft = sl_draft_find(&config, &weights.source);
    assert_memory_equal(&draft, &fixture_dspark, sizeof(draft));
    config.num_nextn_predict_layers = 0; /* what config.json says does not matter */
    draft = sl_draft_find(&config, &weights.source);
    assert_memory_equal(&draft, &fixture_dspark, sizeof(draft));
    assert_int_equal(sl_draft_blocks_known(&draft, &config), 3);
    fixture_weights_find(&weights, "mtp.2.attn_norm.weight")->missing = true;
    assert_int_equal(sl_draft_find(&config, &weights.source).n_blocks, 2);
    fixture_weights_find(&weights, "mtp.0.main_proj.weight")->missing = true;
    draft = sl_draft_find(&config, &weights.source);
    assert_int_equal(draft.kind, SL_DRAFT_NONE);
    assert_int_equal(sl_draft_blocks_known(&draft, &config), 0);
    config.num_nextn_predict_layers = 2;
    assert_int_equal(sl_draft_blocks_known(&draft, &config), 2);
    fixture_weights_fini(&weights);
}

static void assert_refused(struct fixture_weights *weights, const struct sl_config *config,
                           const char *name)
{
    struct sl_weight_sizes sizes;
    struct sl_err err;

    assert_int_equal(sl_weights_measure(config, &weights->source, &fixture_dspark, &sizes, &err),
                     -SL_EFORMAT);
    if (!strstr(err.message, name))
        fail_msg("%s: %s", name, err.message);
    assert_int_equal(sl_weights_measure(config, &weights->source, NULL, &sizes, &err), 0);
}

static void test_every_tensor_is_checked(void **state)
{
    const struct engine_rig *m = *state;
    struct fixture_weights weights;
    uint32_t n_checked = 0;

    fixture_weights_init(&weights, &m->config, 5);
    for (uint32_t i = 0; i < weights.count; i++) {
        struct fixture_weight *weight = &weights.list[i];
        const struct sl_tensor_info info = weight->info;

        if (strncmp(weight->name, "mtp.", 4) != 0)
            continue;
        weight->missing = true;
        assert_refused(&weights, &m->config, weight->name);
        weight->missing = false;
        weight->info.shape[0]++;
        assert_refused(&weights, &m->config, weight->name);
        weight->info = info;
        weight->info.dtype = SL_DTYPE_I32;
        assert_refused(&weights, &m->config, weight->name);
        weight->info = info;
        n_checked++;
    }
    assert_int_equal(n_checked,
                     3 * 29 + 3 + 1 + 3 + 3); /* a block's, main_*, norm, hc_head, heads */
    fixture_weights_fini(&weights);
}

/* config.json may say less, but nothing else; nor may tensors agree on sizes that no linear has. */
static void test_config_confirms(void **state)
{
    const struct engine_rig *m = *state;
    struct sl_config config = m->config;
    struct fixture_weights weights;
    struct sl_draft wide = fixture_dspark;
    struct sl_weight_sizes sizes;
    struct sl_err err;

    fixture_weights_init(&weights, &config, 5);
    config.dspark = (struct sl_dspark_config){0};
    assert_int_equal(sl_weights_measure(&config, &weights.source, &fixture_dspark, &sizes, NULL),
                     0);
    config.dspark.markov_rank = 64;
    assert_refused(&weights, &config, "dspark_markov_rank is 64");
    config.dspark.markov_rank = 0;
    config.dspark.n_targets = 2;
    assert_refused(&weights, &config, "dspark_target_layer_ids names 2");
    config.dspark.n_targets = 0;
    for (int i = 0; i < 3; i++) {
        wide = fixture_dspark;
        wide.markov_rank = i == 0 ? 40 : i == 1 ? 65552 : 48;
        wide.n_targets = i == 2 ? 65536 / config.hidden_size + 1 : 3;
        assert_int_equal(sl_weights_measure(&config, &weights.source, &wide, &sizes, &err),
                         -SL_EFORMAT);
        assert_non_null(strstr(err.message, "a DSpark draft of rank"));
    }
    fixture_weights_fini(&weights);
}

/* All tensors load, in the order of the list that pack lays them in, stages behind the layers. */
static void test_stages_load(void **state)
{
    const struct engine_rig *m = *state;
    const uint32_t n_hidden = m->config.num_hidden_layers;
    const struct fixture_weight *table;
    struct fixture_weights weights;
    struct sl_dense_list list;
    struct sl_weights loaded;
    struct sl_pool *pool;
    struct sl_weight_sizes sizes;
    bool in_draft = false;

    fixture_weights_init(&weights, &m->config, 5);
    assert_int_equal(sl_dense_list_make(&list, &m->config, &weights.source, &fixture_dspark, NULL),
                     0);
    assert_int_equal(list.n_names, weights.count);
    for (uint32_t i = 0; i < list.n_names; i++) {
        const bool is_draft = strncmp(list.names[i], "mtp.", 4) == 0;

        assert_true(is_draft || !in_draft);
        in_draft = is_draft;
    }
    sl_dense_list_fini(&list);
    assert_int_equal(sl_pool_create(&pool, 2, NULL), 0);
    assert_int_equal(sl_weights_measure(&m->config, &weights.source, &fixture_dspark, &sizes, NULL),
                     0);
    assert_int_equal(fixture_weights_load(&weights, &loaded, &m->config, &fixture_dspark,
                                          &sl_weights_all_resident, pool, NULL),
                     0);
    assert_in_range(sl_weights_bytes(&sizes, &sl_weights_all_resident) - loaded.arena.used_bytes, 0,
                    SL_CACHE_LINE_BYTES - 1);
    assert_int_equal(loaded.draft.kind, SL_DRAFT_DSPARK);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(loaded.layers[n_hidden + i].ratio, 0);
        assert_null(loaded.layers[n_hidden + i].tid2eid);
        assert_non_null(loaded.layers[n_hidden + i].gate_bias);
    }
    table = fixture_weights_find(&weights, "mtp.2.markov_head.markov_w1.weight");
    assert_memory_equal(loaded.dspark.markov_w1.tiles, table->data, table->info.size_bytes);
    table = fixture_weights_find(&weights, "mtp.2.confidence_head.proj.weight");
    for (uint32_t i = 0; i < m->config.hidden_size + fixture_dspark.markov_rank; i++)
        assert_true(loaded.dspark.confidence[i] == fixture_weights_value(&weights, table, i));
    assert_int_equal(loaded.dspark.main_proj.cols, 3 * m->config.hidden_size);
    sl_weights_fini(&loaded);
    sl_pool_destroy(pool);
    fixture_weights_fini(&weights);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_running_reads_nothing_of_it),
        cmocka_unit_test(test_the_count_counts),
        cmocka_unit_test(test_kinds),
        cmocka_unit_test(test_every_tensor_is_checked),
        cmocka_unit_test(test_config_confirms),
        cmocka_unit_test(test_stages_load),
    };

    return cmocka_run_group_tests(tests, engine_rig_create_dspark, engine_rig_destroy);
}
