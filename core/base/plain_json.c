#include "core/base/plain_json.h"

#include <string.h>

#define DIGITS_MAX 18

/* An object of more members is no small matter, and left to jansson. */
#define SKIPPED_MEMBERS_MAX 16

void sl_plain_space(struct sl_plain_json *json)
{
    while (json->at < json->end &&
           (*json->at == ' ' || *json->at == '\n' || *json->at == '\r' || *json->at == '\t'))
        json->at++;
}

bool sl_plain_mark(struct sl_plain_json *json, char mark)
{
    sl_plain_space(json);
    if (json->at == json->end || *json->at != mark)
        return false;
    json->at++;
    return true;
}

bool sl_plain_string(struct sl_plain_json *json, const char **ret_text, size_t *ret_length)
{
    const char *at;

    sl_plain_space(json);
    if (json->at == json->end || *json->at != '"')
        return false;
    for (at = json->at + 1; at < json->end && *at != '"'; at++)
        if (*at < 0x20 || *at > 0x7e || *at == '\\')
            return false;
    if (at == json->end)
        return false;
    *ret_text = json->at + 1;
    *ret_length = (size_t)(at - *ret_text);
    json->at = at + 1;
    return true;
}

bool sl_plain_number(struct sl_plain_json *json, uint64_t *ret_number)
{
    const char *at;
    uint64_t n = 0;

    sl_plain_space(json);
    for (at = json->at; at < json->end && *at >= '0' && *at <= '9'; at++) {
        if (at - json->at == DIGITS_MAX)
            return false;
        n = 10 * n + (uint64_t)(*at - '0');
    }
    if (at == json->at || (*json->at == '0' && at - json->at > 1))
        return false;
    if (at < json->end && (*at == '.' || *at == 'e' || *at == 'E'))
        return false;
    json->at = at;
    *ret_number = n;
    return true;
}

bool sl_plain_end(struct sl_plain_json *json)
{
    sl_plain_space(json);
    return json->at == json->end;
}

bool sl_plain_key(struct sl_plain_json *json, const char *word)
{
    struct sl_plain_json ahead = *json;
    const char *text;
    size_t length;

    if (!sl_plain_string(&ahead, &text, &length) || length != strlen(word) ||
        memcmp(text, word, length) != 0 || !sl_plain_mark(&ahead, ':'))
        return false;
    *json = ahead;
    return true;
}

bool sl_plain_skip_object(struct sl_plain_json *json)
{
    struct sl_plain_json ahead = *json;
    struct {
        const char *text;
        size_t length;
    } keys[SKIPPED_MEMBERS_MAX];
    const char *text;
    uint64_t number;
    size_t length;
    bool more;

    if (!sl_plain_mark(&ahead, '{'))
        return false;
    more = !sl_plain_mark(&ahead, '}');
    for (size_t n = 0; more; n++) {
        if (n == SKIPPED_MEMBERS_MAX || !sl_plain_string(&ahead, &keys[n].text, &keys[n].length) ||
            !sl_plain_mark(&ahead, ':') ||
            !(sl_plain_string(&ahead, &text, &length) || sl_plain_number(&ahead, &number)))
            return false;
        for (size_t i = 0; i < n; i++)
            if (keys[i].length == keys[n].length &&
                memcmp(keys[i].text, keys[n].text, keys[n].length) == 0)
                return false;
        more = sl_plain_mark(&ahead, ',');
        if (!more && !sl_plain_mark(&ahead, '}'))
            return false;
    }
    *json = ahead;
    return true;
}
