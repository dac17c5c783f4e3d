#include "core/text/logprobs.h"

#include <math.h>

#include "core/base/assert.h"

double sl_log_sum_exp(const float *logits, uint32_t n)
{
    double top = (double)logits[0], sum = 0;

    for (uint32_t i = 1; i < n; i++)
        top = (double)logits[i] > top ? (double)logits[i] : top;
    for (uint32_t i = 0; i < n; i++)
        sum += exp((double)logits[i] - top);
    return top + log(sum);
}

/* Few are wanted of many: hardly any of these gets past the first comparison. */
void sl_most_probable(const float *logits, uint32_t n, uint32_t k, uint32_t *ret_ids)
{
    uint32_t n_found = 0;

    sl_assert(k <= n);
    for (uint32_t id = 0; k > 0 && id < n; id++) {
        uint32_t at;

        if (n_found == k && logits[id] <= logits[ret_ids[k - 1]])
            continue;
        at = n_found < k ? n_found++ : k - 1;
        for (; at > 0 && logits[ret_ids[at - 1]] < logits[id]; at--)
            ret_ids[at] = ret_ids[at - 1];
        ret_ids[at] = id;
    }
}
