/* A drive that exists in memory alone, on a clock of its own: no file is open and no time passes.
 *
 * It holds copies of files. Every read takes as long as the seed says, so that completions come in
 * any order; it may be cut short, interrupted, fail or be wrong. Time goes on when
 * io_simulated_advance() is called, and when somebody waits: then to the next completion. Same
 * seed, same calls, same behaviour. */
#ifndef SL_TESTS_IO_SIMULATED_H
#define SL_TESTS_IO_SIMULATED_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/io/io.h"

struct io_simulated_plan {
    uint64_t seed;
    uint64_t latency_ns_max; /* at least 1 */
    uint32_t slow_permille;  /* of reads take a hundred times as long */
    uint32_t short_permille; /* of reads larger than a block are cut, beyond that block */
    uint32_t again_permille; /* end with -EINTR or -EAGAIN */
    uint32_t fail_permille;  /* end with -EIO */
    uint32_t flip_permille;  /* come with a bit flipped */

    /* NULL, or told of each read as it is submitted, those tried again included. */
    void (*on_submit)(void *context, const struct sl_io_read *read);
    void *context;
};

/* Copies the files. Ends with ops->close(). */
struct sl_io *io_simulated_open(const char *const *paths, uint32_t n_files, uint32_t reads_max,
                                const struct io_simulated_plan *plan);

void io_simulated_advance(struct sl_io *io, uint64_t ns);
uint64_t io_simulated_clock_ns(void *io); /* for struct sl_reader_options */

uint64_t io_simulated_delivered_bytes(const struct sl_io *io);
uint64_t io_simulated_completion_count(const struct sl_io *io);
uint64_t io_simulated_failure_count(const struct sl_io *io); /* with -EIO, or a bit flipped */

#endif
