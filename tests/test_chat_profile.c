/* Which chat format a folder is found to have: each kind of evidence in a folder of its own, and
 * what counts when there is more than one. And the messages of a request, tools and response format
 * put where the format prints them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/text/chat_format.h"
#include "core/text/chat_profile.h"
#include "core/text/chat_request.h"
#include "tests/fixture_checkpoint.h"

#define PREVIEW SL_CHAT_EFFORT_MAXIMUM
#define LATER SL_CHAT_EFFORT_MAXIMUM SL_CHAT_EFFORT_BEYOND
#define DSPARK "{\"dspark_block_size\": 5}"
#define BASE "{\"expert_dtype\": \"fp8\"}"

static const char *const files[] = {"config.json", "encoding/encoding_dsv4.py", "encoding_dsv4.py",
                                    "chat_template.jinja", "tokenizer_config.json"};
#define N_FILES 5

struct example {
    const char *texts[N_FILES]; /* of the files above; NULL: absent */
    const char *name, *file;    /* expected; name NULL: an error that names the file */
};

static const struct example examples[] = {
    {{"{}"}, "v4-preview", "config.json"},
    {{"{\"expert_dtype\": \"fp4\"}"}, "v4-preview", "config.json"},
    {{DSPARK}, "v4-0731", "config.json"},
    {{BASE}, "none", "config.json"},
    {{"{}", LATER}, "v4-0731", "encoding/encoding_dsv4.py"},
    {{DSPARK, PREVIEW}, "v4-preview", "encoding/encoding_dsv4.py"},
    {{BASE, PREVIEW}, "v4-preview", "encoding/encoding_dsv4.py"},
    {{"{}", NULL, LATER}, "v4-0731", "encoding_dsv4.py"},
    {{"{}", NULL, NULL, LATER}, "v4-0731", "chat_template.jinja"},
    {{"{}", NULL, NULL, "{{ messages }}", LATER}, "v4-0731", "tokenizer_config.json"},
    {{"{}", "def encode(): pass", NULL, PREVIEW, LATER}, "v4-preview", "chat_template.jinja"},
    {{BASE, NULL, NULL, NULL, "{\"legacy\": true}"}, "none", "config.json"},
    {{NULL}, NULL, "config.json"},
    {{"{"}, NULL, "config.json"},
    {{"[]"}, "v4-preview", "config.json"},
};

static void write_file(const char *folder, const char *name, const char *text)
{
    char path[FIXTURE_PATH_BYTES + 64];
    FILE *file;

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void remove_file(const char *folder, const char *name)
{
    char path[FIXTURE_PATH_BYTES + 64];

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    remove(path);
}

static void test_evidence(void **state)
{
    char folder[FIXTURE_PATH_BYTES], path[FIXTURE_PATH_BYTES + 16];

    (void)state;
    fixture_folder_create(folder);
    snprintf(path, sizeof(path), "%s/encoding", folder);
    assert_int_equal(mkdir(path, 0700), 0);
    for (size_t i = 0; i < sizeof(examples) / sizeof(examples[0]); i++) {
        const struct example *example = &examples[i];
        struct sl_chat_profile_found found;
        struct sl_err err;
        int rc;

        for (int f = 0; f < N_FILES; f++)
            if (example->texts[f])
                write_file(folder, files[f], example->texts[f]);
        rc = sl_chat_profile_detect(folder, &found, &err);
        if (example->name) {
            assert_int_equal(rc, 0);
            assert_string_equal(sl_chat_profile_found_name(&found), example->name);
            assert_string_equal(found.file, example->file);
        } else {
            assert_true(rc < 0);
            assert_non_null(strstr(err.message, example->file));
        }
        for (int f = 0; f < N_FILES; f++)
            remove_file(folder, files[f]);
    }
    assert_int_equal(rmdir(path), 0);
    fixture_folder_remove(folder);
}

static const struct {
    const char *request, *messages; /* NULL: refused */
} requests[] = {
    {"[]", "[]"},
    {"[{\"role\": \"user\"}]", "[{\"role\": \"user\"}]"},
    {"{\"messages\": [{\"role\": \"user\"}], \"tools\": [], \"response_format\": null}",
     "[{\"role\": \"user\"}]"},
    {"{\"messages\": [{\"role\": \"user\"}], \"tools\": [1]}",
     "[{\"role\": \"system\", \"content\": \"\", \"tools\": [1]}, {\"role\": \"user\"}]"},
    {"{\"messages\": [{\"role\": \"system\", \"tools\": [2]}], \"tools\": [1]}",
     "[{\"role\": \"system\", \"tools\": [1]}]"},
    {"{\"messages\": [{\"role\": \"developer\"}], \"response_format\": {\"type\": \"x\"}}",
     "[{\"role\": \"developer\", \"response_format\": {\"type\": \"x\"}}]"},
    {"{\"messages\": [], \"tools\": [1]}",
     "[{\"role\": \"system\", \"content\": \"\", \"tools\": [1]}]"},
    {"{\"messages\": {}}", NULL},
    {"{}", NULL},
    {"7", NULL},
    {"{\"messages\": [], \"tools\": {}}", NULL},
};

static void test_requests(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(requests) / sizeof(requests[0]); i++) {
        json_t *request = json_loads(requests[i].request, JSON_DECODE_ANY, NULL);
        json_t *before = json_deep_copy(request), *messages = NULL, *expected;
        int rc = sl_chat_request_messages(request, &messages, NULL);

        assert_true(json_equal(request, before));
        if (requests[i].messages) {
            expected = json_loads(requests[i].messages, 0, NULL);
            assert_int_equal(rc, 0);
            assert_true(json_equal(messages, expected));
            json_decref(expected);
            json_decref(messages);
        } else {
            assert_int_equal(rc, -SL_EFORMAT);
        }
        json_decref(before);
        json_decref(request);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_evidence),
        cmocka_unit_test(test_requests),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
