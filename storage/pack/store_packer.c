#include "storage/pack/store_packer.h"

#include <errno.h>

int sl_packer_put_state(struct sl_packer *p, struct sl_err *err)
{
    uint8_t value[SL_STORE_VALUE_BYTES_MAX];

    return sl_catalog_put(p->catalog, SL_STORE_KEY_STATE, value,
                          sl_store_state_encode(&p->state, value), err);
}

int sl_packer_stopped(const struct sl_packer *p, struct sl_err *err)
{
    return sl_err_set(err, -ECANCELED, "%s: stopped; run sluice pack again to go on",
                      p->o->store_folder);
}

int sl_packer_no_memory(const struct sl_packer *p, struct sl_err *err)
{
    return sl_err_set(err, -ENOMEM, "%s: out of memory", p->o->store_folder);
}
