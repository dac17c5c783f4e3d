#include "core/text/splitter.h"

#include <errno.h>
#include <stdlib.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "core/base/assert.h"
#include "core/text/known_expressions.h"

#define EXPRESSION_BYTES_MAX 65536
#define JIT_STACK_FIRST_BYTES 32768
#define JIT_STACK_MAX_BYTES (1u << 20)
#define HEAP_MAX_KIBIBYTES 65536

/* Backtracking allowed at one place of the text. The expressions in use try each length of a run of
 * white space once, which the interpreter counts byte by byte; ten thousand more is ample for
 * anything else. What grows exponentially hits this at once. */
#define MATCH_STEPS(n_bytes) ((n_bytes)*4 + 10000)

struct step {
    sl_find_match_fn *find; /* of an expression that is known; else NULL */
    pcre2_code *code;       /* of any other; else NULL */
};

struct sl_splitter {
    struct sl_character_classes *classes; /* NULL until an expression needs them */
    struct step steps[SL_SPLIT_STEPS_MAX];
    uint32_t n_steps;
};

struct sl_split_scratch {
    pcre2_match_data *match;
    pcre2_match_context *context;
    pcre2_jit_stack *jit_stack;
};

/* One call of sl_split(). */
struct run {
    const struct sl_splitter *splitter;
    const struct sl_split_scratch *scratch;
    const uint8_t *text; /* all of it: places in messages count from here */
    sl_split_fn *fn;
    void *context;
    struct sl_err *err;
};

struct sl_splitter *sl_splitter_create(void)
{
    return calloc(1, sizeof(struct sl_splitter));
}

void sl_splitter_destroy(struct sl_splitter *splitter)
{
    if (!splitter)
        return;
    for (uint32_t i = 0; i < splitter->n_steps; i++)
        pcre2_code_free(splitter->steps[i].code);
    free(splitter->classes);
    free(splitter);
}

static int compile(pcre2_code **ret_code, const char *expression, size_t length, const char *where,
                   struct sl_err *err)
{
    /* \C would cut characters in two. */
    const uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C;
    PCRE2_UCHAR8 message[256];
    PCRE2_SIZE offset;
    pcre2_code *code;
    int error;

    code = pcre2_compile((PCRE2_SPTR8)expression, length, options, &error, &offset, NULL);
    if (!code) {
        pcre2_get_error_message(error, message, sizeof(message));
        return sl_err_set(err, error == PCRE2_ERROR_HEAP_FAILED ? -ENOMEM : -SL_EFORMAT,
                          "%s: not a valid regular expression: %s (at byte %zu)", where, message,
                          offset);
    }
    /* Where this fails (no such compiler for the platform, no executable memory to be had),
     * matching goes on with the interpreter: slower, same result. */
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
    *ret_code = code;
    return 0;
}

int sl_splitter_add(struct sl_splitter *splitter, const char *expression, size_t length,
                    const char *where, struct sl_err *err)
{
    struct step step = {.find = sl_known_expression(expression, length)};
    int rc;

    sl_assert(splitter->n_steps < SL_SPLIT_STEPS_MAX);
    if (length > EXPRESSION_BYTES_MAX)
        return sl_err_set(err, -SL_EFORMAT, "%s: an expression of %zu bytes, expected at most %d",
                          where, length, EXPRESSION_BYTES_MAX);
    if (step.find && !splitter->classes) {
        splitter->classes = sl_character_classes_create();
        if (!splitter->classes)
            return sl_err_set(err, -ENOMEM, "%s: out of memory", where);
    }
    if (!step.find) {
        rc = compile(&step.code, expression, length, where, err);
        if (rc < 0)
            return rc;
    }
    splitter->steps[splitter->n_steps++] = step;
    return 0;
}

bool sl_splitter_asks_pcre2(const struct sl_splitter *splitter)
{
    for (uint32_t i = 0; i < splitter->n_steps; i++)
        if (splitter->steps[i].code)
            return true;
    return false;
}

struct sl_split_scratch *sl_split_scratch_create(void)
{
    struct sl_split_scratch *scratch = calloc(1, sizeof(*scratch));

    if (!scratch)
        return NULL;
    scratch->match = pcre2_match_data_create(1, NULL);
    scratch->context = pcre2_match_context_create(NULL);
    if (!scratch->match || !scratch->context) {
        sl_split_scratch_destroy(scratch);
        return NULL;
    }
    /* NULL where there is no just-in-time compiler, and harmless then. */
    scratch->jit_stack = pcre2_jit_stack_create(JIT_STACK_FIRST_BYTES, JIT_STACK_MAX_BYTES, NULL);
    pcre2_jit_stack_assign(scratch->context, NULL, scratch->jit_stack);
    pcre2_set_heap_limit(scratch->context, HEAP_MAX_KIBIBYTES);
    return scratch;
}

void sl_split_scratch_destroy(struct sl_split_scratch *scratch)
{
    if (!scratch)
        return;
    pcre2_match_data_free(scratch->match);
    pcre2_match_context_free(scratch->context);
    pcre2_jit_stack_free(scratch->jit_stack);
    free(scratch);
}

static int match_failed(const struct run *run, uint32_t step, const uint8_t *at, int error)
{
    PCRE2_UCHAR8 message[256];

    pcre2_get_error_message(error, message, sizeof(message));
    return sl_err_set(run->err, error == PCRE2_ERROR_NOMEMORY ? -ENOMEM : -SL_EFORMAT,
                      "pre-tokenizer step %u: matching failed at byte %zu of the text: %s", step,
                      (size_t)(at - run->text), message);
}

/* The bytes of the character that `lead` begins, in well-formed UTF-8. */
static size_t character_bytes(uint8_t lead)
{
    return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

/* The first match of a step from piece[from] on. Returns 1, 0 if there is none, or an error. */
static int find_match(const struct run *run, uint32_t step_index, const uint8_t *piece, size_t n,
                      size_t from, size_t *ret_start, size_t *ret_end)
{
    const struct step *step = &run->splitter->steps[step_index];
    const PCRE2_SIZE *ovector;
    int rc;

    if (step->find)
        return step->find(run->splitter->classes, piece, n, from, ret_start, ret_end);
    /* Set each time: steps of other lengths have run in between. */
    pcre2_set_match_limit(run->scratch->context,
                          (uint32_t)(n < UINT32_MAX / 8 ? MATCH_STEPS(n) : UINT32_MAX));
    rc = pcre2_match(step->code, piece, n, from, PCRE2_NO_UTF_CHECK, run->scratch->match,
                     run->scratch->context);
    if (rc == PCRE2_ERROR_NOMATCH)
        return 0;
    if (rc < 0)
        return match_failed(run, step_index, piece + from, rc);
    ovector = pcre2_get_ovector_pointer(run->scratch->match);
    *ret_start = ovector[0];
    *ret_end = ovector[1];
    return 1;
}

/* Calls itself for the next step, so it goes no deeper than there are steps. An empty match cuts
 * the piece in two and then moves on by one character. */
static int split_piece(const struct run *run, uint32_t step, const uint8_t *piece, size_t n)
{
    size_t done = 0, from = 0, start, end;
    int rc;

    if (step == run->splitter->n_steps)
        return run->fn(run->context, piece, n);
    while (from < n) {
        rc = find_match(run, step, piece, n, from, &start, &end);
        if (rc < 0)
            return rc;
        if (rc == 0)
            break;
        if (start < done || end < start) /* some use of \K */
            return match_failed(run, step, piece + from, PCRE2_ERROR_BADOFFSET);
        if (start > done) {
            rc = split_piece(run, step + 1, piece + done, start - done);
            if (rc < 0)
                return rc;
        }
        if (end > start) {
            rc = split_piece(run, step + 1, piece + start, end - start);
            if (rc < 0)
                return rc;
        }
        done = end;
        from = end > start || end == n ? end : end + character_bytes(piece[end]);
    }
    return done < n ? split_piece(run, step + 1, piece + done, n - done) : 0;
}

int sl_split(const struct sl_splitter *splitter, struct sl_split_scratch *scratch,
             const uint8_t *text, size_t n, sl_split_fn *fn, void *context, struct sl_err *err)
{
    const struct run run = {.splitter = splitter,
                            .scratch = scratch,
                            .text = text,
                            .fn = fn,
                            .context = context,
                            .err = err};

    return n > 0 ? split_piece(&run, 0, text, n) : 0;
}
