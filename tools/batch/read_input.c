#include "tools/batch/read_input.h"

#include <errno.h>
#include <stdio.h>

#include "tools/cli/interrupt.h"
#include "tools/cli/progress.h"

int sl_read_batch_input(struct sl_batch_input **ret_input, const char *path,
                        const struct sl_batch_input_options *options, struct sl_err *err)
{
    struct sl_progress progress = sl_progress_start(stderr, "checking the input", NULL);
    struct sl_batch_input *input;
    int rc = sl_batch_input_open(&input, path, options, err);

    if (rc < 0)
        return rc;
    while ((rc = sl_batch_input_step(input, err)) > 0) {
        sl_progress_show(&progress, sl_batch_input_done_bytes(input),
                         sl_batch_input_file_bytes(input));
        if (sl_interrupted()) {
            rc = sl_err_set(err, -ECANCELED, "stopped");
            break;
        }
    }
    sl_progress_end(&progress);
    if (rc < 0) {
        sl_batch_input_close(input);
        return rc;
    }
    *ret_input = input;
    return 0;
}

void sl_print_batch_faults(const struct sl_batch_input *input, const char *path)
{
    for (uint32_t i = 0; i < input->n_faults; i++) {
        const struct sl_batch_fault *fault = &input->faults[i];

        if (fault->line_number > 0)
            fprintf(stderr, "%s: line %u: %s: %s%s%s%s\n", path, fault->line_number, fault->code,
                    fault->message, fault->param[0] ? " (" : "", fault->param,
                    fault->param[0] ? ")" : "");
        else
            fprintf(stderr, "%s: %s: %s\n", path, fault->code, fault->message);
    }
    if (input->n_faults_all > input->n_faults)
        fprintf(stderr, "%s: %u more lines are faulty\n", path,
                input->n_faults_all - input->n_faults);
}
