/* The file for pages of KV caches that memory has no room for: core's sl_kv_file.
 *
 * It is made in a folder for its owner alone, and has no name any more as soon as it is open, so
 * whatever becomes of the process, nothing stays. Writes and reads go past the page cache where
 * file system and drive allow it; reads go through a reader that others use too, as demands if
 * somebody waits, else ahead.
 *
 *     create() ──► open sl_io with the path ──► start() ──► destroy()
 */
#ifndef SL_STORAGE_PAGES_PAGE_FILE_H
#define SL_STORAGE_PAGES_PAGE_FILE_H

#include "core/model/kv_file.h"
#include "storage/io/file_writer.h"
#include "storage/io/reader.h"

struct sl_page_file;

/* Makes the file, and the folder if it is not there. Fails as the writer does, with -EBUSY where
 * another process is just making its own. The caller destroys *ret_file. */
int sl_page_file_create(struct sl_page_file **ret_file, const char *folder, uint32_t page_bytes,
                        struct sl_file_writer *writer, struct sl_err *err);

/* The name until start(): for whoever opens files for the reader. */
const char *sl_page_file_path(const struct sl_page_file *file);

/* Removes the name. The reader, borrowed until destroy(), has the file under this number; n_reads
 * are under way at most. Fails with -ENOMEM. */
int sl_page_file_start(struct sl_page_file *file, struct sl_reader *reader, uint32_t file_index,
                       uint32_t n_reads, struct sl_err *err);

/* NULL is allowed. All reads have ended, but for those of late drives: then sl_reader_drain() comes
 * before this. */
void sl_page_file_destroy(struct sl_page_file *file);

/* Lives as long as the file; after start(). */
struct sl_kv_file *sl_page_file_pages(struct sl_page_file *file);

#endif
