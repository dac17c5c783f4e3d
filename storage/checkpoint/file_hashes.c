#include "storage/checkpoint/file_hashes.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/file.h"

#define LIST_BYTES_MAX (UINT64_C(16) << 20)
#define METADATA_BYTES_MAX (UINT64_C(64) << 10)
#define METADATA_FOLDER ".cache/huggingface/download"

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}

static void take_hex(const char *text, char hex[SL_SHA256_HEX + 1])
{
    for (int i = 0; i < SL_SHA256_HEX; i++)
        hex[i] = (char)tolower((unsigned char)text[i]);
    hex[SL_SHA256_HEX] = '\0';
}

/* "HASH  NAME" or "HASH *NAME"; takes a line of its own away from the text. */
static int add_line(struct sl_file_hashes *hashes, const char *path, uint32_t line_number,
                    const char *line, struct sl_err *err)
{
    const char *name = line + SL_SHA256_HEX;
    struct sl_file_hash *list;

    if (!sl_sha256_is_hex(line) || name[0] != ' ' || (name[1] != ' ' && name[1] != '*') || !name[2])
        return sl_err_set(
            err, -SL_EFORMAT,
            "%s: line %u is not a SHA-256, two blanks and a name, as sha256sum writes "
            "them",
            path, line_number);
    if ((hashes->n & (hashes->n + 1)) == 0) { /* full: room for 0, 1, 3, 7, ... */
        list = realloc(hashes->list, (2 * (size_t)hashes->n + 1) * sizeof(*list));
        if (!list)
            return sl_err_set(err, -ENOMEM, "%s: out of memory", path);
        hashes->list = list;
    }
    take_hex(line, hashes->list[hashes->n].hex);
    hashes->list[hashes->n].name = strdup(base_name(name + 2));
    if (!hashes->list[hashes->n].name)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", path);
    hashes->n++;
    return 0;
}

int sl_file_hashes_read(struct sl_file_hashes *hashes, const char *path, struct sl_err *err)
{
    uint32_t line_number = 0;
    char *text, *line, *rest;
    size_t length;
    int rc = sl_input_read_all(path, LIST_BYTES_MAX, &text, &length, err);

    if (rc < 0)
        return rc;
    for (line = text; rc == 0 && *line; line = rest) {
        rest = line + strcspn(line, "\n");
        if (*rest)
            *rest++ = '\0';
        line[strcspn(line, "\r")] = '\0';
        line_number++;
        if (*line)
            rc = add_line(hashes, path, line_number, line, err);
    }
    free(text);
    if (rc == 0 && hashes->n == 0)
        rc = sl_err_set(err, -SL_EFORMAT, "%s: holds no SHA-256", path);
    return rc;
}

void sl_file_hashes_fini(struct sl_file_hashes *hashes)
{
    for (uint32_t i = 0; i < hashes->n; i++)
        free(hashes->list[i].name);
    free(hashes->list);
    *hashes = (struct sl_file_hashes){0};
}

static bool find_in_list(const struct sl_file_hashes *list, const char *name, char *ret_hex)
{
    for (uint32_t i = 0; i < list->n; i++)
        if (strcmp(list->list[i].name, name) == 0) {
            memcpy(ret_hex, list->list[i].hex, SL_SHA256_HEX + 1);
            return true;
        }
    return false;
}

static bool find_in_link(const char *folder, const char *name, char *ret_hex)
{
    char path[PATH_MAX], target[PATH_MAX];
    ssize_t length;

    if (snprintf(path, sizeof(path), "%s/%s", folder, name) >= (int)sizeof(path))
        return false;
    length = readlink(path, target, sizeof(target) - 1);
    if (length < 0)
        return false;
    target[length] = '\0';
    if (!sl_sha256_is_hex(base_name(target)) || strlen(base_name(target)) != SL_SHA256_HEX)
        return false;
    take_hex(base_name(target), ret_hex);
    return true;
}

/* The notes are three lines: revision, the server's tag, which is the SHA-256 of a large file, and
 * the time. */
static bool find_in_metadata(const char *folder, const char *name, char *ret_hex)
{
    char path[PATH_MAX], *text;
    const char *tag;
    size_t length;
    bool found;

    if (snprintf(path, sizeof(path), "%s/" METADATA_FOLDER "/%s.metadata", folder, name) >=
            (int)sizeof(path) ||
        sl_file_read_all(path, METADATA_BYTES_MAX, &text, &length, NULL) < 0)
        return false;
    tag = strchr(text, '\n');
    found = tag && sl_sha256_is_hex(tag + 1);
    if (found)
        take_hex(tag + 1, ret_hex);
    free(text);
    return found;
}

bool sl_file_hash_find(const struct sl_file_hashes *list, const char *folder, const char *name,
                       char ret_hex[SL_SHA256_HEX + 1])
{
    return (list && find_in_list(list, name, ret_hex)) || find_in_link(folder, name, ret_hex) ||
           find_in_metadata(folder, name, ret_hex);
}
