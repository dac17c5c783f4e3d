/* Rotary positions: frequencies of the two kinds of layer, and the angles' cosines and sines.
 *
 * Computed with our own double-precision functions, so that every build has the same angles. */
#ifndef SL_MODEL_ROPE_H
#define SL_MODEL_ROPE_H

#include <stdint.h>

#include "core/model/config.h"

enum sl_rope_kind {
    SL_ROPE_WINDOW,     /* layers of ratio 0: rope_theta, no YaRN */
    SL_ROPE_COMPRESSED, /* all others: compress_rope_theta and YaRN */
    SL_ROPE_KINDS,
};

static inline enum sl_rope_kind sl_rope_kind_of(uint32_t compress_ratio)
{
    return compress_ratio ? SL_ROPE_COMPRESSED : SL_ROPE_WINDOW;
}

/* frequency (qk_rope_head_dim / 2), radians per position. */
void sl_rope_frequencies(const struct sl_config *config, enum sl_rope_kind kind, float *frequency);

/* Cosine and sine of position * frequency (the product rounded to float32, as the release does). */
void sl_rope_angles(uint32_t pair_count, const float *frequency, uint32_t position, float *cosine,
                    float *sine);

#endif
