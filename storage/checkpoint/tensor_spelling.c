#include "storage/checkpoint/tensor_spelling.h"

#include <ctype.h>
#include <stdbool.h>
#include <string.h>

#include "core/base/size.h"

#define PREFIX "model."

/* Parts of a name, between dots. */
static const struct {
    const char *other, *official;
} parts[] = {
    {"self_attn", "attn"},
    {"mlp", "ffn"},
    {"weight_scale_inv", "scale"},
    {"e_score_correction_bias", "bias"},
};

static const char *respell_part(const char *part, size_t length, size_t *ret_length)
{
    for (size_t i = 0; i < SL_ARRAY_LEN(parts); i++)
        if (strlen(parts[i].other) == length && memcmp(parts[i].other, part, length) == 0) {
            *ret_length = strlen(parts[i].official);
            return parts[i].official;
        }
    *ret_length = length;
    return part;
}

void sl_tensor_respell_name(char *name)
{
    const char *from = name;
    char *to = name;

    if (strncmp(from, PREFIX, strlen(PREFIX)) == 0 && from[strlen(PREFIX)])
        from += strlen(PREFIX);
    while (*from) {
        const size_t length = strcspn(from, ".");
        size_t new_length;
        const char *part = respell_part(from, length, &new_length);

        memmove(to, part, new_length);
        to += new_length;
        from += length;
        if (*from)
            *to++ = *from++;
    }
    *to = '\0';
}

static bool ends(const char *text, const char *suffix)
{
    const size_t length = strlen(text), n = strlen(suffix);

    return length >= n && strcmp(text + length - n, suffix) == 0;
}

static bool is_expert_weight(const char *name)
{
    const char *expert = strstr(name, ".ffn.experts.");

    return expert && isdigit((unsigned char)expert[strlen(".ffn.experts.")]) &&
           ends(name, ".weight");
}

void sl_tensor_respell_type(const char *name, struct sl_tensor_info *info)
{
    if (info->dtype != SL_DTYPE_U8)
        return;
    if (ends(name, ".scale"))
        info->dtype = SL_DTYPE_F8_E8M0;
    else if (is_expert_weight(name))
        info->dtype = SL_DTYPE_I8;
}
