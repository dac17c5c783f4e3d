/* What of memory and processors a machine and its control groups leave: made-up trees of /proc and
 * /sys under a folder, in both versions of control groups, nested and mounted as systems and
 * containers do it, and damaged in every way that came to mind. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "core/base/cgroup.h"
#include "core/base/process.h"
#include "daemon/engine/memory_room.h"
#include "tests/fixture_checkpoint.h"

#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)

static char root[FIXTURE_PATH_BYTES];

static int make_root(void **state)
{
    (void)state;
    fixture_folder_create(root);
    return 0;
}

static int remove_root(void **state)
{
    char command[FIXTURE_PATH_BYTES + 16];

    (void)state;
    snprintf(command, sizeof(command), "rm -rf '%s'", root);
    return system(command);
}

/* Writes a file below the root, with the folders that lead to it. */
static void put(const char *path, const char *text)
{
    char full[2 * FIXTURE_PATH_BYTES];
    FILE *file;

    snprintf(full, sizeof(full), "%s%s", root, path);
    for (char *slash = full + strlen(root); (slash = strchr(slash + 1, '/'));) {
        *slash = '\0';
        mkdir(full, 0755);
        *slash = '/';
    }
    file = fopen(full, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static struct sl_cgroup_limits limits(void)
{
    struct sl_cgroup_limits found;

    sl_cgroup_read(root, &found);
    return found;
}

static void expect_limit(uint64_t max_bytes, uint64_t left_bytes, const char *file)
{
    const struct sl_cgroup_limits found = limits();
    const size_t skip = found.memory_file[0] ? strlen(root) : 0;

    assert_int_equal(found.memory_max_bytes, max_bytes);
    assert_int_equal(found.memory_left_bytes, left_bytes);
    assert_string_equal(found.memory_file + skip, file);
}

#define V2_MOUNTS                                                                                  \
    "22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"                                     \
    "30 22 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
#define V2 "/sys/fs/cgroup"

static void test_nested_groups_of_version_2(void **state)
{
    (void)state;
    put("/proc/self/cgroup", "0::/user.slice/user-1000.slice/run.scope\n");
    put("/proc/self/mountinfo", V2_MOUNTS);
    expect_limit(UINT64_MAX, UINT64_MAX, "");
    put(V2 "/user.slice/user-1000.slice/run.scope/memory.max", "max\n");
    expect_limit(UINT64_MAX, UINT64_MAX, "");
    put(V2 "/user.slice/memory.max", "1073741824\n");
    expect_limit(GIB, GIB, V2 "/user.slice/memory.max");
    put(V2 "/user.slice/memory.current", "943718400\n"); /* 900 MiB, of which cache 100 + 200 */
    put(V2 "/user.slice/memory.stat",
        "anon 1\nfile 314572800\ninactive_anon 5\nactive_anon 7\n"
        "inactive_file 104857600\nactive_file 209715200\nunevictable 9\n");
    expect_limit(GIB, (1024 - 600) * MIB, V2 "/user.slice/memory.max");
    /* A looser limit below leaves less here. */
    put(V2 "/user.slice/user-1000.slice/memory.max", "2147483648\n");
    put(V2 "/user.slice/user-1000.slice/memory.current", "1992294400\n"); /* 1900 MiB */
    expect_limit(GIB, 148 * MIB, V2 "/user.slice/memory.max");
    put(V2 "/user.slice/user-1000.slice/run.scope/memory.high", "536870912\n");
    put(V2 "/user.slice/user-1000.slice/run.scope/memory.current", "1\n");
    expect_limit(512 * MIB, 148 * MIB, V2 "/user.slice/user-1000.slice/run.scope/memory.high");
    /* What is over the limit already leaves nothing. */
    put(V2 "/user.slice/user-1000.slice/run.scope/memory.current", "536870913\n");
    expect_limit(512 * MIB, 0, V2 "/user.slice/user-1000.slice/run.scope/memory.high");
    put(V2 "/user.slice/user-1000.slice/run.scope/memory.max", "0\n");
    expect_limit(0, 0, V2 "/user.slice/user-1000.slice/run.scope/memory.max");
}

static void test_quotas_of_version_2(void **state)
{
    static const struct {
        const char *text;
        uint32_t cpus;
    } cases[] = {{"max 100000\n", 0},    {"400000 100000\n", 4},   {"399999 100000\n", 3},
                 {"50000 100000\n", 1},  {"1000000 250000\n", 4},  {"", 0},
                 {"100000\n", 0},        {"100000 0\n", 0},        {"-1 100000\n", 0},
                 {"nonsense here\n", 0}, {"200000 100000 junk", 2}};

    (void)state;
    put("/proc/self/cgroup", "0::/a/b\n");
    put("/proc/self/mountinfo", V2_MOUNTS);
    assert_int_equal(limits().cpus, 0);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        put(V2 "/a/b/cpu.max", cases[i].text);
        assert_int_equal(limits().cpus, cases[i].cpus);
    }
    put(V2 "/a/b/cpu.max", "300000 100000\n");
    put(V2 "/a/cpu.max", "250000 100000\n");
    assert_int_equal(limits().cpus, 2);
    put(V2 "/a/b/cpu.max", "100000 100000\n");
    assert_int_equal(limits().cpus, 1);
}

#define V1_MOUNTS                                                                                  \
    "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"                          \
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"                  \
    "34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"                            \
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"                            \
    "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
#define V1_GROUPS "9:cpuset:/c\n4:memory:/slurm/job_7\n2:cpu,cpuacct:/slurm\n1:name=systemd:/s\n"

static void put_version_1(void)
{
    put("/proc/self/cgroup", V1_GROUPS "0::/\n");
    put("/proc/self/mountinfo", V1_MOUNTS);
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    put("/sys/fs/cgroup/memory/slurm/memory.limit_in_bytes", "8589934592\n");
    put("/sys/fs/cgroup/memory/slurm/memory.usage_in_bytes", "1073741824\n");
    put("/sys/fs/cgroup/memory/slurm/job_7/memory.limit_in_bytes", "9223372036854771712\n");
    put("/sys/fs/cgroup/cpu,cpuacct/slurm/cpu.cfs_period_us", "100000\n");
}

static void test_version_1(void **state)
{
    (void)state;
    put_version_1();
    expect_limit(8 * GIB, 7 * GIB, "/sys/fs/cgroup/memory/slurm/memory.limit_in_bytes");
    put("/sys/fs/cgroup/memory/slurm/job_7/memory.limit_in_bytes", "2147483648\n");
    put("/sys/fs/cgroup/memory/slurm/job_7/memory.usage_in_bytes", "1073741824\n");
    put("/sys/fs/cgroup/memory/slurm/job_7/memory.stat",
        "inactive_file 1\ntotal_cache 9\ntotal_inactive_file 1048576\ntotal_active_file 2097152\n");
    expect_limit(2 * GIB, GIB + 3 * MIB, "/sys/fs/cgroup/memory/slurm/job_7/memory.limit_in_bytes");
    assert_int_equal(limits().cpus, 0);
    put("/sys/fs/cgroup/cpu,cpuacct/slurm/cpu.cfs_quota_us", "-1\n");
    assert_int_equal(limits().cpus, 0);
    put("/sys/fs/cgroup/cpu,cpuacct/slurm/cpu.cfs_quota_us", "620000\n");
    assert_int_equal(limits().cpus, 6);
    put("/sys/fs/cgroup/cpu,cpuacct/slurm/cpu.cfs_quota_us", "20000\n");
    assert_int_equal(limits().cpus, 1);
}

/* systemd's hybrid: memory and cpu in version 1, and a version 2 without controllers. */
static void test_hybrid(void **state)
{
    (void)state;
    put_version_1();
    put("/proc/self/cgroup", V1_GROUPS "0::/user.slice/x\n");
    put("/sys/fs/cgroup/unified/user.slice/x/cgroup.procs", "1\n");
    expect_limit(8 * GIB, 7 * GIB, "/sys/fs/cgroup/memory/slurm/memory.limit_in_bytes");
    /* And where version 2 has the memory controller after all, both count. */
    put("/sys/fs/cgroup/unified/user.slice/memory.max", "4294967296\n");
    expect_limit(4 * GIB, 4 * GIB, "/sys/fs/cgroup/unified/user.slice/memory.max");
}

/* Containers: the group is the mount's top, by the system's name for it, by a name of its own, or
 * by one that leads out of what it sees. */
static void test_containers(void **state)
{
    static const struct {
        const char *group, *top;
    } seen[] = {{"/docker/1f", "/docker/1f"}, {"/", "/"},
                {"/docker/1f", "/"},          {"/../..", "/"},
                {"/docker/1f", "/docker"},    {"/x", "/docker/1f"}};
    char text[512];

    (void)state;
    put("/sys/fs/cgroup/memory.max", "3221225472\n");
    put("/memory.max", "1048576\n"); /* beyond the mount's top: nobody's */
    for (size_t i = 0; i < sizeof(seen) / sizeof(seen[0]); i++) {
        snprintf(text, sizeof(text), "0::%s\n", seen[i].group);
        put("/proc/self/cgroup", text);
        snprintf(text, sizeof(text), "30 22 0:26 %s /sys/fs/cgroup ro - cgroup2 cgroup rw\n",
                 seen[i].top);
        put("/proc/self/mountinfo", text);
        expect_limit(3 * GIB, 3 * GIB, V2 "/memory.max");
    }
    /* Several mounts, of which one shows the group; a path with a blank. */
    put("/proc/self/cgroup", "0::/pods/a/b\n");
    put("/proc/self/mountinfo", "30 22 0:26 /other /first rw - cgroup2 cgroup rw\n"
                                "31 22 0:26 /pods/a /the\\040second rw - cgroup2 cgroup rw\n");
    put("/first/memory.max", "1048576\n");
    put("/the second/b/memory.max", "2097152\n");
    expect_limit(2 * MIB, 2 * MIB, "/the second/b/memory.max");
}

static void test_garbage_limits_nothing(void **state)
{
    static const char *const groups[] = {
        "", "\n", ":", "0:", "::::\n", "0::", "no colon\n", "0::/gone\n0::/gone"};
    static const char *const mounts[] = {"",
                                         "\n",
                                         " - \n",
                                         " - cgroup2",
                                         "30 22 - cgroup2 cgroup rw\n",
                                         "30 22 0:26 / /nowhere rw - cgroup2\n",
                                         "- cgroup cgroup rw,memory\n",
                                         "1 2 3 \\ \\9 - cgroup2 c rw\n"};
    static const char *const numbers[] = {"",     "max",
                                          "-1\n", "99999999999999999999999\n",
                                          "x",    "18446744073709551615\n",
                                          " \n",  "9223372036854775807"};

    (void)state;
    expect_limit(UINT64_MAX, UINT64_MAX, ""); /* nothing at all is there */
    for (size_t i = 0; i < sizeof(groups) / sizeof(groups[0]); i++) {
        put("/proc/self/cgroup", groups[i]);
        for (size_t j = 0; j < sizeof(mounts) / sizeof(mounts[0]); j++) {
            put("/proc/self/mountinfo", mounts[j]);
            expect_limit(UINT64_MAX, UINT64_MAX, "");
            assert_int_equal(limits().cpus, 0);
        }
    }
    put("/proc/self/cgroup", "0::/a\n4:memory:/a\n3:cpu:/a\n");
    put("/proc/self/mountinfo", V2_MOUNTS "35 31 0:32 / /v1 rw - cgroup cgroup rw,memory,cpu\n");
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        put(V2 "/a/memory.max", numbers[i]);
        put(V2 "/memory.high", numbers[i]);
        put(V2 "/memory.current", numbers[i]);
        put(V2 "/a/memory.stat", numbers[i]);
        put(V2 "/a/cpu.max", numbers[i]);
        put("/v1/a/memory.limit_in_bytes", numbers[i]);
        put("/v1/a/cpu.cfs_quota_us", numbers[i]);
        put("/v1/a/cpu.cfs_period_us", numbers[i]);
        expect_limit(UINT64_MAX, UINT64_MAX, "");
        assert_int_equal(limits().cpus <= 1, 1);
    }
}

/* ---- what a run may take -----------------------------------------------------------------------
 */

static struct sl_memory_room room_of(uint64_t total_bytes, uint64_t available_bytes,
                                     uint64_t swap_bytes)
{
    struct sl_memory_room room;
    char text[256];

    snprintf(text, sizeof(text),
             "MemTotal:       %llu kB\nMemFree: 1 kB\nMemAvailable:   %llu kB\nSwapFree: %llu kB\n",
             (unsigned long long)(total_bytes >> 10), (unsigned long long)(available_bytes >> 10),
             (unsigned long long)(swap_bytes >> 10));
    put("/proc/meminfo", text);
    sl_memory_room_read(root, &room);
    return room;
}

static void test_machines_keep_a_share(void **state)
{
    static const struct {
        uint64_t total_gib_by_4, left_gib_by_4;
    } cases[] = {{4, 1}, {16, 4}, {32, 8}, {64, 8}, {96, 12}, {256, 32}, {512, 64}, {2048, 64}};

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const uint64_t total = cases[i].total_gib_by_4 * GIB / 4;
        struct sl_memory_room room = room_of(total, total, 0);

        assert_int_equal(room.total_bytes, total);
        assert_int_equal(room.available_bytes, total);
        assert_int_equal(room.default_bytes, total - cases[i].left_gib_by_4 * GIB / 4);
        room = room_of(total, total / 2, 0);
        assert_int_equal(room.default_bytes, total / 2 - cases[i].left_gib_by_4 * GIB / 4);
        assert_int_equal(room.available_bytes, total / 2);
        assert_string_equal(room.limit_file, "");
        assert_int_equal(room_of(total, total / 64, 0).default_bytes, 0);
        assert_int_equal(room_of(total, total / 2, total / 4).available_bytes, total / 4 * 3);
        assert_int_equal(room_of(total, total / 2, total).available_bytes, total);
    }
}

static void test_groups_are_tighter_than_machines(void **state)
{
    struct sl_memory_room room;

    (void)state;
    put("/proc/self/cgroup", "0::/a\n");
    put("/proc/self/mountinfo", V2_MOUNTS);
    put(V2 "/a/memory.max", "17179869184\n"); /* 16 GiB */
    put(V2 "/a/memory.current", "1073741824\n");
    room = room_of(64 * GIB, 60 * GIB, 0);
    assert_int_equal(room.total_bytes, 16 * GIB);
    assert_int_equal(room.available_bytes, 15 * GIB);
    assert_int_equal(room.default_bytes, 14 * GIB);
    assert_non_null(strstr(room.limit_file, "/a/memory.max"));
    room = room_of(64 * GIB, 10 * GIB, 0); /* the machine has less than the group allows */
    assert_int_equal(room.available_bytes, 10 * GIB);
    assert_int_equal(room.default_bytes, 2 * GIB);
    room = room_of(12 * GIB, 12 * GIB, 0); /* and may never have it */
    assert_int_equal(room.total_bytes, 12 * GIB);
    assert_int_equal(room.default_bytes, 10 * GIB);
    assert_string_equal(room.limit_file, "");
}

static void expect_refusal(const struct sl_memory_room *room, uint64_t budget_bytes,
                           uint64_t need_bytes, const char *expected)
{
    struct sl_err err = {0};

    assert_int_equal(sl_memory_room_check(room, budget_bytes, need_bytes, &err), -SL_EBUDGET);
    assert_string_equal(err.message, expected);
}

static void test_what_cannot_be_had_is_refused(void **state)
{
    struct sl_memory_room room = {.total_bytes = 16 * GIB, .available_bytes = 10 * GIB};

    (void)state;
    assert_int_equal(sl_memory_room_check(&room, 16 * GIB, 10 * GIB, NULL), 0);
    expect_refusal(
        &room, 16 * GIB, 11 * GIB,
        "needs 11.0 GiB more memory, but other programs leave only 10.0 GiB of 16.0 GiB now; "
        "give less --ram, or end some of them");
    expect_refusal(&room, 24 * GIB, GIB,
                   "--ram of 24.0 GiB is more than the 16.0 GiB that this machine has; give less");
    strcpy(room.limit_file, "/sys/fs/cgroup/a/memory.max");
    expect_refusal(&room, 24 * GIB, GIB,
                   "--ram of 24.0 GiB is more than the 16.0 GiB that the control group allows "
                   "(/sys/fs/cgroup/a/memory.max); give less, or raise that limit");
}

/* Code counts whole, what lies in shared mappings as far as it is there, and only what no file
 * holds is the process's own. */
static void test_what_a_process_has(void **state)
{
    static const char text[] = "00400000-00600000 r-xp 00000000 fe:01 77    /usr/bin/sluice\n"
                               "Size:               2048 kB\n"
                               "Rss:                 300 kB\n"
                               "Pss:                 100 kB\n"
                               "00700000-00900000 rw-p 00000000 00:00 0     [heap]\n"
                               "Rss:                1000 kB\n"
                               "7f0000000000-7f0040000000 r--s 00000000 fe:01 99  /data/data.mdb\n"
                               "Rss:                  64 kB\n"
                               "7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0   [stack]\n"
                               "Rss:                  16 kB\n";
    FILE *smaps = fmemopen((void *)(uintptr_t)text, strlen(text), "r");
    struct sl_process_memory memory;

    (void)state;
    assert_non_null(smaps);
    memory = sl_smaps_process_memory(smaps);
    fclose(smaps);
    assert_int_equal(memory.bytes, 2 * MIB + (1000 + 64 + 16) * 1024);
    assert_int_equal(memory.own_bytes, (1000 + 16) * 1024);
    memory = sl_process_memory();
    assert_true(memory.own_bytes > 0 && memory.own_bytes < memory.bytes);
}

static void test_this_machine(void **state)
{
    struct sl_memory_room room;

    (void)state;
    sl_memory_room_read("", &room);
    assert_true(room.total_bytes > 0);
    assert_true(room.available_bytes <= room.total_bytes);
    assert_true(room.default_bytes < room.total_bytes);
}

/* ---- memory nodes ------------------------------------------------------------------------------
 */

static void put_node(uint32_t node, uint64_t total, uint64_t free_bytes, uint64_t cache)
{
    char path[64], text[512];

    snprintf(path, sizeof(path), "/sys/devices/system/node/node%u/meminfo", node);
    snprintf(text, sizeof(text),
             "Node %u MemTotal:       %llu kB\nNode %u MemFree:        %llu kB\n"
             "Node %u Active(anon):      77 kB\nNode %u Active(file):    %llu kB\n"
             "Node %u Inactive(file):  %llu kB\nNode %u SReclaimable:       0 kB\n",
             node, (unsigned long long)total >> 10, node, (unsigned long long)free_bytes >> 10,
             node, node, (unsigned long long)cache >> 11, node, (unsigned long long)cache >> 11,
             node);
    put(path, text);
}

static void test_nodes_that_are_allowed(void **state)
{
    const struct sl_memory_room whole = {.total_bytes = 12 * GIB,
                                         .available_bytes = 9 * GIB,
                                         .default_bytes = 7 * GIB,
                                         .limit_file = "/somewhere/memory.max"};
    struct sl_memory_room room = whole;
    struct sl_node_mask allowed = {0};
    struct sl_err err;

    (void)state;
    /* Neither a machine that does not tell, nor one whose nodes are all allowed, is narrowed. */
    sl_node_mask_add(&allowed, 0);
    sl_memory_room_keep_to(root, &allowed, &room);
    assert_memory_equal(&room, &whole, sizeof(room));
    put_node(0, 4 * GIB, GIB, 2 * GIB);
    sl_memory_room_keep_to(root, &allowed, &room);
    assert_memory_equal(&room, &whole, sizeof(room));
    put_node(3, 8 * GIB, 5 * GIB, GIB);
    sl_node_mask_add(&allowed, 3);
    assert_int_equal(sl_node_mask_count(&allowed), 2);
    sl_memory_room_keep_to(root, &allowed, &room);
    assert_memory_equal(&room, &whole, sizeof(room));
    /* Node 0 is not. A quarter of node 3 is left to others. */
    allowed = (struct sl_node_mask){0};
    sl_node_mask_add(&allowed, 3);
    sl_memory_room_keep_to(root, &allowed, &room);
    assert_int_equal(room.total_bytes, 8 * GIB);
    assert_int_equal(room.available_bytes, 6 * GIB);
    assert_int_equal(room.default_bytes, 4 * GIB);
    assert_true(room.bound_to_nodes);
    assert_int_equal(sl_memory_room_check(&room, 8 * GIB, 6 * GIB, &err), 0);
    assert_int_equal(sl_memory_room_check(&room, 8 * GIB + 1, GIB, &err), -SL_EBUDGET);
    assert_non_null(strstr(err.message, "nodes that this process is bound to"));
    /* A control group that allows less is still the limit. */
    room = whole;
    room.total_bytes = 2 * GIB;
    sl_memory_room_keep_to(root, &allowed, &room);
    assert_int_equal(room.total_bytes, 2 * GIB);
    assert_false(room.bound_to_nodes);
    assert_string_equal(room.limit_file, whole.limit_file);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, make_root, remove_root)
    const struct CMUnitTest tests[] = {
        TEST(test_nested_groups_of_version_2),
        TEST(test_quotas_of_version_2),
        TEST(test_version_1),
        TEST(test_hybrid),
        TEST(test_containers),
        TEST(test_garbage_limits_nothing),
        TEST(test_machines_keep_a_share),
        TEST(test_groups_are_tighter_than_machines),
        TEST(test_what_cannot_be_had_is_refused),
        TEST(test_nodes_that_are_allowed),
        cmocka_unit_test(test_what_a_process_has),
        cmocka_unit_test(test_this_machine),
    };

    return cmocka_run_group_tests_name("memory_room", tests, NULL, NULL);
}
