/* Ten thousand tokens over a drive that keeps going wrong: the logits are those of a run without
 * faults, and no memory is lost on the way. Four sequences go through a store on three drives at
 * the least cache there is, with predictions, while reads fail, are short, late or wrong by a seed
 * (SL_SEED=n gives others), some of them for good; what failed is fed again. Then two thousand more
 * from a compressed store. SL_SLOW=1, and sanitizers, make it shorter.
 *
 * Memory: what is allocated with malloc, and what of the process is resident, are taken after a
 * tenth of the tokens and at the end. The first must be the same to the byte. Resident may grow by
 * what the C library and the kernel take in passing. Sanitizers have a malloc and shadows of their
 * own: there both say nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <inttypes.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "storage/io/checksum.h"
#include "tests/engine_rig.h"
#include "tests/kernel_inputs.h"

#define SEQUENCES 4u
#define SEQUENCE_TOKENS 50u
#define PROMPT_TOKENS 10u
#define ROUNDS 50u /* of SEQUENCES * SEQUENCE_TOKENS tokens */
#define ROUNDS_SLOW 10u
#define GAP_READS 50u /* what is wrong once is read again well before the next fault */
#define RESIDENT_GROWTH_BYTES_MAX (UINT64_C(512) << 10)

struct soak {
    const struct engine_rig *m;
    struct sl_engine *engine;
    int32_t tokens[SEQUENCES][SEQUENCE_TOKENS]; /* of the round at hand */
    uint64_t hashes[SEQUENCES];                 /* of the rows of each, likewise */
    uint64_t n_failures;
};

static uint32_t round_count(void)
{
#ifdef SL_DEBUG
    return ROUNDS_SLOW;
#else
    return getenv("SL_SLOW") ? ROUNDS_SLOW : ROUNDS;
#endif
}

static void hash_rows(void *context, const struct sl_logits_row *rows, uint32_t n_rows)
{
    struct soak *soak = context;

    for (uint32_t i = 0; i < n_rows; i++) {
        uint64_t *hash = &soak->hashes[rows[i].span_index];
        uint64_t pair[2] = {*hash, sl_checksum(rows[i].logits, soak->m->row_bytes)};

        *hash = sl_checksum(pair, sizeof(pair));
    }
}

static void begin_round(struct soak *soak, uint32_t round)
{
    uint64_t random = inputs_seed() + round;

    for (uint32_t s = 0; s < SEQUENCES; s++)
        for (uint32_t i = 0; i < SEQUENCE_TOKENS; i++)
            soak->tokens[s][i] = (int32_t)fixture_below(&random, soak->m->config.vocab_size);
}

static void clear(struct soak *soak)
{
    for (uint32_t s = 0; s < SEQUENCES; s++) {
        sl_kv_cache_clear(engine_rig_kv(soak->engine, s));
        soak->hashes[s] = 0;
    }
}

/* Feeds tokens first .. first + n of all sequences in one step. */
static int feed(struct soak *soak, uint32_t first, uint32_t n, struct sl_err *err)
{
    struct sl_span spans[SEQUENCES];
    const struct sl_step_request request = {
        .spans = spans, .n_spans = SEQUENCES, .on_logits = hash_rows, .on_logits_context = soak};

    for (uint32_t s = 0; s < SEQUENCES; s++)
        spans[s] = (struct sl_span){engine_rig_kv(soak->engine, s), soak->tokens[s] + first, n,
                                    SL_LOGITS_ALL};
    return sl_engine_step(soak->engine, &request, err);
}

/* A step that failed has left all sequences where they were: it is taken again. */
static void feed_until_it_succeeds(struct soak *soak, uint32_t first, uint32_t n)
{
    struct sl_err err;
    int rc;

    while ((rc = feed(soak, first, n, &err)) == -EIO) {
        soak->n_failures++;
        io_fault_mend(engine_rig_faulty());
    }
    if (rc < 0)
        fail_msg("%s", err.message);
}

/* A prompt, and then token by token. */
static void play(struct soak *soak)
{
    clear(soak);
    feed_until_it_succeeds(soak, 0, PROMPT_TOKENS);
    for (uint32_t i = PROMPT_TOKENS; i < SEQUENCE_TOKENS; i++)
        feed_until_it_succeeds(soak, i, 1);
}

/* The hash of each sequence of each round, without faults, all tokens of a round at once. */
static uint64_t *clean_hashes(struct soak *soak, uint32_t n_rounds)
{
    struct sl_engine_options options = engine_rig_options(soak->m);
    uint64_t *hashes = calloc(n_rounds, sizeof(soak->hashes));

    assert_non_null(hashes);
    options.cache_min = false;
    options.draft = SL_DRAFT_NONE;
    options.n_sequences = SEQUENCES;
    options.context_tokens = SEQUENCE_TOKENS;
    options.segment_tokens = SEQUENCES * SEQUENCE_TOKENS;
    assert_int_equal(sl_engine_open(&soak->engine, &options, NULL, NULL), 0);
    for (uint32_t round = 0; round < n_rounds; round++) {
        begin_round(soak, round);
        clear(soak);
        assert_int_equal(feed(soak, 0, SEQUENCE_TOKENS, NULL), 0);
        memcpy(hashes + round * SEQUENCES, soak->hashes, sizeof(soak->hashes));
    }
    sl_engine_close(soak->engine);
    return hashes;
}

struct memory {
    uint64_t lent_bytes, resident_bytes;
};

static struct memory memory_now(void)
{
    const struct mallinfo2 info = mallinfo2();
    unsigned long pages = 0;
    FILE *file = fopen("/proc/self/statm", "re");

    assert_non_null(file);
    assert_int_equal(fscanf(file, "%*u %lu", &pages), 1);
    fclose(file);
    return (struct memory){info.uordblks + info.hblkhd, pages * (uint64_t)sysconf(_SC_PAGESIZE)};
}

static void check_memory(struct memory before, struct memory after)
{
    print_message("allocated %" PRIu64 " bytes; resident %" PRIu64 " KiB, then %" PRIu64 "\n",
                  after.lent_bytes, before.resident_bytes >> 10, after.resident_bytes >> 10);
    assert_int_equal(before.lent_bytes, after.lent_bytes);
#ifndef SL_DEBUG
    assert_true(after.resident_bytes <= before.resident_bytes + RESIDENT_GROWTH_BYTES_MAX);
#endif
}

static void open_soak(struct soak *soak, const char *store_folder)
{
    const struct io_fault_plan plan = {.seed = inputs_seed(),
                                       .short_permille = 20,
                                       .shuffle = true,
                                       .gap_reads = GAP_READS,
                                       .late_ns = 2 * SL_READER_STALL_NS,
                                       .fail_for_good = true};
    struct sl_engine_options options = engine_rig_options(soak->m);

    options.model = store_folder;
    options.draft = SL_DRAFT_NONE;
    options.verify = SL_VERIFY_ALWAYS;
    options.prefetch = SL_PREFETCH_GATE;
    options.n_sequences = SEQUENCES;
    options.context_tokens = SEQUENCE_TOKENS;
    options.segment_tokens = SEQUENCES * PROMPT_TOKENS;
    engine_rig_make_faulty(&options);
    assert_int_equal(sl_engine_open(&soak->engine, &options, NULL, NULL), 0);
    io_fault_set(engine_rig_faulty(), &plan);
}

static void check_counters(const struct soak *soak, uint32_t n_rounds)
{
    const struct sl_expert_cache_counters c = sl_engine_counters(soak->engine);
    const struct sl_io *io = engine_rig_faulty();

    print_message("%u tokens; %" PRIu64 " reads, of which %" PRIu64 " failed, %" PRIu64
                  " were short, %" PRIu64 " late, %" PRIu64 " wrong; %" PRIu64
                  " steps failed; %" PRIu64 " predictions in time, %" PRIu64 " late\n",
                  n_rounds * SEQUENCES * SEQUENCE_TOKENS, io_fault_read_count(io),
                  io_fault_gap_count(io, 0), io_fault_gap_count(io, 1), io_fault_gap_count(io, 2),
                  io_fault_gap_count(io, 3), soak->n_failures, c.n_predicted_hits,
                  c.n_predicted_late);
    for (uint32_t kind = 0; kind < IO_FAULT_KINDS; kind++)
        assert_true(io_fault_gap_count(io, kind) > n_rounds);
    assert_true(soak->n_failures > 0 && c.n_retries > 0 && c.n_stalls > 0);
    assert_true(c.n_evictions > 0 && c.n_predicted_hits > 0 && c.n_predicted_late > 0);
}

static void soak_over(const struct engine_rig *m, bool compress, uint32_t n_rounds)
{
    struct soak soak = {.m = m};
    struct memory warm = {0};
    char store_folder[FIXTURE_PATH_BYTES];
    uint64_t *hashes;

    engine_rig_pack(m, compress ? "compressed" : "store", 2, compress, store_folder);
    hashes = clean_hashes(&soak, n_rounds);
    open_soak(&soak, store_folder);
    for (uint32_t round = 0; round < n_rounds; round++) {
        begin_round(&soak, round);
        play(&soak);
        assert_memory_equal(soak.hashes, hashes + round * SEQUENCES, sizeof(soak.hashes));
        if (round == n_rounds / 10)
            warm = memory_now();
    }
    check_memory(warm, memory_now());
    check_counters(&soak, n_rounds);
    io_fault_heal(engine_rig_faulty());
    sl_engine_close(soak.engine);
    free(hashes);
}

static void test_ten_thousand_tokens(void **state)
{
    soak_over(*state, false, round_count());
}

/* Fewer: what is other about them is how they are loaded. */
static void test_compressed_experts(void **state)
{
    soak_over(*state, true, ROUNDS_SLOW);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ten_thousand_tokens),
        cmocka_unit_test(test_compressed_experts),
    };

    print_message("SL_SEED=%" PRIu64 "\n", inputs_seed());
    return cmocka_run_group_tests_name("soak", tests, engine_rig_create, engine_rig_destroy);
}
