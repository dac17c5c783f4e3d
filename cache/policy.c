#include "cache/policy.h"

#include <errno.h>
#include <string.h>

int sl_policy_find(const struct sl_policy_ops **ret_ops, const char *name, struct sl_err *err)
{
    static const struct sl_policy_ops *const policies[] = {&sl_policy_frequency, &sl_policy_lru};

    for (size_t i = 0; i < sizeof(policies) / sizeof(policies[0]); i++) {
        if (name && strcmp(name, policies[i]->name) != 0)
            continue;
        *ret_ops = policies[i];
        return 0;
    }
    return sl_err_set(err, -EINVAL, "no replacement policy \"%s\"; there are " SL_POLICY_NAMES,
                      name);
}
