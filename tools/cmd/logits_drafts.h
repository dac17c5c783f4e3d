/* The files of `sluice logits --draft-out`: the drafts that were made along one list of tokens, as
 * tests/oracle/compare.py reads them. */
#ifndef SL_TOOLS_CMD_LOGITS_DRAFTS_H
#define SL_TOOLS_CMD_LOGITS_DRAFTS_H

#include "core/model/forward.h"
#include "tools/cli/output_file.h"

enum sl_draft_file {
    SL_DRAFT_POSITIONS, /* (drafts) of the last token that had been seen */
    SL_DRAFT_ANCHORS,   /* (drafts) the tokens behind these */
    SL_DRAFT_LOGITS,    /* (drafts, block, vocab_size) float32 */
    SL_DRAFT_TOKENS,    /* (drafts, block) the likeliest */
    SL_DRAFT_CONF,      /* (drafts, block) float32, the chance that each stands */
    SL_DRAFT_FILES,
};

struct sl_draft_files {
    struct sl_output_file out[SL_DRAFT_FILES];
    char *names[SL_DRAFT_FILES];
};

/* Opens the files in a folder, which is made if it is not there. Fails as sl_output_open() and
 * mkdir(). The caller calls close(), also after a failure. */
int sl_draft_files_open(struct sl_draft_files *files, const char *folder, struct sl_err *err);

/* Begins the files: their shapes. */
void sl_draft_files_start(struct sl_draft_files *files, uint32_t n_drafts, uint32_t block_size,
                          uint32_t vocab_size);

/* Adds a draft, then each of its tokens in turn. */
void sl_draft_files_add(struct sl_draft_files *files, int32_t position, int32_t anchor);
void sl_draft_files_add_token(struct sl_draft_files *files, const struct sl_dspark_row *row,
                              uint32_t vocab_size);

/* Puts the files in their places. */
int sl_draft_files_commit(struct sl_draft_files *files, struct sl_err *err);

/* Closes them; files that were not committed leave nothing. Zeroed ones are allowed. */
void sl_draft_files_close(struct sl_draft_files *files);

#endif
