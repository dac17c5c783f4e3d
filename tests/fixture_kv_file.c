#include "tests/fixture_kv_file.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "tests/fixture_model.h"

static struct fixture_kv_file *fixture(struct sl_kv_file *file)
{
    return (struct fixture_kv_file *)(void *)file;
}

/* Whether it is the turn of what `nth` counts. */
static bool is_due(uint64_t *nth)
{
    return *nth > 0 && --*nth == 0;
}

static int write_places(struct sl_kv_file *file, uint32_t first_place, uint32_t n_places,
                        const uint8_t *bytes, struct sl_err *err)
{
    struct fixture_kv_file *f = fixture(file);

    sl_assert(n_places >= 1 && first_place + n_places <= f->n_places);
    sl_assert((uintptr_t)bytes % SL_BLOCK_BYTES == 0);
    f->n_writes++;
    if (is_due(&f->fail_write_nth))
        return sl_err_set(err, -ENOSPC, "the fixture's file is full as told");
    memcpy(f->bytes + first_place * f->place_bytes, bytes, n_places * f->place_bytes);
    return 0;
}

static void begin(struct sl_kv_file *file, uint32_t read_index, uint32_t first_place,
                  uint32_t n_places, uint8_t *dst, bool urgent)
{
    struct fixture_kv_file *f = fixture(file);
    struct fixture_kv_read *read = &f->reads[read_index];

    sl_assert(read_index < SL_KV_READS_MAX && !read->busy && read->n_late == 0);
    sl_assert(n_places >= 1 && first_place + n_places <= f->n_places);
    sl_assert((uintptr_t)dst % SL_BLOCK_BYTES == 0);
    f->n_reads++;
    f->n_urgent += urgent;
    *read = (struct fixture_kv_read){
        .first_place = first_place, .n_places = n_places, .dst = dst, .busy = true};
    read->is_urgent = urgent;
}

static void start(struct sl_kv_file *file)
{
    (void)file;
}

static void hurry(struct sl_kv_file *file, uint32_t read_index)
{
    struct fixture_kv_read *read = &fixture(file)->reads[read_index];

    sl_assert(read->busy);
    fixture(file)->n_hurried += !read->is_urgent;
    read->is_urgent = true;
}

static void cancel(struct sl_kv_file *file, uint32_t read_index)
{
    sl_assert(fixture(file)->reads[read_index].busy);
    fixture(file)->n_cancelled++;
    fixture(file)->reads[read_index].is_cancelled = true;
}

static int end(struct sl_kv_file *file, uint32_t read_index, bool wait, struct sl_err *err)
{
    struct fixture_kv_file *f = fixture(file);
    struct fixture_kv_read *read = &f->reads[read_index];
    const uint64_t n_bytes = read->n_places * f->place_bytes;
    bool is_faulty;

    sl_assert(read->busy);
    if (!wait && fixture_below(&f->random, 1000) < f->delay_permille)
        return 0;
    read->busy = false;
    if (read->is_cancelled)
        return sl_err_set(err, -ECANCELED, "cancelled");
    is_faulty = f->fault_nth <= 1;
    f->fault_nth -= !is_faulty;
    if (is_faulty && f->n_fail > 0) {
        f->n_fail--;
        return sl_err_set(err, -EIO, "the fixture's file failed as told");
    }
    if (is_due(&f->late_nth)) {
        read->n_late = 1 + fixture_below(&f->random, 200);
        return sl_err_set(err, -ETIMEDOUT, "the fixture's file is late as told");
    }
    memcpy(read->dst, f->bytes + read->first_place * f->place_bytes, n_bytes);
    if (is_faulty && f->n_corrupt > 0) {
        const uint32_t place = fixture_below(&f->random, read->n_places);

        f->n_corrupt--;
        read->dst[place * f->place_bytes + fixture_below(&f->random, 1000)] ^= 0x10;
    }
    return 1;
}

static bool is_free(struct sl_kv_file *file, uint32_t read_index)
{
    struct fixture_kv_file *f = fixture(file);
    struct fixture_kv_read *read = &f->reads[read_index];

    if (read->n_late > 0 && --read->n_late == 0)
        memset(read->dst, 0x5a, read->n_places * f->place_bytes);
    return !read->busy && read->n_late == 0;
}

static uint64_t checksum(const void *bytes, size_t size_bytes)
{
    uint64_t hash = size_bytes;

    for (size_t i = 0; i + 8 <= size_bytes; i += 8) {
        uint64_t word;

        memcpy(&word, (const uint8_t *)bytes + i, sizeof(word));
        hash = (hash ^ word) * UINT64_C(0x9e3779b97f4a7c15);
        hash ^= hash >> 29;
    }
    return hash;
}

static const struct sl_kv_file_ops ops = {
    .write = write_places,
    .begin = begin,
    .start = start,
    .hurry = hurry,
    .cancel = cancel,
    .end = end,
    .is_free = is_free,
    .checksum = checksum,
};

void fixture_kv_file_init(struct fixture_kv_file *file, uint32_t page_bytes, uint64_t file_bytes,
                          uint64_t seed)
{
    const uint64_t place_bytes = sl_kv_place_bytes(page_bytes);

    *file = (struct fixture_kv_file){.file = {.ops = &ops},
                                     .place_bytes = place_bytes,
                                     .n_places = (uint32_t)(file_bytes / place_bytes),
                                     .random = seed};
    file->bytes = malloc(file->n_places * place_bytes);
    sl_assert(file->bytes);
    memset(file->bytes, 0xee, file->n_places * place_bytes);
}

void fixture_kv_file_fini(struct fixture_kv_file *file)
{
    for (uint32_t i = 0; i < SL_KV_READS_MAX; i++)
        sl_assert(!file->reads[i].busy);
    free(file->bytes);
    *file = (struct fixture_kv_file){.bytes = NULL};
}
