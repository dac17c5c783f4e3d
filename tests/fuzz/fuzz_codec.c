/* A compressed record from anywhere: unpacking must stay within its bounds. The input is taken as a
 * record, padded to whole blocks, of FP4 and of FP8, and as the one frame of a chunk's scales and
 * of its codes, so that a record's sizes do not keep the fuzzer from the rest. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/size.h"
#include "storage/store/codec.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct sl_expert_shape shape = {.num_hidden_layers = 1,
                                             .n_routed_experts = 1,
                                             .hidden_size = 256,
                                             .moe_intermediate_size = 128};
static const struct sl_expert_shape fp8 = {.num_hidden_layers = 1,
                                           .n_routed_experts = 1,
                                           .hidden_size = 256,
                                           .moe_intermediate_size = 128,
                                           .expert_dtype = SL_EXPERT_FP8};

static void unpack_record(struct sl_record_decoder *decoder, const struct sl_expert_shape *of,
                          const uint8_t *data, size_t size)
{
    uint8_t *record = malloc(sl_packed_expert_bytes(of));
    const uint64_t stored_bytes = sl_round_up(size, SL_BLOCK_BYTES);
    uint8_t *stored = calloc(1, stored_bytes + !stored_bytes);
    struct sl_record_index index;

    sl_assert(stored && record);
    memcpy(stored, data, size);
    if (sl_record_index_read(&index, of, stored, stored_bytes))
        for (uint32_t i = 0; i < index.n_chunks; i++)
            sl_record_unpack(decoder, &index.chunks[i], record);
    free(stored);
    free(record);
}

/* In memory of the chunk's own size. */
static void unpack_frame(struct sl_record_decoder *decoder, const uint8_t *data, size_t size,
                         bool is_codes)
{
    const uint32_t n_groups = 16;
    uint8_t *tiles = malloc(n_groups * 1088), *rest = calloc(n_groups, 1024);
    struct sl_record_chunk chunk = {
        .n_groups = n_groups,
        .scales_bytes = n_groups * 64,
        .codes_bytes = n_groups * 1024,
        .scales = is_codes ? rest : data,
        .codes = is_codes ? data : rest,
        .scales_stored_bytes = is_codes ? n_groups * 64 : (uint32_t)size,
        .codes_stored_bytes = is_codes ? (uint32_t)size : n_groups * 1024};

    sl_assert(tiles && rest);
    if (size < n_groups * 64)
        sl_record_unpack(decoder, &chunk, tiles);
    free(tiles);
    free(rest);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *memory = aligned_alloc(64, sl_record_decoder_bytes(&shape));
    struct sl_record_decoder *decoder;

    sl_assert(memory);
    decoder = sl_record_decoder_init(memory);
    unpack_record(decoder, &shape, data, size);
    unpack_record(decoder, &fp8, data, size);
    unpack_frame(decoder, data, size, false);
    unpack_frame(decoder, data, size, true);
    free(memory);
    return 0;
}
