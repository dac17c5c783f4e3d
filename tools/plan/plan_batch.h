/* The documents that `sluice plan` plans for: of a batch's input, or as many that are alike. */
#ifndef SL_TOOLS_PLAN_PLAN_BATCH_H
#define SL_TOOLS_PLAN_PLAN_BATCH_H

#include "core/base/err.h"
#include "tools/plan/night.h"

/* Reads the input of a batch for the model in a folder: a document for each text that a line asks
 * for, in the order in which they are taken, with what it shares with the one before. Each gets as
 * many tokens as its line allows, and at most n_answer where that is not 0; where a line sets no
 * limit n_answer has to. Faulty lines are told, and fail with -SL_EFORMAT. The caller frees
 * *ret_documents, which are at least one. */
int sl_plan_read_batch(const char *folder, const char *path, uint32_t n_answer,
                       struct sl_night_document **ret_documents, uint32_t *ret_n,
                       struct sl_err *err);

/* Makes n documents that are alike. Fails with -ENOMEM. */
int sl_plan_make_batch(uint32_t n, struct sl_night_document document,
                       struct sl_night_document **ret_documents, struct sl_err *err);

#endif
