#include "tools/cmd/verify_checkpoint.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "core/base/clock.h"
#include "core/base/json.h"
#include "core/base/size.h"
#include "storage/checkpoint/checkpoint_verify.h"
#include "tools/cli/engine_options.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/json_lines.h"
#include "tools/cli/progress.h"

/* Collects the names of the first bad files, for the last line. */
struct findings {
    bool json;
    char names[SL_ERR_MESSAGE_BYTES / 2]; /* ", " between them */
    char last[256];                       /* a file may be told of more than once */
};

static void on_bad(void *context, const char *name, const char *message)
{
    struct findings *findings = context;
    const size_t used = strlen(findings->names);

    if (findings->json)
        sl_json_line_print(json_pack("{s:s, s:s}", "file", name, "bad", message));
    else
        printf("bad: %s\n", message);
    if (strcmp(findings->last, name) == 0)
        return;
    snprintf(findings->last, sizeof(findings->last), "%s", name);
    if (used + strlen(name) + sizeof(", ...") < sizeof(findings->names))
        snprintf(findings->names + used, sizeof(findings->names) - used, "%s%s", used ? ", " : "",
                 name);
    else if (used >= 3 && strcmp(findings->names + used - 3, "...") != 0)
        snprintf(findings->names + used, sizeof(findings->names) - used, ", ...");
}

static void print_result(const struct sl_checkpoint_verify_result *result, bool json, bool complete,
                         double seconds)
{
    char text[SL_SIZE_TEXT_BYTES];

    if (json)
        sl_json_line_print(json_pack("{s:b, s:I, s:f, s:i, s:i, s:i}", "complete", complete,
                                     "verified_bytes", (json_int_t)result->read_bytes, "seconds",
                                     seconds, "files", (int)result->n_files, "files_with_sha256",
                                     (int)result->n_hashed, "bad_files", (int)result->n_bad));
    else
        printf("verified %s%s in %.1f s, %.2f GB/s: %u of %u file%s bad, SHA-256 known of %u\n",
               sl_size_format(result->read_bytes, text), complete ? "" : " before it was stopped,",
               seconds, (double)result->read_bytes * 1e-9 / seconds, result->n_bad, result->n_files,
               sl_plural(result->n_files), result->n_hashed);
}

static int verify(const struct sl_verify_checkpoint_options *options,
                  const struct sl_file_hashes *list, struct sl_err *err)
{
    struct sl_progress progress = sl_progress_start(stderr, "verifying", NULL);
    struct findings findings = {.json = options->json};
    const struct sl_checkpoint_verify_options verify_options = {
        .folder = options->folder,
        .list = list,
        .open_io = options->open_io,
        .n_threads = sl_choose_affinity(0).n_threads,
        .on_bad = on_bad,
        .bad_context = &findings,
        .on_progress = sl_progress_show,
        .progress_context = &progress,
        .stop = sl_interrupt_stop(),
    };
    const uint64_t start_ns = sl_clock_ns();
    struct sl_checkpoint_verify_result result;
    int rc;

    sl_interrupt_defer();
    rc = sl_checkpoint_verify(&verify_options, &result, err);
    sl_progress_end(&progress);
    if (rc == 0 || rc == -ECANCELED)
        print_result(&result, options->json, rc == 0, (double)(sl_clock_ns() - start_ns) * 1e-9);
    if (rc == 0 && !options->json && result.n_hashed == 0)
        printf("no SHA-256 is known: --sha256 FILE gives a list of them\n");
    if (rc == 0 && result.n_bad > 0)
        rc = sl_err_set(err, -SL_ECORRUPT, "%s: %u file%s bad, to be fetched again: %s",
                        options->folder, result.n_bad, result.n_bad == 1 ? " is" : "s are",
                        findings.names);
    return rc;
}

int sl_verify_checkpoint(const struct sl_verify_checkpoint_options *options, struct sl_err *err)
{
    struct sl_file_hashes list = {0};
    int rc = options->list_path ? sl_file_hashes_read(&list, options->list_path, err) : 0;

    if (rc == 0)
        rc = verify(options, options->list_path ? &list : NULL, err);
    sl_file_hashes_fini(&list);
    return rc;
}
