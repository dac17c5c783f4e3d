/* Any bytes as the file that a batch is made of: each line that is not blank is one item or one
 * fault, in the file's order; the order in which items are begun has each of them once, those that
 * begin alike together, longer groups first; no two sound items have the same custom_id; and every
 * line can be read again as it was. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/base/assert.h"
#include "daemon/batch/batch_input.h"
#include "tests/fuzz/fuzz_model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint32_t count_lines(const uint8_t *data, size_t size)
{
    bool is_blank = true;
    uint32_t n = 0;

    for (size_t i = 0; i <= size; i++) {
        if (i == size || data[i] == '\n') {
            n += !is_blank;
            is_blank = true;
        } else {
            is_blank &= data[i] == ' ' || data[i] == '\t' || data[i] == '\r';
        }
    }
    return n;
}

static void check_lines(const struct sl_batch_input *input, const uint8_t *data, size_t size)
{
    uint64_t n_prompt_tokens = 0, end_bytes = 0;
    uint32_t n_faulty = 0;
    struct sl_bytes line = {0};

    for (uint32_t i = 0; i < input->n_items; i++) {
        const struct sl_batch_item *item = &input->items[i];

        sl_assert(item->offset_bytes >= end_bytes && item->length > 0);
        end_bytes = item->offset_bytes + item->length;
        sl_assert(end_bytes <= size);
        sl_assert(sl_batch_input_line(input, i, &line, NULL) == 0);
        sl_assert(line.length == item->length &&
                  memcmp(line.data, data + item->offset_bytes, line.length) == 0);
        n_prompt_tokens += item->n_prompt_tokens;
        n_faulty += item->n_prompt_tokens == 0;
    }
    sl_assert(input->n_prompt_tokens == n_prompt_tokens);
    sl_assert(input->n_faults_all == n_faulty + (input->n_items == 0)); /* an empty file is one */
    sl_bytes_fini(&line);
}

static uint32_t longest_of(const struct sl_batch_input *input, uint64_t group)
{
    uint32_t longest = 0;

    for (uint32_t i = 0; i < input->n_items; i++)
        if (input->items[i].group == group && input->items[i].n_prompt_tokens > longest)
            longest = input->items[i].n_prompt_tokens;
    return longest;
}

static void check_order(const struct sl_batch_input *input)
{
    uint64_t n_computed = 0;
    uint8_t *seen = calloc((size_t)input->n_items + 1, 1);
    const struct sl_batch_item *before = NULL;

    sl_assert(seen);
    for (uint32_t i = 0; i < input->n_items; i++) {
        const struct sl_batch_item *item = &input->items[input->order[i]];

        sl_assert(input->order[i] < input->n_items && seen[input->order[i]]++ == 0);
        if (before && before->group != item->group)
            for (uint32_t k = 0; k < i; k++) /* its group begins here */
                sl_assert(input->items[input->order[k]].group != item->group);
        sl_assert(!before || longest_of(input, before->group) >= longest_of(input, item->group));
        sl_assert(item->n_distinct_tokens <= item->n_prompt_tokens &&
                  item->n_shared_tokens <= item->n_distinct_tokens &&
                  (before || item->n_shared_tokens == 0));
        n_computed += item->n_distinct_tokens - item->n_shared_tokens;
        before = item;
    }
    sl_assert(n_computed == input->n_computed_tokens);
    free(seen);
}

static void check_ids(const struct sl_batch_input *input)
{
    char **ids = calloc((size_t)input->n_items + 1, sizeof(*ids));
    struct sl_bytes line = {0};

    sl_assert(ids);
    for (uint32_t i = 0; i < input->n_items; i++) {
        json_t *object;

        if (input->items[i].n_prompt_tokens == 0)
            continue;
        sl_assert(sl_batch_input_line(input, i, &line, NULL) == 0);
        sl_assert(sl_json_parse(&object, line.data, line.length, "line", NULL) == 0);
        ids[i] = strdup(json_string_value(json_object_get(object, "custom_id")));
        for (uint32_t k = 0; k < i; k++)
            sl_assert(!ids[k] || strcmp(ids[k], ids[i]) != 0);
        json_decref(object);
    }
    for (uint32_t i = 0; i < input->n_items; i++)
        free(ids[i]);
    free(ids);
    sl_bytes_fini(&line);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct sl_batch_input_options options = {&model, NULL};
    const int fd = memfd_create("input", MFD_CLOEXEC);
    struct sl_batch_input *input;
    char path[64];
    int rc;

    open_model();
    sl_assert(fd >= 0 && write(fd, data, size) == (ssize_t)size);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    sl_assert(sl_batch_input_open(&input, path, &options, NULL) == 0);
    while ((rc = sl_batch_input_step(input, NULL)) > 0)
        ;
    sl_assert(rc == 0 && input->size_bytes == size);
    sl_assert(input->n_items == count_lines(data, size));
    sl_assert(input->n_faults <= SL_BATCH_FAULTS_MAX && input->n_faults <= input->n_faults_all);
    for (uint32_t i = 0; i < input->n_faults; i++)
        sl_assert(input->faults[i].code[0] && input->faults[i].message[0]);
    check_lines(input, data, size);
    check_order(input);
    check_ids(input);
    sl_batch_input_close(input);
    close(fd);
    return 0;
}
