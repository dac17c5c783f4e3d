#include "core/model/rope.h"

#include <math.h>

#include "core/base/assert.h"

#define LN2 0.693147180559945309417
#define PI 3.14159265358979323846

/* ln x = k ln 2 + 2 atanh((m - 1) / (m + 1)), m in [0.7, 1.4): the series in z^2 < 0.03. */
static double log_f64(double x)
{
    int exponent;
    double m = frexp(x, &exponent), z, zz, sum = 0;

    if (m < 0.70710678118654752) {
        m *= 2;
        exponent--;
    }
    z = (m - 1) / (m + 1);
    zz = z * z;
    for (int i = 25; i >= 1; i -= 2)
        sum = sum * zz + 2.0 / i;
    return exponent * LN2 + sum * z;
}

static double exp_f64(double x)
{
    double n = rint(x / LN2), r = x - n * LN2, sum = 1;

    for (int i = 20; i >= 1; i--)
        sum = 1 + sum * r / i;
    return ldexp(sum, (int)n);
}

/* YaRN: the dimension index at which a full context makes `rotations` turns. */
static double turn(uint32_t dim, double base, double original, double rotations)
{
    return dim * log_f64(original / (rotations * 2 * PI)) / (2 * log_f64(base));
}

void sl_rope_frequencies(const struct sl_config *config, enum sl_rope_kind kind, float *frequency)
{
    const struct sl_rope_scaling *scaling = &config->rope_scaling;
    uint32_t dim = config->qk_rope_head_dim;
    double base = kind == SL_ROPE_COMPRESSED ? config->compress_rope_theta : config->rope_theta;
    double log_base = log_f64(base), low, high, span;

    for (uint32_t i = 0; i < dim / 2; i++)
        frequency[i] = (float)exp_f64(-log_base * 2 * i / dim);
    if (kind == SL_ROPE_WINDOW || scaling->original_max_position_embeddings == 0)
        return;
    low = floor(turn(dim, base, scaling->original_max_position_embeddings, scaling->beta_fast));
    high = ceil(turn(dim, base, scaling->original_max_position_embeddings, scaling->beta_slow));
    low = low < 0 ? 0 : low;
    high = high > dim - 1 ? dim - 1 : high;
    span = high == low ? 0.001 : high - low;
    for (uint32_t i = 0; i < dim / 2; i++) {
        double ramp = (i - low) / span, smooth = 1 - (ramp < 0 ? 0 : ramp > 1 ? 1 : ramp);

        frequency[i] = (float)((double)frequency[i] / scaling->factor * (1 - smooth) +
                               (double)frequency[i] * smooth);
    }
}

/* |x| < 2^25: x minus a multiple of pi / 2 in three parts, the first two of 28 bits, whose products
 * with the multiple are exact; then the Taylor series to beyond double's precision. */
static void sincos_f64(double x, double *ret_sin, double *ret_cos)
{
    double k = rint(x * (2 / PI));
    double r = ((x - k * 0x1.921fb54p+0) - k * 0x1.10b461p-30) - k * 0x1.a62633145c06ep-58;
    double rr = r * r, s = 1, c = 1;

    for (int i = 18; i >= 2; i -= 2) {
        s = 1 - s * rr / (i * (i + 1));
        c = 1 - c * rr / (i * (i - 1));
    }
    s *= r;
    switch ((int64_t)k & 3) {
    case 0:
        *ret_sin = s;
        *ret_cos = c;
        break;
    case 1:
        *ret_sin = c;
        *ret_cos = -s;
        break;
    case 2:
        *ret_sin = -s;
        *ret_cos = -c;
        break;
    default:
        *ret_sin = -c;
        *ret_cos = s;
        break;
    }
}

void sl_rope_angles(uint32_t pair_count, const float *frequency, uint32_t position, float *cosine,
                    float *sine)
{
    for (uint32_t i = 0; i < pair_count; i++) {
        float angle = (float)position * frequency[i];
        double s, c;

        sl_assert(angle < 0x1p25f);
        sincos_f64((double)angle, &s, &c);
        sine[i] = (float)s;
        cosine[i] = (float)c;
    }
}
