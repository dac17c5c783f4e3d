#include "core/base/random.h"

#include <sys/random.h>
#include <sys/types.h>

#include "core/base/assert.h"

void sl_random_name(char *name, size_t size)
{
    static const char letters[] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    uint8_t random[32];
    ssize_t n = getrandom(random, sizeof(random), 0);

    sl_assert(n == sizeof(random) && size <= sizeof(random) + 1);
    for (size_t i = 0; i + 1 < size; i++)
        name[i] = letters[random[i] % (sizeof(letters) - 1)];
    name[size - 1] = '\0';
}

uint64_t sl_random_seed(void)
{
    uint64_t seed = 0;
    ssize_t n = getrandom(&seed, sizeof(seed), 0);

    sl_assert(n == sizeof(seed));
    return seed >> 11;
}
