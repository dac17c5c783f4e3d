#include "core/model/exact.h"

#include <math.h>

#include "core/kernels/r16.h"

static float weight_at(const struct sl_matrix *m, const uint8_t *tile, size_t row, size_t lane,
                       size_t col)
{
    size_t pair = (col / 2 * SL_R16_ROWS + lane) * 2 + col % 2;

    switch (m->kind) {
    case SL_MATRIX_FP4: {
        const uint8_t *group = tile + col / SL_FP4_GROUP_COLS * SL_FP4_GROUP_BYTES;
        size_t in_group = col % SL_FP4_GROUP_COLS;
        uint8_t scale = group[in_group / SL_FP4_BLOCK_COLS * SL_R16_ROWS + lane];
        uint8_t code = group[64 + in_group / 8 * 64 + lane * 4 + in_group % 8 / 2];

        code = col % 2 ? code >> 4 : code & 15;
        return 0.5f * (float)sl_e2m1_twice(code) * sl_f32_from_bits((uint32_t)scale << 23);
    }
    case SL_MATRIX_FP8:
    case SL_MATRIX_FP8_BLOCK:
        return sl_e4m3_to_f32(tile[pair]) *
               m->scales[row / SL_FP8_BLOCK * (m->cols / SL_FP8_BLOCK) + col / SL_FP8_BLOCK];
    case SL_MATRIX_BF16:
        return sl_bf16_to_f32(((const uint16_t *)(const void *)tile)[pair]);
    case SL_MATRIX_F32:
        return ((const float *)(const void *)tile)[col * SL_R16_ROWS + lane];
    }
    return NAN;
}

void sl_exact_matmul(const struct sl_matrix *m, size_t first_tile, size_t end_tile,
                     size_t token_count, const float *x, size_t x_stride, float *y, size_t y_stride)
{
    for (size_t row = first_tile * SL_R16_ROWS; row < end_tile * SL_R16_ROWS; row++) {
        const uint8_t *tile = m->tiles + row / SL_R16_ROWS * sl_matrix_tile_bytes(m);
        size_t lane = row % SL_R16_ROWS, out = row - first_tile * SL_R16_ROWS;

        for (size_t first = 0; first < token_count; first += 16) { /* decode once for 16 tokens */
            size_t n = token_count - first < 16 ? token_count - first : 16;
            double sum[16] = {0};

            for (size_t col = 0; col < m->cols; col++) {
                double w = (double)weight_at(m, tile, row, lane, col);

                for (size_t t = 0; t < n; t++)
                    sum[t] += w * (double)x[(first + t) * x_stride + col];
            }
            for (size_t t = 0; t < n; t++)
                y[(first + t) * y_stride + out] = (float)sum[t];
        }
    }
}

static double dot(size_t count, const float *a, const float *b)
{
    double sum = 0;

    for (size_t i = 0; i < count; i++)
        sum += (double)a[i] * (double)b[i];
    return sum;
}

void sl_exact_attend(size_t head_dim, size_t entry_count, const float *q,
                     const float *const *entries, float sink, double *p, float *out)
{
    double top = (double)sink, total;

    for (size_t n = 0; n < entry_count; n++) {
        p[n] = dot(head_dim, q, entries[n]) / sqrt((double)head_dim);
        top = p[n] > top ? p[n] : top;
    }
    total = exp((double)sink - top);
    for (size_t n = 0; n < entry_count; n++) {
        p[n] = exp(p[n] - top);
        total += p[n];
    }
    for (size_t i = 0; i < head_dim; i++) {
        double sum = 0;

        for (size_t n = 0; n < entry_count; n++)
            sum += p[n] * (double)entries[n][i];
        out[i] = (float)(sum / total);
    }
}

void sl_exact_index_scores(size_t head_count, size_t dim, size_t key_count, const float *q,
                           const float *weight, const float *keys, float *total)
{
    for (size_t n = 0; n < key_count; n++) {
        double sum = 0;

        for (size_t h = 0; h < head_count; h++) {
            double score = dot(dim, q + h * dim, keys + n * dim);

            sum += score > 0 ? score * (double)weight[h] : 0;
        }
        total[n] = (float)sum;
    }
}
