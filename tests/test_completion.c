/* Where a text ends: stop strings are found however the text is cut into pieces, against a search
 * of the whole; each rule ends a text for its reason, with all the text before it; and log
 * probabilities are those of a plain sum. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/text/completion.h"
#include "core/text/logprobs.h"

#define TEXT_BYTES 40u
#define CASES 20000u
#define EOS 1u /* in the small tokenizer */

static uint64_t next_random(uint64_t *seed)
{
    uint64_t z = *seed += UINT64_C(0x9E3779B97F4A7C15);

    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    return z ^ z >> 29;
}

/* The length of the text before the stop string that is complete first, of these the longest;
 * `length` if there is none. */
static size_t search(const struct sl_stop_strings *stops, const char *text, size_t length,
                     const char **ret_found)
{
    *ret_found = NULL;
    for (size_t end = 1; end <= length && !*ret_found; end++)
        for (uint32_t i = 0; i < stops->n_strings; i++) {
            const size_t n = strlen(stops->strings[i]);

            if (n <= end && memcmp(text + end - n, stops->strings[i], n) == 0 &&
                (!*ret_found || n > strlen(*ret_found)))
                *ret_found = stops->strings[i];
            if (*ret_found && i + 1 == stops->n_strings)
                return end - strlen(*ret_found);
        }
    return length;
}

/* Two letters, so that strings overlap in every way. */
static void make_text(uint64_t *seed, char *text, size_t length)
{
    for (size_t i = 0; i < length; i++)
        text[i] = "ab"[next_random(seed) % 2];
    text[length] = '\0';
}

static void test_stop_strings_in_pieces(void **state)
{
    uint64_t seed = 1, n_found = 0, n_not_found = 0;

    (void)state;
    for (uint32_t c = 0; c < CASES; c++) {
        char strings[3][16], text[TEXT_BYTES + 1], out[TEXT_BYTES + 3 * SL_STOP_STRING_BYTES_MAX];
        struct sl_stop_strings stops = {.n_strings = 0};
        struct sl_stop_matcher matcher = {.n_held = 0};
        const char *want, *found = NULL;
        size_t n_want, n_out = 0;

        for (uint32_t i = 0; i < 1 + c % 3; i++) {
            make_text(&seed, strings[i], 1 + next_random(&seed) % 8);
            assert_int_equal(sl_stop_strings_add(&stops, strings[i], NULL), 0);
        }
        make_text(&seed, text, TEXT_BYTES);
        n_want = search(&stops, text, TEXT_BYTES, &want);
        for (size_t at = 0, n; at < TEXT_BYTES && !found; at += n) {
            n = 1 + next_random(&seed) % 9;
            n = n < TEXT_BYTES - at ? n : TEXT_BYTES - at;
            n_out += sl_stop_matcher_push(&matcher, &stops, text + at, n, out + n_out, &found);
        }
        if (!found)
            n_out += sl_stop_matcher_flush(&matcher, out + n_out);
        assert_int_equal(matcher.n_held, 0);
        assert_true(found ? want && strcmp(found, want) == 0 : !want);
        assert_int_equal(n_out, n_want);
        assert_memory_equal(out, text, n_out);
        *(found ? &n_found : &n_not_found) += 1;
    }
    assert_true(n_found > CASES / 10 && n_not_found > CASES / 10);
}

/* Nothing is held back for longer than it may become a stop string. */
static void test_text_is_not_held_back_for_nothing(void **state)
{
    struct sl_stop_strings stops = {.n_strings = 0};
    struct sl_stop_matcher matcher = {.n_held = 0};
    char out[2 * SL_STOP_STRING_BYTES_MAX];
    const char *found;

    (void)state;
    assert_int_equal(sl_stop_strings_add(&stops, "stop", NULL), 0);
    assert_int_equal(sl_stop_matcher_push(&matcher, &stops, "do st", 5, out, &found), 3);
    assert_int_equal(sl_stop_matcher_push(&matcher, &stops, "o", 1, out, &found), 0);
    assert_int_equal(sl_stop_matcher_push(&matcher, &stops, "s", 1, out, &found), 3);
    assert_memory_equal(out, "sto", 3);
    assert_int_equal(sl_stop_matcher_push(&matcher, &stops, "topple", 6, out, &found), 0);
    assert_string_equal(found, "stop");
}

static void test_stop_strings_that_are_refused(void **state)
{
    char text[SL_STOP_STRING_BYTES_MAX + 2];
    struct sl_stop_strings stops = {.n_strings = 0};

    (void)state;
    memset(text, 'a', sizeof(text));
    text[SL_STOP_STRING_BYTES_MAX + 1] = '\0';
    assert_int_equal(sl_stop_strings_add(&stops, "", NULL), -EINVAL);
    assert_int_equal(sl_stop_strings_add(&stops, text, NULL), -EINVAL);
    text[SL_STOP_STRING_BYTES_MAX] = '\0';
    for (uint32_t i = 0; i < SL_STOP_STRINGS_MAX; i++)
        assert_int_equal(sl_stop_strings_add(&stops, text, NULL), 0);
    assert_int_equal(sl_stop_strings_add(&stops, text, NULL), -EINVAL);
}

/* ---- the rules ---------------------------------------------------------------------------------
 */

/* Pushes the tokens of `text`, then end-of-sentence tokens; checks the text, the reason and the
 * count. A prompt of 10 tokens goes before it. */
static void completes(const struct sl_tokenizer *tok, struct sl_completion_rules rules,
                      const char *text, const char *want, enum sl_finish finish, uint32_t n_tokens)
{
    struct sl_completion *completion;
    struct sl_encoder *encoder;
    struct sl_token_list ids = {0};
    enum sl_finish reason = SL_FINISH_NONE;
    char out[256];
    size_t n_out = 0;

    rules.eos_token_id = EOS;
    assert_int_equal(sl_encoder_create(&encoder, tok, NULL), 0);
    assert_int_equal(sl_encode(encoder, text, strlen(text), 0, &ids, NULL), 0);
    assert_int_equal(sl_completion_create(&completion, tok, &rules, NULL), 0);
    for (uint32_t round = 0; round < 2; round++) { /* a second text is not told from the first */
        n_out = 0;
        sl_completion_begin(completion, 10);
        for (size_t i = 0; reason == SL_FINISH_NONE || i == 0; i++) {
            const char *piece;
            size_t length;

            reason = sl_completion_push(completion, i < ids.n ? ids.ids[i] : EOS, &piece, &length);
            memcpy(out + n_out, piece, length);
            n_out += length;
        }
        assert_int_equal(reason, finish);
        assert_int_equal(sl_completion_finish(completion), finish);
        assert_int_equal(sl_completion_token_count(completion), n_tokens);
        assert_int_equal(n_out, strlen(want));
        assert_memory_equal(out, want, n_out);
        assert_int_equal(sl_completion_stop_string(completion) != NULL,
                         finish == SL_FINISH_STOP_STRING);
    }
    sl_completion_destroy(completion);
    sl_token_list_fini(&ids);
    sl_encoder_destroy(encoder);
}

static void test_each_rule_ends_a_text(void **state)
{
    const char *const text = "the quick brown fox jumps over the lazy dog"; /* a token a word */
    struct sl_completion_rules rules = {.context_tokens = 100};
    struct sl_tokenizer *tok;

    (void)state;
    assert_int_equal(sl_tokenizer_open(&tok, "tests/data/tokenizer.json", NULL), 0);
    completes(tok, rules, text, text, SL_FINISH_END_OF_TEXT, 9);
    rules.n_new_max = 3;
    completes(tok, rules, text, "the quick brown", SL_FINISH_TOKENS_MAX, 3);
    rules.context_tokens = 12;
    completes(tok, rules, text, "the quick", SL_FINISH_CONTEXT, 2);
    rules = (struct sl_completion_rules){.context_tokens = 100, .n_new_max = 5};
    assert_int_equal(sl_stop_strings_add(&rules.stops, "own f", NULL), 0);
    completes(tok, rules, text, "the quick br", SL_FINISH_STOP_STRING, 4);
    rules.n_new_max = 3; /* what looked like a stop string is shown where the text ends before it */
    completes(tok, rules, text, "the quick brown", SL_FINISH_TOKENS_MAX, 3);
    sl_tokenizer_close(tok);
}

static void test_a_character_is_cut(void **state)
{
    const char *const text = "\xF0\x9F\x98\x80"; /* four tokens, a character */
    struct sl_completion_rules rules = {.context_tokens = 100, .n_new_max = 3};
    struct sl_completion *completion;
    struct sl_tokenizer *tok;
    const char *piece;
    size_t length;

    (void)state;
    assert_int_equal(sl_tokenizer_open(&tok, "tests/data/tokenizer.json", NULL), 0);
    completes(tok, rules, text, "\xEF\xBF\xBD", SL_FINISH_TOKENS_MAX, 3);
    rules.n_new_max = 0;
    rules.eos_token_id = EOS;
    assert_int_equal(sl_stop_strings_add(&rules.stops, "the end", NULL), 0);
    assert_int_equal(sl_completion_create(&completion, tok, &rules, NULL), 0);
    sl_completion_begin(completion, 1);
    assert_int_equal(sl_completion_push(completion, 259, &piece, &length), SL_FINISH_NONE);
    assert_int_equal(length, 0); /* "the": held back */
    piece = sl_completion_interrupt(completion, &length);
    assert_int_equal(length, 3);
    assert_memory_equal(piece, "the", 3);
    assert_int_equal(sl_completion_finish(completion), SL_FINISH_INTERRUPTED);
    sl_completion_destroy(completion);
    sl_tokenizer_close(tok);
}

/* ---- log probabilities -------------------------------------------------------------------------
 */

static void test_most_probable(void **state)
{
    uint64_t seed = 3;

    (void)state;
    for (uint32_t c = 0; c < 1000; c++) {
        const uint32_t n = 1 + (uint32_t)(next_random(&seed) % 50);
        const uint32_t k = (uint32_t)(next_random(&seed) % (n + 1));
        float logits[50];
        uint32_t ids[50];
        double sum = 0;

        for (uint32_t i = 0; i < n; i++) {
            logits[i] = (float)(next_random(&seed) % 20) - 10;
            sum += exp((double)logits[i]);
        }
        assert_true(fabs(sl_log_sum_exp(logits, n) - log(sum)) < 1e-9);
        sl_most_probable(logits, n, k, ids);
        for (uint32_t i = 0; i < k; i++) {
            uint32_t n_before = 0;

            for (uint32_t id = 0; id < n; id++)
                n_before +=
                    logits[id] > logits[ids[i]] || (logits[id] == logits[ids[i]] && id < ids[i]);
            assert_int_equal(n_before, i);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stop_strings_in_pieces),
        cmocka_unit_test(test_text_is_not_held_back_for_nothing),
        cmocka_unit_test(test_stop_strings_that_are_refused),
        cmocka_unit_test(test_each_rule_ends_a_text),
        cmocka_unit_test(test_a_character_is_cut),
        cmocka_unit_test(test_most_probable),
    };

    return cmocka_run_group_tests_name("completion", tests, NULL, NULL);
}
