/* The table of all keys that a config.json may have, and how this engine treats each: config.c's
 * part that knows keys by name rather than by value. */
#ifndef SL_MODEL_CONFIG_KEYS_H
#define SL_MODEL_CONFIG_KEYS_H

#include <stddef.h>

#include "core/base/err.h"
#include "core/base/json.h"

/* Holds every key of `root`, an object, against the table of keys. Fails with -SL_EUNSUPPORTED for
 * a value that makes another model of it, naming key, value and what is run, or -ENOMEM. `unknown`
 * gets the names of keys that are not in the table and not null, ", " between them; when they do
 * not fit, how many more there are. */
int sl_config_check_keys(const json_t *root, char *unknown, size_t unknown_bytes, const char *where,
                         struct sl_err *err);

/* Later releases of other software spell some keys in a newer way (rope_parameters, layer_types,
 * compress_rates, mlp_layer_types, partial_rotary_factor). Says the same in the official spelling,
 * in place. Fails with -SL_EFORMAT where both are there and differ, or -ENOMEM. */
int sl_config_respell(json_t *root, const char *where, struct sl_err *err);

#endif
