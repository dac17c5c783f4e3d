/* The safetensors header: what is well-formed is understood, what is not is refused with a line
 * that names file, tensor, found and expected. Headers are given as text, with the file size they
 * are to be compared with. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "storage/checkpoint/safetensors.h"

#define WHERE "shard.safetensors"

static int parse(struct sl_safetensors *ret_header, const char *text, uint64_t data_bytes,
                 struct sl_err *err)
{
    size_t length = strlen(text);

    return sl_safetensors_parse(ret_header, text, length,
                                SL_SAFETENSORS_LENGTH_BYTES + length + data_bytes, WHERE, err);
}

static void test_all_dtypes_and_shapes(void **state)
{
    static const char text[] =
        "{\"__metadata__\":{\"format\":\"pt\"},"
        "\"i64\":{\"dtype\":\"I64\",\"shape\":[2,3],\"data_offsets\":[100,148]},"
        "\"f32\":{\"dtype\":\"F32\",\"shape\":[1,2,3,4],\"data_offsets\":[0,96]},"
        "\"bf16\":{\"dtype\":\"BF16\",\"shape\":[],\"data_offsets\":[96,98]},"
        "\"e4m3\":{\"dtype\":\"F8_E4M3\",\"shape\":[1],\"data_offsets\":[98,99]},"
        "\"e8m0\":{\"dtype\":\"F8_E8M0\",\"shape\":[1],\"data_offsets\":[99,100]},"
        "\"i8\":{\"dtype\":\"I8\",\"shape\":[5],\"data_offsets\":[148,153]},"
        "\"u8\":{\"dtype\":\"U8\",\"shape\":[5,0],\"data_offsets\":[148,148]},"
        "\"i32\":{\"dtype\":\"I32\",\"shape\":[1,1],\"data_offsets\":[160,164]}}   ";
    static const struct {
        const char *name;
        const char *info;
        uint64_t offset_bytes, size_bytes;
    } expected[] = {{"f32", "F32 [1, 2, 3, 4]", 0, 96}, {"bf16", "BF16 []", 96, 2},
                    {"e4m3", "F8_E4M3 [1]", 98, 1},     {"e8m0", "F8_E8M0 [1]", 99, 1},
                    {"i64", "I64 [2, 3]", 100, 48},     {"u8", "U8 [5, 0]", 148, 0},
                    {"i8", "I8 [5]", 148, 5},           {"i32", "I32 [1, 1]", 160, 4}};
    struct sl_safetensors header;
    struct sl_err err = {0};
    char info[SL_TENSOR_TEXT_BYTES];

    (void)state;
    assert_int_equal(parse(&header, text, 164, &err), 0);
    assert_int_equal(header.tensor_count, sizeof(expected) / sizeof(expected[0]));
    for (uint32_t i = 0; i < header.tensor_count; i++) {
        const struct sl_safetensors_tensor *tensor = &header.tensors[i];

        assert_string_equal(tensor->name, expected[i].name);
        assert_string_equal(sl_tensor_format(&tensor->info, info), expected[i].info);
        assert_int_equal(tensor->offset_bytes, 8 + strlen(text) + expected[i].offset_bytes);
        assert_int_equal(tensor->info.size_bytes, expected[i].size_bytes);
        for (uint32_t d = tensor->info.n_dims; d < SL_TENSOR_DIMS_MAX; d++)
            assert_int_equal(tensor->info.shape[d], 1);
    }
    sl_safetensors_fini(&header);
    sl_safetensors_fini(&header);
}

/* One tensor "t.w" of 12 bytes in a file with 12 bytes of data. */
#define T(dtype, shape, offsets)                                                                   \
    "{\"t.w\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"
#define U(begin, end) "{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[" begin "," end "]}"

/* Nobody may ever use them. */
static void test_tensors_of_any_kind(void **state)
{
    static const struct {
        const char *text, *info;
    } cases[] = {
        {T("\"F16\"", "[6]", "[0,12]"), "F16 [6]"},
        {T("\"F4_E2M1\"", "[4,6]", "[0,12]"), "F4_E2M1 [4, 6]"},
        {T("\"a type\\u0007 of a long name\"", "[]", "[0,12]"), "a?type??of? []"},
        {T("\"\"", "[]", "[0,12]"), " []"},
        {T("\"U8\"", "[1,2,1,2,3]", "[0,12]"), "U8 [1, 2, 1, 2, ...]"},
    };
    struct sl_safetensors header;
    char info[SL_TENSOR_TEXT_BYTES];

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(parse(&header, cases[i].text, 12, NULL), 0);
        assert_string_equal(sl_tensor_format(&header.tensors[0].info, info), cases[i].info);
        assert_int_equal(header.tensors[0].info.size_bytes, 12);
        sl_safetensors_fini(&header);
    }
}

static void test_no_tensors(void **state)
{
    struct sl_safetensors header;

    (void)state;
    assert_int_equal(parse(&header, "{\"__metadata__\":{}}", 0, NULL), 0);
    assert_int_equal(header.tensor_count, 0);
    sl_safetensors_fini(&header);
    assert_int_equal(parse(&header, "{}", 10, NULL), 0);
    assert_int_equal(header.tensor_count, 0);
    sl_safetensors_fini(&header);
}

static const struct {
    const char *text;
    int code;
    const char *says[3];
} bad_headers[] = {
    {"", -SL_EFORMAT, {"not valid JSON"}},
    {"{\"t.w\":", -SL_EFORMAT, {"not valid JSON", "line 1"}},
    {"\xff\xfe", -SL_EFORMAT, {"not valid JSON"}},
    {"[1]", -SL_EFORMAT, {"not a JSON object"}},
    {"{} x", -SL_EFORMAT, {"not valid JSON"}},
    {"{\"t.w\":3}", -SL_EFORMAT, {"\"t.w\"", "not an object"}},
    {"{\"t.w\":" U("0", "4") ",\"t.w\":" U("4", "8") "}", -SL_EFORMAT, {"duplicate", "t.w"}},
    {"{\"\":" U("0", "4") "}", -SL_EFORMAT, {"name has 0 bytes"}},
    {"{\"a\\nb\":" U("0", "4") "}", -SL_EFORMAT, {"control character after \"a\""}},
    {T("\"F16\"", "[-6]", "[0,12]"), -SL_EFORMAT, {"\"t.w\"", "entry 0"}},
    {T("\"F16\"", "[6]", "[0,13]"), -SL_ECORRUPT, {"\"t.w\"", "truncated"}},
    {T("3", "[6]", "[0,12]"), -SL_EFORMAT, {"\"t.w\"", "\"dtype\""}},
    {"{\"t.w\":{}}", -SL_EFORMAT, {"\"t.w\"", "\"dtype\""}},
    {"{\"t.w\":{\"dtype\":\"U8\"}}", -SL_EFORMAT, {"\"t.w\"", "\"shape\""}},
    {T("\"U8\"", "12", "[0,12]"), -SL_EFORMAT, {"\"t.w\"", "\"shape\""}},
    {T("\"U8\"", "[1,1,1,1,11]", "[0,12]"), -SL_ECORRUPT, {"\"t.w\"", "span 12", "takes 11"}},
    {T("\"U8\"",
       "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,"
       "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,12]",
       "[0,12]"),
     -SL_EFORMAT,
     {"\"t.w\"", "at most 64"}},
    {T("\"U8\"", "[3,-4]", "[0,12]"), -SL_EFORMAT, {"\"t.w\"", "entry 1"}},
    {T("\"U8\"", "[3,4.0]", "[0,12]"), -SL_EFORMAT, {"\"t.w\"", "entry 1"}},
    {T("\"U8\"", "[99999999999999999999]", "[0,12]"), -SL_EFORMAT, {"too big"}},
    {T("\"U8\"", "[4294967296,4294967296]", "[0,0]"),
     -SL_EFORMAT,
     {"\"t.w\"", "4294967296, 4294967296", "64 bits"}},
    {T("\"U8\"", "[4294967296,4294967296,0]", "[0,0]"), -SL_EFORMAT, {"\"t.w\"", "64 bits"}},
    {T("\"I64\"", "[4611686018427387904]", "[0,0]"), -SL_EFORMAT, {"\"t.w\"", "64 bits"}},
    {T("\"U8\"", "[12]", "[0]"), -SL_EFORMAT, {"\"t.w\"", "\"data_offsets\""}},
    {T("\"U8\"", "[12]", "[0,4,12]"), -SL_EFORMAT, {"\"t.w\"", "\"data_offsets\""}},
    {T("\"U8\"", "[12]", "{}"), -SL_EFORMAT, {"\"t.w\"", "\"data_offsets\""}},
    {T("\"U8\"", "[12]", "[12,0]"), -SL_EFORMAT, {"\"t.w\"", "ascending"}},
    {T("\"U8\"", "[12]", "[-12,0]"), -SL_EFORMAT, {"\"t.w\"", "ascending"}},
    {T("\"U8\"", "[12]", "[0,\"12\"]"), -SL_EFORMAT, {"\"t.w\"", "ascending"}},
    {T("\"F32\"", "[12]", "[0,12]"), -SL_ECORRUPT, {"\"t.w\"", "span 12", "takes 48"}},
    {T("\"U8\"", "[11]", "[0,12]"), -SL_ECORRUPT, {"\"t.w\"", "span 12", "takes 11"}},
    {T("\"U8\"", "[12]", "[1,13]"), -SL_ECORRUPT, {"\"t.w\"", "truncated"}},
    {T("\"U8\"", "[1]", "[9223372036854775806,9223372036854775807]"),
     -SL_ECORRUPT,
     {"\"t.w\"", "ends at byte 9223372036854775"}},
    {"{\"a\":" U("0", "4") ",\"b\":" U("3", "7") "}",
     -SL_ECORRUPT,
     {"\"a\" and \"b\" overlap", "byte 1"}},
    {"{\"a\":" U("5", "9") ",\"b\":" U("5", "9") "}", -SL_ECORRUPT, {"overlap"}},
    {"{\"a\":" U("4", "8") ",\"b\":" U("2", "6") "}", -SL_ECORRUPT, {"\"b\" and \"a\" overlap"}},
};

static void test_bad_headers(void **state)
{
    struct sl_safetensors header;
    struct sl_err err;

    (void)state;
    for (size_t i = 0; i < sizeof(bad_headers) / sizeof(bad_headers[0]); i++) {
        err = (struct sl_err){0};
        if (parse(&header, bad_headers[i].text, 12, &err) != bad_headers[i].code)
            fail_msg("case %zu: \"%s\", code %d", i, err.message, err.code);
        if (strncmp(err.message, WHERE ": ", strlen(WHERE) + 2) != 0)
            fail_msg("case %zu: \"%s\" does not name the file", i, err.message);
        for (size_t k = 0; k < 3 && bad_headers[i].says[k]; k++) {
            if (!strstr(err.message, bad_headers[i].says[k]))
                fail_msg("case %zu: \"%s\" lacks \"%s\"", i, err.message, bad_headers[i].says[k]);
        }
        assert_int_equal(parse(&header, bad_headers[i].text, 12, NULL), bad_headers[i].code);
    }
}

static void test_long_name(void **state)
{
    char text[400], name[SL_SAFETENSORS_NAME_BYTES_MAX + 2];
    struct sl_safetensors header;

    (void)state;
    memset(name, 'n', sizeof(name));
    for (size_t length = sizeof(name) - 2; length < sizeof(name); length++) {
        name[length] = '\0';
        snprintf(text, sizeof(text), "{\"%s\":%s}", name, U("0", "4"));
        name[length] = 'n';
        if (length == SL_SAFETENSORS_NAME_BYTES_MAX) {
            assert_int_equal(parse(&header, text, 4, NULL), 0);
            sl_safetensors_fini(&header);
        } else {
            assert_int_equal(parse(&header, text, 4, NULL), -SL_EFORMAT);
        }
    }
}

/* A file of exactly the described size is accepted, one byte less is not. */
static void test_last_byte(void **state)
{
    static const char text[] = "{\"a\":" U("0", "4") ",\"b\":" U("8", "12") "}";
    struct sl_safetensors header;

    (void)state;
    assert_int_equal(parse(&header, text, 12, NULL), 0);
    sl_safetensors_fini(&header);
    assert_int_equal(parse(&header, text, 13, NULL), 0);
    sl_safetensors_fini(&header);
    assert_int_equal(parse(&header, text, 11, NULL), -SL_ECORRUPT);
}

static void test_length(void **state)
{
    static const struct {
        uint8_t prefix[8];
        uint64_t file_size_bytes;
        int rc;
        size_t length;
    } cases[] = {
        {{0}, 0, -SL_ECORRUPT, 0},
        {{0}, 7, -SL_ECORRUPT, 0},
        {{0}, 8, 0, 0},
        {{2}, 10, 0, 2},
        {{3}, 10, -SL_ECORRUPT, 0},
        {{0x01, 0x02, 0x03}, 1u << 20, 0, 0x030201},
        {{0, 0, 0, 4}, UINT64_C(1) << 40, 0, SL_SAFETENSORS_HEADER_BYTES_MAX},
        {{1, 0, 0, 4}, UINT64_C(1) << 40, -SL_EFORMAT, 0},
        {{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, UINT64_C(1) << 40, -SL_ECORRUPT, 0},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct sl_err err = {0};
        size_t length = 0;
        int rc = sl_safetensors_read_length(cases[i].prefix, cases[i].file_size_bytes, &length,
                                            WHERE, &err);

        assert_int_equal(rc, cases[i].rc);
        assert_int_equal(length, cases[i].length);
        if (rc < 0)
            assert_non_null(strstr(err.message, WHERE));
    }
}

/* Headers as releases write them are read in a quick way, others by jansson: the same comes of
 * both, whichever byte is changed. */
static void test_both_ways(void **state)
{
    static const char plain[] =
        "{\"__metadata__\":{\"format\":\"pt\"},\"a.b\": " U("0", "4") ",\"c\":" U("4", "8") "}";
    static const char bytes[] = "\"{}[]:,0 9.-eE\\\n\x01\x80";
    char text[sizeof(plain)], other[sizeof(plain) + 8];
    uint32_t n_accepted = 0;

    (void)state;
    for (size_t i = 0; i < sizeof(plain) - 1; i++)
        for (size_t k = 0; k < sizeof(bytes) - 1; k++) {
            struct sl_safetensors quick = {0}, slow = {0};
            const char *name;
            int rc;

            memcpy(text, plain, sizeof(text));
            text[i] = bytes[k];
            rc = parse(&quick, text, 8, NULL);
            name = strstr(text, "\"c\"");
            if (!name) { /* the byte that makes it the slow way's is one of the name */
                sl_safetensors_fini(&quick);
                continue;
            }
            snprintf(other, sizeof(other), "%.*s\\u0063%s", (int)(name + 1 - text), text, name + 2);
            assert_int_equal(parse(&slow, other, 8, NULL), rc);
            assert_int_equal(quick.tensor_count, slow.tensor_count);
            for (uint32_t t = 0; t < quick.tensor_count; t++) {
                assert_string_equal(quick.tensors[t].name, slow.tensors[t].name);
                assert_memory_equal(&quick.tensors[t].info, &slow.tensors[t].info,
                                    sizeof(quick.tensors[t].info));
                assert_int_equal(quick.tensors[t].offset_bytes + strlen(other) - strlen(text),
                                 slow.tensors[t].offset_bytes);
            }
            n_accepted += rc == 0;
            sl_safetensors_fini(&quick);
            sl_safetensors_fini(&slow);
        }
    assert_true(n_accepted > 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_dtypes_and_shapes),
        cmocka_unit_test(test_tensors_of_any_kind),
        cmocka_unit_test(test_no_tensors),
        cmocka_unit_test(test_bad_headers),
        cmocka_unit_test(test_long_name),
        cmocka_unit_test(test_last_byte),
        cmocka_unit_test(test_length),
        cmocka_unit_test(test_both_ways),
    };

    return cmocka_run_group_tests_name("safetensors", tests, NULL, NULL);
}
