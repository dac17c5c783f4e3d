#include "core/model/weight_source.h"

#include "core/base/assert.h"

static const struct {
    const char *name;
    uint32_t size_bytes;
} dtypes[SL_DTYPE_COUNT] = {
    [SL_DTYPE_F32] = {"F32", 4},         [SL_DTYPE_BF16] = {"BF16", 2},
    [SL_DTYPE_F8_E4M3] = {"F8_E4M3", 1}, [SL_DTYPE_F8_E8M0] = {"F8_E8M0", 1},
    [SL_DTYPE_I8] = {"I8", 1},           [SL_DTYPE_U8] = {"U8", 1},
    [SL_DTYPE_I32] = {"I32", 4},         [SL_DTYPE_I64] = {"I64", 8},
};

const char *sl_dtype_name(enum sl_dtype dtype)
{
    sl_assert(dtype < SL_DTYPE_COUNT);
    return dtypes[dtype].name;
}

uint32_t sl_dtype_size_bytes(enum sl_dtype dtype)
{
    sl_assert(dtype < SL_DTYPE_COUNT);
    return dtypes[dtype].size_bytes;
}

const char *sl_tensor_dtype_name(const struct sl_tensor_info *info)
{
    return info->dtype == SL_DTYPE_OTHER ? info->other_dtype : sl_dtype_name(info->dtype);
}
