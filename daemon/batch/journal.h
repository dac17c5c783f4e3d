/* The journal: what has to be known, after a kill or a power cut, to go on where batches were.
 *
 * A folder with a small LMDB database of text keys (storage/store/catalog.h), which one process at
 * a time has. Changes are collected by their owner and committed together: then all of them are on
 * disk, or none. Opening reads the last commit without LMDB, checks all of it, and copies it to a
 * new file, so a damaged journal is refused and left as it is.
 *
 * Any thread may commit; the rest belongs to whoever opens and closes it. */
#ifndef SL_DAEMON_BATCH_JOURNAL_H
#define SL_DAEMON_BATCH_JOURNAL_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/bytes.h"
#include "core/base/err.h"
#include "storage/io/file_writer.h"
#include "storage/store/catalog_entries.h"

/* ---- changes -----------------------------------------------------------------------------------
 */

/* Changes that are made together, in the order in which they were added. Zeroed ones are none;
 * where memory ran out, the commit fails with -ENOMEM. */
struct sl_journal_changes {
    struct sl_bytes bytes;
};

void sl_journal_put(struct sl_journal_changes *changes, const char *key, const void *value,
                    size_t size_bytes);
void sl_journal_remove(struct sl_journal_changes *changes, const char *key);

/* Puts a value as JSON text; takes it, and NULL counts as out of memory. */
void sl_journal_put_json(struct sl_journal_changes *changes, const char *key, json_t *value);

void sl_journal_changes_clear(struct sl_journal_changes *changes);
void sl_journal_changes_fini(struct sl_journal_changes *changes);

/* ---- the journal -------------------------------------------------------------------------------
 */

struct sl_journal;

/* Opens the journal in a folder, which is made where it is not there, but not the folders above it.
 * Fails with -EBUSY where another process has it, with -SL_ECORRUPT where it is damaged, or with
 * -errno. `writer` outlives it. */
int sl_journal_open(struct sl_journal **ret_journal, const char *folder,
                    struct sl_file_writer *writer, struct sl_err *err);
void sl_journal_close(struct sl_journal *journal); /* NULL is allowed */

/* The entries that it had when it was opened, until forget(), which gives their memory back. */
const struct sl_catalog_entries *sl_journal_entries(const struct sl_journal *journal);
void sl_journal_forget(struct sl_journal *journal);

/* Returns 0 when all changes are on disk. Otherwise none of them is, and they can be committed
 * again later: fails with -ENOSPC and its like, with -ESTALE where somebody has taken the journal's
 * file away, or with -SL_ECORRUPT where its file was damaged meanwhile. */
int sl_journal_commit(struct sl_journal *journal, const struct sl_journal_changes *changes,
                      struct sl_err *err);

#endif
