#include "core/model/model_folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/file.h"

#define EXPECTED                                                                                   \
    "expected a folder with config.json and *.safetensors as they are released, or a store that "  \
    "sluice pack made"
#define REVISION_BYTES_MAX 256

static bool ends(const char *text, const char *suffix)
{
    const size_t length = strlen(text), n = strlen(suffix);

    return length >= n && strcmp(text + length - n, suffix) == 0;
}

struct contents {
    uint32_t n_entries;
    uint32_t n_shards;
    uint32_t n_gguf;
    bool has_snapshots; /* of Hugging Face's cache */
};

/* False if it cannot be listed. */
static bool list(const char *folder, struct contents *ret_contents)
{
    DIR *dir = opendir(folder);
    const struct dirent *entry;

    *ret_contents = (struct contents){0};
    if (!dir)
        return false;
    while ((entry = readdir(dir))) {
        const char *name = entry->d_name;

        if (name[0] == '.')
            continue;
        ret_contents->n_entries++;
        ret_contents->n_shards += ends(name, ".safetensors");
        ret_contents->n_gguf += ends(name, ".gguf");
        ret_contents->has_snapshots |= strcmp(name, "snapshots") == 0;
    }
    closedir(dir);
    return true;
}

bool sl_model_folder_has_shards(const char *folder)
{
    struct contents contents;

    return list(folder, &contents) && contents.n_shards > 0;
}

bool sl_model_file_is_gguf(const char *path)
{
    char magic[4] = {0};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    if (fd < 0)
        return false;
    if (sl_file_read_at(fd, magic, sizeof(magic), 0) != sizeof(magic))
        magic[0] = 0;
    close(fd);
    return memcmp(magic, "GGUF", sizeof(magic)) == 0;
}

static int explain_file(const char *path, int code, struct sl_err *err)
{
    const char *slash = strrchr(path, '/');

    if (sl_model_file_is_gguf(path) || ends(path, ".gguf"))
        return sl_err_set(err, code,
                          "%s: a GGUF file; Sluice runs the official checkpoint's folder "
                          "(config.json, *.safetensors)",
                          path);
    if (ends(path, ".safetensors") || ends(path, ".json"))
        return sl_err_set(err, code, "%s: a file of a model; give the folder that it is in: %.*s",
                          path, slash ? (slash == path ? 1 : (int)(slash - path)) : 1,
                          slash ? path : ".");
    return sl_err_set(err, code, "%s: not a folder; " EXPECTED, path);
}

/* Names the snapshots, the one that main stands for as such, so that the user can choose. */
static int several_snapshots(const char *path, const char *const *names, int n, struct sl_err *err)
{
    char text[SL_ERR_MESSAGE_BYTES / 2] = "", main_path[PATH_MAX], *main_name = NULL;
    size_t length;

    snprintf(main_path, sizeof(main_path), "%s/refs/main", path);
    if (sl_file_read_all(main_path, REVISION_BYTES_MAX, &main_name, &length, NULL) == 0)
        main_name[strcspn(main_name, "\r\n")] = '\0';
    for (int i = 0; i < n; i++) {
        const size_t used = strlen(text);

        snprintf(text + used, sizeof(text) - used, "%s%s%s", i ? ", " : "", names[i],
                 main_name && strcmp(main_name, names[i]) == 0 ? " (main)" : "");
    }
    free(main_name);
    return sl_err_set(err, -SL_EFORMAT,
                      "%s: Hugging Face's cache has %d snapshots of the model; give one of them, "
                      "%s/snapshots/ and: %s",
                      path, n, path, text);
}

static int is_visible(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

int sl_model_folder_find(const char *path, char **ret_path, struct sl_err *err)
{
    char snapshots[PATH_MAX], config[PATH_MAX];
    struct dirent **entries = NULL;
    int n, rc = 0;

    *ret_path = NULL;
    snprintf(snapshots, sizeof(snapshots), "%s/snapshots", path);
    snprintf(config, sizeof(config), "%s/config.json", path);
    if (access(config, F_OK) == 0 || access(snapshots, F_OK) != 0)
        return 0;
    n = scandir(snapshots, &entries, is_visible, alphasort);
    if (n == 1) {
        if (asprintf(ret_path, "%s/%s", snapshots, entries[0]->d_name) < 0) {
            *ret_path = NULL;
            rc = sl_err_set(err, -ENOMEM, "%s: out of memory", path);
        }
    } else if (n > 1) {
        const char **names = calloc((size_t)n, sizeof(*names));

        for (int i = 0; names && i < n; i++)
            names[i] = entries[i]->d_name;
        rc = names ? several_snapshots(path, names, n, err)
                   : sl_err_set(err, -ENOMEM, "%s: out of memory", path);
        free(names);
    } else if (n == 0) {
        rc = sl_err_set(err, -ENOENT,
                        "%s: a model's folder in Hugging Face's cache, without a snapshot: was the "
                        "download stopped?",
                        path);
    }
    for (int i = 0; i < n; i++)
        free(entries[i]);
    free(entries);
    return rc;
}

/* For those who have not looked for the snapshot themselves. */
static int explain_cache(const char *path, int code, struct sl_err *err)
{
    char *snapshot;
    int rc = sl_model_folder_find(path, &snapshot, err);

    if (rc == 0)
        rc = sl_err_set(err, code,
                        "%s: a model's folder in Hugging Face's cache; give the "
                        "snapshot in it: %s",
                        path, snapshot ? snapshot : "snapshots/REVISION");
    free(snapshot);
    return rc;
}

static int explain_folder(const char *path, int code, struct sl_err *err)
{
    struct contents contents;
    char config[PATH_MAX];
    struct stat status;

    snprintf(config, sizeof(config), "%s/config.json", path);
    if (!list(path, &contents))
        return sl_err_set(err, code, "%s: cannot open the folder: %s", path, sl_strerror(errno));
    if (lstat(config, &status) == 0)
        return sl_err_set(err, code, "%s: a symbolic link to a file that is not there", config);
    if (contents.n_entries == 0)
        return sl_err_set(err, code, "%s: the folder is empty; " EXPECTED, path);
    if (contents.has_snapshots)
        return explain_cache(path, code, err);
    if (contents.n_shards > 0)
        return sl_err_set(err, code,
                          "%s: the file is missing beside *.safetensors; every release has one",
                          config);
    if (contents.n_gguf > 0)
        return sl_err_set(err, code,
                          "%s: a folder of GGUF files; Sluice runs the official checkpoint's "
                          "(config.json, *.safetensors)",
                          path);
    return sl_err_set(err, code, "%s: there is no such file; " EXPECTED, config);
}

int sl_model_folder_explain(const char *path, int code, struct sl_err *err)
{
    const char *slash = strchr(path, '/');
    struct stat status;

    if (stat(path, &status) == 0)
        return S_ISDIR(status.st_mode) ? explain_folder(path, code, err)
                                       : explain_file(path, code, err);
    if (errno != ENOENT)
        return sl_err_set(err, code, "%s: cannot be used: %s", path, sl_strerror(errno));
    /* "deepseek-ai/DeepSeek-V4-Flash" */
    if (slash && slash != path && path[0] != '.' && slash[1] && !strchr(slash + 1, '/'))
        return sl_err_set(err, code,
                          "%s: there is no such folder; if it is a repository: hf download %s "
                          "--local-dir FOLDER",
                          path, path);
    return sl_err_set(err, code, "%s: there is no such folder; " EXPECTED, path);
}
