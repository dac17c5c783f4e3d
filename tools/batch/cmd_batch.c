/* sluice batch: answers many requests for which nobody waits. */
#include "core/base/size.h"
#include "tools/batch/batch_commands.h"
#include "tools/cli/commands.h"
#include "tools/cli/kinds.h"

int sl_cmd_batch(int argc, char **argv)
{
    static const struct sl_kind kinds[] = {
        {"make", sl_batch_make},     {"check", sl_batch_check},   {"run", sl_batch_run},
        {"submit", sl_batch_submit}, {"status", sl_batch_status}, {"results", sl_batch_results},
        {"cancel", sl_batch_cancel}, {"forget", sl_batch_forget},
    };
    static const char *const usage[] = {"make --ask TEXT|FILE [OPTION...] DOC...",
                                        "check MODEL IN [OPTION...]",
                                        "run MODEL IN OUT [OPTION...]",
                                        "submit FILE [OPTION...]",
                                        "status [ID] [OPTION...]",
                                        "results ID [-o FILE] [OPTION...]",
                                        "cancel ID [OPTION...]",
                                        "forget ID|--older TIME [OPTION...]",
                                        NULL};

    return sl_run_kind(kinds, SL_ARRAY_LEN(kinds), argc, argv, usage);
}
