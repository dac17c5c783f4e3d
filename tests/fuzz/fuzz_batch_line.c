/* Any bytes as a line of a batch's input: it is a fault with a code and a message, or a request
 * with token ids, an identity and a seed that its custom_id alone tells. And any bytes as what the
 * journal has of a batch, or of an answer that is under way. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "daemon/batch/batch_line.h"
#include "daemon/batch/batch_record.h"
#include "daemon/batch/made_tokens.h"
#include "tests/fuzz/fuzz_model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_line(const uint8_t *data, size_t size)
{
    struct sl_answer answer = {.model = NULL}, again = {.model = NULL};
    struct sl_batch_fault fault = {.code = ""};
    struct sl_bytes out = {0};
    char *custom_id, *custom_id_again;
    json_t *object;
    int rc =
        sl_batch_line_read(&answer, &model, NULL, (const char *)data, size, &custom_id, &fault);

    if (rc < 0) {
        sl_assert(fault.code[0] && fault.message[0]);
        sl_batch_line_write_error(custom_id, fault.code, fault.message, &out);
    } else {
        sl_assert(custom_id && answer.ids.n >= 1 && strlen(answer.identity.id) == 24);
        sl_assert(sl_batch_line_read(&again, &model, NULL, (const char *)data, size,
                                     &custom_id_again, &fault) == 0);
        sl_assert(strcmp(answer.identity.id, again.identity.id) == 0 &&
                  answer.request.sampler.seed == again.request.sampler.seed &&
                  !answer.request.stream);
        free(custom_id_again);
        sl_bytes_add_text(&answer.out, "{}");
        sl_batch_line_write(custom_id, &answer, &out);
    }
    sl_assert(out.length > 0 && memchr(out.data, '\n', out.length) == out.data + out.length - 1);
    sl_assert(sl_json_parse(&object, out.data, out.length, "result", NULL) == 0);
    json_decref(object);
    sl_answer_fini(&answer);
    sl_answer_fini(&again);
    sl_bytes_fini(&out);
    free(custom_id);
}

static void check_record(const uint8_t *data, size_t size)
{
    struct sl_batch_record record, copy;
    json_t *object;
    char *text;

    if (sl_batch_record_read(&record, (const char *)data, size, "record", NULL) < 0)
        return;
    object = sl_batch_record_write(&record);
    text = json_dumps(object, JSON_COMPACT);
    sl_assert(text && sl_batch_record_read(&copy, text, strlen(text), "copy", NULL) == 0);
    sl_assert(strcmp(copy.id, record.id) == 0 && copy.n_done == record.n_done);
    sl_batch_record_fini(&copy);
    sl_batch_record_fini(&record);
    json_decref(object);
    free(text);
}

static void check_made(const uint8_t *data, size_t size)
{
    struct sl_made_tokens made = {.n = 0};
    struct sl_generated token;
    uint32_t n = 0;
    size_t at = 0;

    if (sl_made_tokens_append(&made, data, size, config.vocab_size) == 0) {
        while (sl_made_tokens_next(&made, &at, &token)) {
            sl_assert(token.id < config.vocab_size);
            n++;
        }
        sl_assert(n == made.n && at == size);
    }
    sl_made_tokens_fini(&made);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    open_model();
    check_line(data, size);
    check_record(data, size);
    check_made(data, size);
    return 0;
}
