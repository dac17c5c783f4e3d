#include "daemon/batch/batch_record.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/size.h"

static const char *const state_names[SL_BATCH_STATES] = {
    [SL_BATCH_VALIDATING] = "validating",   [SL_BATCH_FAILED] = "failed",
    [SL_BATCH_IN_PROGRESS] = "in_progress", [SL_BATCH_COMPLETED] = "completed",
    [SL_BATCH_EXPIRED] = "expired",         [SL_BATCH_CANCELLING] = "cancelling",
    [SL_BATCH_CANCELLED] = "cancelled",
};

const char *sl_batch_state_name(enum sl_batch_state state)
{
    return state_names[state];
}

bool sl_batch_has_ended(enum sl_batch_state state)
{
    return state == SL_BATCH_FAILED || state == SL_BATCH_COMPLETED || state == SL_BATCH_EXPIRED ||
           state == SL_BATCH_CANCELLED;
}

/* ---- members -----------------------------------------------------------------------------------
 * Each has its name in the JSON, and its place; a string's place holds a pointer. The journal has
 * `about` under a key of its own, so that its owner can change it at any time.
 */

enum kind { ABOUT, TEXT, NUMBER32, NUMBER64, LATER64, TIME }; /* LATER: 0 in older journals */

static const struct member {
    const char *name;
    enum kind kind;
    size_t offset;
} members[] = {
#define MEMBER(kind, name)                                                                         \
    {                                                                                              \
#name, kind, offsetof(struct sl_batch_record, name)                                        \
    }
    MEMBER(NUMBER32, number),
    MEMBER(TIME, created_s),
    MEMBER(TIME, in_progress_s),
    MEMBER(TIME, cancelling_s),
    MEMBER(TIME, ended_s),
    MEMBER(TEXT, input_path),
    MEMBER(TEXT, output_path),
    MEMBER(TEXT, error_path),
    MEMBER(TEXT, endpoint),
    MEMBER(ABOUT, about),
    MEMBER(TIME, expires_s),
    MEMBER(NUMBER64, input_bytes),
    MEMBER(NUMBER32, n_items),
    MEMBER(NUMBER64, n_prompt_tokens),
    MEMBER(NUMBER32, n_done),
    MEMBER(NUMBER32, n_failed),
    MEMBER(NUMBER64, output_bytes),
    MEMBER(NUMBER64, error_bytes),
    MEMBER(NUMBER64, n_in_tokens),
    MEMBER(NUMBER64, n_cached_tokens),
    MEMBER(NUMBER64, n_out_tokens),
    MEMBER(NUMBER64, n_reasoning_tokens),
    MEMBER(LATER64, n_computed_tokens),
    MEMBER(TEXT, faults),
#undef MEMBER
};

static void *at(const struct sl_batch_record *record, const struct member *member)
{
    return (char *)(uintptr_t)record + member->offset;
}

void sl_batch_record_fini(struct sl_batch_record *record)
{
    for (size_t i = 0; i < SL_ARRAY_LEN(members); i++)
        if (members[i].kind == TEXT || members[i].kind == ABOUT)
            free(*(char **)at(record, &members[i]));
    *record = (struct sl_batch_record){.number = 0};
}

int sl_batch_record_copy(struct sl_batch_record *to, const struct sl_batch_record *from)
{
    bool is_whole = true;

    *to = *from;
    for (size_t i = 0; i < SL_ARRAY_LEN(members); i++) {
        char **text = at(to, &members[i]);

        if ((members[i].kind != TEXT && members[i].kind != ABOUT) || !*text)
            continue;
        *text = is_whole ? strdup(*text) : NULL;
        is_whole = *text != NULL;
    }
    if (is_whole)
        return 0;
    sl_batch_record_fini(to);
    return -ENOMEM;
}

/* ---- JSON --------------------------------------------------------------------------------------
 */

static json_t *value_of(const struct sl_batch_record *record, const struct member *member)
{
    const void *from = at(record, member);

    switch (member->kind) {
    case TEXT:
        return *(char *const *)from ? json_string(*(char *const *)from) : json_null();
    case NUMBER32:
        return json_integer(*(const uint32_t *)from);
    case NUMBER64:
    case LATER64:
        return json_integer((json_int_t) * (const uint64_t *)from);
    case TIME:
    case ABOUT:
        break;
    }
    return json_integer(*(const int64_t *)from);
}

json_t *sl_batch_record_write(const struct sl_batch_record *record)
{
    json_t *object =
        json_pack("{s:s, s:s, s:s, s:i, s:b}", "id", record->id, "state",
                  state_names[record->state], "input_sha256", record->input_sha256, "priority",
                  (int)record->priority, "skip_bad", (int)record->skip_bad);

    for (size_t i = 0; object && i < SL_ARRAY_LEN(members); i++)
        if (members[i].kind != ABOUT &&
            json_object_set_new(object, members[i].name, value_of(record, &members[i])) < 0) {
            json_decref(object);
            object = NULL;
        }
    return object;
}

static int read_member(struct sl_batch_record *record, const struct member *member,
                       const json_t *value)
{
    const json_int_t number = json_integer_value(value);
    void *to = at(record, member);

    if (!value && member->kind == LATER64)
        return 0;
    if (member->kind == TEXT) {
        if (json_is_null(value))
            return 0;
        if (!json_is_string(value))
            return -SL_EFORMAT;
        *(char **)to = strdup(json_string_value(value));
        return *(char **)to ? 0 : -ENOMEM;
    }
    if (!json_is_integer(value) || number < 0 ||
        (member->kind == NUMBER32 && number > (json_int_t)UINT32_MAX))
        return -SL_EFORMAT;
    if (member->kind == NUMBER32)
        *(uint32_t *)to = (uint32_t)number;
    else
        *(uint64_t *)to = (uint64_t)number; /* a time is as wide */
    return 0;
}

static int read_others(struct sl_batch_record *record, const json_t *object)
{
    const char *id = json_string_value(json_object_get(object, "id"));
    const char *state = json_string_value(json_object_get(object, "state"));
    const char *sha256 = json_string_value(json_object_get(object, "input_sha256"));
    const json_int_t priority = json_integer_value(json_object_get(object, "priority"));
    int i = 0;

    if (!id || strlen(id) >= sizeof(record->id) || !state || !sha256 ||
        (sha256[0] && (!sl_sha256_is_hex(sha256) || strlen(sha256) != SL_SHA256_HEX)) ||
        priority < INT32_MIN || priority > INT32_MAX)
        return -SL_EFORMAT;
    while (i < SL_BATCH_STATES && strcmp(state_names[i], state) != 0)
        i++;
    if (i == SL_BATCH_STATES)
        return -SL_EFORMAT;
    record->state = (enum sl_batch_state)i;
    record->priority = (int32_t)priority;
    record->skip_bad = json_is_true(json_object_get(object, "skip_bad"));
    memcpy(record->id, id, strlen(id) + 1);
    memcpy(record->input_sha256, sha256, strlen(sha256) + 1);
    return 0;
}

int sl_batch_record_read(struct sl_batch_record *record, const char *text, size_t length,
                         const char *where, struct sl_err *err)
{
    json_t *object;
    int rc = sl_json_parse(&object, text, length, where, err);

    if (rc < 0)
        return rc;
    *record = (struct sl_batch_record){.number = 0};
    rc = json_is_object(object) ? read_others(record, object) : -SL_EFORMAT;
    for (size_t i = 0; rc == 0 && i < SL_ARRAY_LEN(members); i++)
        if (members[i].kind != ABOUT)
            rc = read_member(record, &members[i], json_object_get(object, members[i].name));
    if (rc == 0 &&
        (!record->input_path || !record->output_path || !record->error_path ||
         record->n_done > record->n_items || record->n_failed > record->n_items - record->n_done))
        rc = -SL_EFORMAT;
    json_decref(object);
    if (rc == 0)
        return 0;
    sl_batch_record_fini(record);
    return sl_err_set(err, rc, "%s: no batch that this sluice knows: %s", where, sl_strerror(rc));
}
