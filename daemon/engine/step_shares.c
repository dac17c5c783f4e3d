#include "daemon/engine/step_shares.h"

static uint64_t sum_up_to(const uint32_t *tokens, uint32_t n, uint32_t share)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < n; i++)
        sum += tokens[i] < share ? tokens[i] : share;
    return sum;
}

void sl_step_shares(uint32_t *tokens, uint32_t n, uint32_t n_total)
{
    uint32_t low = 0, high = n_total, left;

    while (low < high) {
        const uint32_t middle = high - (high - low) / 2;

        if (sum_up_to(tokens, n, middle) <= n_total)
            low = middle;
        else
            high = middle - 1;
    }
    left = n_total - (uint32_t)sum_up_to(tokens, n, low);
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t more = left > 0 && tokens[i] > low;

        if (tokens[i] > low)
            tokens[i] = low + more;
        left -= more;
    }
}
