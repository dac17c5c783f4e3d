/* Any bytes as the body that creates a batch: it is refused as its sender's fault, in words that
 * JSON can hold, or what was read of it is within its limits and becomes an object that says the
 * same. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "daemon/protocol/batches.h"
#include "daemon/protocol/protocol.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *text_in(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));

    sl_assert(text);
    return text;
}

static void check_object(const struct sl_batch_create *create)
{
    const struct sl_batch_view view = {.id = "batch_a",
                                       .endpoint = create->endpoint,
                                       .input_file_id = create->input_file_id,
                                       .window = create->window,
                                       .model = "m",
                                       .status = "validating",
                                       .created_s = 1,
                                       .metadata = (json_t *)(uintptr_t)create->metadata};
    json_t *object = sl_batch_object(&view), *again;
    struct sl_bytes out = {0};

    sl_bytes_add_json(&out, object);
    sl_assert(!out.out_of_memory);
    sl_assert(sl_json_parse(&again, out.data, out.length, "object", NULL) == 0);
    sl_assert(strcmp(text_in(again, "endpoint"), create->endpoint) == 0);
    sl_assert(strcmp(text_in(again, "input_file_id"), create->input_file_id) == 0);
    sl_assert(create->metadata ? json_equal(json_object_get(again, "metadata"), create->metadata)
                               : json_is_null(json_object_get(again, "metadata")));
    json_decref(again);
    json_decref(object);
    sl_bytes_fini(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct sl_batch_create create;
    struct sl_refusal refusal;
    struct sl_bytes out = {0};
    uint64_t window_s;
    json_t *body, *object;

    if (sl_json_parse(&body, (const char *)data, size, "body", NULL) < 0)
        return 0;
    if (!json_is_object(body)) {
        json_decref(body);
        return 0;
    }
    if (sl_batch_create_read(&create, body, &refusal) == 0) {
        sl_assert(create.priority >= -SL_BATCH_PRIORITY_MAX &&
                  create.priority <= SL_BATCH_PRIORITY_MAX);
        sl_assert(sl_batch_window_parse(create.window, &window_s) && window_s == create.window_s);
        sl_assert(json_object_size(create.metadata) <= SL_BATCH_METADATA_MAX);
        check_object(&create);
    } else {
        sl_assert(refusal.status == 400 && refusal.message[0]);
        sl_protocol_chat.refuse(&refusal, &out);
        sl_assert(sl_json_parse(&object, out.data, out.length, "refusal", NULL) == 0);
        json_decref(object);
    }
    sl_bytes_fini(&out);
    json_decref(body);
    return 0;
}
