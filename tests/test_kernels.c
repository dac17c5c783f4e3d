/* Kernels: every instruction set gives the reference's bytes. Each entry of the table that differs
 * from the reference's is run on all shapes, tails and kinds of input of kernel_cases.c, with
 * inputs and outputs next to guard pages and the space around outputs watched.
 *
 *   --hash      a hash of the reference's outputs instead, to compare builds with each other
 *   --calls N ISA NAME SIZE...
 *               N calls of an entry on one case, to count what one more takes
 *   SL_SEED=n   other inputs
 *   SL_SLOW=1   fewer: for valgrind and qemu */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/base/cpu.h"
#include "core/kernels/dispatch.h"
#include "core/kernels/isa.h"
#include "tests/kernel_cases.h"

/* Instruction sets, and what an older processor with the same set has not: entries that it has of
 * its own are tried too. */
static const struct variant {
    const char *name, *isa;
    uint32_t without; /* SL_CPU_ flags; 0: the set as this processor has it */
} variants[] = {
    {"avx2", "avx2", 0},
    {"avx512", "avx512", 0},
    {"avx512 without VBMI", "avx512", SL_CPU_AVX512_VBMI},
    {"avx512 without VNNI", "avx512", SL_CPU_AVX512_VBMI | SL_CPU_AVX512_BF16 | SL_CPU_AVX512_VNNI},
    {"amx", "amx", 0},
    {"neon", "neon", 0},
};
#define N_VARIANTS (sizeof(variants) / sizeof(variants[0]))
#define KERNELS_MAX 32u

/* ---- one answer --------------------------------------------------------------------------------
 */

struct check {
    const struct variant *variant;
    const struct kernel_spec *spec;
    struct kernel_case c;
    struct sl_kernels ref, other;
    bool is_running; /* inside a kernel: what a crash leaves behind */
    uint8_t *expected[CASE_OUTPUTS];
    char failure[256];
};

static void describe(const struct kernel_spec *spec, const struct kernel_case *c, const char *isa)
{
    fprintf(stderr, "%s %s:", isa, spec->name);
    for (size_t d = 0; d < CASE_DIMS && spec->dims[d]; d++)
        fprintf(stderr, " %s %zu,", spec->dim_names[d], c->dims[d]);
    fprintf(stderr, " strides +%zu, inputs %s, guard page %s, SL_SEED=%" PRIu64 "\n", c->pad,
            input_kind_name(c->kind), c->side == GUARD_AFTER ? "after" : "before", inputs_seed());
}

static bool outputs_are_intact(const struct kernel_case *c)
{
    for (size_t i = 0; i < c->n_outputs; i++) {
        const struct case_output *out = &c->outputs[i];

        if (!guarded_is_intact(&out->where, out->n_rows, out->row_bytes, out->stride_bytes))
            return false;
    }
    return true;
}

static bool run_case(struct check *check, const struct sl_kernels *kernels)
{
    case_reset_outputs(&check->c);
    check->is_running = true;
    check->spec->call(&check->c, kernels);
    check->is_running = false;
    if (outputs_are_intact(&check->c))
        return true;
    snprintf(check->failure, sizeof(check->failure), "%s writes outside its output", kernels->isa);
    return false;
}

static bool outputs_agree(struct check *check)
{
    for (size_t i = 0; i < check->c.n_outputs; i++) {
        const struct case_output *out = &check->c.outputs[i];
        const uint8_t *expected = check->expected[i], *found = out->where.data;
        size_t at = 0;

        if (memcmp(expected, found, out->where.size_bytes) == 0)
            continue;
        while (expected[at] == found[at])
            at++;
        snprintf(check->failure, sizeof(check->failure),
                 "output %zu differs first in row %zu, byte %zu: reference %02x, %s %02x", i,
                 at / out->stride_bytes, at % out->stride_bytes, expected[at], check->variant->name,
                 found[at]);
        return false;
    }
    return true;
}

static bool compare_case(const struct kernel_spec *spec, struct kernel_case *c, void *context)
{
    struct check *check = context;

    if (!run_case(check, &check->ref))
        goto failed;
    for (size_t i = 0; i < c->n_outputs; i++) {
        const struct guarded *where = &c->outputs[i].where;

        check->expected[i] = realloc(check->expected[i], where->size_bytes);
        assert_non_null(check->expected[i]);
        memcpy(check->expected[i], where->data, where->size_bytes);
    }
    if (run_case(check, &check->other) && outputs_agree(check))
        return true;
failed:
    describe(spec, c, check->variant->name);
    return false;
}

static bool same_entry(const struct kernel_spec *spec, const struct sl_kernels *one,
                       const struct sl_kernels *other)
{
    return memcmp((const char *)one + spec->entry, (const char *)other + spec->entry,
                  sizeof(void (*)(void))) == 0;
}

/* Makes the variant's table. Returns whether this processor can run it. */
static bool select_variant(const struct variant *variant, struct sl_kernels *kernels)
{
    if (sl_kernels_select(kernels, variant->isa, NULL) < 0)
        return false;
#if defined(__x86_64__)
    if (variant->without) {
        sl_install_linear_avx512(kernels);
        sl_install_activation_avx512(kernels);
        sl_install_attention_avx512(kernels);
        sl_install_avx512(kernels, sl_cpu_flags() & ~variant->without);
    }
#endif
    return true;
}

static void test_entry(void **state)
{
    struct check *check = *state;
    uint64_t float_mode;

    assert_int_equal(sl_kernels_select(&check->ref, "ref", NULL), 0);
    if (!select_variant(check->variant, &check->other))
        skip();
    if (same_entry(check->spec, &check->other, &check->ref)) {
        print_message("%s %s: is the reference's\n", check->variant->name, check->spec->name);
        skip();
    }
    case_open(&check->c);
    float_mode = sl_cpu_flush_subnormals();
    case_for_each(check->spec, &check->c, &check->ref, inputs_seed(), compare_case, check);
    sl_cpu_restore_float_mode(float_mode);
    if (check->failure[0])
        fail_msg("%s", check->failure);
}

static int end_entry(void **state)
{
    struct check *check = *state;

    if (check->is_running)
        describe(check->spec, &check->c, check->variant->name);
    case_close(&check->c);
    for (size_t i = 0; i < CASE_OUTPUTS; i++)
        free(check->expected[i]);
    return 0;
}

/* ---- a hash of the reference -------------------------------------------------------------------
 */

struct hash {
    struct sl_kernels ref;
    uint64_t value;
};

static bool hash_case(const struct kernel_spec *spec, struct kernel_case *c, void *context)
{
    struct hash *hash = context;

    case_reset_outputs(c);
    spec->call(c, &hash->ref);
    for (size_t i = 0; i < c->n_outputs; i++)
        for (size_t at = 0; at < c->outputs[i].where.size_bytes; at++)
            hash->value = (hash->value ^ c->outputs[i].where.data[at]) * UINT64_C(0x100000001b3);
    return true;
}

static int print_hashes(void)
{
    struct hash hash;
    struct kernel_case c;
    uint64_t float_mode = sl_cpu_flush_subnormals();

    sl_kernels_select(&hash.ref, "ref", NULL);
    case_open(&c);
    for (size_t i = 0; i < kernel_specs_count; i++) {
        hash.value = UINT64_C(0xcbf29ce484222325);
        case_for_each(&kernel_specs[i], &c, &hash.ref, inputs_seed(), hash_case, &hash);
        printf("%016" PRIx64 " %s\n", hash.value, kernel_specs[i].name);
    }
    case_close(&c);
    sl_cpu_restore_float_mode(float_mode);
    return 0;
}

/* ---- calls to be counted -----------------------------------------------------------------------
 */

struct calls {
    struct sl_kernels kernels;
    long n;
};

static bool call_often(const struct kernel_spec *spec, struct kernel_case *c, void *context)
{
    const struct calls *calls = context;

    case_reset_outputs(c);
    for (long i = 0; i < calls->n; i++)
        spec->call(c, &calls->kernels);
    return false;
}

/* The arguments are those behind --calls. */
static int make_calls(int argc, char **argv)
{
    size_t sizes[CASE_DIMS][2] = {{0}};
    struct sl_kernels ref;
    struct calls calls;
    struct kernel_case c;

    if (argc < 4 || sl_kernels_select(&calls.kernels, argv[1], NULL) < 0)
        return 2;
    calls.n = atol(argv[0]);
    sl_kernels_select(&ref, "ref", NULL);
    case_open(&c);
    for (size_t i = 0; i < kernel_specs_count; i++) {
        struct kernel_spec spec = kernel_specs[i];

        if (strcmp(spec.name, argv[2]) != 0)
            continue;
        for (int d = 0; d < argc - 3 && d < (int)CASE_DIMS; d++) {
            sizes[d][0] = (size_t)atol(argv[3 + d]);
            spec.dims[d] = sizes[d];
        }
        case_for_each(&spec, &c, &ref, inputs_seed(), call_often, &calls);
    }
    case_close(&c);
    return 0;
}

/* Returns whether the variant has an entry that its set does not have. */
static bool has_its_own(const struct variant *variant, const struct kernel_spec *spec)
{
    struct sl_kernels set, kernels;

    return select_variant(variant, &kernels) && sl_kernels_select(&set, variant->isa, NULL) == 0 &&
           !same_entry(spec, &kernels, &set);
}

int main(int argc, char **argv)
{
    static struct check checks[N_VARIANTS * KERNELS_MAX];
    static struct CMUnitTest tests[N_VARIANTS * KERNELS_MAX];
    static char names[N_VARIANTS * KERNELS_MAX][48];
    size_t n = 0;

    if (argc > 1 && strcmp(argv[1], "--hash") == 0)
        return print_hashes();
    if (argc > 1 && strcmp(argv[1], "--calls") == 0)
        return make_calls(argc - 2, argv + 2);
    printf("# SL_SEED=%" PRIu64 "\n", inputs_seed());
    for (size_t v = 0; v < N_VARIANTS; v++) {
        const struct variant *variant = &variants[v];
        struct sl_kernels kernels;

        if (!select_variant(variant, &kernels))
            printf("# SKIP %s: this machine does not have it\n", variant->name);
        for (size_t i = 0; i < kernel_specs_count; i++) {
            if (variant->without && !has_its_own(variant, &kernel_specs[i]))
                continue;
            snprintf(names[n], sizeof(names[n]), "%s %s", variant->name, kernel_specs[i].name);
            checks[n].variant = variant;
            checks[n].spec = &kernel_specs[i];
            tests[n] = (struct CMUnitTest){names[n], test_entry, NULL, end_entry, &checks[n]};
            n++;
        }
    }
    return _cmocka_run_group_tests("kernels", tests, n, NULL, NULL);
}
