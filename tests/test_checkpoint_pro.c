/* A folder of DeepSeek-V4-Pro's size opens in under two seconds, table of experts included. The
 * folder has Pro's names, shapes and headers; its data are holes. SL_BENCH=1 prints the time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "core/base/clock.h"
#include "storage/checkpoint/checkpoint.h"
#include "storage/experts/expert_map.h"
#include "tests/fixture_checkpoint.h"

/* Sanitizers make parsing ten times slower, and a small model shows them as much. */
#ifdef SL_DEBUG
#define LAYERS 4u
#define TENSORS 11704u
#else
#define LAYERS 61u
#define TENSORS 145116u
#endif

#define VOCAB 129280u
#define HIDDEN 7168u
#define HEADS 128u
#define HEAD_DIM 512u
#define Q_LORA 1536u
#define O_GROUPS 16u
#define O_LORA 1024u
#define EXPERTS 384u
#define EXPERTS_PER_TOKEN 6u
#define INTER 3072u
#define HC 4u
#define INDEX_HEADS 64u
#define INDEX_DIM 128u
#define HASH_LAYERS 3u

/* Generous: tests share the machine. What it really takes is in docs/MICROBENCHMARKS.md. */
#define OPEN_NS_MAX UINT64_C(10000000000)

static void add_fp8(struct fixture_list *list, uint64_t rows, uint64_t cols, const char *prefix,
                    const char *name)
{
    fixture_add(list, SL_DTYPE_F8_E4M3, rows, cols, "%s.%s.weight", prefix, name);
    fixture_add(list, SL_DTYPE_F8_E8M0, (rows + 127) / 128, (cols + 127) / 128, "%s.%s.scale",
                prefix, name);
}

static void add_hyper(struct fixture_list *list, uint64_t rows, uint64_t scales, const char *prefix)
{
    fixture_add(list, SL_DTYPE_F32, rows, (uint64_t)HC * HIDDEN, "%s_fn", prefix);
    fixture_add(list, SL_DTYPE_F32, rows, 0, "%s_base", prefix);
    fixture_add(list, SL_DTYPE_F32, scales, 0, "%s_scale", prefix);
}

static void add_compressor(struct fixture_list *list, uint32_t ratio, uint32_t dim,
                           const char *prefix)
{
    uint64_t width = ratio == 4 ? 2 * dim : dim;

    fixture_add(list, SL_DTYPE_F32, ratio, width, "%s.compressor.ape", prefix);
    fixture_add(list, SL_DTYPE_BF16, width, HIDDEN, "%s.compressor.wkv.weight", prefix);
    fixture_add(list, SL_DTYPE_BF16, width, HIDDEN, "%s.compressor.wgate.weight", prefix);
    fixture_add(list, SL_DTYPE_BF16, dim, 0, "%s.compressor.norm.weight", prefix);
}

static void add_attention(struct fixture_list *list, uint32_t ratio, const char *block)
{
    char prefix[48], indexer[64];

    snprintf(prefix, sizeof(prefix), "%s.attn", block);
    snprintf(indexer, sizeof(indexer), "%s.indexer", prefix);
    fixture_add(list, SL_DTYPE_F32, HEADS, 0, "%s.attn_sink", prefix);
    add_fp8(list, Q_LORA, HIDDEN, prefix, "wq_a");
    add_fp8(list, HEADS * HEAD_DIM, Q_LORA, prefix, "wq_b");
    add_fp8(list, HEAD_DIM, HIDDEN, prefix, "wkv");
    add_fp8(list, O_GROUPS * O_LORA, HEADS * HEAD_DIM / O_GROUPS, prefix, "wo_a");
    add_fp8(list, HIDDEN, O_GROUPS * O_LORA, prefix, "wo_b");
    fixture_add(list, SL_DTYPE_BF16, Q_LORA, 0, "%s.q_norm.weight", prefix);
    fixture_add(list, SL_DTYPE_BF16, HEAD_DIM, 0, "%s.kv_norm.weight", prefix);
    if (ratio)
        add_compressor(list, ratio, HEAD_DIM, prefix);
    if (ratio == 4) {
        add_fp8(list, INDEX_HEADS * INDEX_DIM, Q_LORA, indexer, "wq_b");
        fixture_add(list, SL_DTYPE_BF16, INDEX_HEADS, HIDDEN, "%s.weights_proj.weight", indexer);
        add_compressor(list, ratio, INDEX_DIM, indexer);
    }
}

static void add_block(struct fixture_list *list, uint32_t ratio, bool hashed, const char *block)
{
    char prefix[48];

    fixture_add(list, SL_DTYPE_BF16, HIDDEN, 0, "%s.attn_norm.weight", block);
    fixture_add(list, SL_DTYPE_BF16, HIDDEN, 0, "%s.ffn_norm.weight", block);
    snprintf(prefix, sizeof(prefix), "%s.hc_attn", block);
    add_hyper(list, (2 + HC) * HC, 3, prefix);
    snprintf(prefix, sizeof(prefix), "%s.hc_ffn", block);
    add_hyper(list, (2 + HC) * HC, 3, prefix);
    add_attention(list, ratio, block);
    fixture_add(list, SL_DTYPE_BF16, EXPERTS, HIDDEN, "%s.ffn.gate.weight", block);
    if (hashed)
        fixture_add(list, SL_DTYPE_I64, VOCAB, EXPERTS_PER_TOKEN, "%s.ffn.gate.tid2eid", block);
    else
        fixture_add(list, SL_DTYPE_F32, EXPERTS, 0, "%s.ffn.gate.bias", block);
    snprintf(prefix, sizeof(prefix), "%s.ffn.shared_experts", block);
    add_fp8(list, INTER, HIDDEN, prefix, "w1");
    add_fp8(list, HIDDEN, INTER, prefix, "w2");
    add_fp8(list, INTER, HIDDEN, prefix, "w3");
    fixture_add_experts(list, block, EXPERTS, HIDDEN, INTER);
}

/* Shard 0 the embedding, 1 .. LAYERS the layers, then the MTP block, then the head. */
static void add_shard_tensors(struct fixture_list *list, uint32_t shard)
{
    static const char *const mtp_norms[] = {"enorm", "hnorm", "norm"};
    char block[24];

    if (shard == 0) {
        fixture_add(list, SL_DTYPE_BF16, VOCAB, HIDDEN, "embed.weight");
    } else if (shard <= LAYERS) {
        snprintf(block, sizeof(block), "layers.%u", shard - 1);
        add_block(list, shard >= 3 && shard % 2 ? 4 : 128, shard <= HASH_LAYERS, block);
    } else if (shard == LAYERS + 1) {
        add_block(list, 0, false, "mtp.0");
        add_fp8(list, HIDDEN, HIDDEN, "mtp.0", "e_proj");
        add_fp8(list, HIDDEN, HIDDEN, "mtp.0", "h_proj");
        for (size_t i = 0; i < 3; i++)
            fixture_add(list, SL_DTYPE_BF16, HIDDEN, 0, "mtp.0.%s.weight", mtp_norms[i]);
        add_hyper(list, HC, 1, "mtp.0.hc_head");
    } else {
        fixture_add(list, SL_DTYPE_BF16, HIDDEN, 0, "norm.weight");
        fixture_add(list, SL_DTYPE_BF16, VOCAB, HIDDEN, "head.weight");
        add_hyper(list, HC, 1, "hc_head");
    }
}

static void write_folder(const char *folder)
{
    FILE *index = fixture_index_begin(folder);

    for (uint32_t i = 0; i < LAYERS + 3; i++) {
        struct fixture_list list = {0};
        char file[48];

        snprintf(file, sizeof(file), "model-%05u-of-%05u.safetensors", i + 1, LAYERS + 3);
        add_shard_tensors(&list, i);
        fixture_write_shard(folder, file, &list, true);
        fixture_index_add(index, &list, file);
        fixture_fini(&list);
    }
    fixture_index_end(index);
}

static void test_pro_opens_quickly(void **state)
{
    static const struct sl_expert_shape shape = {.num_hidden_layers = LAYERS,
                                                 .n_mtp_layers = 1,
                                                 .n_routed_experts = EXPERTS,
                                                 .hidden_size = HIDDEN,
                                                 .moe_intermediate_size = INTER};
    char folder[FIXTURE_PATH_BYTES];
    struct sl_checkpoint *checkpoint;
    struct sl_expert_map *store;
    uint64_t start_ns, opened_ns, end_ns;
    struct sl_err err = {0};

    (void)state;
    fixture_folder_create(folder);
    write_folder(folder);
    start_ns = sl_clock_ns();
    if (sl_checkpoint_open(&checkpoint, folder, &err) != 0)
        fail_msg("%s", err.message);
    opened_ns = sl_clock_ns();
    if (sl_expert_map_of_checkpoint(&store, checkpoint, &shape, &err) != 0)
        fail_msg("%s", err.message);
    end_ns = sl_clock_ns();
    fixture_folder_remove(folder);
    assert_int_equal(sl_checkpoint_tensor_count(checkpoint), TENSORS);
    for (uint32_t i = 0; i <= LAYERS; i++) {
        for (uint32_t e = 0; e < EXPERTS; e++) {
            struct sl_extent reads[SL_EXPERT_READS_MAX];
            struct sl_expert_key key = {(uint16_t)i, (uint16_t)e};

            assert_int_equal(sl_checkpoint_expert_reads(sl_expert_map_find(store, key), reads), 2);
        }
    }
    sl_expert_map_close(store);
    sl_checkpoint_close(checkpoint);
    if (getenv("SL_BENCH"))
        print_message("%u tensors in %u files: checkpoint %.3f s, experts %.3f s\n", TENSORS,
                      LAYERS + 3, (double)(opened_ns - start_ns) / 1e9,
                      (double)(end_ns - opened_ns) / 1e9);
    assert_true(end_ns - start_ns < OPEN_NS_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pro_opens_quickly),
    };

    return cmocka_run_group_tests_name("checkpoint_pro", tests, NULL, NULL);
}
