/* A safetensors header from anywhere: whatever is accepted must be safe to use. The input is taken
 * once as a file and once, past its first eight bytes, as the header of a huge file, so that
 * neither a wrong length nor missing data keeps the fuzzer from the rest. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "core/base/assert.h"
#include "storage/checkpoint/safetensors.h"

#define HUGE_FILE_BYTES (UINT64_C(1) << 50)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void parse(const uint8_t *text, size_t length, uint64_t file_size_bytes)
{
    struct sl_safetensors header;
    struct sl_err err = {0};
    uint64_t end_bytes = SL_SAFETENSORS_LENGTH_BYTES + length;
    char buffer[SL_TENSOR_TEXT_BYTES];

    if (sl_safetensors_parse(&header, (const char *)text, length, file_size_bytes, "fuzz", &err) <
        0) {
        sl_assert(err.code < 0 && err.message[0]);
        return;
    }
    for (uint32_t i = 0; i < header.tensor_count; i++) {
        const struct sl_safetensors_tensor *tensor = &header.tensors[i];
        const bool known = tensor->info.dtype != SL_DTYPE_OTHER;
        uint64_t bytes = known ? sl_dtype_size_bytes(tensor->info.dtype) : 0;

        sl_assert(tensor->name[0] && strlen(tensor->name) <= SL_SAFETENSORS_NAME_BYTES_MAX);
        for (uint32_t d = 0; d < SL_TENSOR_DIMS_MAX; d++)
            bytes *= tensor->info.shape[d];
        sl_assert(!known || tensor->info.n_dims > SL_TENSOR_DIMS_MAX ||
                  bytes == tensor->info.size_bytes);
        bytes = tensor->info.size_bytes;
        sl_assert(tensor->offset_bytes >= end_bytes);
        sl_assert(tensor->offset_bytes <= file_size_bytes);
        sl_assert(bytes <= file_size_bytes - tensor->offset_bytes);
        end_bytes = tensor->offset_bytes + bytes;
        sl_assert(strlen(sl_tensor_format(&tensor->info, buffer)) < sizeof(buffer) - 1);
    }
    sl_safetensors_fini(&header);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t prefix[SL_SAFETENSORS_LENGTH_BYTES] = {0};
    size_t length;

    memcpy(prefix, data, size < sizeof(prefix) ? size : sizeof(prefix));
    if (sl_safetensors_read_length(prefix, size, &length, "fuzz", NULL) == 0)
        parse(data + sizeof(prefix), length, size);
    if (size >= sizeof(prefix))
        parse(data + sizeof(prefix), size - sizeof(prefix), HUGE_FILE_BYTES);
    return 0;
}
