#include "core/base/account.h"

struct sl_account sl_account_difference(const struct sl_account *from, const struct sl_account *to)
{
    struct sl_account d;

    for (uint32_t i = 0; i < SL_ACCOUNT_PHASES; i++) {
        d.of[i].work_ns = to->of[i].work_ns - from->of[i].work_ns;
        d.of[i].wait_ns = to->of[i].wait_ns - from->of[i].wait_ns;
        d.of[i].read_bytes = to->of[i].read_bytes - from->of[i].read_bytes;
        d.of[i].multiplications = to->of[i].multiplications - from->of[i].multiplications;
        d.of[i].n_barriers = to->of[i].n_barriers - from->of[i].n_barriers;
    }
    return d;
}
