/* Which keys a JSON file may have, so that none is passed over in silence: what is known to change
 * the answer must have one of the values that are run here, and what is unknown is listed. */
#ifndef SL_BASE_JSON_KEYS_H
#define SL_BASE_JSON_KEYS_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/err.h"
#include "core/base/json.h"

#define SL_JSON_KEY_VALUES_MAX 3

struct sl_json_key {
    const char *name;
    /* The values that this engine runs, as JSON; none where any value may stand here: because
     * it is read elsewhere, or because the answer does not depend on it. */
    const char *values[SL_JSON_KEY_VALUES_MAX];
};

/* Unknown keys are written to `unknown` as a list to print, in ASCII: "a, b and 3 more". */
struct sl_json_checker {
    char *unknown;
    size_t unknown_bytes; /* at least 100 */
    uint32_t n_left_out;  /* unknown keys that did not fit */
    const char *where;
    struct sl_err *err;
};

/* `where` names the file in errors. The memory stays the caller's. */
struct sl_json_checker sl_json_checker_start(char *unknown, size_t unknown_bytes, const char *where,
                                             struct sl_err *err);

/* Checks the keys of `object` (NULL, or another kind of value, has none); `prefix` stands before
 * their names in messages. A null is no unknown key. Fails with -SL_EUNSUPPORTED at a value that is
 * not run, naming key, value and what is run, or -ENOMEM. */
int sl_json_check_keys(struct sl_json_checker *in, const char *prefix, const json_t *object,
                       const struct sl_json_key *keys, size_t n_keys);

#define SL_JSON_CHECK_KEYS(in, prefix, object, keys)                                               \
    sl_json_check_keys(in, prefix, object, keys, sizeof(keys) / sizeof((keys)[0]))

/* Ends the list. */
void sl_json_checker_end(struct sl_json_checker *in);

#endif
