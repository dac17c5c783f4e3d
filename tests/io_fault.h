/* An I/O back end around another one that does what devices do on bad days: short reads, errors,
 * wrong bytes, completions late, in any order, or never. It has a clock of its own.
 *
 * Same seed, same reads, same behaviour: whenever it is asked it first gathers all that is out, and
 * then decides by its own random numbers. */
#ifndef SL_TESTS_IO_FAULT_H
#define SL_TESTS_IO_FAULT_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/io/io.h"

struct io_fault_plan {
    uint64_t seed;
    uint32_t short_permille; /* of reads larger than a block are cut short, beyond that block */
    bool shuffle;            /* hand back in any order, now and then nothing at all */
    bool lazy;               /* hand back nothing to those who do not wait */

    /* What happens to the nth read (1: the first; 0: none). For good: and to every later one that
     * covers the block it began with. */
    uint64_t fail_nth;
    enum {
        IO_FAULT_FAIL,  /* fails with fail_code, or if that is 0 delivers bytes of 0xff */
        IO_FAULT_SHORT, /* delivers half of its blocks, or all but the last bytes of the only one */
        IO_FAULT_LATE,  /* nothing of it happens until late_ns later, by io_fault_clock_ns() */
    } fail_kind;
    int fail_code; /* negative */
    uint64_t late_ns;
    bool fail_for_good;

    /* Unless 0: more faults by the seed, of every kind (failing with -EIO; late by late_ns), with
     * at least so many reads between two and less than twice as many. Each happens once, but for
     * one in eight, a failure for good, if fail_for_good. */
    uint32_t gap_reads;
};

#define IO_FAULT_NEVER (UINT64_MAX / 2) /* for late_ns: until io_fault_heal() */

/* Takes `inner`, which closes with it. The plan is empty. */
struct sl_io *io_fault_wrap(struct sl_io *inner);

/* No read is out. Counting starts anew. */
void io_fault_set(struct sl_io *io, const struct io_fault_plan *plan);

/* As if the files lay on so many drives, in turn. Before a reader is made. */
void io_fault_set_drives(struct sl_io *io, uint32_t n_drives);

/* The time, which passes only in waits that bring nothing: they take no time, but by this clock as
 * long as was asked for. For struct sl_reader_options; `io` is the wrapper. */
uint64_t io_fault_clock_ns(void *io);

/* No more failures and nothing held back, from now on; reads may be out. mend() ends only what has
 * failed for good so far. */
void io_fault_heal(struct sl_io *io);
void io_fault_mend(struct sl_io *io);

/* Since io_fault_set(): reads, and faults of gap_reads by kind, those that deliver wrong bytes
 * last.
 */
uint64_t io_fault_read_count(const struct sl_io *io);
#define IO_FAULT_KINDS 4
uint64_t io_fault_gap_count(const struct sl_io *io, uint32_t kind);

/* The nth read (1: the first) of those, if it is one of the last IO_FAULT_LOG. */
#define IO_FAULT_LOG 1024u
struct sl_io_read io_fault_read(const struct sl_io *io, uint64_t nth);
uint64_t io_fault_delivered_bytes(const struct sl_io *io);

/* splitmix64: the tests' random numbers. */
uint64_t io_fault_random(uint64_t *state);

#endif
