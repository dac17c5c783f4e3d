/* Dense tensors of a checkpoint or a store, read through the reader while others compute: core's
 * weight reader, for the weights that do not stay in memory.
 *
 * Reads go past the page cache, a slot's read in the class of demands if somebody waits for it,
 * else in that of what is read ahead. What a drive that did not answer in time may still write to
 * is told by is_free().
 *
 * The tensors of a store have checksums. With SL_VERIFY_FIRST each is compared the first time that
 * it is read in a run, with SL_VERIFY_ALWAYS each time. Rows of a tensor, as of the embedding, are
 * not compared: a checksum is of all of it. A checkpoint has none. */
#ifndef SL_STORAGE_EXPERTS_DENSE_READER_H
#define SL_STORAGE_EXPERTS_DENSE_READER_H

#include "core/base/err.h"
#include "core/model/weight_source.h"
#include "storage/experts/model_files.h"
#include "storage/io/reader.h"

struct sl_dense_reader;

/* Borrows both until destroy; the reader's files are those of the model's experts
 * (sl_expert_map_file_paths()), which the dense tensors are in, too. Fails with -ENOMEM. */
int sl_dense_reader_create(struct sl_dense_reader **ret_reader, const struct sl_model_files *files,
                           struct sl_reader *reader, uint32_t n_slots, enum sl_verify verify,
                           struct sl_err *err);

/* NULL is allowed. All reads have ended, but for those of late drives: then sl_reader_drain() comes
 * before this. */
void sl_dense_reader_destroy(struct sl_dense_reader *reader);

/* Lives as long as the reader. */
struct sl_weight_reader *sl_dense_reader_weights(struct sl_dense_reader *reader);

#endif
