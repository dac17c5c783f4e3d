#include "tools/chat/conversation.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "tools/cli/output_file.h"

#define FILE_BYTES_MAX (UINT64_C(256) << 20)

void sl_conversation_fini(struct sl_conversation *conversation)
{
    json_decref(conversation->messages);
    conversation->messages = NULL;
}

static bool has_role(const json_t *message, const char *role)
{
    const char *has = json_string_value(json_object_get(message, "role"));

    return has && strcmp(has, role) == 0;
}

static const json_t *last_message(const struct sl_conversation *conversation)
{
    const size_t n = json_array_size(conversation->messages);

    return n > 0 ? json_array_get(conversation->messages, n - 1) : NULL;
}

/* `message` is taken. */
static int insert(struct sl_conversation *conversation, size_t index, json_t *message,
                  struct sl_err *err)
{
    if (!conversation->messages)
        conversation->messages = json_array();
    if (json_array_insert_new(conversation->messages, index, message) < 0)
        return sl_err_set(err, -ENOMEM, "conversation: out of memory, or text that is not UTF-8");
    return 0;
}

static int add(struct sl_conversation *conversation, json_t *message, struct sl_err *err)
{
    return insert(conversation, json_array_size(conversation->messages), message, err);
}

int sl_conversation_set_system(struct sl_conversation *conversation, const char *text,
                               struct sl_err *err)
{
    if (has_role(json_array_get(conversation->messages, 0), "system"))
        json_array_remove(conversation->messages, 0);
    if (!*text)
        return 0;
    return insert(conversation, 0, json_pack("{s:s, s:s}", "role", "system", "content", text), err);
}

int sl_conversation_add_question(struct sl_conversation *conversation, const char *text,
                                 size_t length, struct sl_err *err)
{
    return add(conversation, json_pack("{s:s, s:s%}", "role", "user", "content", text, length),
               err);
}

int sl_conversation_add_answer(struct sl_conversation *conversation, const char *reasoning,
                               size_t reasoning_length, const char *text, size_t length,
                               struct sl_err *err)
{
    json_t *message =
        json_pack("{s:s, s:s%}", "role", "assistant", "content", text ? text : "", length);

    if (reasoning_length > 0)
        json_object_set_new(message, "reasoning_content",
                            json_stringn(reasoning, reasoning_length));
    return add(conversation, message, err);
}

static bool drop(struct sl_conversation *conversation, const char *role)
{
    if (!has_role(last_message(conversation), role))
        return false;
    json_array_remove(conversation->messages, json_array_size(conversation->messages) - 1);
    return true;
}

bool sl_conversation_drop_answer(struct sl_conversation *conversation)
{
    return drop(conversation, "assistant");
}

bool sl_conversation_drop_question(struct sl_conversation *conversation)
{
    drop(conversation, "assistant");
    return drop(conversation, "user");
}

bool sl_conversation_is_open(const struct sl_conversation *conversation)
{
    return has_role(last_message(conversation), "user");
}

int sl_conversation_save(const struct sl_conversation *conversation, const char *path,
                         struct sl_err *err)
{
    struct sl_output_file out = {0};
    json_t *object = json_pack("{s:O?}", "messages", conversation->messages);
    int rc = sl_output_open(&out, path, err);

    if (rc == 0) {
        /* A stream that fails is reported when it is committed. */
        json_dumpf(object, out.stream, JSON_INDENT(1));
        fputc('\n', out.stream);
        rc = sl_output_commit(&out, err);
    }
    sl_output_discard(&out);
    json_decref(object);
    return rc;
}

int sl_conversation_load(struct sl_conversation *conversation, const char *path, struct sl_err *err)
{
    json_t *object = NULL, *messages;
    int rc = sl_json_read_file(&object, path, FILE_BYTES_MAX, err);

    if (rc < 0)
        return rc;
    messages = json_is_array(object) ? object : json_object_get(object, "messages");
    if (json_is_array(messages)) {
        sl_conversation_fini(conversation);
        conversation->messages = json_incref(messages);
    } else {
        rc = sl_err_set(err, -SL_EFORMAT, "%s: holds no \"messages\"", path);
    }
    json_decref(object);
    return rc;
}
