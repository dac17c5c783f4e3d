/* Compressed records give back the tiles that went in, and bytes that are not theirs are refused or
 * stay within their bounds. Records of several shapes and kinds of values go there and back; then
 * every bit of a stored record is flipped and every frame cut at every length, each in memory of
 * its own size, with the bytes beside each chunk's place watched. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/base/size.h"

#include "core/kernels/r16.h"
#include "storage/store/codec.h"
#include "tests/fault_alloc.h"
#include "tests/io_fault.h"

#define MARK 0xa5

enum kind {
    LIKE_WEIGHTS, /* few scales, any codes */
    ZEROS,        /* codes become frames too */
    NOISE,        /* nothing becomes smaller */
};

static const struct sl_expert_shape small = {.num_hidden_layers = 1,
                                             .n_routed_experts = 1,
                                             .hidden_size = 256,
                                             .moe_intermediate_size = 128};

struct fixture {
    struct sl_expert_shape shape;
    uint64_t record_bytes, stored_bytes;
    uint8_t *record, *stored, *unpacked; /* stored_bytes in `stored`, no more */
    uint8_t *marks;                      /* record_bytes of them */
    uint8_t *decoder_memory;
    struct sl_record_decoder *decoder;
};

/* A group's bytes 0 to 63 are scales. */
static uint8_t value(enum kind kind, uint64_t at, uint64_t random)
{
    if (kind == NOISE)
        return (uint8_t)random;
    if (at % SL_FP4_GROUP_BYTES < 64)
        return (uint8_t)(118 + random % 3 * (random % 5 == 0));
    return kind == ZEROS ? 0 : (uint8_t)random;
}

static void fill_record(const struct fixture *f, enum kind kind)
{
    uint64_t random = 11;

    for (int m = 0; m < SL_EXPERT_MATRICES; m++) {
        uint8_t *tiles = f->record + sl_expert_matrix_offset_bytes(&f->shape, m);

        for (uint64_t i = 0; i < sl_expert_matrix_bytes(&f->shape, m); i++)
            tiles[i] = value(kind, i, io_fault_random(&random));
    }
}

/* With a record of zeros. */
static void make_fixture(struct fixture *f, const struct sl_expert_shape *shape)
{
    f->shape = *shape;
    f->record_bytes = sl_packed_expert_bytes(shape);
    f->record = calloc(1, f->record_bytes);
    f->unpacked = malloc(f->record_bytes);
    f->marks = malloc(f->record_bytes);
    assert_int_equal(
        posix_memalign((void **)&f->decoder_memory, 64, sl_record_decoder_bytes(shape)), 0);
    assert_true(f->record && f->unpacked && f->marks);
    memset(f->marks, MARK, f->record_bytes);
    f->decoder = sl_record_decoder_init(f->decoder_memory);
}

static void compress_fixture(struct fixture *f, struct sl_codec_gain *gain)
{
    struct sl_record_encoder *encoder = sl_record_encoder_create(&f->shape);
    uint8_t *room = malloc(f->record_bytes);
    struct sl_codec_gain again = {0};

    assert_true(encoder && room);
    f->stored_bytes = sl_record_compress(encoder, f->record, room, gain);
    f->stored = malloc(f->stored_bytes + 1);
    assert_non_null(f->stored);
    memcpy(f->stored, room, f->stored_bytes);
    memset(room, MARK, f->record_bytes);
    assert_int_equal(sl_record_compress(encoder, f->record, room, &again), f->stored_bytes);
    assert_memory_equal(f->stored, room, f->stored_bytes); /* the same again */
    free(room);
    sl_record_encoder_destroy(encoder);
}

static void open_fixture(struct fixture *f, const struct sl_expert_shape *shape, enum kind kind,
                         struct sl_codec_gain *gain)
{
    make_fixture(f, shape);
    fill_record(f, kind);
    compress_fixture(f, gain);
}

static void close_fixture(struct fixture *f)
{
    free(f->record);
    free(f->stored);
    free(f->unpacked);
    free(f->marks);
    free(f->decoder_memory);
}

/* A run of a record's bytes. */
struct place {
    uint64_t offset_bytes, size_bytes;
};

/* A chunk's two places, in the order in which they lie; FP4 has one, and the other is empty. */
static void places_of(const struct sl_record_chunk *chunk, struct place ret_places[2])
{
    ret_places[0] = (struct place){chunk->codes_offset_bytes, chunk->codes_bytes};
    ret_places[1] = (struct place){chunk->scales_offset_bytes, chunk->scales_bytes};
    if (chunk->n_groups > 0) {
        ret_places[0].size_bytes += chunk->scales_bytes;
        ret_places[1] = (struct place){chunk->codes_offset_bytes + ret_places[0].size_bytes, 0};
    }
}

/* Unpacks a chunk into a record of marks, and looks at the bytes beside its places. */
static bool unpack_watched(struct fixture *f, const struct sl_record_chunk *chunk)
{
    uint64_t at_bytes = 0;
    struct place places[2];
    bool ok;

    memset(f->unpacked, MARK, f->record_bytes);
    ok = sl_record_unpack(f->decoder, chunk, f->unpacked);
    places_of(chunk, places);
    for (int i = 0; i < 2; i++) {
        assert_true(places[i].offset_bytes >= at_bytes);
        assert_memory_equal(f->unpacked + at_bytes, f->marks, places[i].offset_bytes - at_bytes);
        at_bytes = places[i].offset_bytes + places[i].size_bytes;
    }
    assert_memory_equal(f->unpacked + at_bytes, f->marks, f->record_bytes - at_bytes);
    return ok;
}

static bool is_chunk_right(const struct fixture *f, const struct sl_record_chunk *chunk)
{
    struct place places[2];

    places_of(chunk, places);
    for (int i = 0; i < 2; i++)
        if (memcmp(f->unpacked + places[i].offset_bytes, f->record + places[i].offset_bytes,
                   places[i].size_bytes) != 0)
            return false;
    return true;
}

static void test_there_and_back(void **state)
{
    /* One chunk a matrix; several, the last of which is not full; more columns than rows. */
    static const struct {
        uint32_t hidden_size, moe_intermediate_size, n_chunks;
    } shapes[] = {{256, 128, 3}, {1152, 640, 7}, {128, 1152, 7}};

    (void)state;
    for (uint32_t i = 0; i < 6; i++) {
        struct sl_expert_shape shape = small;
        struct sl_codec_gain gain = {0};
        struct sl_record_index index;
        enum kind kind = i % 2 ? ZEROS : LIKE_WEIGHTS;
        uint64_t n_allocations, n_groups = 0;
        struct fixture f;

        shape.hidden_size = shapes[i / 2].hidden_size;
        shape.moe_intermediate_size = shapes[i / 2].moe_intermediate_size;
        open_fixture(&f, &shape, kind, &gain);
        assert_int_equal(f.stored_bytes % SL_BLOCK_BYTES, 0);
        assert_in_range(f.stored_bytes, 1, f.record_bytes - 1);
        assert_true(2 * gain.scales_stored_bytes <= gain.scales_bytes);
        assert_int_equal(gain.codes_bytes, 16 * gain.scales_bytes);
        if (kind == ZEROS)
            assert_true(10 * gain.codes_stored_bytes < gain.codes_bytes);
        else
            assert_int_equal(gain.codes_stored_bytes, gain.codes_bytes);
        n_allocations = fault_alloc_total_count();
        assert_true(sl_record_index_read(&index, &shape, f.stored, f.stored_bytes));
        assert_int_equal(index.n_chunks, shapes[i / 2].n_chunks);
        for (uint32_t k = index.n_chunks; k-- > 0;) {
            assert_true(unpack_watched(&f, &index.chunks[k]));
            assert_true(is_chunk_right(&f, &index.chunks[k]));
            n_groups += index.chunks[k].n_groups;
        }
        assert_int_equal(fault_alloc_total_count(), n_allocations);
        assert_int_equal(n_groups * SL_FP4_GROUP_BYTES,
                         3 * sl_expert_matrix_bytes(&shape, SL_EXPERT_W1));
        close_fixture(&f);
    }
}

/* FP8: codes that become frames and others, scales that do and others, in every mixture; chunks of
 * one block of rows, of four, and what is left. All parts of all chunks together are the record. */
static void test_fp8_there_and_back(void **state)
{
    static const uint32_t sides[][2] = {{256, 128}, {1152, 640}, {128, 1152}};

    (void)state;
    for (uint32_t i = 0; i < 12; i++) {
        struct sl_expert_shape shape = {.num_hidden_layers = 1,
                                        .n_routed_experts = 1,
                                        .hidden_size = sides[i / 4][0],
                                        .moe_intermediate_size = sides[i / 4][1],
                                        .expert_dtype = SL_EXPERT_FP8};
        const bool plain_codes = i % 2, plain_scales = i / 2 % 2;
        uint64_t random = i, n_bytes = 0, wanted_bytes = 0;
        struct sl_record_index index;
        struct sl_codec_gain gain = {0};
        struct fixture f;

        make_fixture(&f, &shape);
        for (int m = 0; m < SL_EXPERT_MATRICES; m++) {
            uint8_t *matrix = f.record + sl_expert_matrix_offset_bytes(&shape, m);
            const uint64_t codes_bytes = sl_expert_tiles_bytes(&shape, m);

            wanted_bytes += sl_expert_matrix_bytes(&shape, m);
            for (uint64_t k = 0; k < sl_expert_matrix_bytes(&shape, m); k++)
                matrix[k] = (k < codes_bytes ? plain_codes && m == SL_EXPERT_W3 : plain_scales)
                                ? (uint8_t)io_fault_random(&random)
                                : (uint8_t)m;
        }
        compress_fixture(&f, &gain);
        assert_in_range(f.stored_bytes, 1, f.record_bytes - 1);
        assert_true(sl_record_index_read(&index, &shape, f.stored, f.stored_bytes));
        for (uint32_t k = index.n_chunks; k-- > 0;) {
            const struct sl_record_chunk *chunk = &index.chunks[k];

            assert_true(unpack_watched(&f, chunk));
            assert_true(is_chunk_right(&f, chunk));
            n_bytes += chunk->codes_bytes + chunk->scales_bytes;
            assert_int_equal(chunk->codes_stored_bytes < chunk->codes_bytes,
                             !(plain_codes && chunk->matrix == SL_EXPERT_W3));
        }
        assert_int_equal(n_bytes, wanted_bytes);
        assert_int_equal(gain.codes_bytes + gain.scales_bytes, wanted_bytes);
        close_fixture(&f);
    }
}

static void test_noise_stays_as_it_is(void **state)
{
    struct sl_expert_shape shape = small;
    struct sl_codec_gain gain = {0};
    struct fixture f;

    (void)state;
    shape.hidden_size = 512;
    shape.moe_intermediate_size = 256; /* matrices of whole blocks: there is nothing between them */
    open_fixture(&f, &shape, NOISE, &gain);
    assert_int_equal(f.stored_bytes, 0);
    assert_int_equal(gain.scales_bytes, 0);
    close_fixture(&f);
}

/* Codes that are stored as they are take any value: what is flipped there shows in the tiles, and
 * nothing of it is interesting. So all bytes of frames and sizes, and some of the rest. */
static void test_every_bit_flipped(void **state)
{
    uint64_t n_refused = 0, n_same = 0, n_other = 0;

    (void)state;
    for (int kind = LIKE_WEIGHTS; kind <= ZEROS; kind++) {
        struct sl_codec_gain gain = {0};
        struct fixture f;

        open_fixture(&f, &small, (enum kind)kind, &gain);
        for (uint64_t bit = 0; bit < 8 * f.stored_bytes; bit += bit < 8 * 1024 ? 1 : 1009) {
            struct sl_record_index index;

            f.stored[bit / 8] ^= (uint8_t)(1u << bit % 8);
            if (!sl_record_index_read(&index, &small, f.stored, f.stored_bytes)) {
                n_refused++;
            } else {
                for (uint32_t i = 0; i < index.n_chunks; i++) {
                    if (!unpack_watched(&f, &index.chunks[i]))
                        n_refused++;
                    else if (is_chunk_right(&f, &index.chunks[i]))
                        n_same++;
                    else
                        n_other++;
                }
            }
            f.stored[bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
        close_fixture(&f);
    }
    assert_true(n_refused > 1000 && n_same > 1000 && n_other > 100);
}

static void test_every_frame_cut(void **state)
{
    struct sl_codec_gain gain = {0};
    struct sl_record_index index;
    struct fixture f;

    (void)state;
    open_fixture(&f, &small, ZEROS, &gain);
    assert_true(sl_record_index_read(&index, &small, f.stored, f.stored_bytes));
    for (uint32_t i = 0; i < 2 * index.n_chunks; i++) {
        struct sl_record_chunk chunk = index.chunks[i / 2];
        uint32_t *size_bytes = i % 2 ? &chunk.codes_stored_bytes : &chunk.scales_stored_bytes;
        const uint8_t **part = i % 2 ? &chunk.codes : &chunk.scales, *whole = *part;

        for (uint32_t left_bytes = *size_bytes; left_bytes-- > 0;) {
            uint8_t *cut = malloc(left_bytes + !left_bytes);

            assert_non_null(cut);
            memcpy(cut, whole, left_bytes);
            *part = cut;
            *size_bytes = left_bytes;
            assert_false(unpack_watched(&f, &chunk));
            free(cut);
        }
    }
    close_fixture(&f);
}

static void test_record_cut(void **state)
{
    struct sl_codec_gain gain = {0};
    struct sl_record_index index;
    struct fixture f;

    (void)state;
    open_fixture(&f, &small, LIKE_WEIGHTS, &gain);
    for (uint64_t left_bytes = f.stored_bytes; left_bytes-- > 0;) {
        uint8_t head[24];

        if (left_bytes >= sizeof(head)) {
            assert_false(sl_record_index_read(&index, &small, f.stored, left_bytes));
            continue;
        }
        memcpy(head + sizeof(head) - left_bytes, f.stored, left_bytes);
        assert_false(
            sl_record_index_read(&index, &small, head + sizeof(head) - left_bytes, left_bytes));
    }
    assert_false(sl_record_index_read(&index, &small, f.stored, f.stored_bytes + 4096));
    close_fixture(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_there_and_back),       cmocka_unit_test(test_fp8_there_and_back),
        cmocka_unit_test(test_noise_stays_as_it_is), cmocka_unit_test(test_every_bit_flipped),
        cmocka_unit_test(test_every_frame_cut),      cmocka_unit_test(test_record_cut),
    };

    return cmocka_run_group_tests_name("codec", tests, NULL, NULL);
}
