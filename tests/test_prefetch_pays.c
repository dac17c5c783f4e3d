/* Predictions in the whole cache, over a drive in memory on a clock of its own: decoding takes no
 * longer with them than without, whatever the drive, the routing, the share that is cached, the
 * speed of computing and the size of experts; and less where the drive would be idle.
 *
 * A world is a model of a few layers, of which each token takes experts by chance, and an order of
 * computing that is core/model/moe.c's. What is computed is time alone; what is read are no bytes.
 * Each world decodes the same tokens twice. `SL_SEED=n` gives others, and `SL_SLOW=1` longer ones.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cache/expert_cache.h"
#include "core/base/pool.h"
#include "storage/checkpoint/checkpoint.h"
#include "storage/pack/store_write.h"
#include "storage/store/store.h"
#include "tests/fixture_checkpoint.h"
#include "tests/fixture_model.h"
#include "tests/kernel_inputs.h"
#include "tests/store_rig.h"

#define LAYERS 6u
#define EXPERTS 64u
#define PER_TOKEN 6u
#define TOKENS 160u
#define TOKENS_SLOW 1600u
#define READS_MAX 32u
#define PIECE_BYTES 4096u
#define LATENCY_NS 80000u
#define SLICES 4u /* of a computation, between which the cache takes in what has landed */

static const struct sl_expert_shape shape = {.num_hidden_layers = LAYERS,
                                             .n_routed_experts = EXPERTS,
                                             .hidden_size = 128,
                                             .moe_intermediate_size = 128};

/* ---- a drive -----------------------------------------------------------------------------------
 * One read after the other, at a rate; those under way overlap in their latency alone. */

struct drive {
    struct sl_io io;
    double bytes_per_ns;
    double stolen; /* of the time that reads take, from computing: a drive that is memory */
    uint64_t now_ns, free_ns;
    struct {
        uint64_t tag, due_ns;
        uint32_t size_bytes;
    } out[READS_MAX]; /* in the order of their ends */
    uint32_t first, n_out;
};

static struct drive *drive_of(struct sl_io *io)
{
    return (struct drive *)(void *)io;
}

static void drive_submit(struct sl_io *io, const struct sl_io_read *reads, uint32_t n_reads)
{
    struct drive *d = drive_of(io);

    for (uint32_t i = 0; i < n_reads; i++) {
        const uint32_t at = (d->first + d->n_out++) % READS_MAX;

        assert_in_range(d->n_out, 1, READS_MAX);
        if (d->free_ns < d->now_ns)
            d->free_ns = d->now_ns;
        d->free_ns += (uint64_t)(reads[i].size_bytes / d->bytes_per_ns);
        d->out[at].tag = reads[i].tag;
        d->out[at].size_bytes = reads[i].size_bytes;
        d->out[at].due_ns = d->free_ns + LATENCY_NS;
    }
}

static uint32_t drive_reap(struct sl_io *io, uint64_t wait_ns, struct sl_io_completion *completions,
                           uint32_t n_max)
{
    struct drive *d = drive_of(io);
    uint32_t n = 0;

    if (d->n_out > 0 && d->out[d->first].due_ns > d->now_ns) {
        const uint64_t left_ns = d->out[d->first].due_ns - d->now_ns;

        d->now_ns += left_ns < wait_ns ? left_ns : wait_ns;
    }
    while (n < n_max && d->n_out > 0 && d->out[d->first].due_ns <= d->now_ns) {
        completions[n++] =
            (struct sl_io_completion){d->out[d->first].tag, (int32_t)d->out[d->first].size_bytes};
        d->first = (d->first + 1) % READS_MAX;
        d->n_out--;
    }
    return n;
}

static void drive_close(struct sl_io *io)
{
    free(io->files);
}

static const struct sl_io_ops drive_ops = {
    .submit = drive_submit, .reap = drive_reap, .close = drive_close};

static uint64_t drive_clock_ns(void *context)
{
    return ((struct drive *)context)->now_ns;
}

static void drive_open(struct drive *d, const struct sl_expert_map *map)
{
    const uint32_t n_files = sl_expert_map_file_count(map);

    *d = (struct drive){.io = {.ops = &drive_ops,
                               .files = calloc(n_files, sizeof(*d->io.files)),
                               .n_files = n_files,
                               .n_drives = 1,
                               .reads_max = READS_MAX,
                               .direct = true}};
    assert_non_null(d->io.files);
}

/* ---- worlds ------------------------------------------------------------------------------------
 */

/* How long things take of a layer, and how large an expert is. */
struct machine {
    const char *name;
    double expert_bytes;
    double rate; /* of the drive, bytes per ns */
    double stolen;
    double attention_ns, shared_ns, expert_ns, predict_ns;
    bool gains; /* by good predictions, where a quarter is cached or less */
};

#define FLASH_BYTES 13369344.0
#define SMALL_BYTES 101376.0
#define MANY_CORES 1.2e6, 0.2e6, 0.3e6, 0.08e6
#define TWO_CORES 7e6, 1e6, 2.6e6, 0.3e6
#define SMALL_MODEL 80e3, 10e3, 12e3, 25e3
static const struct machine machines[] = {
    {"0.5 GB/s", FLASH_BYTES, 0.5, 0, MANY_CORES, false},
    {"1 GB/s", FLASH_BYTES, 1, 0, MANY_CORES, false},
    {"2.5 GB/s", FLASH_BYTES, 2.5, 0, MANY_CORES, true},
    {"7 GB/s", FLASH_BYTES, 7, 0, MANY_CORES, true},
    {"0.5 GB/s, two cores", FLASH_BYTES, 0.5, 0, TWO_CORES, true},
    {"1 GB/s, two cores", FLASH_BYTES, 1, 0, TWO_CORES, true},
    {"2.5 GB/s, two cores", FLASH_BYTES, 2.5, 0, TWO_CORES, false},
    {"memory, two cores", FLASH_BYTES, 5, 0.6, TWO_CORES, false},
    {"small, 0.1 GB/s", SMALL_BYTES, 0.1, 0, SMALL_MODEL, false},
    {"small, memory", SMALL_BYTES, 5, 0.6, SMALL_MODEL, false},
};
#define N_MACHINES (sizeof(machines) / sizeof(machines[0]))

/* Which experts tokens take, and how often the prediction is right at each place of its list. */
struct routing {
    const char *name;
    double again; /* of a token's experts, share that the token before took as well */
    bool popular; /* some experts are taken more often than others */
    double right[PER_TOKEN];
};

static const struct routing routings[] = {
    {"trained", 0.3, true, {0.97, 0.95, 0.92, 0.87, 0.8, 0.6}},
    {"random", 0, false, {0.98, 0.98, 0.97, 0.96, 0.94, 0.85}},
    {"random, badly predicted", 0, false, {0.4, 0.3, 0.25, 0.2, 0.15, 0.1}},
};
#define N_ROUTINGS (sizeof(routings) / sizeof(routings[0]))

static const uint32_t cached_percent[] = {12, 25, 50};
#define N_SHARES 3u

struct world {
    const struct machine *machine;
    const struct routing *routing;
    uint64_t random;
    uint16_t taken[LAYERS][PER_TOKEN]; /* by the token before, ascending */
    uint16_t next[LAYERS][PER_TOKEN];  /* by the token, */
    uint16_t guess[LAYERS][PER_TOKEN]; /* and as predicted */
};

static double chance(struct world *w)
{
    return fixture_below(&w->random, 1000000) / 1e6;
}

static bool has(const uint16_t *experts, uint32_t n, uint16_t expert)
{
    for (uint32_t i = 0; i < n; i++)
        if (experts[i] == expert)
            return true;
    return false;
}

static uint16_t draw(struct world *w, uint32_t layer)
{
    const double x = chance(w);

    /* The cube makes a quarter of the experts take 63 % of the tokens. */
    return (uint16_t)(((uint32_t)((w->routing->popular ? x * x * x : x) * EXPERTS) + 11 * layer) %
                      EXPERTS);
}

static int compare(const void *a, const void *b)
{
    return *(const uint16_t *)a - *(const uint16_t *)b;
}

static void route(struct world *w)
{
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        uint16_t *next = w->next[layer], *guess = w->guess[layer];

        for (uint32_t n = 0; n < PER_TOKEN;) {
            const uint16_t expert = chance(w) < w->routing->again
                                        ? w->taken[layer][fixture_below(&w->random, PER_TOKEN)]
                                        : draw(w, layer);

            if (!has(next, n, expert))
                next[n++] = expert;
        }
        for (uint32_t n = 0; n < PER_TOKEN;) {
            const bool right = chance(w) < w->routing->right[n];
            const uint16_t expert =
                right ? next[fixture_below(&w->random, PER_TOKEN)] : draw(w, layer);

            if (!has(guess, n, expert) && (right || !has(next, PER_TOKEN, expert)))
                guess[n++] = expert;
        }
        qsort(next, PER_TOKEN, sizeof(*next), compare);
        memcpy(w->taken[layer], next, sizeof(w->taken[layer]));
    }
}

/* ---- decoding ----------------------------------------------------------------------------------
 */

struct decoder {
    struct world *w;
    struct drive drive;
    struct sl_reader *reader;
    struct sl_pool *pool;
    struct sl_expert_cache *cache;
    struct sl_expert_source *source;
    bool predicts;
};

static void compute(struct decoder *d, double ns)
{
    for (uint32_t i = 0; i < SLICES; i++) {
        const uint64_t slice_ns = (uint64_t)(ns / SLICES), now_ns = d->drive.now_ns;
        uint64_t busy_ns = d->drive.free_ns > now_ns ? d->drive.free_ns - now_ns : 0;

        busy_ns = busy_ns < slice_ns ? busy_ns : slice_ns;
        d->drive.now_ns += slice_ns + (uint64_t)(d->drive.stolen * (double)busy_ns);
        sl_expert_cache_background(d->cache);
    }
}

static void predict(struct decoder *d, uint16_t layer)
{
    struct sl_expert_key keys[PER_TOKEN];

    compute(d, d->w->machine->predict_ns);
    for (uint32_t i = 0; i < PER_TOKEN; i++)
        keys[i] = (struct sl_expert_key){layer, d->w->guess[layer][i]};
    d->source->ops->prefetch(d->source, SL_PREFETCH_PREDICTED, keys, PER_TOKEN);
}

/* Computes with the experts that are there, as one batch. */
static void run_batch(struct decoder *d, struct sl_expert_pin *pins, uint32_t n)
{
    compute(d, n * d->w->machine->expert_ns * 2 / 3);
    for (uint32_t i = 0; i < n; i++)
        if (pins[i].partial)
            assert_int_equal(d->source->ops->complete(d->source, &pins[i], NULL), 0);
    compute(d, n * d->w->machine->expert_ns / 3);
    for (uint32_t i = 0; i < n; i++)
        d->source->ops->release(d->source, &pins[i]);
}

static void run_layer(struct decoder *d, uint16_t layer)
{
    const struct sl_expert_source_ops *ops = d->source->ops;
    struct sl_expert_pin pins[PER_TOKEN];
    bool may_predict = d->predicts && layer + 1u < LAYERS;
    uint32_t n = 0;
    int acquired = 1;

    compute(d, d->w->machine->attention_ns);
    assert_int_equal(ops->demand(d->source, layer, d->w->next[layer], PER_TOKEN, NULL), 0);
    compute(d, d->w->machine->shared_ns);
    while (acquired != 0) {
        if (may_predict && n == 0 && ops->wants_prediction(d->source, layer + 1)) {
            predict(d, layer + 1);
            may_predict = false;
        }
        acquired = ops->acquire(d->source, n == 0, &pins[n], NULL);
        n += acquired == 1;
        if (n > 0 && (acquired != 1 || n == PER_TOKEN)) {
            run_batch(d, pins, n);
            n = 0;
        }
    }
}

/* Returns how long the tokens take, after as many that fill the cache. */
static double decode(const struct sl_expert_map *map, const struct machine *machine,
                     const struct routing *routing, uint32_t n_slots, uint32_t n_tokens,
                     bool predicts)
{
    const uint64_t slot_bytes = sl_expert_cache_slot_bytes(&shape);
    struct world w = {machine, routing, inputs_seed(), {{0}}, {{0}}, {{0}}};
    struct decoder d = {.w = &w, .predicts = predicts};
    struct sl_reader_options reader_options = {
        .piece_bytes = PIECE_BYTES, .clock_ns = drive_clock_ns, .clock_context = &d.drive};
    struct sl_expert_cache_options options = {.slab_bytes = n_slots * slot_bytes + 4095,
                                              .num_experts_per_tok = PER_TOKEN,
                                              .inflight_max =
                                                  sl_expert_cache_inflight_default(PER_TOKEN),
                                              .paced = predicts};
    uint64_t begin_ns = 0;

    drive_open(&d.drive, map);
    d.drive.bytes_per_ns = machine->rate * (double)slot_bytes / machine->expert_bytes;
    d.drive.stolen = machine->stolen;
    assert_int_equal(sl_reader_create(&d.reader, &d.drive.io, &reader_options, NULL), 0);
    assert_int_equal(sl_pool_create(&d.pool, 1, NULL), 0);
    assert_int_equal(sl_expert_cache_create(&d.cache, map, d.reader, d.pool, &options, NULL), 0);
    d.source = sl_expert_cache_source(d.cache);
    for (uint32_t token = 0; token < n_tokens + 16; token++) {
        if (token == 16)
            begin_ns = d.drive.now_ns;
        route(&w);
        for (uint16_t layer = 0; layer < LAYERS; layer++)
            run_layer(&d, layer);
    }
    sl_expert_cache_destroy(d.cache);
    sl_pool_destroy(d.pool);
    sl_reader_destroy(d.reader);
    drive_close(&d.drive.io);
    return (double)(d.drive.now_ns - begin_ns);
}

/* ---- tests -------------------------------------------------------------------------------------
 */

struct packed {
    char folder[FIXTURE_PATH_BYTES];
    struct sl_store *store;
    struct sl_expert_map *map;
};

static void packed_open(struct packed *p)
{
    static const uint64_t weight = 1;
    char folder[FIXTURE_PATH_BYTES], prefix[32];
    struct sl_checkpoint *checkpoint;
    struct sl_expert_map *experts;
    struct fixture_list list = {0};
    struct sl_pack_options options = {.store_folder = p->folder,
                                      .checkpoint_folder = folder,
                                      .weights = &weight,
                                      .writer = sl_file_writer(),
                                      .batch_bytes = 1 << 20};

    fixture_folder_create(folder);
    fixture_folder_create(p->folder);
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        snprintf(prefix, sizeof(prefix), "layers.%u", layer);
        fixture_add_experts(&list, prefix, EXPERTS, shape.hidden_size, shape.moe_intermediate_size);
    }
    fixture_write_shard(folder, "a.safetensors", &list, true);
    fixture_write_text(folder, "config.json", "{}\n");
    assert_int_equal(sl_checkpoint_open(&checkpoint, folder, NULL), 0);
    assert_int_equal(sl_expert_map_of_checkpoint(&experts, checkpoint, &shape, NULL), 0);
    options.checkpoint = checkpoint;
    options.experts = experts;
    assert_int_equal(sl_pool_create(&options.pool, 1, NULL), 0);
    assert_int_equal(sl_store_pack(&options, NULL, NULL), 0);
    sl_pool_destroy(options.pool);
    sl_expert_map_close(experts);
    sl_checkpoint_close(checkpoint);
    fixture_fini(&list);
    fixture_folder_remove(folder);
    assert_int_equal(sl_store_open(&p->store, p->folder, SL_STORE_RUN, NULL), 0);
    assert_int_equal(sl_expert_map_of_store(&p->map, p->store, &shape, NULL), 0);
}

static void packed_close(struct packed *p)
{
    sl_expert_map_close(p->map);
    sl_store_close(p->store);
    store_rig_remove(p->folder);
}

static void test_never_loses(void **state)
{
    const uint32_t n_tokens = getenv("SL_SLOW") ? TOKENS_SLOW : TOKENS;
    struct packed packed;
    uint32_t n_lost = 0;

    (void)state;
    packed_open(&packed);
    for (uint32_t m = 0; m < N_MACHINES; m++)
        for (uint32_t r = 0; r < N_ROUTINGS; r++) {
            char line[160];
            size_t length = (size_t)snprintf(line, sizeof(line), "%-20s %-24s", machines[m].name,
                                             routings[r].name);

            for (uint32_t s = 0; s < N_SHARES; s++) {
                const uint32_t n_slots = LAYERS * EXPERTS * cached_percent[s] / 100;
                const double without =
                    decode(packed.map, &machines[m], &routings[r], n_slots, n_tokens, false);
                const double with =
                    decode(packed.map, &machines[m], &routings[r], n_slots, n_tokens, true);

                length += (size_t)snprintf(line + length, sizeof(line) - length, " %2u%%: %6.3f",
                                           cached_percent[s], with / without);
                n_lost += with > 1.01 * without;
                n_lost += machines[m].gains && routings[r].right[0] > 0.9 &&
                          cached_percent[s] <= 25 && with > 0.99 * without;
            }
            print_message("# %s\n", line);
        }
    packed_close(&packed);
    assert_int_equal(n_lost, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_never_loses),
    };

    print_message("SL_SEED=%u\n", (unsigned)inputs_seed());
    return cmocka_run_group_tests_name("prefetch_pays", tests, NULL, NULL);
}
