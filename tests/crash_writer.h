/* A file writer on a disk that loses power, or fails, at the nth call.
 *
 * Files are really written. What has not been synced is remembered, and when the power goes each
 * 512-byte sector of it has got to the disk or not, as chance has it: writes are torn, reordered
 * and lost, files have any size between what was synced and what was written, and names that were
 * made since their folder was synced may be gone, or lead to the file that had them before; a cut
 * file may be as it was, or cut anywhere behind that place. The catalog's commits are LMDB's own
 * and are as durable as it makes them; the name of its file is one like others.
 *
 * Calls of the writer may come from any thread. */
#ifndef SL_TESTS_CRASH_WRITER_H
#define SL_TESTS_CRASH_WRITER_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/io/file_writer.h"

struct crash_writer;

/* The nth call from now on (1 is the next; 0: none) ends in a power cut, after which every call
 * fails with -EIO; or with fail_code below 0, it fails with that, and a write has then been done by
 * half. Closed by crash_writer_close(). */
struct crash_writer *crash_writer_open(uint64_t seed, uint64_t nth, int fail_code);

/* Calls so far. */
uint64_t crash_writer_count(const struct crash_writer *writer);

/* If the power was cut, lets the disk be as it would be found then, and says so. */
bool crash_writer_close(struct crash_writer *writer);

struct sl_file_writer *crash_writer_ops(struct crash_writer *writer);

#endif
