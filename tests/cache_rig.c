#include "tests/cache_rig.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/kernels/r16.h"
#include "storage/pack/store_write.h"
#include "tests/io_simulated.h"
#include "tests/store_rig.h"

#define TENSORS (CACHE_LAYERS * CACHE_EXPERTS * 6)
#define HEADER_BYTES (TENSORS * 128u)

const struct sl_expert_shape cache_shape = {.num_hidden_layers = CACHE_LAYERS - 1,
                                            .n_mtp_layers = 1,
                                            .n_routed_experts = CACHE_EXPERTS,
                                            .hidden_size = 256,
                                            .moe_intermediate_size = 128};

uint64_t cache_rig_below(uint64_t *random, uint64_t limit)
{
    return io_fault_random(random) % limit;
}

/* ---- The checkpoint ---- */

/* Tensor i: layer, then kind (as the release has it: scales, then codes), expert, matrix. */
static uint64_t describe(uint32_t i, char name[96], bool *ret_is_scale, uint64_t dims[2])
{
    uint32_t layer = i / (CACHE_EXPERTS * 6), matrix = i % 3, expert = i / 3 % CACHE_EXPERTS;
    bool is_scale = i / (CACHE_EXPERTS * 3) % 2 == 0, is_mtp = layer == CACHE_LAYERS - 1;
    uint64_t cols =
        matrix == SL_EXPERT_W2 ? cache_shape.moe_intermediate_size : cache_shape.hidden_size;

    snprintf(name, 96, "%s.%u.ffn.experts.%u.w%u.%s", is_mtp ? "mtp" : "layers", is_mtp ? 0 : layer,
             expert, matrix + 1, is_scale ? "scale" : "weight");
    dims[0] = matrix == SL_EXPERT_W2 ? cache_shape.hidden_size : cache_shape.moe_intermediate_size;
    dims[1] = is_scale ? cols / 32 : cols / 2;
    *ret_is_scale = is_scale;
    return dims[0] * dims[1];
}

static void shuffle(uint32_t *items, uint32_t n, uint64_t *random)
{
    for (uint32_t i = n; i > 1; i--) {
        uint32_t k = (uint32_t)cache_rig_below(random, i), swap = items[i - 1];

        items[i - 1] = items[k];
        items[k] = swap;
    }
}

static void fill(const char *path, const uint32_t *tensors, uint32_t n, const uint64_t *pads,
                 uint64_t header_bytes, uint64_t *random)
{
    FILE *stream = fopen(path, "r+b");
    char name[96];
    bool is_scale;
    uint64_t dims[2];

    assert_non_null(stream);
    assert_int_equal(fseek(stream, (long)header_bytes, SEEK_SET), 0);
    for (uint32_t i = 0; i < n; i++) {
        uint64_t size = describe(tensors[i], name, &is_scale, dims);

        assert_int_equal(fseek(stream, (long)pads[i], SEEK_CUR), 0);
        for (uint64_t k = 0; k < size; k++)
            fputc((int)(is_scale ? 118 + cache_rig_below(random, 3) : cache_rig_below(random, 256)),
                  stream);
    }
    assert_int_equal(fclose(stream), 0);
}

static void write_file(const char *folder, const char *file, const uint32_t *tensors, uint32_t n,
                       bool padded, uint64_t *random)
{
    char path[FIXTURE_PATH_BYTES + 32], name[96];
    char *header = malloc(HEADER_BYTES);
    uint64_t pads[TENSORS], dims[2], at_bytes = 0;
    size_t length = 0;
    bool is_scale;

    assert_non_null(header);
    for (uint32_t i = 0; i < n; i++) {
        uint64_t size = describe(tensors[i], name, &is_scale, dims);

        pads[i] = padded ? cache_rig_below(random, 3) * cache_rig_below(random, 6000) : 0;
        length += (size_t)snprintf(
            header + length, HEADER_BYTES - length,
            "%c\"%s\":{\"dtype\":\"%s\",\"shape\":[%u,%u],\"data_offsets\":[%u,%u]}", i ? ',' : '{',
            name, is_scale ? "F8_E8M0" : "I8", (unsigned)dims[0], (unsigned)dims[1],
            (unsigned)(at_bytes + pads[i]), (unsigned)(at_bytes + pads[i] + size));
        at_bytes += pads[i] + size;
    }
    assert_true(length + 2 < HEADER_BYTES);
    strcpy(header + length, "}");
    fixture_write_header(folder, file, header, at_bytes);
    snprintf(path, sizeof(path), "%s/%s", folder, file);
    fill(path, tensors, n, pads, 8 + length + 1, random);
    free(header);
}

static void load_expected(struct cache_fixture *f)
{
    struct sl_weight_source *weights = sl_checkpoint_weights(f->checkpoint);
    uint64_t slot_bytes = sl_expert_cache_slot_bytes(&cache_shape);
    uint8_t codes[256 * 256], scales[256 * 256];
    char name[96];
    bool is_scale;
    uint64_t dims[2];

    f->expected = calloc(CACHE_LAYERS * CACHE_EXPERTS, slot_bytes);
    assert_non_null(f->expected);
    for (uint32_t i = 0; i < TENSORS; i++) {
        uint32_t expert = i / 3 % CACHE_EXPERTS, layer = i / (CACHE_EXPERTS * 6);
        uint64_t tiles_offset = 0, size = describe(i, name, &is_scale, dims);

        if (is_scale)
            continue;
        assert_int_equal(weights->ops->read(weights, name, 0, size, codes, NULL), 0);
        describe(i - CACHE_EXPERTS * 3, name, &is_scale, dims);
        assert_true(is_scale);
        assert_int_equal(weights->ops->read(weights, name, 0, size / 16, scales, NULL), 0);
        for (uint32_t matrix = 0; matrix < i % 3; matrix++)
            tiles_offset += 5 * 4096; /* 17,408 bytes of tiles each */
        assert_int_equal(sl_r16_pack_fp4(size * 2 / dims[0], 0, dims[0] / 16, codes, scales,
                                         f->expected +
                                             (layer * CACHE_EXPERTS + expert) * slot_bytes +
                                             tiles_offset),
                         0);
    }
    f->expert_bytes = 3 * (128 * 256 / 2 + 128 * 256 / 32);
}

void cache_fixture_open(struct cache_fixture *f, bool scattered)
{
    static const char *const files[CACHE_FILES] = {"a.safetensors", "b.safetensors"};
    uint32_t tensors[TENSORS];
    uint64_t random = 5;
    uint32_t first = scattered ? TENSORS / 2 : CACHE_EXPERTS * 6; /* in the first file */

    for (uint32_t i = 0; i < TENSORS; i++)
        tensors[i] = i;
    if (scattered)
        shuffle(tensors, TENSORS, &random);
    memset(f, 0, sizeof(*f));
    fixture_folder_create(f->folder);
    write_file(f->folder, files[0], tensors, first, scattered, &random);
    write_file(f->folder, files[1], tensors + first, TENSORS - first, scattered, &random);
    assert_int_equal(sl_checkpoint_open(&f->checkpoint, f->folder, NULL), 0);
    assert_int_equal(sl_expert_map_of_checkpoint(&f->store, f->checkpoint, &cache_shape, NULL), 0);
    load_expected(f);
}

static void open_packed(struct cache_fixture *f)
{
    assert_int_equal(sl_store_open(&f->packed, f->folder, SL_STORE_RUN, NULL), 0);
    assert_int_equal(sl_expert_map_of_store(&f->store, f->packed, &cache_shape, NULL), 0);
}

void cache_fixture_reopen(struct cache_fixture *f)
{
    sl_expert_map_close(f->store);
    sl_store_close(f->packed);
    open_packed(f);
}

void cache_fixture_open_packed(struct cache_fixture *f, const struct cache_fixture *checkpoint,
                               bool compress)
{
    static const uint64_t weight = 1;
    const uint64_t expected_bytes =
        CACHE_LAYERS * CACHE_EXPERTS * sl_expert_cache_slot_bytes(&cache_shape);
    struct sl_pack_options options = {.store_folder = f->folder,
                                      .checkpoint_folder = checkpoint->folder,
                                      .checkpoint = checkpoint->checkpoint,
                                      .experts = checkpoint->store,
                                      .weights = &weight,
                                      .compress = compress,
                                      .writer = sl_file_writer(),
                                      .batch_bytes = 1 << 20};

    memset(f, 0, sizeof(*f));
    fixture_folder_create(f->folder);
    fixture_write_text(checkpoint->folder, "config.json", "{}\n");
    assert_int_equal(sl_pool_create(&options.pool, 2, NULL), 0);
    assert_int_equal(sl_store_pack(&options, NULL, NULL), 0);
    sl_pool_destroy(options.pool);
    open_packed(f);
    f->expected = malloc(expected_bytes);
    assert_non_null(f->expected);
    memcpy(f->expected, checkpoint->expected, expected_bytes);
    f->expert_bytes =
        sl_packed_expert_stored_bytes(sl_store_expert(f->packed, (struct sl_expert_key){0, 0}));
}

void cache_fixture_close(struct cache_fixture *f)
{
    sl_expert_map_close(f->store);
    sl_store_close(f->packed);
    sl_checkpoint_close(f->checkpoint);
    store_rig_remove(f->folder);
    free(f->expected);
}

int cache_fixtures_create(void **state)
{
    struct cache_fixture *f = calloc(2, sizeof(*f)); /* released, scattered */

    assert_non_null(f);
    cache_fixture_open(&f[0], false);
    cache_fixture_open(&f[1], true);
    *state = f;
    return 0;
}

int cache_fixtures_destroy(void **state)
{
    struct cache_fixture *f = *state;

    for (uint32_t i = 0; i < 2; i++)
        cache_fixture_close(&f[i]);
    free(f);
    return 0;
}

/* ---- The rig ---- */

void cache_rig_init(struct cache_rig *rig, const struct cache_fixture *f,
                    const struct cache_rig_options *options)
{
    sl_io_open_fn *open_io = options->threads ? sl_io_threads_open : sl_io_choose(NULL);
    struct sl_reader_options reader_options = {.piece_bytes = options->piece_bytes,
                                               .stall_ns = options->stall_ns,
                                               .clock_ns = options->io ? io_simulated_clock_ns
                                                                       : io_fault_clock_ns};
    struct sl_expert_cache_options cache_options = {
        .slab_bytes = options->n_slots * sl_expert_cache_slot_bytes(&cache_shape) + 4095,
        .num_experts_per_tok = CACHE_PER_TOKEN,
        .inflight_max = options->inflight_max,
        .verify = options->verify,
        .prefetch_layers = options->prefetch_layers,
        .paced = options->paced,
        .policy = options->policy,
    };
    const char *paths[CACHE_FILES];
    struct sl_io *io;

    assert_int_equal(sl_expert_map_file_count(f->store), CACHE_FILES);
    for (uint32_t i = 0; i < CACHE_FILES; i++)
        paths[i] = sl_expert_map_file_path(f->store, i);
    rig->f = f;
    rig->io = options->io;
    if (!rig->io) {
        assert_int_equal(open_io(&io, paths, CACHE_FILES, options->reads_max, NULL), 0);
        rig->io = io_fault_wrap(io);
    }
    rig->random = 1;
    reader_options.clock_context = rig->io;
    assert_int_equal(sl_reader_create(&rig->reader, rig->io, &reader_options, NULL), 0);
    assert_int_equal(sl_pool_create(&rig->pool, options->io ? 1 : 2, NULL), 0);
    assert_int_equal(
        sl_expert_cache_create(&rig->cache, f->store, rig->reader, rig->pool, &cache_options, NULL),
        0);
    assert_int_equal(sl_expert_cache_slot_count(rig->cache), options->n_slots);
    rig->source = sl_expert_cache_source(rig->cache);
}

void cache_rig_fini(struct cache_rig *rig)
{
    sl_expert_cache_destroy(rig->cache);
    sl_pool_destroy(rig->pool);
    sl_reader_destroy(rig->reader);
    rig->io->ops->close(rig->io);
}

void cache_rig_check_counters(const struct cache_rig *rig, uint64_t n_requests)
{
    struct sl_expert_cache_counters counters = sl_expert_cache_counters(rig->cache);

    assert_int_equal(counters.n_requests, n_requests);
    assert_int_equal(counters.wanted_bytes, counters.n_loads * rig->f->expert_bytes);
    assert_int_equal(counters.read_bytes, io_fault_delivered_bytes(rig->io));
}

void cache_rig_check_pin(const struct cache_rig *rig, const struct sl_expert_pin *pin)
{
    uint64_t slot_bytes = sl_expert_cache_slot_bytes(&cache_shape);
    const uint8_t *expected =
        rig->f->expected +
        (pin->key.layer_index * CACHE_EXPERTS + pin->key.expert_index) * slot_bytes;

    for (uint32_t matrix = 0; matrix < SL_EXPERT_MATRICES; matrix++)
        if (matrix != SL_EXPERT_W2 || !pin->partial)
            assert_memory_equal(pin->w[matrix], expected + matrix * 5 * 4096, 16 * 1088);
}

int cache_rig_complete(const struct cache_rig *rig, struct sl_expert_pin *pin, struct sl_err *err)
{
    int rc = 0;

    if (pin->partial)
        rc = rig->source->ops->complete(rig->source, pin, err);
    pin->partial = false;
    if (rc == 0)
        cache_rig_check_pin(rig, pin);
    return rc;
}

int cache_rig_give_back(const struct cache_rig *rig, struct sl_expert_pin *pin, struct sl_err *err)
{
    int rc = cache_rig_complete(rig, pin, err);

    rig->source->ops->release(rig->source, pin);
    return rc;
}

int cache_rig_demand(struct cache_rig *rig, uint16_t layer, const uint16_t *experts, uint32_t n,
                     uint16_t *order, struct sl_err *err)
{
    struct sl_expert_pin held[CACHE_EXPERTS];
    bool seen[CACHE_EXPERTS] = {false};
    uint32_t n_held = 0, n_acquired = 0;
    int rc;

    rc = rig->source->ops->demand(rig->source, layer, experts, n, err);
    assert_int_equal(rc, 0);
    while (rc == 0) {
        bool wait = cache_rig_below(&rig->random, 3) > 0;

        if (n_acquired < n && (n_held == rig->source->pins_max ||
                               (!order && n_held > 0 && cache_rig_below(&rig->random, 2) == 0))) {
            uint32_t i = (uint32_t)cache_rig_below(&rig->random, n_held);
            struct sl_expert_pin pin = held[i];

            held[i] = held[--n_held];
            rc = cache_rig_give_back(rig, &pin, err);
            continue;
        }
        rc = rig->source->ops->acquire(rig->source, wait, &held[n_held], err);
        if (rc == 0)
            break;
        if (rc == 1) {
            cache_rig_check_pin(rig, &held[n_held]);
            assert_int_equal(held[n_held].key.layer_index, layer);
            assert_false(seen[held[n_held].key.expert_index]);
            seen[held[n_held].key.expert_index] = true;
            if (order)
                order[n_acquired] = held[n_held].key.expert_index;
            n_held++;
            n_acquired++;
        } else if (rc == -EAGAIN) {
            assert_false(wait);
        }
        rc = rc == 1 || rc == -EAGAIN ? 0 : rc;
    }
    assert_true(rc < 0 || n_acquired == n);
    while (n_held > 0) {
        if (rc == 0)
            rc = cache_rig_give_back(rig, &held[--n_held], err);
        else /* the demand is over */
            rig->source->ops->release(rig->source, &held[--n_held]);
    }
    for (uint32_t i = 0; i < n; i++)
        assert_true(rc < 0 || seen[experts[i]]);
    return rc;
}

struct sl_expert_cache_counters cache_rig_prefetch(struct cache_rig *rig, uint16_t layer,
                                                   const uint16_t *experts, uint32_t n)
{
    struct sl_expert_key keys[CACHE_EXPERTS];

    for (uint32_t i = 0; i < n; i++)
        keys[i] = (struct sl_expert_key){layer, experts[i]};
    rig->source->ops->prefetch(rig->source, SL_PREFETCH_CERTAIN, keys, n);
    return sl_expert_cache_counters(rig->cache);
}

void cache_rig_choose(uint64_t *random, uint16_t *experts, uint32_t n)
{
    uint32_t n_chosen = 0;

    for (uint16_t e = 0; e < CACHE_EXPERTS; e++) {
        if (cache_rig_below(random, CACHE_EXPERTS - e) < n - n_chosen)
            experts[n_chosen++] = e;
    }
}
