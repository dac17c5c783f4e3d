#include "storage/store/advice.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/assert.h"
#include "storage/io/checksum.h"
#include "storage/io/file_writer.h"
#include "storage/io/plain_file.h"

#define CHECKSUM_BYTES 8u

static uint64_t checksum_of(const char *name, const void *value, size_t size_bytes)
{
    return sl_checksum_seeded(value, size_bytes, sl_checksum(name, strlen(name)));
}

/* Makes `path` and the missing folders above it, but only those whose names begin at or behind
 * `from`. */
static int make_folders(char *path, size_t from)
{
    for (char *slash = strchr(path + from, '/'); slash; slash = strchr(slash + 1, '/')) {
        int rc;

        *slash = '\0';
        rc = mkdir(path, 0700) == 0 || errno == EEXIST ? 0 : -errno;
        *slash = '/';
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* Gives the file's path in the user's cache folder. Fails with -ENOENT if there is no such
 * folder. */
static int cache_path(const char *store_folder, const char *name, bool make, char **ret_path)
{
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    const char *root = cache && cache[0] == '/' ? cache : home && home[0] == '/' ? home : NULL;
    char *store = realpath(store_folder, NULL);
    int length, rc;

    if (!store || !root) {
        rc = store ? -ENOENT : -errno;
        free(store);
        return rc;
    }
    length = asprintf(ret_path, "%s%s/sluice/%016llx/%s", root, root == cache ? "" : "/.cache",
                      (unsigned long long)sl_checksum(store, strlen(store)), name);
    free(store);
    if (length < 0)
        return -ENOMEM;
    rc = make ? make_folders(*ret_path, 1) : 0;
    if (rc < 0)
        free(*ret_path);
    return rc;
}

static int fail(const char *store_folder, int rc, struct sl_err *err)
{
    return sl_err_set(err, rc,
                      "%s: neither the store's folder nor the user's cache folder can keep the hot "
                      "list and the probe's result: %s",
                      store_folder, sl_strerror(rc));
}

/* Gives the path to read from, or with `make` to write to. Where the store's folder cannot be
 * written to, the file in the user's cache folder comes first. */
static int find_path(const char *store_folder, const char *name, bool make, char **ret_path)
{
    bool in_store = access(store_folder, W_OK) == 0;
    char *path;
    int rc = in_store ? -ENOENT : cache_path(store_folder, name, make, &path);

    if (rc < 0 && make && !in_store)
        return rc;
    if (rc == 0 && !make && access(path, F_OK) < 0) {
        free(path);
        rc = -ENOENT;
    }
    if (rc < 0 && asprintf(&path, "%s/%s", store_folder, name) < 0)
        return -ENOMEM;
    *ret_path = path;
    return 0;
}

int sl_advice_read(const char *store_folder, const char *name, uint8_t **ret_value,
                   size_t *ret_size_bytes, struct sl_err *err)
{
    uint64_t checksum = 0;
    uint8_t *bytes;
    size_t size_bytes;
    char *path;
    int rc = find_path(store_folder, name, false, &path);

    if (rc < 0)
        return fail(store_folder, rc, err);
    rc = sl_plain_file_read(path, SL_ADVICE_BYTES_MAX, &bytes, &size_bytes, err);
    if (rc < 0) {
        free(path);
        return rc == -ENOENT ? 0 : rc;
    }
    for (size_t i = 0; i < CHECKSUM_BYTES && size_bytes >= CHECKSUM_BYTES; i++)
        checksum |= (uint64_t)bytes[size_bytes - CHECKSUM_BYTES + i] << 8 * i;
    if (size_bytes < CHECKSUM_BYTES ||
        checksum != checksum_of(name, bytes, size_bytes - CHECKSUM_BYTES)) {
        rc = sl_err_set(err, -SL_ECORRUPT,
                        "%s: damaged: it does not have the checksum that it names", path);
        free(bytes);
    } else {
        *ret_value = bytes;
        *ret_size_bytes = size_bytes - CHECKSUM_BYTES;
        rc = 1;
    }
    free(path);
    return rc;
}

int sl_advice_write(const char *store_folder, const char *name, const void *value,
                    size_t size_bytes, struct sl_err *err)
{
    const uint64_t checksum = checksum_of(name, value, size_bytes);
    uint8_t *bytes = malloc(size_bytes + CHECKSUM_BYTES);
    char *path = NULL;
    int rc = bytes ? find_path(store_folder, name, true, &path) : -ENOMEM;

    sl_assert(size_bytes <= SL_ADVICE_BYTES_MAX - CHECKSUM_BYTES);
    if (rc < 0) {
        free(bytes);
        return fail(store_folder, rc, err);
    }
    if (size_bytes > 0)
        memcpy(bytes, value, size_bytes);
    for (size_t i = 0; i < CHECKSUM_BYTES; i++)
        bytes[size_bytes + i] = (uint8_t)(checksum >> 8 * i);
    rc = sl_write_small(sl_file_writer(), path, bytes, size_bytes + CHECKSUM_BYTES, err);
    free(path);
    free(bytes);
    return rc;
}
