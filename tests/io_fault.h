/* An I/O back end around another one that does what devices do on bad days: short reads, errors,
 * wrong bytes, completions late and in any order.
 *
 * Same seed, same reads, same behaviour: whenever it is asked it first gathers all that is out, and
 * then decides by its own random numbers. */
#ifndef SL_TESTS_IO_FAULT_H
#define SL_TESTS_IO_FAULT_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/io.h"

struct io_fault_plan {
    uint64_t seed;
    uint32_t short_permille; /* of reads larger than a block are cut short, beyond that block */
    bool shuffle;            /* hand back in any order, now and then nothing at all */
    bool lazy;               /* hand back nothing to those who do not wait */

    /* The nth read (1: the first; 0: none) fails with fail_code, or if that is 0 delivers bytes of
     * 0xff. For good: so does every later one that covers the block it began with. */
    uint64_t fail_nth;
    int fail_code; /* negative */
    bool fail_for_good;
};

/* Takes `inner`, which closes with it. The plan is empty. */
struct sl_io *io_fault_wrap(struct sl_io *inner);

/* No read is out. Counting starts anew. */
void io_fault_set(struct sl_io *io, const struct io_fault_plan *plan);

/* No more failures, from now on; reads may be out. */
void io_fault_heal(struct sl_io *io);

/* Since io_fault_set(). */
uint64_t io_fault_read_count(const struct sl_io *io);
uint64_t io_fault_delivered_bytes(const struct sl_io *io);

/* splitmix64: the tests' random numbers. */
uint64_t io_fault_random(uint64_t *state);

#endif
