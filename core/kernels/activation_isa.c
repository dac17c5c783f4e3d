/* Norms, gates, rotations and residual streams: everything element by element. */
#include "core/kernels/isa.h"

#include <math.h>

#include "core/kernels/scalar_math.h"

#define LANES 16u

static float sum_of_squares(size_t count, const float *x)
{
    float lane[LANES] = {0};
    size_t i = 0;

    for (; i + LANES <= count; i += LANES)
        for (size_t l = 0; l < LANES; l++)
            lane[l] += x[i + l] * x[i + l];
    for (size_t l = 0; i + l < count; l++)
        lane[l] += x[i + l] * x[i + l];
    for (size_t half = LANES / 2; half > 0; half /= 2)
        for (size_t l = 0; l < half; l++)
            lane[l] += lane[l + half];
    return lane[0];
}

static float rms_factor(size_t count, const float *x, float eps)
{
    return 1.0f / sqrtf(sum_of_squares(count, x) / (float)count + eps);
}

static void rms_norm(size_t count, const float *x, const float *restrict weight, float eps,
                     float *y)
{
    float factor = rms_factor(count, x, eps);

    if (weight) {
        for (size_t i = 0; i < count; i++)
            y[i] = weight[i] * (x[i] * factor);
    } else {
        for (size_t i = 0; i < count; i++)
            y[i] = x[i] * factor;
    }
}

static void swiglu(size_t count, const float *restrict gate, const float *restrict up, float limit,
                   float weight, float *restrict y)
{
    float bound = limit > 0 ? limit : 3.0e38f;

    for (size_t i = 0; i < count; i++) {
        float g = gate[i] > bound ? bound : gate[i];
        float u = up[i] > bound ? bound : up[i] < -bound ? -bound : up[i];

        y[i] = g * sl_sigmoidf(g) * u * weight;
    }
}

static void sqrt_softplus(size_t count, const float *x, float *y)
{
    for (size_t i = 0; i < count; i++)
        y[i] = sqrtf(sl_softplusf(x[i]));
}

static void rotate(size_t pair_count, float *restrict x, const float *restrict cosine,
                   const float *restrict sine, float sin_sign)
{
    for (size_t i = 0; i < pair_count; i++) {
        float a = x[2 * i], b = x[2 * i + 1], s = sine[i] * sin_sign;

        x[2 * i] = a * cosine[i] - b * s;
        x[2 * i + 1] = a * s + b * cosine[i];
    }
}

static void hadamard(size_t count, float *restrict x)
{
    float scale = 1.0f / sqrtf((float)count);

    for (size_t span = 1; span < count; span *= 2) {
        for (size_t i = 0; i < count; i += 2 * span) {
            for (size_t k = 0; k < span; k++) {
                float a = x[i + k], b = x[i + span + k];

                x[i + k] = a + b;
                x[i + span + k] = a - b;
            }
        }
    }
    for (size_t i = 0; i < count; i++)
        x[i] *= scale;
}

static void hc_reduce(size_t hc_mult, size_t count, const float *restrict pre,
                      const float *restrict streams, float *restrict x)
{
    for (size_t c = 0; c < count; c++)
        x[c] = pre[0] * streams[c];
    for (size_t s = 1; s < hc_mult; s++)
        for (size_t c = 0; c < count; c++)
            x[c] += pre[s] * streams[s * count + c];
}

/* Columns go through a small buffer, since every new stream needs all old ones. */
#define COLUMNS_AT_ONCE 64u
#define STREAMS_MAX 8u /* SL_HC_MULT_MAX; core/model checks it */

static void hc_update(size_t hc_mult, size_t count, const float *restrict post,
                      const float *restrict comb, const float *restrict out,
                      float *restrict streams)
{
    float mixed[STREAMS_MAX][COLUMNS_AT_ONCE];

    for (size_t first = 0; first < count; first += COLUMNS_AT_ONCE) {
        size_t n = count - first < COLUMNS_AT_ONCE ? count - first : COLUMNS_AT_ONCE;

        for (size_t k = 0; k < hc_mult; k++) {
            for (size_t c = 0; c < n; c++)
                mixed[k][c] = post[k] * out[first + c];
            for (size_t j = 0; j < hc_mult; j++)
                for (size_t c = 0; c < n; c++)
                    mixed[k][c] += comb[j * hc_mult + k] * streams[j * count + first + c];
        }
        for (size_t k = 0; k < hc_mult; k++)
            for (size_t c = 0; c < n; c++)
                streams[k * count + first + c] = mixed[k][c];
    }
}

void SL_ISA_NAME(sl_install_activation)(struct sl_kernels *kernels)
{
    kernels->rms_factor = rms_factor;
    kernels->rms_norm = rms_norm;
    kernels->swiglu = swiglu;
    kernels->sqrt_softplus = sqrt_softplus;
    kernels->rotate = rotate;
    kernels->hadamard = hadamard;
    kernels->hc_reduce = hc_reduce;
    kernels->hc_update = hc_update;
}
