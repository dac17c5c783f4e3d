#include "tests/image_rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void on_note(void *context, const char *line)
{
    struct image_rig *rig = context;

    assert_null(strchr(line, '\n'));
    rig->n_notes++;
    snprintf(rig->note, sizeof(rig->note), "%s", line);
}

static int no_sync(struct sl_file_writer *writer, int file)
{
    (void)writer;
    (void)file;
    return 0;
}

static int no_sync_folder(struct sl_file_writer *writer, const char *path)
{
    (void)writer;
    (void)path;
    return 0;
}

void image_rig_init(struct image_rig *rig)
{
    static struct sl_file_writer_ops ops;
    static struct sl_file_writer writer = {&ops};

    ops = *sl_file_writer_private()->ops;
    ops.sync = no_sync;
    ops.sync_folder = no_sync_folder;
    *rig = (struct image_rig){.images = NULL};
    fixture_folder_create(rig->root);
    assert_true(snprintf(rig->folder, sizeof(rig->folder), "%s/images", rig->root) <
                (int)sizeof(rig->folder));
    rig->options = (struct sl_images_options){
        .folder = rig->folder,
        .bytes_max = UINT64_MAX,
        .owner = {.model = 0x1234567890abcdef},
        .entries_bytes_max = SL_IMAGE_TOKENS * IMAGE_RIG_ENTRY_BYTES,
        .mark_bytes_max = IMAGE_RIG_MARK_BYTES,
        .writer = &writer,
        .open_io = sl_io_threads_open,
        .reader = {.depth = 2},
        .on_note = on_note,
        .note_context = rig,
    };
}

void image_rig_fini(struct image_rig *rig)
{
    char command[FIXTURE_PATH_BYTES + 16];

    image_rig_close(rig);
    snprintf(command, sizeof(command), "rm -rf %s", rig->root);
    assert_int_equal(system(command), 0);
}

void image_rig_open(struct image_rig *rig)
{
    struct sl_err err = {0};

    if (sl_images_open(&rig->images, &rig->options, &err) < 0)
        fail_msg("%s", err.message);
}

void image_rig_close(struct image_rig *rig)
{
    sl_images_close(rig->images);
    rig->images = NULL;
}

void image_rig_tokens(int32_t *tokens, uint32_t n, uint32_t n_same, uint64_t seed)
{
    for (uint32_t i = 0; i < n; i++)
        tokens[i] = (int32_t)((i * 2654435761u + (i < n_same ? 0 : (uint32_t)seed * 40503u)) >> 12);
}

/* ---- contents ----------------------------------------------------------------------------------
 */

static uint64_t state_of(const int32_t *tokens, uint32_t n)
{
    uint64_t state = 1;

    for (uint32_t i = 0; i < n; i++)
        state = state * 6364136223846793005u + (uint32_t)tokens[i] + 1;
    return state;
}

static void make_entries(uint8_t *entries, const int32_t *tokens, uint32_t first, uint32_t end)
{
    uint64_t state = state_of(tokens, first);

    for (uint32_t i = first; i < end; i++) {
        state = state * 6364136223846793005u + (uint32_t)tokens[i] + 1;
        for (uint32_t k = 0; k < IMAGE_RIG_ENTRY_BYTES; k++)
            *entries++ = (uint8_t)(state >> (40 + 8 * k));
    }
}

static void make_mark(uint8_t *mark, const int32_t *tokens, uint32_t n)
{
    uint64_t state = state_of(tokens, n);

    for (uint32_t i = 0; i < IMAGE_RIG_MARK_BYTES; i++)
        mark[i] = (uint8_t)((state = state * 6364136223846793005u + 1) >> 56);
}

bool image_rig_save(struct image_rig *rig, const int32_t *tokens, uint32_t n)
{
    uint64_t prefix;
    uint32_t first = sl_images_base(rig->images, tokens, n, &prefix);

    while (first < n) {
        uint32_t end = (first / SL_IMAGE_TOKENS + 1) * SL_IMAGE_TOKENS;
        struct sl_images_piece piece = {.tokens = tokens, .first_token = first};

        end = end < n ? end : n;
        piece.end_token = end;
        piece.entries_bytes = (end - first) * IMAGE_RIG_ENTRY_BYTES;
        piece.mark_bytes = end == n ? IMAGE_RIG_MARK_BYTES : 0;
        if (sl_images_begin(rig->images, &piece) < 0)
            return false;
        make_entries(piece.entries, tokens, first, end);
        if (end == n)
            make_mark(piece.mark, tokens, n);
        sl_images_commit(rig->images);
        first = end;
    }
    return sl_images_base(rig->images, tokens, n, &prefix) == n;
}

struct loading {
    const int32_t *tokens;
    uint32_t n_taken;
    bool has_mark;
};

static int take(void *context, const struct sl_image_content *content)
{
    struct loading *loading = context;
    const uint32_t n = content->end_token - content->first_token;
    uint8_t *expected = malloc(n * IMAGE_RIG_ENTRY_BYTES + IMAGE_RIG_MARK_BYTES);

    assert_non_null(expected);
    assert_int_equal(content->first_token, loading->n_taken);
    if (content->entries_bytes != n * IMAGE_RIG_ENTRY_BYTES) {
        free(expected);
        return -SL_ECORRUPT;
    }
    make_entries(expected, loading->tokens, content->first_token, content->end_token);
    assert_memory_equal(content->entries, expected, content->entries_bytes);
    if (content->mark) {
        assert_int_equal(content->mark_bytes, IMAGE_RIG_MARK_BYTES);
        make_mark(expected, loading->tokens, content->end_token);
        assert_memory_equal(content->mark, expected, IMAGE_RIG_MARK_BYTES);
    }
    loading->has_mark = content->mark != NULL;
    loading->n_taken = content->end_token;
    free(expected);
    return 0;
}

uint32_t image_rig_load(struct image_rig *rig, const int32_t *tokens, uint32_t n)
{
    for (;;) {
        const struct sl_images_match match = sl_images_find(rig->images, tokens, n);
        const uint32_t n_notes = rig->n_notes;
        struct loading loading = {.tokens = tokens};

        assert_true(match.n_shared >= match.n_tokens && match.n_shared <= n);
        if (match.n_tokens == 0)
            return 0;
        if (sl_images_load(rig->images, tokens, match.n_tokens, take, &loading) < 0) {
            assert_int_equal(rig->n_notes, n_notes + 1);
            continue;
        }
        assert_true(loading.has_mark);
        assert_int_equal(loading.n_taken, match.n_tokens);
        return match.n_tokens;
    }
}

void image_rig_path(const struct image_rig *rig, const int32_t *tokens, uint32_t n,
                    char path[FIXTURE_PATH_BYTES])
{
    struct sl_checksum_stream *stream = sl_checksum_stream_create();
    char name[SL_IMAGE_NAME_BYTES];

    assert_non_null(stream);
    sl_image_prefix_begin(stream, &rig->options.owner);
    sl_image_prefix_add(stream, tokens, n);
    sl_image_name(sl_checksum_stream_value(stream), name);
    sl_checksum_stream_destroy(stream);
    assert_true(snprintf(path, FIXTURE_PATH_BYTES, "%s/%s", rig->folder, name) <
                FIXTURE_PATH_BYTES);
}

uint32_t image_rig_file_count(const struct image_rig *rig)
{
    DIR *dir = opendir(rig->folder);
    const struct dirent *entry;
    uint32_t n = 0;

    assert_non_null(dir);
    while ((entry = readdir(dir)))
        n += strstr(entry->d_name, SL_IMAGE_SUFFIX) != NULL;
    closedir(dir);
    return n;
}
