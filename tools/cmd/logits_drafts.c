#include "tools/cmd/logits_drafts.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "tools/cli/npy.h"

static const struct {
    const char *name, *type;
    uint32_t n_dims;
} kinds[SL_DRAFT_FILES] = {
    [SL_DRAFT_POSITIONS] = {"positions.npy", SL_NPY_I32, 1},
    [SL_DRAFT_ANCHORS] = {"anchors.npy", SL_NPY_I32, 1},
    [SL_DRAFT_LOGITS] = {"logits.npy", SL_NPY_F32, 3},
    [SL_DRAFT_TOKENS] = {"tokens.npy", SL_NPY_I32, 2},
    [SL_DRAFT_CONF] = {"conf.npy", SL_NPY_F32, 2},
};

int sl_draft_files_open(struct sl_draft_files *files, const char *folder, struct sl_err *err)
{
    int rc = 0;

    if (mkdir(folder, 0777) < 0 && errno != EEXIST)
        return sl_err_set(err, -errno, "%s: cannot make the folder: %s", folder,
                          sl_strerror(errno));
    for (int i = 0; i < SL_DRAFT_FILES && rc == 0; i++) {
        if (asprintf(&files->names[i], "%s/%s", folder, kinds[i].name) < 0) {
            files->names[i] = NULL;
            return sl_err_set(err, -ENOMEM, "%s: out of memory", folder);
        }
        rc = sl_output_open(&files->out[i], files->names[i], err);
    }
    return rc;
}

void sl_draft_files_start(struct sl_draft_files *files, uint32_t n_drafts, uint32_t block_size,
                          uint32_t vocab_size)
{
    const uint32_t shape[3] = {n_drafts, block_size, vocab_size};

    for (int i = 0; i < SL_DRAFT_FILES; i++)
        sl_npy_start(files->out[i].stream, kinds[i].type, kinds[i].n_dims, shape);
}

void sl_draft_files_add(struct sl_draft_files *files, int32_t position, int32_t anchor)
{
    fwrite(&position, sizeof(position), 1, files->out[SL_DRAFT_POSITIONS].stream);
    fwrite(&anchor, sizeof(anchor), 1, files->out[SL_DRAFT_ANCHORS].stream);
}

void sl_draft_files_add_token(struct sl_draft_files *files, const struct sl_dspark_row *row,
                              uint32_t vocab_size)
{
    fwrite(row->logits, sizeof(float), vocab_size, files->out[SL_DRAFT_LOGITS].stream);
    fwrite(&row->token, sizeof(row->token), 1, files->out[SL_DRAFT_TOKENS].stream);
    fwrite(&row->confidence, sizeof(row->confidence), 1, files->out[SL_DRAFT_CONF].stream);
}

int sl_draft_files_commit(struct sl_draft_files *files, struct sl_err *err)
{
    int rc = 0;

    for (int i = 0; i < SL_DRAFT_FILES && rc == 0; i++)
        rc = sl_output_commit(&files->out[i], err);
    return rc;
}

void sl_draft_files_close(struct sl_draft_files *files)
{
    for (int i = 0; i < SL_DRAFT_FILES; i++) {
        sl_output_discard(&files->out[i]);
        free(files->names[i]);
    }
}
