#include "daemon/http/file_pages.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/size.h"
#include "daemon/http/paging.h"

#define FILES_PATH "/v1/files/"
#define PURPOSE "batch"
#define LIST_MAX SL_FILES_MAX

static void refuse(const struct sl_front *front, struct sl_http_call *call,
                   const struct sl_refusal *refusal)
{
    sl_front_answer_refusal(front, call, &sl_protocol_chat, refusal);
}

static json_t *file_object(const struct sl_stored_file *file)
{
    return json_pack("{s:s, s:s, s:I, s:I, s:s, s:s, s:s}", "id", file->id, "object", "file",
                     "bytes", (json_int_t)file->bytes, "created_at", (json_int_t)file->created_s,
                     "filename", file->name, "purpose", file->purpose, "status", "processed");
}

/* ---- uploads -----------------------------------------------------------------------------------
 */

/* A form that comes: its file is written to disk, its fields are kept. */
struct upload {
    const struct sl_front *front;
    struct sl_file_draft *draft; /* NULL: no part "file" has come */
    uint64_t bytes;
    char name[SL_FILE_NAME_BYTES];
    char purpose[SL_FILE_PURPOSE_BYTES];
    bool is_refused;
    struct sl_refusal refusal;
};

static bool refuse_part(struct upload *upload, int status, const char *param, const char *why)
{
    upload->is_refused = true;
    sl_refuse(&upload->refusal, status, param, "%s", why);
    return false;
}

static bool refuse_error(struct upload *upload, int rc, const struct sl_err *err)
{
    return refuse_part(upload, rc == -ENOSPC || rc == -EDQUOT ? 507 : 500, "file", err->message);
}

static bool take_file(struct upload *upload, const char *filename, uint64_t offset,
                      const char *data, size_t length)
{
    struct sl_err err;
    int rc = 0;

    if (offset == 0 && upload->bytes > 0)
        return refuse_part(upload, 400, "file", "the form has more than one file");
    if (length > upload->front->file_bytes_max - upload->bytes)
        return refuse_part(upload, 413, "file", "the file is too large");
    if (!upload->draft) {
        strncpy(upload->name, filename ? filename : "", sizeof(upload->name) - 1);
        rc = sl_file_draft_begin(&upload->draft, upload->front->files, &err);
    }
    if (rc == 0)
        rc = sl_file_draft_add(upload->draft, data, length, &err);
    if (rc < 0)
        return refuse_error(upload, rc, &err);
    upload->bytes += length;
    return true;
}

/* An sl_http_form's; a long part comes in several pieces. */
static bool take_part(void *context, const char *name, const char *filename, uint64_t offset,
                      const char *data, size_t length)
{
    struct upload *upload = context;

    if (strcmp(name, "file") == 0)
        return take_file(upload, filename, offset, data, length);
    if (strncmp(name, "expires_after", strlen("expires_after")) == 0)
        return refuse_part(upload, 400, "expires_after", "files are kept until they are deleted");
    if (strcmp(name, "purpose") != 0)
        return true;
    if (offset + length >= sizeof(upload->purpose))
        return refuse_part(upload, 400, "purpose", "\"purpose\" must be \"" PURPOSE "\"");
    memcpy(upload->purpose + offset, data, length);
    return true;
}

static void end_upload(void *context)
{
    struct upload *upload = context;

    sl_file_draft_discard(upload->draft);
    free(upload);
}

void sl_page_begin_upload(const struct sl_front *front, struct sl_http_form *form)
{
    struct upload *upload = calloc(1, sizeof(*upload));

    if (!upload || !front->files) {
        free(upload);
        return; /* the form is thrown away */
    }
    upload->front = front;
    *form = (struct sl_http_form){upload, take_part, end_upload};
}

/* Refuses where files cannot be had at all. */
static bool has_files(const struct sl_front *front, struct sl_http_call *call)
{
    struct sl_refusal refusal;

    if (front->files)
        return true;
    sl_refuse(&refusal, 503, NULL, "this server has no folder for files (--state)");
    refuse(front, call, &refusal);
    return false;
}

static void check_upload(struct upload *upload, bool is_whole)
{
    if (upload->is_refused)
        return;
    if (!is_whole)
        refuse_part(upload, 400, NULL, "the form is malformed or was cut off");
    else if (!upload->draft)
        refuse_part(upload, 400, "file", "the form has no part \"file\", or an empty one");
    else if (strcmp(upload->purpose, PURPOSE) != 0)
        refuse_part(upload, 400, "purpose", "\"purpose\" must be \"" PURPOSE "\"");
}

void sl_page_upload(const struct sl_front *front, struct sl_http_call *call)
{
    bool is_whole;
    struct upload *upload = sl_http_form(call, &is_whole);
    struct sl_stored_file file;
    struct sl_refusal refusal;
    struct sl_err err;
    int rc;

    if (!has_files(front, call))
        return;
    if (!upload) {
        sl_refuse(&refusal, 500, NULL, "out of memory");
        refuse(front, call, &refusal);
        return;
    }
    check_upload(upload, is_whole);
    if (!upload->is_refused) {
        rc = sl_file_draft_keep(upload->draft, upload->name, upload->purpose, &file, &err);
        upload->draft = NULL;
        if (rc < 0)
            refuse_error(upload, rc, &err);
    }
    if (upload->is_refused)
        refuse(front, call, &upload->refusal);
    else
        sl_front_answer_json(front, call, 200, file_object(&file));
}

/* ---- the files there are -----------------------------------------------------------------------
 */

static void list(const struct sl_front *front, struct sl_http_call *call,
                 const struct sl_paging *paging, const struct sl_file_query *query)
{
    struct sl_stored_file *files = malloc(paging->limit * sizeof(*files));
    json_t *data = json_array();
    struct sl_refusal refusal;
    bool has_more = false;
    int64_t n =
        files ? sl_file_store_list(front->files, query, files, paging->limit, &has_more) : -ENOMEM;

    for (int64_t i = 0; i < n; i++)
        json_array_append_new(data, file_object(&files[i]));
    free(files);
    if (n >= 0) {
        sl_front_answer_json(front, call, 200, sl_paging_object(data, has_more));
        return;
    }
    json_decref(data);
    if (n == -ENOENT)
        sl_refuse(&refusal, 400, "after", "there is no file of this id");
    else
        sl_refuse(&refusal, 500, NULL, "out of memory");
    refuse(front, call, &refusal);
}

void sl_page_files(const struct sl_front *front, struct sl_http_call *call)
{
    const char *purpose = sl_http_query(call, "purpose");
    struct sl_paging paging;
    struct sl_refusal refusal;

    if (!has_files(front, call))
        return;
    if (sl_paging_read(&paging, call, LIST_MAX, LIST_MAX, &refusal) < 0) {
        refuse(front, call, &refusal);
        return;
    }
    list(front, call, &paging,
         &(struct sl_file_query){purpose && *purpose ? purpose : NULL, paging.after,
                                 paging.is_ascending});
}

/* The id in the path; refuses where there is no such file. */
static bool find(const struct sl_front *front, struct sl_http_call *call,
                 struct sl_stored_file *file)
{
    char id[SL_FILE_ID_BYTES];
    struct sl_refusal refusal;

    if (!has_files(front, call))
        return false;
    if (sl_id_in_path(sl_http_path(call), FILES_PATH, id, sizeof(id)) &&
        sl_file_store_find(front->files, id, file))
        return true;
    sl_refuse(&refusal, 404, "id", "there is no file of this id");
    refuse(front, call, &refusal);
    return false;
}

void sl_page_file(const struct sl_front *front, struct sl_http_call *call)
{
    struct sl_stored_file file;

    if (find(front, call, &file))
        sl_front_answer_json(front, call, 200, file_object(&file));
}

void sl_page_file_content(const struct sl_front *front, struct sl_http_call *call)
{
    static const struct sl_http_header headers[] = {{"Content-Type", "application/octet-stream"},
                                                    {"X-Content-Type-Options", "nosniff"}};
    struct sl_stored_file file;
    struct sl_refusal refusal;
    struct sl_err err;
    int fd;

    if (!find(front, call, &file))
        return;
    fd = sl_file_store_read(front->files, file.id, &file, &err);
    if (fd >= 0) {
        sl_http_answer_file(call, 200, headers, SL_ARRAY_LEN(headers), fd, file.bytes);
        return;
    }
    sl_refuse(&refusal, fd == -ENOENT ? 404 : 500, NULL, "%s", err.message);
    refuse(front, call, &refusal);
}

void sl_page_remove_file(const struct sl_front *front, struct sl_http_call *call)
{
    struct sl_stored_file file;
    struct sl_refusal refusal;
    struct sl_err err;
    int rc;

    if (!find(front, call, &file))
        return;
    rc = sl_file_store_remove(front->files, file.id, &err);
    if (rc == 0) {
        sl_front_answer_json(
            front, call, 200,
            json_pack("{s:s, s:s, s:b}", "id", file.id, "object", "file", "deleted", 1));
        return;
    }
    sl_refuse(&refusal, rc == -ENOENT ? 404 : 500, NULL, "%s", err.message);
    refuse(front, call, &refusal);
}
