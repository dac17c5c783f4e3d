#include "core/base/json_keys.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME_SHOWN_MAX 60

struct sl_json_checker sl_json_checker_start(char *unknown, size_t unknown_bytes, const char *where,
                                             struct sl_err *err)
{
    unknown[0] = '\0';
    return (struct sl_json_checker){
        .unknown = unknown, .unknown_bytes = unknown_bytes, .where = where, .err = err};
}

/* A key comes from a stranger and goes to a terminal. */
static void add_unknown(struct sl_json_checker *in, const char *prefix, const char *name)
{
    const size_t room_for_rest = sizeof(" and 4294967295 more");
    size_t used = strlen(in->unknown), start = used;

    if (in->n_left_out > 0 || used + strlen(", ") + strlen(prefix) + NAME_SHOWN_MAX >=
                                  in->unknown_bytes - room_for_rest) {
        in->n_left_out++;
        return;
    }
    used += (size_t)snprintf(in->unknown + used, in->unknown_bytes - used, "%s%s%.*s",
                             used ? ", " : "", prefix, NAME_SHOWN_MAX, name);
    for (size_t i = start; i < used; i++)
        if (in->unknown[i] < 0x20 || in->unknown[i] > 0x7e)
            in->unknown[i] = '?';
}

static int check_value(const struct sl_json_checker *in, const char *prefix,
                       const struct sl_json_key *key, const json_t *value)
{
    char *text = json_dumps(value, JSON_ENCODE_ANY);
    bool good = false;
    int rc = 0;

    if (!text)
        return sl_err_set(in->err, -ENOMEM, "%s: out of memory", in->where);
    for (int i = 0; i < SL_JSON_KEY_VALUES_MAX && key->values[i]; i++)
        good |= strcmp(text, key->values[i]) == 0;
    if (!good)
        rc = sl_err_set(in->err, -SL_EUNSUPPORTED, "%s: \"%s%s\" is %.80s; this engine runs %s%s%s",
                        in->where, prefix, key->name, text, key->values[0],
                        key->values[1] && key->values[1][0] == '"' ? " or " : " only",
                        key->values[1] && key->values[1][0] == '"' ? key->values[1] : "");
    free(text);
    return rc;
}

int sl_json_check_keys(struct sl_json_checker *in, const char *prefix, const json_t *object,
                       const struct sl_json_key *keys, size_t n_keys)
{
    const char *name;
    json_t *value;

    json_object_foreach((json_t *)object, name, value)
    {
        size_t i = 0;
        int rc;

        while (i < n_keys && strcmp(name, keys[i].name) != 0)
            i++;
        if (i == n_keys && !json_is_null(value))
            add_unknown(in, prefix, name);
        if (i == n_keys || !keys[i].values[0])
            continue;
        rc = check_value(in, prefix, &keys[i], value);
        if (rc < 0)
            return rc;
    }
    return 0;
}

void sl_json_checker_end(struct sl_json_checker *in)
{
    size_t used = strlen(in->unknown);

    if (in->n_left_out > 0)
        snprintf(in->unknown + used, in->unknown_bytes - used, "%s%u more", used ? " and " : "",
                 in->n_left_out);
}
