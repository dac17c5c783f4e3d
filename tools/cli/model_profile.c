#include "tools/cli/model_profile.h"

#include "tools/cli/expert_files.h"

int sl_model_profile(const char *folder, struct sl_chat_profile_found *ret_found,
                     struct sl_err *err)
{
    int rc = sl_chat_profile_detect(folder, ret_found, err);
    struct sl_expert_files files;

    if (rc < 0 || !ret_found->is_guess)
        return rc;
    if (sl_expert_files_open(&files, folder, NULL) == 0 &&
        files.config.expert_dtype == SL_EXPERT_FP8) {
        ret_found->is_chat = false;
        ret_found->file = "the experts' type";
    }
    sl_expert_files_close(&files);
    return 0;
}
