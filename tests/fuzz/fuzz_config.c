/* A config.json from anywhere: it is refused with a message, or every relation between the sizes
 * holds and the rotary frequencies made from it are sound. */
#include <stddef.h>
#include <stdint.h>

#include "core/model/rope.h"
#include "tests/config_check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_angles(const struct sl_config *config, enum sl_rope_kind kind)
{
    float frequency[2048], cosine[2048], sine[2048]; /* config.c bounds head_dim by 4096 */
    uint32_t n_pairs = config->qk_rope_head_dim / 2;

    sl_rope_frequencies(config, kind, frequency);
    for (uint32_t i = 0; i < n_pairs; i++)
        sl_assert(frequency[i] >= 0 && frequency[i] <= 1);
    sl_rope_angles(n_pairs, frequency, config->max_position_embeddings - 1, cosine, sine);
    for (uint32_t i = 0; i < n_pairs; i++)
        sl_assert(fabsf(cosine[i] * cosine[i] + sine[i] * sine[i] - 1) < 1e-6f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct sl_config config;
    struct sl_err err = {0};

    if (sl_config_parse(&config, (const char *)data, size, "fuzz", &err) < 0) {
        sl_assert(err.code < 0 && err.message[0]);
        return 0;
    }
    config_check_sound(&config);
    check_angles(&config, SL_ROPE_WINDOW);
    check_angles(&config, SL_ROPE_COMPRESSED);
    return 0;
}
