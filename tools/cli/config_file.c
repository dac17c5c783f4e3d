#include "tools/cli/config_file.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/size.h"
#include "core/model/model_folder.h"

#define CONFIG_BYTES_MAX (UINT64_C(4) << 20)
#define SUFFIX ".json"

static bool ends(const char *text, const char *suffix)
{
    const size_t length = strlen(text), n = strlen(suffix);

    return length >= n && strcmp(text + length - n, suffix) == 0;
}

static bool is_folder(const char *path)
{
    struct stat status;

    return stat(path, &status) == 0 && S_ISDIR(status.st_mode);
}

/* Finds the folder of the configs that come with sluice: in the installation, or in the source
 * tree. Leaves `folder` as it was if there is none. */
static void find_folder(char folder[PATH_MAX])
{
    static const char *const places[] = {"/../share/sluice/configs", "/../../tools/configs"};
    char program[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", program, sizeof(program) - 1);

    if (length < 0)
        return;
    program[length] = '\0';
    *strrchr(program, '/') = '\0';
    for (size_t i = 0; i < SL_ARRAY_LEN(places) && !folder[0]; i++)
        if (snprintf(folder, PATH_MAX, "%s%s", program, places[i]) >= PATH_MAX ||
            !is_folder(folder))
            folder[0] = '\0';
}

static int compare_names(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static int is_config(const struct dirent *entry)
{
    return ends(entry->d_name, SUFFIX);
}

static int no_such_config(const char *name, const char *folder, struct sl_err *err)
{
    struct dirent **entries = NULL;
    char names[256] = "";
    int n = scandir(folder, &entries, is_config, compare_names);

    for (int i = 0; i < n; i++) {
        const size_t used = strlen(names);

        snprintf(names + used, sizeof(names) - used, "%s%.*s", used ? ", " : "",
                 (int)(strlen(entries[i]->d_name) - strlen(SUFFIX)), entries[i]->d_name);
        free(entries[i]);
    }
    free(entries);
    return sl_err_set(err, -ENOENT,
                      "%s: there is no such file or folder, and no config of that name; those that "
                      "come with sluice: %s",
                      name, names[0] ? names : "none");
}

int sl_config_file_find(const char *name, char **ret_path, struct sl_err *err)
{
    const bool in_folder = is_folder(name);
    char folder[PATH_MAX] = "";
    char *path = NULL;
    int n;

    if (access(name, F_OK) == 0 || strcmp(name, "-") == 0) {
        if (sl_model_file_is_gguf(name) || ends(name, ".gguf") || ends(name, ".safetensors"))
            return sl_model_folder_explain(name, -ENOTDIR, err);
        n = asprintf(&path, "%s%s", name, in_folder ? "/config.json" : "");
    } else if (strchr(name, '/') || !name[0]) {
        return sl_model_folder_explain(name, -ENOENT, err);
    } else {
        find_folder(folder);
        n = asprintf(&path, "%s/%s%s", folder, name, ends(name, SUFFIX) ? "" : SUFFIX);
    }
    if (n < 0)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", name);
    if (strcmp(path, "-") != 0 && access(path, F_OK) != 0) {
        free(path);
        return in_folder ? sl_model_folder_explain(name, -ENOENT, err)
                         : no_such_config(name, folder, err);
    }
    *ret_path = path;
    return 0;
}

int sl_config_file_read(const char *name, struct sl_config *ret_config, char **ret_text,
                        struct sl_err *err)
{
    char *path, *text;
    size_t length;
    int rc = sl_config_file_find(name, &path, err);

    if (rc < 0)
        return rc;
    /* The user names inputs; a folder's files come from somebody else, and none is waited for. */
    if (is_folder(name))
        rc = sl_file_read_all(path, CONFIG_BYTES_MAX, &text, &length, err);
    else
        rc = sl_input_read_all(path, CONFIG_BYTES_MAX, &text, &length, err);
    if (rc == 0) {
        rc = sl_config_parse(ret_config, text, length, path, err);
        if (rc == 0 && ret_text)
            *ret_text = text;
        else
            free(text);
    }
    free(path);
    return rc;
}

bool sl_config_file_is(const char *name)
{
    return !is_folder(name);
}
