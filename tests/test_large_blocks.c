/* Drives that want larger blocks of direct I/O than ours. Here every drive has sectors of 16 KiB:
 * direct reads and writes that are not multiples of these fail, as on such a drive, whether the
 * system tells of it (statx) or not. A store is packed and read all the same. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/base/file.h"
#include "storage/io/file_writer.h"
#include "storage/io/io.h"
#include "tests/store_rig.h"

#ifdef STATX_DIOALIGN

#define BLOCK_BYTES 4096u

static uint32_t sector_bytes = 16384; /* of all drives */
static bool system_tells;
static uint32_t n_refused; /* direct reads and writes that were not aligned */

int statx(int folder_fd, const char *restrict path, int flags, unsigned int mask,
          struct statx *restrict status)
{
    int rc = (int)syscall(SYS_statx, folder_fd, path, flags, mask, status);

    if (rc == 0 && !system_tells) {
        status->stx_mask &= ~STATX_DIOALIGN;
    } else if (rc == 0) {
        status->stx_mask |= STATX_DIOALIGN;
        status->stx_dio_mem_align = 512;
        status->stx_dio_offset_align = sector_bytes;
    }
    return rc;
}

static bool is_refused(int fd, size_t size_bytes, off_t offset_bytes)
{
    int flags = fcntl(fd, F_GETFL);

    if (!(flags & O_DIRECT) ||
        (size_bytes % sector_bytes == 0 && (uint64_t)offset_bytes % sector_bytes == 0))
        return false;
    n_refused++;
    errno = EINVAL;
    return true;
}

ssize_t pread(int fd, void *dst, size_t size_bytes, off_t offset_bytes)
{
    return is_refused(fd, size_bytes, offset_bytes)
               ? -1
               : syscall(SYS_pread64, fd, dst, size_bytes, offset_bytes);
}

ssize_t pwrite(int fd, const void *data, size_t size_bytes, off_t offset_bytes)
{
    return is_refused(fd, size_bytes, offset_bytes)
               ? -1
               : syscall(SYS_pwrite64, fd, data, size_bytes, offset_bytes);
}

/* Packs and verifies with both back ends; all bytes are right. Returns whether reads were direct.
 */
static bool pack_and_read(const struct store_fixture *f)
{
    sl_io_open_fn *const backends[] = {sl_io_choose(NULL), sl_io_threads_open};
    struct store_rig_damage found = {0};
    char path[FIXTURE_PATH_BYTES + 16];
    const char *paths[] = {path};
    bool direct = true;

    n_refused = 0;
    store_rig_remove(f->other);
    store_rig_pack(&f->rig, f->other);
    store_rig_assert_same(f->other, f->rig.store_folder);
    store_rig_verify(f->other, &found);
    assert_int_equal(found.n_items, 0);
    snprintf(path, sizeof(path), "%s/experts-1.bin", f->other);
    for (uint32_t i = 0; i < 2; i++) {
        struct sl_io *io;

        assert_int_equal(backends[i](&io, paths, 1, 4, NULL), 0);
        direct = direct && io->direct;
        assert_int_equal(!!(fcntl(io->files[0].fd, F_GETFL) & O_DIRECT), io->direct);
        io->ops->close(io);
    }
    return direct;
}

/* Everything goes through the page cache, and is not even tried directly. */
static void test_the_system_tells(void **state)
{
    system_tells = true;
    assert_false(pack_and_read(*state));
    assert_int_equal(n_refused, 0);
}

/* One refusal, then through the page cache. */
static void test_the_system_does_not_tell(void **state)
{
    system_tells = false;
    assert_false(pack_and_read(*state));
    assert_true(n_refused > 0);
}

/* Blocks as small as ours, or smaller, are read and written directly. */
static void test_small_blocks(void **state)
{
    struct store_fixture *f = *state;
    int fd = open(f->rig.root, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    bool possible = fd >= 0 && fcntl(fd, F_SETFL, O_DIRECT) == 0;

    close(fd);
    for (sector_bytes = 512; possible && sector_bytes <= BLOCK_BYTES; sector_bytes *= 2) {
        system_tells = sector_bytes < BLOCK_BYTES;
        assert_true(pack_and_read(f));
        assert_int_equal(n_refused, 0);
    }
    sector_bytes = 16384;
    if (!possible)
        skip(); /* the temporary folder has no direct I/O */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_the_system_tells, store_fixture_create,
                                        store_fixture_destroy),
        cmocka_unit_test_setup_teardown(test_the_system_does_not_tell, store_fixture_create,
                                        store_fixture_destroy),
        cmocka_unit_test_setup_teardown(test_small_blocks, store_fixture_create,
                                        store_fixture_destroy),
    };

    return cmocka_run_group_tests_name("large_blocks", tests, NULL, NULL);
}

#else

int main(void)
{
    return 77; /* headers older than Linux 6.1 */
}

#endif
