/* sluice trace: records and studies which experts a text asks for. Each kind has a file of its
 * own. */
#include "tools/cli/commands.h"
#include "tools/cli/kinds.h"
#include "tools/trace/trace_commands.h"
#include "core/base/size.h"

int sl_cmd_trace(int argc, char **argv)
{
    static const struct sl_kind kinds[] = {
        {"record", sl_trace_record},
        {"replay", sl_trace_replay},
        {"summary", sl_trace_summary},
    };
    static const char *const usage[] = {"record MODEL --out TRACE [OPTION...]",
                                        "replay|summary TRACE [OPTION...]", NULL};

    return sl_run_kind(kinds, SL_ARRAY_LEN(kinds), argc, argv, usage);
}
