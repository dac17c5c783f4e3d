#include "storage/store/store_layout.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "core/base/assert.h"
#include "core/base/size.h"

#define CATALOG_BYTES (UINT64_C(16) << 20) /* more than Pro's takes */

static int set_path(struct sl_store_layout *layout, uint32_t i, const char *path,
                    struct sl_err *err)
{
    layout->paths[i] = strdup(path);
    return layout->paths[i] ? 0 : sl_err_set(err, -ENOMEM, "%s: out of memory", path);
}

/* Gives one block to each part and the rest by weight. Shares are rounded so that their sum is the
 * record's size. */
static void cut_record(struct sl_store_layout *layout, uint64_t record_bytes,
                       const uint64_t *weights)
{
    uint32_t n_parts = layout->n_files - 1;
    uint64_t n_blocks = record_bytes / SL_BLOCK_BYTES - n_parts, before = 0, total = 0;

    for (uint32_t i = 0; i < n_parts; i++)
        total += weights[i];
    sl_assert(total > 0);
    for (uint32_t i = 0; i < n_parts; i++) {
        uint64_t first = n_blocks * before / total;

        before += weights[i];
        layout->part_bytes[1 + i] = (1 + n_blocks * before / total - first) * SL_BLOCK_BYTES;
    }
}

int sl_store_part_path(char path[SL_STORE_PATH_BYTES], const char *folder, uint32_t file_index,
                       struct sl_err *err)
{
    char *absolute = realpath(folder, NULL);
    int length;

    if (!absolute)
        return sl_err_set(err, -errno, "%s: cannot hold a part of the store: %s", folder,
                          sl_strerror(errno));
    length = snprintf(path, SL_STORE_PATH_BYTES, "%s/experts-%u.bin",
                      strcmp(absolute, "/") == 0 ? "" : absolute, file_index);
    free(absolute);
    if (length >= (int)SL_STORE_PATH_BYTES)
        return sl_err_set(err, -ENAMETOOLONG, "%s: the path is too long", folder);
    for (const char *c = path; *c; c++)
        if (iscntrl((unsigned char)*c))
            return sl_err_set(err, -EINVAL,
                              "a folder with control characters in its path cannot hold a part of "
                              "the store");
    return 0;
}

int sl_store_layout_make(struct sl_store_layout *layout, const char *store_folder,
                         const struct sl_expert_shape *shape, uint64_t dense_bytes,
                         const char *const *stripe_folders, const uint64_t *weights,
                         uint32_t n_stripes, struct sl_err *err)
{
    static const char *const own[] = {"dense.bin", "experts-1.bin"};
    char *path;
    int rc = 0;

    sl_assert(n_stripes <= SL_STRIPES_MAX);
    layout->n_files = 2 + n_stripes;
    cut_record(layout, sl_packed_expert_bytes(shape), weights);
    for (uint32_t i = 0; i < layout->n_files && rc == 0; i++) {
        layout->files[i].size_bytes =
            i == 0 ? dense_bytes : layout->part_bytes[i] * sl_store_expert_count(shape);
        if (i >= 2) {
            rc = sl_store_part_path(layout->files[i].path, stripe_folders[i - 2], i, err);
            if (rc == 0)
                rc = set_path(layout, i, layout->files[i].path, err);
            continue;
        }
        snprintf(layout->files[i].path, sizeof(layout->files[i].path), "%s", own[i]);
        if (asprintf(&path, "%s/%s", store_folder, own[i]) < 0)
            return sl_err_set(err, -ENOMEM, "%s: out of memory", store_folder);
        layout->paths[i] = path;
    }
    return rc;
}

int sl_store_layout_adopt(struct sl_store_layout *layout, const struct sl_store *store,
                          struct sl_err *err)
{
    const struct sl_expert_shape *shape = &sl_store_model(store)->shape;
    uint64_t record_bytes = 0;
    int rc = 0;

    layout->n_files = sl_store_file_count(store);
    for (uint32_t i = 0; i < layout->n_files && rc == 0; i++) {
        layout->files[i] = *sl_store_file(store, i);
        if (i > 0)
            layout->part_bytes[i] = layout->files[i].size_bytes / sl_store_expert_count(shape);
        if (layout->part_bytes[i] % SL_BLOCK_BYTES != 0)
            return sl_err_set(
                err, -SL_ECORRUPT,
                "%s: the catalog's file %u has %llu bytes, which are not whole blocks "
                "for each expert",
                sl_store_folder(store), i, (unsigned long long)layout->files[i].size_bytes);
        record_bytes += layout->part_bytes[i];
        rc = set_path(layout, i, sl_store_file_path(store, i), err);
    }
    if (rc == 0 && record_bytes != sl_packed_expert_bytes(shape))
        rc = sl_err_set(err, -SL_ECORRUPT,
                        "%s: the catalog's files have %llu bytes for an expert, expected %llu",
                        sl_store_folder(store), (unsigned long long)record_bytes,
                        (unsigned long long)sl_packed_expert_bytes(shape));
    return rc;
}

void sl_store_layout_fini(struct sl_store_layout *layout)
{
    for (uint32_t i = 0; i < SL_STORE_FILES_MAX; i++)
        free(layout->paths[i]);
    *layout = (struct sl_store_layout){0};
}

uint64_t sl_store_layout_bytes(const struct sl_store_layout *layout)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < layout->n_files; i++)
        bytes += layout->files[i].size_bytes;
    return bytes;
}

/* A compressed record's parts are all smaller in the same proportion. No part is larger than its
 * room, and a part may be empty. */
void sl_store_layout_cut(const struct sl_store_layout *layout, uint32_t number,
                         uint64_t stored_bytes, struct sl_packed_expert *expert)
{
    const uint64_t n_blocks = stored_bytes / SL_BLOCK_BYTES;
    uint64_t room_bytes = 0, before_bytes = 0;

    for (uint32_t i = 1; i < layout->n_files; i++)
        room_bytes += layout->part_bytes[i];
    sl_assert(stored_bytes % SL_BLOCK_BYTES == 0 && stored_bytes <= room_bytes);
    expert->n_parts = 0;
    for (uint32_t i = 1; i < layout->n_files; i++) {
        uint64_t first = n_blocks * before_bytes / room_bytes;

        before_bytes += layout->part_bytes[i];
        if (n_blocks * before_bytes / room_bytes > first)
            expert->parts[expert->n_parts++] = (struct sl_extent){
                .offset_bytes = number * layout->part_bytes[i],
                .size_bytes = (n_blocks * before_bytes / room_bytes - first) * SL_BLOCK_BYTES,
                .file_index = i};
    }
}

/* Gives the drive that a file is on or will be on, and its free space. */
static int look_at_drive(const char *path, dev_t *ret_device, uint64_t *ret_free_bytes,
                         struct sl_err *err)
{
    char *folder = strndup(path, (size_t)(strrchr(path, '/') - path));
    struct statvfs disk;
    struct stat status;
    int rc = 0;

    if (!folder)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", path);
    if (statvfs(folder, &disk) < 0 || stat(folder, &status) < 0) {
        rc = sl_err_set(err, -errno, "%s: cannot tell how much is free: %s", folder,
                        sl_strerror(errno));
    } else {
        *ret_device = status.st_dev;
        *ret_free_bytes = (uint64_t)disk.f_bavail * disk.f_frsize;
    }
    free(folder);
    return rc;
}

static int compare_back(const void *a, const void *b)
{
    const struct sl_space_back *x = a, *y = b;

    if (x->n_experts != y->n_experts)
        return x->n_experts < y->n_experts ? -1 : 1;
    return x->dense_bytes < y->dense_bytes ? -1 : x->dense_bytes > y->dense_bytes;
}

static uint64_t less(uint64_t a, uint64_t b)
{
    return a > b ? a - b : 0;
}

/* Returns how many bytes more the files on a drive take until the space of `next` comes back, or
 * until the end if it is NULL. */
static uint64_t taken_bytes(const struct sl_store_layout *layout, const dev_t *devices,
                            dev_t device, const struct sl_space_back *next,
                            uint64_t uncommitted_bytes)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < layout->n_files; i++) {
        uint64_t size_bytes = layout->files[i].size_bytes, then_bytes = size_bytes;
        struct stat status;

        if (devices[i] != device)
            continue;
        if (next)
            then_bytes = uncommitted_bytes +
                         (i == 0 ? next->dense_bytes : next->n_experts * layout->part_bytes[i]);
        if (then_bytes > size_bytes)
            then_bytes = size_bytes;
        if (i == 0)
            then_bytes += CATALOG_BYTES;
        bytes += stat(layout->paths[i], &status) == 0
                     ? less(then_bytes, (uint64_t)status.st_blocks * 512)
                     : then_bytes;
    }
    return bytes;
}

/* Returns how many bytes a drive must have free now. */
static uint64_t peak_bytes(const struct sl_store_layout *layout, const dev_t *devices, dev_t device,
                           const struct sl_space_back *back, uint32_t n_back,
                           uint64_t uncommitted_bytes)
{
    uint64_t back_bytes = 0, peak = 0;

    for (uint32_t i = 0; i <= n_back; i++) {
        uint64_t bytes = less(
            taken_bytes(layout, devices, device, i < n_back ? &back[i] : NULL, uncommitted_bytes),
            back_bytes);
        struct stat status;

        peak = bytes > peak ? bytes : peak;
        if (i < n_back && stat(back[i].path, &status) == 0 && status.st_dev == device)
            back_bytes += (uint64_t)status.st_blocks * 512;
    }
    return peak;
}

int sl_store_layout_check_space(const struct sl_store_layout *layout, struct sl_space_back *back,
                                uint32_t n_back, uint64_t uncommitted_bytes, struct sl_err *err)
{
    char needed[SL_SIZE_TEXT_BYTES], available[SL_SIZE_TEXT_BYTES];
    uint64_t free_bytes[SL_STORE_FILES_MAX];
    dev_t devices[SL_STORE_FILES_MAX];

    if (n_back > 0)
        qsort(back, n_back, sizeof(*back), compare_back);
    for (uint32_t i = 0; i < layout->n_files; i++) {
        int rc = look_at_drive(layout->paths[i], &devices[i], &free_bytes[i], err);

        if (rc < 0)
            return rc;
    }
    for (uint32_t i = 0; i < layout->n_files; i++) {
        const char *path = layout->paths[i];
        uint64_t bytes = peak_bytes(layout, devices, devices[i], back, n_back, uncommitted_bytes);

        if (bytes > free_bytes[i])
            return sl_err_set(err, -ENOSPC, "%.*s: %s are needed, %s are free",
                              (int)(strrchr(path, '/') - path), path, sl_size_format(bytes, needed),
                              sl_size_format(free_bytes[i], available));
    }
    return 0;
}
