#include "storage/pages/page_file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "storage/io/checksum.h"
#include "storage/io/read_slots.h"

#define FILE_NAME "kv-pages"

struct sl_page_file {
    struct sl_kv_file pages; /* first */
    struct sl_file_writer *writer;
    char *path;
    int file;
    bool has_name;
    uint64_t place_bytes;
    struct sl_read_slots reads;
    uint32_t file_index;
};

static const struct sl_kv_file_ops ops;

static int open_file(struct sl_page_file *f, const char *folder, struct sl_err *err)
{
    int rc = 0;

    if (access(folder, F_OK) < 0)
        rc = f->writer->ops->make_folder(f->writer, folder);
    if (rc < 0)
        return sl_write_error(err, rc, folder, "make the folder of pages");
    rc = f->writer->ops->open(f->writer, f->path, true, &f->file);
    if (rc < 0)
        return sl_write_error(err, rc, f->path, "make the file");
    f->has_name = true;
    return 0;
}

int sl_page_file_create(struct sl_page_file **ret_file, const char *folder, uint32_t page_bytes,
                        struct sl_file_writer *writer, struct sl_err *err)
{
    struct sl_page_file *f = calloc(1, sizeof(*f));
    int rc;

    if (!f)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", folder);
    f->pages.ops = &ops;
    f->writer = writer;
    f->file = -1;
    f->place_bytes = sl_kv_place_bytes(page_bytes);
    if (asprintf(&f->path, "%s/" FILE_NAME, folder) < 0) {
        free(f);
        return sl_err_set(err, -ENOMEM, "%s: out of memory", folder);
    }
    rc = open_file(f, folder, err);
    if (rc < 0) {
        sl_page_file_destroy(f);
        return rc;
    }
    *ret_file = f;
    return 0;
}

const char *sl_page_file_path(const struct sl_page_file *file)
{
    return file->path;
}

static void remove_name(struct sl_page_file *file)
{
    if (file->has_name)
        file->writer->ops->remove(file->writer, file->path);
    file->has_name = false;
}

int sl_page_file_start(struct sl_page_file *file, struct sl_reader *reader, uint32_t file_index,
                       uint32_t n_reads, struct sl_err *err)
{
    remove_name(file);
    file->file_index = file_index;
    return sl_read_slots_init(&file->reads, reader, SL_READS_OF_KV, n_reads, err);
}

void sl_page_file_destroy(struct sl_page_file *file)
{
    if (!file)
        return;
    remove_name(file);
    if (file->file >= 0)
        file->writer->ops->close(file->writer, file->file);
    sl_read_slots_fini(&file->reads);
    free(file->path);
    free(file);
}

struct sl_kv_file *sl_page_file_pages(struct sl_page_file *file)
{
    return &file->pages;
}

/* ---- the operations ----------------------------------------------------------------------------
 */

static struct sl_page_file *file_of(struct sl_kv_file *file)
{
    return (struct sl_page_file *)(void *)file;
}

static int write_places(struct sl_kv_file *file, uint32_t first_place, uint32_t n_places,
                        const uint8_t *bytes, struct sl_err *err)
{
    struct sl_page_file *f = file_of(file);
    int rc = f->writer->ops->write(f->writer, f->file, first_place * f->place_bytes, bytes,
                                   n_places * f->place_bytes);

    return rc < 0 ? sl_write_error(err, rc, f->path, "write pages of KV caches") : 0;
}

static void begin(struct sl_kv_file *file, uint32_t read_index, uint32_t first_place,
                  uint32_t n_places, uint8_t *dst, bool urgent)
{
    struct sl_page_file *f = file_of(file);
    const struct sl_extent extent = {.offset_bytes = first_place * f->place_bytes,
                                     .size_bytes = n_places * f->place_bytes,
                                     .file_index = f->file_index};

    sl_read_slots_begin(&f->reads, read_index, &extent, dst, urgent);
}

static void start(struct sl_kv_file *file)
{
    sl_reader_start(file_of(file)->reads.reader);
}

static void hurry(struct sl_kv_file *file, uint32_t read_index)
{
    sl_read_slots_hurry(&file_of(file)->reads, read_index);
}

static void cancel(struct sl_kv_file *file, uint32_t read_index)
{
    sl_read_slots_cancel(&file_of(file)->reads, read_index);
}

static int end(struct sl_kv_file *file, uint32_t read_index, bool wait, struct sl_err *err)
{
    const uint8_t *bytes; /* where dst is: places begin with a block */

    return sl_read_slots_end(&file_of(file)->reads, read_index, wait, &bytes, err);
}

static bool is_free(struct sl_kv_file *file, uint32_t read_index)
{
    return sl_read_slots_is_free(&file_of(file)->reads, read_index);
}

static const struct sl_kv_file_ops ops = {
    .write = write_places,
    .begin = begin,
    .start = start,
    .hurry = hurry,
    .cancel = cancel,
    .end = end,
    .is_free = is_free,
    .checksum = sl_checksum,
};
