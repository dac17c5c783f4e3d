/* Which thread runs where, and whose memory is whose: physical cores first, node by node, inside
 * the processors that are allowed. Machines are made up as descriptions; a pool is then tied to
 * this machine's processors and let go, and made to touch fresh memory between guard pages. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/base/arena.h"
#include "core/base/pool.h"
#include "core/base/topology.h"

/* n_nodes nodes of n_cores cores, processor numbers as servers have them: first one of each core,
 * node by node, and then the siblings in the same order. */
static struct sl_topology *machine(uint32_t n_nodes, uint32_t n_cores, uint32_t n_siblings)
{
    struct sl_topology *t = calloc(1, sizeof(*t));

    assert_non_null(t);
    for (uint32_t sibling = 0; sibling < n_siblings; sibling++)
        for (uint32_t core = 0; core < n_nodes * n_cores; core++)
            t->cpus[t->n_cpus++] =
                (struct sl_cpu){sibling * n_nodes * n_cores + core, core, core / n_cores};
    return t;
}

/* The processors of n threads are `expected`, as sl_affinity_print() shows them. */
static void expect(const struct sl_topology *t, uint32_t n_threads, const char *expected)
{
    struct sl_affinity affinity;
    char text[256] = "";
    FILE *out = fmemopen(text, sizeof(text), "w");

    assert_non_null(out);
    sl_affinity_choose(&affinity, t, n_threads);
    sl_affinity_print(&affinity, out);
    fclose(out);
    assert_string_equal(text, expected);
}

static void test_cores_before_siblings(void **state)
{
    struct sl_topology *t = machine(1, 4, 2);

    (void)state;
    expect(t, 0, "4 threads: node 0, CPUs 0-3");
    expect(t, 2, "2 threads: node 0, CPUs 0-1");
    expect(t, 5, "5 threads: node 0, CPUs 0-4");
    expect(t, 8, "8 threads: node 0, CPUs 0-7");
    expect(t, 9, "9 threads, not pinned");
    expect(t, 1, "1 thread, not pinned");
    free(t);
}

static void test_node_by_node(void **state)
{
    struct sl_topology *t = machine(2, 4, 2);
    struct sl_affinity affinity;

    (void)state;
    expect(t, 0, "8 threads: node 0, CPUs 0-3; node 1, CPUs 4-7");
    expect(t, 3, "3 threads: node 0, CPUs 0-2");
    expect(t, 5, "5 threads: node 0, CPUs 0-3; node 1, CPU 4");
    expect(t, 10, "10 threads: node 0, CPUs 0-3,8-9; node 1, CPUs 4-7");
    expect(t, 16, "16 threads: node 0, CPUs 0-3,8-11; node 1, CPUs 4-7,12-15");
    /* Siblings are neighbours, so that they share what they read. */
    sl_affinity_choose(&affinity, t, 10);
    assert_int_equal(affinity.cpus[0].cpu_index, 0);
    assert_int_equal(affinity.cpus[1].cpu_index, 8);
    assert_int_equal(affinity.cpus[2].cpu_index, 1);
    free(t);
}

/* Numbers as desktops have them: siblings side by side, nodes interleaved. */
static void test_any_numbering(void **state)
{
    struct sl_topology *t = calloc(1, sizeof(*t));

    (void)state;
    assert_non_null(t);
    for (uint32_t i = 0; i < 8; i++)
        t->cpus[t->n_cpus++] = (struct sl_cpu){i, i / 2 * 2, i / 2 % 2};
    expect(t, 0, "4 threads: node 0, CPUs 0,4; node 1, CPUs 2,6");
    expect(t, 6, "6 threads: node 0, CPUs 0-1,4-5; node 1, CPUs 2,6");
    free(t);
}

/* What an affinity mask leaves out is not there: here the first sibling of two of three cores. */
static void test_masks_are_respected(void **state)
{
    struct sl_topology t = {.n_cpus = 4, .cpus = {{2, 2, 0}, {8, 0, 0}, {9, 1, 0}, {10, 2, 0}}};

    (void)state;
    expect(&t, 0, "3 threads: node 0, CPUs 2,8-9");
    expect(&t, 4, "4 threads: node 0, CPUs 2,8-10");
    t.n_cpus = 1;
    expect(&t, 0, "1 thread, not pinned");
}

/* A quota of control groups bounds the default, and nothing that was asked for. */
static void test_quotas_are_respected(void **state)
{
    struct sl_topology *t = machine(2, 4, 2);

    (void)state;
    t->quota_cpus = 1;
    expect(t, 0, "1 thread, not pinned");
    expect(t, 5, "5 threads: node 0, CPUs 0-3; node 1, CPU 4");
    t->quota_cpus = 5;
    expect(t, 0, "5 threads: node 0, CPUs 0-3; node 1, CPU 4");
    t->quota_cpus = 9;
    expect(t, 0, "8 threads: node 0, CPUs 0-3; node 1, CPUs 4-7");
    free(t);
}

static void test_as_many_as_a_pool_takes(void **state)
{
    struct sl_topology *t = machine(4, 128, 2);
    struct sl_affinity affinity;

    (void)state;
    assert_int_equal(t->n_cpus, SL_TOPOLOGY_CPUS_MAX);
    sl_affinity_choose(&affinity, t, 0);
    assert_int_equal(affinity.n_threads, SL_POOL_THREADS_MAX);
    assert_true(affinity.pinned);
    assert_int_equal(affinity.cpus[SL_POOL_THREADS_MAX - 1].cpu_index, SL_POOL_THREADS_MAX - 1);
    free(t);
}

/* ---- large machines ----------------------------------------------------------------------------
 * Instead of the C library's, this answers as a system does that can have more processors than a
 * cpu_set_t: it refuses smaller masks. */

static uint32_t made_up_cpus; /* 0: the system answers */

int sched_getaffinity(pid_t pid, size_t size_bytes, cpu_set_t *mask)
{
    memset(mask, 0, size_bytes);
    if (made_up_cpus == 0)
        return (int)syscall(SYS_sched_getaffinity, pid, size_bytes, mask) < 0 ? -1 : 0;
    if (size_bytes * 8 < 4096) {
        errno = EINVAL;
        return -1;
    }
    for (uint32_t i = 0; i < made_up_cpus; i++)
        CPU_SET_S(4095 - i, size_bytes, mask);
    return 0;
}

static void test_more_processors_than_a_set_holds(void **state)
{
    static struct sl_topology topology;

    (void)state;
    made_up_cpus = 3;
    sl_topology_read(&topology);
    topology.quota_cpus = 0;
    expect(&topology, 0, "3 threads: node 0, CPUs 4093-4095");
    made_up_cpus = SL_TOPOLOGY_CPUS_MAX + 5;
    sl_topology_read(&topology);
    assert_int_equal(topology.n_cpus, SL_TOPOLOGY_CPUS_MAX);
    assert_int_equal(topology.cpus[0].cpu_index, 4096 - made_up_cpus);
    made_up_cpus = 0;
}

/* ---- this machine ------------------------------------------------------------------------------
 */

static void test_this_machine(void **state)
{
    static struct sl_topology topology;
    cpu_set_t allowed;

    (void)state;
    assert_int_equal(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
    sl_topology_read(&topology);
    assert_int_equal(topology.n_cpus, CPU_COUNT(&allowed));
    for (uint32_t i = 0; i < topology.n_cpus; i++) {
        assert_true(CPU_ISSET(topology.cpus[i].cpu_index, &allowed));
        assert_true(topology.cpus[i].core_index <= topology.cpus[i].cpu_index);
    }
}

struct look {
    uint32_t n_threads;
    atomic_uint n_begun;
    uint8_t right[SL_POOL_THREADS_MAX];
};

/* Ends when all threads have begun, so that none takes over another's item. */
static void look_around(void *context, size_t first, size_t end, uint32_t thread_index)
{
    struct look *look = context;
    cpu_set_t set;

    (void)end;
    atomic_fetch_add(&look->n_begun, 1);
    while (atomic_load(&look->n_begun) < look->n_threads)
        sched_yield();
    look->right[thread_index] = first == thread_index &&
                                sched_getaffinity(0, sizeof(set), &set) == 0 &&
                                CPU_COUNT(&set) == 1;
}

static void test_threads_are_tied_and_let_go(void **state)
{
    static struct sl_topology topology;
    static struct sl_affinity affinity;
    struct look look = {0};
    cpu_set_t before, within, after;
    struct sl_pool *pool;

    (void)state;
    sl_topology_read(&topology);
    sl_affinity_choose(&affinity, &topology, topology.n_cpus);
    if (!affinity.pinned)
        skip();
    assert_int_equal(sched_getaffinity(0, sizeof(before), &before), 0);
    assert_int_equal(sl_pool_create(&pool, affinity.n_threads, NULL), 0);
    sl_pool_pin(pool, &affinity);
    assert_int_equal(sched_getaffinity(0, sizeof(within), &within), 0);
    assert_int_equal(CPU_COUNT(&within), 1);
    assert_true(CPU_ISSET(affinity.cpus[0].cpu_index, &within));
    look.n_threads = affinity.n_threads;
    sl_pool_run(pool, 0, affinity.n_threads, 1, look_around, &look);
    for (uint32_t i = 0; i < affinity.n_threads; i++)
        assert_true(look.right[i]);
    sl_pool_destroy(pool);
    assert_int_equal(sched_getaffinity(0, sizeof(after), &after), 0);
    assert_true(CPU_EQUAL(&before, &after));
}

/* ---- memory ------------------------------------------------------------------------------------
 */

#define PAGE UINT64_C(4096)
#define PAGES 40u

/* Copies that end where a page begins that may not be touched, and all pages of theirs touched. */
static void place(struct sl_pool *pool, size_t n_items, size_t item_bytes, size_t n_copies,
                  size_t stride_bytes)
{
    size_t size = (n_copies - 1) * stride_bytes + n_items * item_bytes;
    size_t n_pages = (size + PAGE - 1) / PAGE;
    unsigned char resident[PAGES];
    uint8_t *room =
        mmap(NULL, (PAGES + 1) * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    assert_true(room != MAP_FAILED);
    assert_int_equal(madvise(room, (PAGES + 1) * PAGE, MADV_NOHUGEPAGE), 0);
    assert_int_equal(mprotect(room + n_pages * PAGE, PAGE, PROT_NONE), 0);
    sl_pool_first_touch(pool, room, n_items, item_bytes, n_copies, stride_bytes);
    assert_int_equal(mincore(room, n_pages * PAGE, resident), 0);
    for (size_t copy = 0; copy < n_copies; copy++) {
        size_t first = copy * stride_bytes, last = first + n_items * item_bytes - 1;

        for (size_t page = first / PAGE; page <= last / PAGE; page++)
            assert_true(resident[page] & 1);
    }
    /* What lies between the copies is not anybody's. */
    if (n_copies > 1 && stride_bytes > n_items * item_bytes + PAGE)
        assert_false(resident[stride_bytes / PAGE - 1] & 1);
    munmap(room, (PAGES + 1) * PAGE);
}

static void test_places_all_of_it_and_no_more(void **state)
{
    (void)state;
    for (uint32_t n_threads = 1; n_threads <= 5; n_threads += 2) {
        struct sl_pool *pool;

        assert_int_equal(sl_pool_create(&pool, n_threads, NULL), 0);
        place(pool, 1, PAGES * PAGE, 1, 0);
        place(pool, PAGES, PAGE, 1, 0);
        place(pool, 7, 1000, 1, 0);
        place(pool, 3, 13 * PAGE + 5, 1, 0);
        place(pool, 2, 3 * PAGE + 5, 4, 10 * PAGE);
        place(pool, 100, 80, 5, 8000);
        sl_pool_destroy(pool);
    }
}

/* Pages that were touched count, and are where they should be, or elsewhere. */
static void test_looks_where_pages_lie(void **state)
{
    static struct sl_topology topology;
    static struct sl_affinity affinity;
    struct sl_placement placement = {0};
    struct sl_node_mask allowed, nodes;
    struct sl_pool *pool;
    uint8_t *room =
        mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    (void)state;
    assert_true(room != MAP_FAILED);
    sl_nodes_allowed(&allowed);
    if (sl_node_mask_count(&allowed) != 1)
        skip(); /* make check-numa is for machines of several */
    sl_topology_read(&topology);
    sl_affinity_choose(&affinity, &topology, 2);
    assert_int_equal(sl_pool_create(&pool, 2, NULL), 0);
    sl_pool_look(pool, room, PAGES, PAGE, PAGE, &placement);
    assert_int_equal(placement.n_pages, 0); /* the threads may be anywhere */
    if (!affinity.pinned)
        skip();
    sl_pool_pin(pool, &affinity);
    sl_pool_look(pool, room, PAGES, PAGE, PAGE, &placement);
    assert_int_equal(placement.n_pages, 0); /* untouched */
    sl_pool_first_touch(pool, room, PAGES / 2, PAGE, 1, 0);
    sl_pool_look(pool, room, PAGES, PAGE, PAGE, &placement);
    assert_int_equal(placement.n_pages, PAGES / 2);
    assert_int_equal(placement.n_elsewhere, 0);
    /* A page more or less at the ends is no whole frame. */
    sl_placement_add(&placement, room + 1, 4 * PAGE, PAGE, affinity.cpus[0].node_index + 1);
    assert_int_equal(placement.n_pages, PAGES / 2 + 3);
    assert_int_equal(placement.n_elsewhere, 3);
    nodes = sl_pool_nodes(pool);
    assert_int_equal(sl_node_mask_count(&nodes), 1);
    assert_int_equal(sl_pool_threads_on_node(pool, affinity.cpus[0].node_index), 2);
    sl_pool_destroy(pool);
    munmap(room, PAGES * PAGE);
}

static uint64_t huge(const char *text, uint64_t first, uint64_t end)
{
    FILE *smaps = fmemopen((void *)(uintptr_t)text, strlen(text), "r");
    uint64_t bytes;

    assert_non_null(smaps);
    bytes = sl_smaps_pages(smaps, first, end).huge_bytes;
    fclose(smaps);
    return bytes;
}

static void test_huge_pages_are_added_up(void **state)
{
    static const char text[] = "7f0000000000-7f0000800000 rw-p 00000000 00:00 0 \n"
                               "Size:               8192 kB\n"
                               "AnonHugePages:      4096 kB\n"
                               "FilePmdMapped:         0 kB\n"
                               "7f0000800000-7f0000a00000 rw-p 00000000 00:00 0  [anon: name]\n"
                               "AnonHugePages:      2048 kB\n"
                               "VmFlags: rd wr mr mw me ac lo sd\n";
    const uint64_t base = 0x7f0000000000, mib = UINT64_C(1) << 20;

    (void)state;
    assert_int_equal(huge(text, base, base + 8 * mib), 4 * mib);
    assert_int_equal(huge(text, base, base + 10 * mib), 6 * mib);
    assert_int_equal(huge(text, base + 8 * mib, base + 10 * mib), 2 * mib);
    assert_int_equal(huge(text, base + 2 * mib, base + 4 * mib), mib); /* its share */
    assert_int_equal(huge(text, base + 4 * mib, base + 9 * mib), 3 * mib);
    assert_int_equal(huge(text, base + 10 * mib, base + 20 * mib), 0);
    assert_int_equal(huge("nothing of the kind\n", 0, UINT64_MAX), 0);
}

static void test_arenas_know_their_huge_pages(void **state)
{
    struct sl_arena arena;

    (void)state;
    /* What is reserved takes nothing before it is used, locked or not. */
    assert_int_equal(sl_arena_reserve(&arena, UINT64_C(8) << 20, "test", NULL), 0);
    assert_int_equal(sl_arena_pages(&arena).resident_bytes, 0);
    arena.base[5 << 20] = 1;
    assert_in_range(sl_arena_pages(&arena).resident_bytes, 4096, UINT64_C(2) << 20);
    sl_arena_give_back(&arena, arena.base + (4 << 20), UINT64_C(2) << 20, true);
    assert_int_equal(sl_arena_pages(&arena).resident_bytes, 0);
    sl_arena_give_back(&arena, arena.base + (4 << 20), UINT64_C(2) << 20, false);
    memset(arena.base + (4 << 20), 1, 2 << 20);
    assert_int_equal(sl_arena_pages(&arena).resident_bytes, UINT64_C(2) << 20);
    assert_int_equal(sl_arena_pages(&arena).huge_bytes, 0);
    sl_arena_fini(&arena);
    assert_int_equal(sl_arena_init(&arena, UINT64_C(8) << 20, "test", NULL), 0);
    assert_int_equal(sl_arena_pages(&arena).resident_bytes, UINT64_C(8) << 20);
    assert_in_range(sl_arena_pages(&arena).huge_bytes, 0, UINT64_C(8) << 20);
    sl_arena_fini(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cores_before_siblings),
        cmocka_unit_test(test_node_by_node),
        cmocka_unit_test(test_any_numbering),
        cmocka_unit_test(test_masks_are_respected),
        cmocka_unit_test(test_quotas_are_respected),
        cmocka_unit_test(test_as_many_as_a_pool_takes),
        cmocka_unit_test(test_more_processors_than_a_set_holds),
        cmocka_unit_test(test_this_machine),
        cmocka_unit_test(test_threads_are_tied_and_let_go),
        cmocka_unit_test(test_places_all_of_it_and_no_more),
        cmocka_unit_test(test_looks_where_pages_lie),
        cmocka_unit_test(test_huge_pages_are_added_up),
        cmocka_unit_test(test_arenas_know_their_huge_pages),
    };

    return cmocka_run_group_tests_name("topology", tests, NULL, NULL);
}
