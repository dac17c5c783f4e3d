/* The encoders of two releases are told apart by a text that they put in front of a conversation:
 * the harder effort came with 0731. Names of files and folders are not looked at, since people
 * rename them. */
#include "core/text/chat_profile.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/size.h"

#define FILE_BYTES_MAX (UINT64_C(4) << 20)

/* Words of both texts that have no letter which JSON or Python would write in another way. */
#define EFFORT_MAXIMUM "Reasoning Effort: Absolute maximum"
#define EFFORT_BEYOND "Reasoning Effort: Beyond maximum"

/* Reads a file of the folder. Returns 0, or 1 if there is none. */
static int read_file(const char *folder, const char *name, char **ret_text, struct sl_err *err)
{
    size_t length;
    char *path;
    int rc;

    if (asprintf(&path, "%s/%s", folder, name) < 0)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", folder);
    rc = sl_file_read_all(path, FILE_BYTES_MAX, ret_text, &length, err);
    free(path);
    return rc == -ENOENT || rc == -ENOTDIR ? 1 : rc;
}

/* Returns whether the file told, or negative. */
static int ask_text(const char *folder, const char *name, struct sl_chat_profile_found *found,
                    struct sl_err *err)
{
    bool beyond, maximum;
    char *text;
    int rc = read_file(folder, name, &text, err);

    if (rc != 0)
        return rc < 0 ? rc : 0;
    beyond = strstr(text, EFFORT_BEYOND);
    maximum = strstr(text, EFFORT_MAXIMUM);
    free(text);
    if (!beyond && !maximum)
        return 0;
    *found = (struct sl_chat_profile_found){
        .is_chat = true, .profile = beyond ? SL_CHAT_V4_0731 : SL_CHAT_V4_PREVIEW, .file = name};
    return 1;
}

/* The draft that came with 0731, and else the experts of the base models, which the chat models
 * have in FP4. */
static int ask_config(const char *folder, struct sl_chat_profile_found *found, struct sl_err *err)
{
    const char *expert_dtype;
    char *path;
    json_t *root;
    int rc;

    if (asprintf(&path, "%s/config.json", folder) < 0)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", folder);
    rc = sl_json_read_file(&root, path, FILE_BYTES_MAX, err);
    free(path);
    if (rc < 0)
        return rc;
    expert_dtype = json_string_value(json_object_get(root, "expert_dtype"));
    *found = (struct sl_chat_profile_found){.is_chat = true, .file = "config.json"};
    if (json_object_get(root, "dspark_block_size"))
        found->profile = SL_CHAT_V4_0731;
    else if (expert_dtype && strcmp(expert_dtype, "fp8") == 0)
        found->is_chat = false;
    else
        found->is_guess = !expert_dtype;
    json_decref(root);
    return 0;
}

int sl_chat_profile_detect(const char *folder, struct sl_chat_profile_found *ret_found,
                           struct sl_err *err)
{
    static const char *const files[] = {SL_CHAT_ENCODER_FOLDER "/" SL_CHAT_ENCODER_FILE,
                                        SL_CHAT_ENCODER_FILE, SL_CHAT_TEMPLATE_FILE,
                                        "tokenizer_config.json"};
    struct sl_chat_profile_found found = {0};
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < SL_ARRAY_LEN(files); i++)
        rc = ask_text(folder, files[i], &found, err);
    if (rc == 0)
        rc = ask_config(folder, &found, err);
    if (rc < 0)
        return rc;
    *ret_found = found;
    return 0;
}

const char *sl_chat_profile_found_name(const struct sl_chat_profile_found *found)
{
    return found->is_chat ? sl_chat_profile_name(found->profile) : "none";
}
