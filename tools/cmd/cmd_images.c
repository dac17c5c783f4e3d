/* sluice images: looks after a folder of images, without a model. */
#include <argp.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/base/size.h"
#include "storage/images/images.h"
#include "tools/cli/command_line.h"
#include "tools/cli/commands.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/json_lines.h"
#include "tools/cli/kinds.h"
#include "tools/cli/progress.h"

struct command {
    const char *path;
    bool json;
    bool all, damaged; /* prune: which ones */
    uint64_t bytes_max;

    bool keeps_faulty; /* else their files are removed as they are found */
    struct sl_image_folder folder;
    uint32_t n_faulty, n_removed;
    uint64_t removed_bytes;
};

enum { OPTION_JSON = 256, OPTION_ALL, OPTION_DAMAGED, OPTION_IMAGES_MAX };

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct command *command = state->input;

    switch (key) {
    case OPTION_JSON:
        command->json = true;
        return 0;
    case OPTION_ALL:
        command->all = true;
        return 0;
    case OPTION_DAMAGED:
        command->damaged = true;
        return 0;
    case OPTION_IMAGES_MAX:
        command->bytes_max = sl_parse_size(state, "--images-max", value);
        return 0;
    case ARGP_KEY_ARG:
        if (command->path)
            argp_error(state, "one DIR, not \"%s\" as well", value);
        command->path = value;
        return 0;
    case ARGP_KEY_END:
        if (!command->path)
            argp_error(state, "DIR is missing");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* ---- what is there -----------------------------------------------------------------------------
 */

static void tell_faulty(struct command *command, const char *line)
{
    command->n_faulty++;
    if (command->json)
        sl_json_line_print(json_pack("{s:s}", "faulty", line));
    else
        printf("faulty: %s\n", line);
}

/* An sl_image_fault_fn. */
static void on_fault(void *context, enum sl_image_fault fault, const char *name, const char *line)
{
    struct command *command = context;
    char *path;

    if (command->keeps_faulty || fault == SL_IMAGE_UNREADABLE) {
        tell_faulty(command, line);
        return;
    }
    if (asprintf(&path, "%s/%s", command->folder.path, name) < 0)
        return;
    command->n_removed += unlink(path) == 0;
    free(path);
}

static int scan(struct command *command, struct sl_err *err)
{
    return sl_image_folder_scan(&command->folder, command->path, on_fault, command, err);
}

static int compare_uses(const void *a, const void *b)
{
    const struct sl_image *x = *(const struct sl_image *const *)a;
    const struct sl_image *y = *(const struct sl_image *const *)b;

    return (x->used_ns < y->used_ns) - (x->used_ns > y->used_ns);
}

/* ---- list --------------------------------------------------------------------------------------
 */

static void list_one(const struct command *command, const struct sl_image *image)
{
    const struct sl_image_header *header = &image->header;
    const struct sl_image_owner *owner = &header->owner;
    const time_t used = (time_t)(image->used_ns / 1000000000u);
    const bool has_mark = header->part_bytes[SL_IMAGE_MARK] > 0;
    char name[17], model[17], size[SL_SIZE_TEXT_BYTES], when[32];
    struct tm local;

    snprintf(name, sizeof(name), "%016llx", (unsigned long long)header->prefix);
    snprintf(model, sizeof(model), "%016llx", (unsigned long long)owner->model);
    localtime_r(&used, &local);
    strftime(when, sizeof(when), "%F %T", &local);
    if (command->json)
        sl_json_line_print(json_pack("{s:s, s:i, s:s, s:s, s:I, s:I, s:b, s:I, s:I}", "image", name,
                                     "version", (int)header->version, "model", model, "numerics",
                                     owner->exact ? "exact" : "native", "first_token",
                                     (json_int_t)header->first_token, "end_token",
                                     (json_int_t)header->end_token, "resumable", has_mark, "bytes",
                                     (json_int_t)image->file_bytes, "used", (json_int_t)used));
    else if (header->version != SL_IMAGE_VERSION)
        printf("%s  format version %u, which this sluice does not know\n", name, header->version);
    else
        printf("%s  %s%s  %8u .. %8u%c %10s  %s\n", name, model, owner->exact ? " exact" : "",
               header->first_token, header->end_token, has_mark ? ' ' : '-',
               sl_size_format(image->file_bytes, size), when);
}

static int list(struct command *command, struct sl_err *err)
{
    const uint32_t n = command->folder.n_images;
    const struct sl_image **order = malloc((n + 1) * sizeof(*order));
    char size[SL_SIZE_TEXT_BYTES];

    if (!order)
        return sl_err_set(err, -ENOMEM, "list of images: out of memory");
    for (uint32_t i = 0; i < n; i++)
        order[i] = &command->folder.images[i];
    qsort(order, n, sizeof(*order), compare_uses);
    if (!command->json && n > 0)
        printf("%-16s  %-16s  %20s  %10s  %s\n", "image", "model", "tokens", "size", "used");
    for (uint32_t i = 0; i < n; i++)
        list_one(command, order[i]);
    free(order);
    if (!command->json)
        printf("%u image%s, %s\n", n, sl_plural(n), sl_size_format(command->folder.bytes, size));
    return 0;
}

/* ---- verify ------------------------------------------------------------------------------------
 */

/* Compares all images with their checksums. A damaged one is told, or removed with all that
 * continue it. */
static int verify_all(struct command *command, struct sl_err *err)
{
    struct sl_progress progress = sl_progress_start(stderr, "verifying", NULL);
    const uint64_t total_bytes = command->folder.bytes;
    uint64_t done_bytes = 0;
    int rc = 0;

    for (uint32_t i = 0; rc == 0 && i < command->folder.n_images; i++) {
        const struct sl_image *image = &command->folder.images[i];
        struct sl_err why;

        if (sl_interrupted())
            rc = sl_err_set(err, -ECANCELED, "stopped");
        else if (image->header.version == SL_IMAGE_VERSION)
            rc = sl_image_verify(&command->folder, image, &why);
        if (rc == -SL_ECORRUPT || rc == -EIO) {
            tell_faulty(command, why.message);
            rc = 0;
        } else if (rc == -ENOENT) { /* removed by a run since */
            rc = 0;
        } else if (rc < 0 && rc != -ECANCELED) {
            rc = sl_err_set(err, rc, "%s", why.message);
        }
        done_bytes += image->file_bytes;
        sl_progress_show(&progress, done_bytes, total_bytes);
    }
    sl_progress_end(&progress);
    return rc;
}

static int verify(struct command *command, struct sl_err *err)
{
    char size[SL_SIZE_TEXT_BYTES];
    int rc;

    sl_interrupt_defer();
    rc = verify_all(command, err);
    if (rc < 0)
        return rc;
    if (command->json)
        sl_json_line_print(json_pack(
            "{s:I, s:I, s:I}", "images", (json_int_t)command->folder.n_images, "verified_bytes",
            (json_int_t)command->folder.bytes, "faulty_images", (json_int_t)command->n_faulty));
    else
        printf("verified %u image%s, %s: %u faulty\n", command->folder.n_images,
               sl_plural(command->folder.n_images), sl_size_format(command->folder.bytes, size),
               command->n_faulty);
    return command->n_faulty == 0
               ? 0
               : sl_err_set(err, -SL_ECORRUPT,
                            "%s: runs drop faulty images when they meet them; sluice images prune "
                            "--damaged removes them now",
                            command->path);
}

/* ---- prune -------------------------------------------------------------------------------------
 */

static int remove_image(struct command *command, struct sl_image *image, struct sl_err *err)
{
    char *path = sl_image_folder_path(&command->folder, image->header.prefix);
    int rc = 0;

    if (!path)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", command->path);
    if (unlink(path) < 0 && errno != ENOENT)
        rc = sl_err_set(err, -errno, "%s: cannot remove: %s", path, sl_strerror(errno));
    free(path);
    if (rc < 0)
        return rc;
    command->n_removed++;
    command->removed_bytes += image->file_bytes;
    sl_image_folder_remove(&command->folder, image);
    return 0;
}

/* Removes images that do not have their checksums; what continues them is then found without a
 * base, and goes as well. */
static int remove_damaged(struct command *command, struct sl_err *err)
{
    int rc = 0;

    for (uint32_t i = 0; rc == 0 && i < command->folder.n_images;) {
        struct sl_image *image = &command->folder.images[i];

        if (image->header.version == SL_IMAGE_VERSION &&
            sl_image_verify(&command->folder, image, NULL) == -SL_ECORRUPT)
            rc = remove_image(command, image, err);
        else
            i++;
    }
    sl_image_folder_fini(&command->folder);
    return rc < 0 ? rc : scan(command, err);
}

static int prune(struct command *command, struct sl_err *err)
{
    const uint64_t bytes_max = command->all ? 0 : command->bytes_max;
    char removed[SL_SIZE_TEXT_BYTES], left[SL_SIZE_TEXT_BYTES];
    struct sl_image *oldest;
    int rc = command->damaged ? remove_damaged(command, err) : 0;

    while (rc == 0 && command->folder.bytes > bytes_max &&
           (oldest = sl_image_folder_oldest(&command->folder, 0)))
        rc = remove_image(command, oldest, err);
    if (rc < 0)
        return rc;
    if (command->json)
        sl_json_line_print(json_pack(
            "{s:I, s:I, s:I, s:I}", "removed_images", (json_int_t)command->n_removed,
            "removed_bytes", (json_int_t)command->removed_bytes, "images",
            (json_int_t)command->folder.n_images, "bytes", (json_int_t)command->folder.bytes));
    else
        printf("removed %u file%s, %s; %u image%s, %s, left\n", command->n_removed,
               sl_plural(command->n_removed), sl_size_format(command->removed_bytes, removed),
               command->folder.n_images, sl_plural(command->folder.n_images),
               sl_size_format(command->folder.bytes, left));
    return 0;
}

/* ---- the command -------------------------------------------------------------------------------
 */

typedef int work_fn(struct command *command, struct sl_err *err);

static int run(int argc, char **argv, const struct argp *argp, work_fn *work, bool writes)
{
    struct command command = {.bytes_max = UINT64_MAX, .keeps_faulty = !writes};
    struct sl_err err = {0};
    int lock_fd = -1, rc;

    sl_command_parse(argp, argc, argv, &command);
    rc = writes ? sl_images_lock(command.path, &err) : 0;
    if (rc >= 0) {
        lock_fd = writes ? rc : -1;
        rc = scan(&command, &err);
    }
    if (rc == 0)
        rc = work(&command, &err);
    sl_image_folder_fini(&command.folder);
    if (lock_fd >= 0)
        close(lock_fd);
    return sl_command_status(rc, &err);
}

#define JSON_OPTION                                                                                \
    {                                                                                              \
        "json", OPTION_JSON, NULL, 0, "one JSON object a line", 0                                  \
    }

static int run_list(int argc, char **argv)
{
    static const struct argp_option options[] = {JSON_OPTION, {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse_option,
        .args_doc = "DIR",
        .doc =
            "Lists the images in a folder, those used last first. \"-\" after the tokens: others "
            "continue there, but no text begins there."};

    return run(argc, argv, &argp, list, false);
}

static int run_verify(int argc, char **argv)
{
    static const struct argp_option options[] = {JSON_OPTION, {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse_option,
        .args_doc = "DIR",
        .doc = "Reads all images in a folder and compares them with their checksums. Prints a line "
               "for each that is faulty, and fails if there is any."};

    return run(argc, argv, &argp, verify, false);
}

static int run_prune(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"images-max", OPTION_IMAGES_MAX, "SIZE", 0,
         "remove images, those unused the longest first, until at most SIZE is left", 0},
        {"all", OPTION_ALL, NULL, 0, "remove all images", 0},
        {"damaged", OPTION_DAMAGED, NULL, 0,
         "also read all images, and remove those that do not have their checksums", 0},
        JSON_OPTION,
        {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse_option,
        .args_doc = "DIR",
        .doc = "Removes images from a folder: without options, only what no run could use."};

    return run(argc, argv, &argp, prune, true);
}

int sl_cmd_images(int argc, char **argv)
{
    static const struct sl_kind kinds[] = {
        {"list", run_list}, {"verify", run_verify}, {"prune", run_prune}};
    static const char *const usage[] = {"list|verify DIR [OPTION...]", "prune DIR [OPTION...]",
                                        NULL};

    return sl_run_kind(kinds, SL_ARRAY_LEN(kinds), argc, argv, usage);
}
