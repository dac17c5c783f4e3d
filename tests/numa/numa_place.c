/* Runs a model on all threads that it may have here and counts, page by page, where its memory
 * lies: for tests/numa/check_nodes.sh, inside an emulated machine of several memory nodes. Each
 * compute thread looks at its own share, from the processor that it runs on.
 *
 *   numa_place MODEL RAM-MIB TOKENS FRAME-BYTES
 *
 * It prints lines "threads ...", "note ...", "weights PAGES ELSEWHERE", "slots PAGES ELSEWHERE",
 * "kv PAGES-ON-NODE-0 PAGES-ON-NODE-1", and "logits HASH" of all rows of the tokens 5, 6, 7, ... */
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

#include "cache/cache_internal.h"
#include "core/base/assert.h"
#include "daemon/engine/engine_internal.h"
#include "tools/cli/engine_options.h"

#define PAGE_BYTES 4096u
#define TOKENS_MAX 4096u
#define NODES 2

struct look {
    const struct sl_matrix *matrix;
    uint64_t frame_bytes;
    struct sl_placement by_thread[SL_POOL_THREADS_MAX];
};

static void look_at_share(void *context, size_t first, size_t end, uint32_t thread_index)
{
    struct look *look = context;
    const uint64_t tile_bytes = sl_matrix_tile_bytes(look->matrix);
    unsigned cpu, node;

    sl_assert(getcpu(&cpu, &node) == 0);
    sl_placement_add(&look->by_thread[thread_index], look->matrix->tiles + first * tile_bytes,
                     (end - first) * tile_bytes, look->frame_bytes, node);
}

/* The threads share a matrix's tiles out as its linear does. */
static void look_at(struct sl_engine *engine, struct look *look, const struct sl_matrix *matrix)
{
    look->matrix = matrix;
    if (matrix->tiles)
        sl_pool_run(engine->pool, 0, sl_r16_tile_count(matrix->rows), 1, look_at_share, look);
}

static void print_look(const char *name, const struct look *look)
{
    struct sl_placement all = {0};

    for (uint32_t i = 0; i < SL_POOL_THREADS_MAX; i++) {
        all.n_pages += look->by_thread[i].n_pages;
        all.n_elsewhere += look->by_thread[i].n_elsewhere;
    }
    printf("%s %llu %llu\n", name, (unsigned long long)all.n_pages,
           (unsigned long long)all.n_elsewhere);
}

static void print_weights(struct sl_engine *engine, uint64_t frame_bytes)
{
    struct look look = {.frame_bytes = frame_bytes};

    look_at(engine, &look, &engine->weights.head.linear);
    for (uint32_t i = 0; i < engine->config.num_hidden_layers; i++) {
        const struct sl_layer_weights *w = &engine->weights.layers[i];
        const struct sl_matrix *const linears[] = {
            &w->wq_a,       &w->wq_b,      &w->wkv,       &w->wo_a,      &w->wo_b,
            &w->index_wq_b, &w->shared_w1, &w->shared_w2, &w->shared_w3, &w->compressor.wkv};

        for (size_t m = 0; m < sizeof(linears) / sizeof(linears[0]); m++)
            look_at(engine, &look, linears[m]);
    }
    print_look("weights", &look);
}

static void print_slots(struct sl_engine *engine, uint64_t frame_bytes)
{
    const struct sl_expert_cache *cache = engine->cache;
    struct look look = {.frame_bytes = frame_bytes};

    for (uint32_t slot = 0; slot < cache->slab.n_slots; slot++)
        for (int i = 0; i < SL_EXPERT_MATRICES; i++) {
            const struct sl_matrix matrix = {.kind = SL_MATRIX_FP4,
                                             .rows = sl_expert_matrix_rows(&cache->shape, i),
                                             .cols = sl_expert_matrix_cols(&cache->shape, i),
                                             .tiles =
                                                 sl_slab_slot(&cache->slab, slot) +
                                                 sl_expert_matrix_offset_bytes(&cache->shape, i)};

            look_at(engine, &look, &matrix);
        }
    print_look("slots", &look);
}

static void print_kv(const struct sl_arena *kv)
{
    struct sl_placement elsewhere[NODES] = {0};

    printf("kv");
    for (uint32_t node = 0; node < NODES; node++) {
        sl_placement_add(&elsewhere[node], kv->base, kv->size_bytes, PAGE_BYTES, node);
        printf(" %llu",
               (unsigned long long)(elsewhere[node].n_pages - elsewhere[node].n_elsewhere));
    }
    printf("\n");
}

struct hash {
    uint64_t value;
    size_t row_bytes;
};

static void hash_rows(void *context, const struct sl_logits_row *rows, uint32_t n_rows)
{
    struct hash *hash = context;

    for (uint32_t row = 0; row < n_rows; row++)
        for (size_t i = 0; i < hash->row_bytes; i++)
            hash->value = (hash->value ^ ((const uint8_t *)rows[row].logits)[i]) *
                          UINT64_C(0x100000001b3); /* FNV-1a */
}

static void fail(const struct sl_err *err)
{
    printf("refused %s\n", err->message);
    exit(1);
}

int main(int argc, char **argv)
{
    static int32_t tokens[TOKENS_MAX];
    struct sl_engine_options options = {.affinity = sl_choose_affinity(0), .n_sequences = 1};
    struct hash hash = {.value = UINT64_C(0xcbf29ce484222325)};
    struct sl_engine *engine;
    struct sl_kv_cache *kv;
    struct sl_span span = {.tokens = tokens, .logits = SL_LOGITS_ALL};
    struct sl_step_request request = {
        .spans = &span, .n_spans = 1, .on_logits = hash_rows, .on_logits_context = &hash};
    struct sl_err err;
    uint64_t frame_bytes;

    if (argc != 5)
        return 2;
    options.model = argv[1];
    options.ram_bytes = strtoull(argv[2], NULL, 10) << 20;
    span.n_tokens = (uint32_t)strtoul(argv[3], NULL, 10);
    options.context_tokens = span.n_tokens;
    frame_bytes = strtoull(argv[4], NULL, 10);
    sl_assert(span.n_tokens <= TOKENS_MAX);
    for (uint32_t i = 0; i < span.n_tokens; i++)
        tokens[i] = (int32_t)(5 + i);
    printf("threads ");
    sl_affinity_print(&options.affinity, stdout);
    printf("\n");
    if (sl_engine_open(&engine, &options, NULL, &err) < 0)
        fail(&err);
    for (uint32_t i = 0; sl_engine_note(engine, i); i++)
        printf("note %s\n", sl_engine_note(engine, i));
    hash.row_bytes = engine->config.vocab_size * sizeof(float);
    if (sl_engine_sequence_create(engine, options.context_tokens, &kv, &err) < 0)
        fail(&err);
    span.kv = kv;
    if (sl_engine_step(engine, &request, &err) < 0)
        fail(&err);
    print_weights(engine, frame_bytes);
    print_slots(engine, frame_bytes);
    print_kv(&engine->kv_pool.arena);
    printf("logits %016llx\n", (unsigned long long)hash.value);
    sl_engine_close(engine);
    return 0;
}
