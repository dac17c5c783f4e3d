#include "tools/plan/plan_batch.h"

#include <errno.h>
#include <stdlib.h>

#include "tools/batch/read_input.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/served_model.h"

/* Returns 0 where neither the line nor the caller sets a limit. */
static uint32_t answer_tokens(const struct sl_batch_item *item, uint32_t n_answer)
{
    if (item->n_new_max == 0 || (n_answer > 0 && n_answer < item->n_new_max))
        return n_answer;
    return item->n_new_max;
}

static int list_documents(const struct sl_batch_input *input, const char *path, uint32_t n_answer,
                          struct sl_night_document **ret_documents, uint32_t *ret_n,
                          struct sl_err *err)
{
    struct sl_night_document *documents;
    uint32_t n = 0;

    for (uint32_t i = 0; i < input->n_items; i++)
        n += input->items[i].n_texts;
    documents = calloc(n, sizeof(*documents));
    if (!documents)
        return sl_err_set(err, -ENOMEM, "documents: out of memory");
    n = 0;
    for (uint32_t i = 0; i < input->n_items; i++) {
        const struct sl_batch_item *item = &input->items[input->order[i]];
        const uint32_t n_repeated = item->n_prompt_tokens - item->n_distinct_tokens;
        struct sl_night_document document = {.n_prompt = item->n_prompt_tokens / item->n_texts,
                                             .n_answer = answer_tokens(item, n_answer),
                                             .n_shared = item->n_shared_tokens};

        if (document.n_answer == 0) {
            free(documents);
            return sl_err_set(err, -SL_EFORMAT,
                              "%s: line %u sets no limit to its answer; give --answer-tokens", path,
                              item->line_number);
        }
        for (uint32_t k = 0; k < item->n_texts; k++) {
            if (document.n_shared >= document.n_prompt)
                document.n_shared = document.n_prompt - 1;
            documents[n++] = document;
            document.n_shared = item->n_texts > 1 ? n_repeated / (item->n_texts - 1) : 0;
        }
    }
    *ret_documents = documents;
    *ret_n = n;
    return 0;
}

int sl_plan_read_batch(const char *folder, const char *path, uint32_t n_answer,
                       struct sl_night_document **ret_documents, uint32_t *ret_n,
                       struct sl_err *err)
{
    struct sl_served_model served = {0};
    const struct sl_batch_input_options options = {&served.model, NULL};
    struct sl_batch_input *input = NULL;
    uint32_t context_tokens = 0;
    int rc = sl_served_model_open(&served, folder, &context_tokens, err);

    sl_interrupt_defer();
    if (rc == 0)
        rc = sl_read_batch_input(&input, path, &options, err);
    if (rc == 0 && input->n_faults_all > 0) {
        sl_print_batch_faults(input, path);
        rc = sl_err_set(err, -SL_EFORMAT, "%s: %u of %u lines are faulty", path,
                        input->n_faults_all, input->n_items);
    }
    if (rc == 0)
        rc = list_documents(input, path, n_answer, ret_documents, ret_n, err);
    sl_batch_input_close(input);
    sl_served_model_close(&served);
    return rc;
}

int sl_plan_make_batch(uint32_t n, struct sl_night_document document,
                       struct sl_night_document **ret_documents, struct sl_err *err)
{
    struct sl_night_document *documents = calloc(n, sizeof(*documents));

    if (!documents)
        return sl_err_set(err, -ENOMEM, "documents: out of memory");
    for (uint32_t i = 0; i < n; i++)
        documents[i] = document;
    *ret_documents = documents;
    return 0;
}
