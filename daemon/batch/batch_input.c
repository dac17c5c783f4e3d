/* Owns the file while it is open. What items share is found by hashes of their beginnings, one for
 * every 64 tokens. At lengths that double, the longest one that another item has too makes a group;
 * inside a group, each item is compared with the one before it. */
#include "daemon/batch/batch_input.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/assert.h"
#include "core/base/clock.h"
#include "core/base/file.h"
#include "storage/io/checksum.h"

#define STEP_NS UINT64_C(100000000)
#define BLOCK_BYTES (1u << 20)
#define ITEMS_MAX (UINT32_C(1) << 24)

/* A group shares its first 1, 2, 4, ... blocks of tokens. */
#define LEVELS 14u
#define BLOCK_TOKENS 64u

/* Hashes of an item's first 1, 2, 3, ... blocks, all odd. */
struct beginnings {
    size_t first; /* in sl_batch_reading.hashes */
    uint32_t n_blocks, n_tokens;
};

struct sl_batch_reading {
    struct sl_batch_input_options options;
    char *path;
    int fd;
    uint64_t file_bytes;
    struct sl_bytes buffer; /* read, and not yet cut into lines */
    uint64_t buffer_at;     /* the place in the file where it begins */
    uint64_t scanned;       /* of the buffer, without an end of line */
    uint32_t n_lines, n_room;
    struct beginnings *beginnings; /* (n_items) of their first texts */
    struct sl_bytes hashes;        /* of all beginnings, an uint64_t each */
    uint64_t *ids;                 /* (n_items) hashes of custom_id; 0: none */
    struct sl_sha256 *sha256;
};

/* ---- opening -----------------------------------------------------------------------------------
 */

int sl_batch_input_open(struct sl_batch_input **ret_input, const char *path,
                        const struct sl_batch_input_options *options, struct sl_err *err)
{
    struct sl_batch_input *input = calloc(1, sizeof(*input));
    struct sl_batch_reading *r = calloc(1, sizeof(*r));
    struct stat status;
    int rc = 0;

    if (!input || !r) {
        free(input);
        free(r);
        return sl_err_set(err, -ENOMEM, "%s: out of memory", path);
    }
    input->reading = r;
    r->options = *options;
    r->path = strdup(path);
    r->sha256 = sl_sha256_create();
    r->fd = sl_file_open(path, err);
    input->faults = calloc(SL_BATCH_FAULTS_MAX, sizeof(*input->faults));
    if (r->fd < 0)
        rc = r->fd;
    else if (!r->path || !r->sha256 || !input->faults)
        rc = sl_err_set(err, -ENOMEM, "%s: out of memory", path);
    else if (fstat(r->fd, &status) < 0)
        rc = sl_err_set(err, -errno, "%s: %s", path, sl_strerror(errno));
    if (rc < 0) {
        sl_batch_input_close(input);
        return rc;
    }
    r->file_bytes = (uint64_t)status.st_size;
    *ret_input = input;
    return 0;
}

/* Frees the memory that only the pass over the file needs. */
static void forget(struct sl_batch_reading *r)
{
    sl_bytes_fini(&r->buffer);
    sl_bytes_fini(&r->hashes);
    free(r->beginnings);
    free(r->ids);
    sl_sha256_destroy(r->sha256);
    r->beginnings = NULL;
    r->ids = NULL;
    r->sha256 = NULL;
}

void sl_batch_input_close(struct sl_batch_input *input)
{
    if (!input)
        return;
    forget(input->reading);
    if (input->reading->fd >= 0)
        close(input->reading->fd);
    free(input->reading->path);
    free(input->reading);
    free(input->items);
    free(input->order);
    free(input->faults);
    free(input);
}

uint64_t sl_batch_input_done_bytes(const struct sl_batch_input *input)
{
    return input->reading->buffer_at;
}

uint64_t sl_batch_input_file_bytes(const struct sl_batch_input *input)
{
    return input->reading->file_bytes;
}

/* ---- lines -------------------------------------------------------------------------------------
 */

static int no_memory(const struct sl_batch_reading *r, struct sl_err *err)
{
    return sl_err_set(err, -ENOMEM, "%s: out of memory", r->path);
}

static void add_fault(struct sl_batch_input *input, uint32_t line_number,
                      const struct sl_batch_fault *fault)
{
    if (input->n_faults_all++ >= SL_BATCH_FAULTS_MAX)
        return;
    input->faults[input->n_faults] = *fault;
    input->faults[input->n_faults++].line_number = line_number;
}

static bool is_blank(const char *line, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if (line[i] != ' ' && line[i] != '\t' && line[i] != '\r')
            return false;
    return true;
}

static int make_room(struct sl_batch_input *input, struct sl_err *err)
{
    struct sl_batch_reading *r = input->reading;
    const uint32_t n_room = r->n_room ? 2 * r->n_room : 64;
    struct sl_batch_item *items;
    struct beginnings *beginnings;
    uint64_t *ids;

    if (input->n_items < r->n_room)
        return 0;
    if (input->n_items >= ITEMS_MAX)
        return sl_err_set(err, -SL_EFORMAT, "%s: more than %u lines", r->path, ITEMS_MAX);
    items = realloc(input->items, n_room * sizeof(*items));
    if (items)
        input->items = items;
    beginnings = realloc(r->beginnings, n_room * sizeof(*beginnings));
    if (beginnings)
        r->beginnings = beginnings;
    ids = realloc(r->ids, n_room * sizeof(*ids));
    if (ids)
        r->ids = ids;
    if (!items || !beginnings || !ids)
        return no_memory(r, err);
    r->n_room = n_room;
    return 0;
}

static void note_beginnings(struct sl_batch_reading *r, struct beginnings *b,
                            const struct sl_token_list *tokens)
{
    struct {
        uint64_t before;
        uint32_t ids[BLOCK_TOKENS];
    } block = {.before = 0};

    *b = (struct beginnings){.first = r->hashes.length / sizeof(uint64_t),
                             .n_blocks = (uint32_t)(tokens->n / BLOCK_TOKENS),
                             .n_tokens = (uint32_t)tokens->n};
    for (uint32_t i = 0; i < b->n_blocks; i++) {
        memcpy(block.ids, tokens->ids + (size_t)i * BLOCK_TOKENS, sizeof(block.ids));
        block.before = sl_checksum(&block, sizeof(block)) | 1;
        sl_bytes_add(&r->hashes, &block.before, sizeof(block.before));
    }
}

/* Choices of one prompt share all but its last token. */
static void note_request(struct sl_batch_input *input, struct sl_batch_item *item,
                         const struct sl_answer *answer)
{
    const uint32_t n_choices = answer->request.n;

    item->n_texts = answer->ids.n * n_choices;
    item->n_new_max = answer->request.n_new_max;
    for (uint32_t i = 0; i < answer->ids.n; i++) {
        const uint32_t n = (uint32_t)answer->ids.lists[i].n;

        item->n_prompt_tokens += n * n_choices;
        item->n_distinct_tokens += n + n_choices - 1;
    }
    input->n_prompt_tokens += item->n_prompt_tokens;
    note_beginnings(input->reading, &input->reading->beginnings[input->n_items],
                    &answer->ids.lists[0]);
}

/* A prompt without any token has nothing to begin with, so what was counted tells a sound line. */
static int take_line(struct sl_batch_input *input, const char *line, size_t length,
                     struct sl_err *err)
{
    struct sl_batch_reading *r = input->reading;
    struct sl_answer answer = {.model = NULL};
    struct sl_batch_fault fault;
    struct sl_batch_item *item;
    char *custom_id;
    int rc;

    r->n_lines++;
    if (is_blank(line, length))
        return 0;
    rc = make_room(input, err);
    if (rc < 0)
        return rc;
    item = &input->items[input->n_items];
    *item = (struct sl_batch_item){
        .offset_bytes = r->buffer_at,
        .checksum = sl_checksum(line, length),
        .length = (uint32_t)length,
        .line_number = r->n_lines,
    };
    r->beginnings[input->n_items] = (struct beginnings){.n_blocks = 0};
    rc = sl_batch_line_read(&answer, r->options.model, r->options.endpoint, line, length,
                            &custom_id, &fault);
    r->ids[input->n_items] = custom_id ? sl_checksum(custom_id, strlen(custom_id)) | 1 : 0;
    if (rc == 0)
        note_request(input, item, &answer);
    else
        add_fault(input, r->n_lines, &fault);
    input->n_items++;
    sl_answer_fini(&answer);
    free(custom_id);
    return r->hashes.out_of_memory ? no_memory(r, err) : 0;
}

/* Takes the lines that are whole in the buffer, for a while. Returns 1 if there may be more of
 * them, and 0 if more of the file is to be read first. */
static int take_lines(struct sl_batch_input *input, uint64_t until_ns, struct sl_err *err)
{
    struct sl_batch_reading *r = input->reading;
    size_t at = 0;
    int rc = 0;

    while (rc == 0 && at + r->scanned < r->buffer.length) {
        const char *from = r->buffer.data + at;
        const char *end = memchr(from + r->scanned, '\n', r->buffer.length - at - r->scanned);

        if (!end) {
            r->scanned = r->buffer.length - at;
            break;
        }
        rc = take_line(input, from, (size_t)(end - from), err);
        at += (size_t)(end - from) + 1;
        r->buffer_at += (size_t)(end - from) + 1;
        r->scanned = 0;
        if (rc == 0 && sl_clock_ns() >= until_ns)
            rc = 1;
    }
    if (at > 0)
        memmove(r->buffer.data, r->buffer.data + at, r->buffer.length - at);
    r->buffer.length -= at;
    return rc;
}

/* Returns how many bytes there were; 0 at the end. */
static int64_t read_block(struct sl_batch_reading *r, struct sl_err *err)
{
    const uint64_t read_bytes = r->buffer_at + r->buffer.length;
    char *block = malloc(BLOCK_BYTES);
    int64_t n = block ? sl_file_read_at(r->fd, block, BLOCK_BYTES, read_bytes) : -ENOMEM;

    if (n > 0) {
        sl_bytes_add(&r->buffer, block, (size_t)n);
        sl_sha256_add(r->sha256, block, (size_t)n);
    }
    free(block);
    if (r->buffer.out_of_memory)
        n = -ENOMEM;
    return n < 0 ? sl_err_set(err, (int)n, "%s: cannot read: %s", r->path, sl_strerror((int)n)) : n;
}

/* ---- the end of the pass -----------------------------------------------------------------------
 */

/* A number that items are sorted by, and whose it is. */
struct keyed {
    uint64_t key;
    uint32_t item_index;
};

static int compare_keyed(const void *a, const void *b)
{
    const struct keyed *x = a, *y = b;

    if (x->key != y->key)
        return x->key < y->key ? -1 : 1;
    return x->item_index < y->item_index ? -1 : x->item_index > y->item_index;
}

/* Two lines may have the same custom_id, or once in a while the same hash of it. */
static int check_twins(struct sl_batch_input *input, uint32_t first, uint32_t second,
                       struct sl_err *err)
{
    struct sl_batch_fault fault = {.code = "duplicate_custom_id", .param = "custom_id"};
    const uint32_t indices[2] = {first, second};
    json_t *objects[2] = {NULL, NULL};
    struct sl_bytes line = {0};
    const char *ids[2];
    int rc = 0;

    for (int i = 0; rc == 0 && i < 2; i++) {
        rc = sl_batch_input_line(input, indices[i], &line, err);
        if (rc == 0)
            rc = sl_json_parse(&objects[i], line.data, line.length, "the line", err);
        ids[i] = rc == 0 ? json_string_value(json_object_get(objects[i], "custom_id")) : NULL;
    }
    if (rc == 0 && ids[0] && ids[1] && strcmp(ids[0], ids[1]) == 0 &&
        input->items[second].n_prompt_tokens > 0) { /* a line has one fault at most */
        struct sl_batch_item *item = &input->items[second];

        snprintf(fault.message, sizeof(fault.message), "line %u has this custom_id already",
                 input->items[first].line_number);
        input->n_prompt_tokens -= item->n_prompt_tokens;
        item->n_prompt_tokens = 0;
        item->n_distinct_tokens = 0;
        input->reading->beginnings[second].n_blocks = 0;
        add_fault(input, item->line_number, &fault);
    }
    json_decref(objects[0]);
    json_decref(objects[1]);
    sl_bytes_fini(&line);
    return rc;
}

static int check_ids(struct sl_batch_input *input, struct keyed *keyed, struct sl_err *err)
{
    const uint64_t *ids = input->reading->ids;
    int rc = 0;

    for (uint32_t i = 0; i < input->n_items; i++)
        keyed[i] = (struct keyed){ids[i], i};
    qsort(keyed, input->n_items, sizeof(*keyed), compare_keyed);
    for (uint32_t i = 1, first = 0; rc == 0 && i < input->n_items; i++) {
        if (keyed[i].key != keyed[first].key)
            first = i;
        else if (keyed[i].key != 0)
            rc = check_twins(input, keyed[first].item_index, keyed[i].item_index, err);
    }
    return rc;
}

static const uint64_t *hashes_of(const struct sl_batch_input *input, uint32_t item_index)
{
    const struct sl_batch_reading *r = input->reading;

    return (const uint64_t *)(const void *)r->hashes.data + r->beginnings[item_index].first;
}

/* Items that share the longest beginning that any other shares with them get its hash. */
static void make_groups(struct sl_batch_input *input, struct keyed *keyed)
{
    struct sl_batch_item *items = input->items;

    for (uint32_t level = LEVELS; level-- > 0;) {
        const uint32_t n_blocks = UINT32_C(1) << level;
        uint32_t n = 0;

        for (uint32_t i = 0; i < input->n_items; i++)
            if (items[i].group == 0 && input->reading->beginnings[i].n_blocks >= n_blocks)
                keyed[n++] = (struct keyed){hashes_of(input, i)[n_blocks - 1], i};
        qsort(keyed, n, sizeof(*keyed), compare_keyed);
        for (uint32_t i = 0; i < n; i++)
            if ((i > 0 && keyed[i - 1].key == keyed[i].key) ||
                (i + 1 < n && keyed[i + 1].key == keyed[i].key))
                items[keyed[i].item_index].group = keyed[i].key;
    }
    for (uint32_t i = 0; i < input->n_items; i++)
        if (items[i].group == 0) /* alone; hashes of groups are odd */
            items[i].group = 2 * ((uint64_t)i + 1);
}

/* An item's place in the order. */
struct place {
    uint64_t group;
    uint32_t group_tokens; /* of its longest item */
    uint32_t item_index;
};

static int compare_groups(const void *a, const void *b)
{
    const struct place *x = a, *y = b;

    if (x->group != y->group)
        return x->group < y->group ? -1 : 1;
    return x->item_index < y->item_index ? -1 : x->item_index > y->item_index;
}

static int compare_places(const void *a, const void *b)
{
    const struct place *x = a, *y = b;

    if (x->group_tokens != y->group_tokens)
        return x->group_tokens > y->group_tokens ? -1 : 1;
    return compare_groups(a, b);
}

static int make_order(struct sl_batch_input *input, struct sl_err *err)
{
    const uint32_t n = input->n_items;
    struct place *places = calloc((size_t)n + 1, sizeof(*places));

    input->order = calloc((size_t)n + 1, sizeof(*input->order));
    if (!places || !input->order) {
        free(places);
        return no_memory(input->reading, err);
    }
    for (uint32_t i = 0; i < n; i++)
        places[i] = (struct place){input->items[i].group, 0, i};
    qsort(places, n, sizeof(*places), compare_groups);
    for (uint32_t i = 0, end; i < n; i = end) {
        uint32_t longest = 0;

        for (end = i; end < n && places[end].group == places[i].group; end++)
            if (input->items[places[end].item_index].n_prompt_tokens > longest)
                longest = input->items[places[end].item_index].n_prompt_tokens;
        for (uint32_t k = i; k < end; k++)
            places[k].group_tokens = longest;
    }
    qsort(places, n, sizeof(*places), compare_places);
    for (uint32_t i = 0; i < n; i++)
        input->order[i] = places[i].item_index;
    free(places);
    return 0;
}

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* A text has at least one token of its own, whose logits it needs. */
static void count_shared(struct sl_batch_input *input)
{
    const struct beginnings *beginnings = input->reading->beginnings;

    for (uint32_t i = 1; i < input->n_items; i++) {
        const uint32_t item = input->order[i], before = input->order[i - 1];
        const struct beginnings *b = &beginnings[item];
        const uint32_t n_max = min_u32(b->n_blocks, beginnings[before].n_blocks);
        uint32_t n = 0;

        while (n < n_max && hashes_of(input, item)[n] == hashes_of(input, before)[n])
            n++;
        if (n > 0)
            input->items[item].n_shared_tokens = min_u32(n * BLOCK_TOKENS, b->n_tokens - 1);
    }
    for (uint32_t i = 0; i < input->n_items; i++)
        input->n_computed_tokens +=
            input->items[i].n_distinct_tokens - input->items[i].n_shared_tokens;
}

static int end_pass(struct sl_batch_input *input, struct sl_err *err)
{
    struct sl_batch_reading *r = input->reading;
    struct keyed *keyed = calloc((size_t)input->n_items + 1, sizeof(*keyed));
    int rc = keyed ? check_ids(input, keyed, err) : no_memory(r, err);

    if (rc == 0) {
        make_groups(input, keyed);
        rc = make_order(input, err);
    }
    if (rc == 0)
        count_shared(input);
    free(keyed);
    if (input->n_items == 0) {
        static const struct sl_batch_fault fault = {.code = "empty_file",
                                                    .message = "the file has no line"};

        add_fault(input, 0, &fault);
    }
    input->size_bytes = r->buffer_at;
    sl_sha256_end(r->sha256, input->sha256);
    forget(r);
    return rc;
}

int sl_batch_input_step(struct sl_batch_input *input, struct sl_err *err)
{
    struct sl_batch_reading *r = input->reading;
    const uint64_t until_ns = sl_clock_ns() + STEP_NS;
    int64_t n;
    int rc = take_lines(input, until_ns, err);

    if (rc != 0)
        return rc;
    if (r->buffer.length > SL_BATCH_LINE_BYTES_MAX)
        return sl_err_set(err, -SL_EFORMAT, "%s: line %u is longer than 64 MiB", r->path,
                          r->n_lines + 1);
    n = read_block(r, err);
    if (n != 0)
        return n < 0 ? (int)n : 1;
    if (r->buffer.length > 0) { /* the last line may have no end */
        const size_t length = r->buffer.length;

        rc = take_line(input, r->buffer.data, length, err);
        r->buffer_at += length;
        r->buffer.length = 0;
    }
    return rc < 0 ? rc : end_pass(input, err);
}

int sl_batch_input_line(const struct sl_batch_input *input, uint32_t item_index,
                        struct sl_bytes *line, struct sl_err *err)
{
    const struct sl_batch_item *item = &input->items[item_index];
    const struct sl_batch_reading *r = input->reading;
    char *text = malloc((size_t)item->length + 1);
    int64_t n = text ? sl_file_read_at(r->fd, text, item->length, item->offset_bytes) : -ENOMEM;

    sl_bytes_clear(line);
    if (n == item->length)
        sl_bytes_add(line, text, item->length);
    free(text);
    if (line->out_of_memory)
        n = -ENOMEM;
    if (n < 0)
        return sl_err_set(err, (int)n, "%s: line %u: %s", r->path, item->line_number,
                          sl_strerror((int)n));
    if (n != item->length || sl_checksum(line->data, line->length) != item->checksum)
        return sl_err_set(err, -ESTALE, "%s: line %u has changed since the file was checked",
                          r->path, item->line_number);
    return 0;
}
