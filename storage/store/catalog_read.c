/* Owns what we know of LMDB's file:
 *
 *     page   u64 number, u16 -, u16 kind, u16 lower, u16 upper, u16 offsets of nodes ...   ...
 * nodes node   u16 low, u16 high, u16 flags, u16 length of key, key, data
 *
 * In a leaf low and high are the size of the data, which may be on pages of their own; in a branch
 * they are, with the flags above them, the number of the page below. Pages 0 and 1 are headers, for
 * odd and even transactions, of which the later one counts: where the tree of values has its root,
 * and how many there are. */
#include "storage/store/catalog_read.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "storage/store/catalog.h"
#include "storage/io/plain_file.h"

#define MAGIC 0xBEEFC0DEu
#define DATA_VERSION 1u
#define PAGE_HEADER_BYTES 16u
#define NODE_HEADER_BYTES 8u
#define PAGE_BYTES_MIN 512u
#define PAGE_BYTES_MAX 65536u
#define DEPTH_MAX 32u
#define NO_PAGE UINT64_MAX

enum { BRANCH = 0x01, LEAF = 0x02, OVERFLOW = 0x04 }; /* kinds of pages */
enum { BIG_DATA = 0x01 };                             /* flag of a node */

/* Offsets in a header page. */
enum {
    AT_MAGIC = PAGE_HEADER_BYTES,
    AT_DATA_VERSION = AT_MAGIC + 4,
    AT_FREE_TREE = PAGE_HEADER_BYTES + 24,
    AT_PAGE_BYTES = AT_FREE_TREE,
    TREE_BYTES = 48,
    AT_TREE = AT_FREE_TREE + TREE_BYTES, /* of values */
    AT_COUNT = AT_TREE + 32,
    AT_ROOT = AT_TREE + 40,
    AT_LAST_PAGE = AT_TREE + TREE_BYTES,
    AT_TXN = AT_LAST_PAGE + 8,
    HEADER_BYTES = AT_TXN + 8,
};

struct walk {
    const uint8_t *file;
    uint64_t page_bytes;
    uint64_t n_pages; /* in the file */
    uint64_t n_seen;
    uint64_t page; /* that is being looked at */
    struct sl_catalog_entries *entries;
    const char *where;
    struct sl_err *err;
};

static uint64_t get(const uint8_t *bytes, uint32_t n_bytes)
{
    uint64_t value = 0;

    for (uint32_t i = 0; i < n_bytes; i++)
        value |= (uint64_t)bytes[i] << 8 * i;
    return value;
}

static int damaged(const struct walk *w)
{
    return sl_err_set(w->err, -SL_ECORRUPT, "%s: damaged: page %llu is not a valid page of LMDB",
                      w->where, (unsigned long long)w->page);
}

/* Checks the value's checksum, and keeps the entry without it. */
static int take(struct walk *w, const uint8_t *key, uint64_t key_bytes, const uint8_t *data,
                uint64_t size_bytes)
{
    uint64_t value_bytes = size_bytes - SL_CATALOG_CHECKSUM_BYTES;
    int rc;

    if (size_bytes < SL_CATALOG_CHECKSUM_BYTES ||
        get(data + value_bytes, SL_CATALOG_CHECKSUM_BYTES) !=
            sl_catalog_checksum(key, key_bytes, data, value_bytes))
        return sl_err_set(
            w->err, -SL_ECORRUPT,
            "%s: damaged: the entry \"%.*s\" does not have the checksum that it names", w->where,
            (int)strnlen((const char *)key, key_bytes), (const char *)key);
    rc = sl_catalog_entries_add(w->entries, key, key_bytes, data, value_bytes);
    if (rc == -ENOMEM)
        return sl_err_set(w->err, rc, "%s: out of memory", w->where);
    return rc < 0 ? damaged(w) : 0;
}

/* Takes an entry from a leaf's node. */
static int take_node(struct walk *w, const uint8_t *node, const uint8_t *page_end)
{
    uint64_t size_bytes = get(node, 4), flags = get(node + 4, 2), key_bytes = get(node + 6, 2);
    const uint8_t *key = node + NODE_HEADER_BYTES, *data;
    uint64_t room_bytes, first, n;

    if (NODE_HEADER_BYTES + key_bytes > (uint64_t)(page_end - node) || (flags & ~BIG_DATA))
        return damaged(w);
    data = key + key_bytes;
    room_bytes = (uint64_t)(page_end - data);
    if (flags & BIG_DATA) {
        if (room_bytes < 8)
            return damaged(w);
        first = get(data, 8);
        if (first < 2 || first >= w->n_pages)
            return damaged(w);
        data = w->file + first * w->page_bytes;
        n = get(data + 12, 4);
        if (get(data, 8) != first || get(data + 10, 2) != OVERFLOW || n < 1 ||
            n > w->n_pages - first)
            return damaged(w);
        data += PAGE_HEADER_BYTES;
        room_bytes = n * w->page_bytes - PAGE_HEADER_BYTES;
    }
    return size_bytes <= room_bytes ? take(w, key, key_bytes, data, size_bytes) : damaged(w);
}

/* Takes the entries of the tree below a page. The pages are counted, so that a damaged tree with a
 * loop ends when it has more pages than the file. */
static int take_page(struct walk *w, uint64_t number, uint32_t depth)
{
    uint64_t kind, lower, upper;
    const uint8_t *page;
    int rc = 0;

    w->page = number;
    if (number < 2 || number >= w->n_pages || depth == DEPTH_MAX || w->n_seen++ == w->n_pages)
        return damaged(w);
    page = w->file + number * w->page_bytes;
    kind = get(page + 10, 2);
    lower = get(page + 12, 2);
    upper = get(page + 14, 2);
    if (get(page, 8) != number || (kind != BRANCH && kind != LEAF) || lower < PAGE_HEADER_BYTES ||
        lower % 2 || lower > upper || upper > w->page_bytes)
        return damaged(w);
    for (uint64_t at = PAGE_HEADER_BYTES; at < lower && rc == 0; at += 2) {
        uint64_t offset = get(page + at, 2);
        const uint8_t *node;

        w->page = number;
        if (offset < upper || offset > w->page_bytes - NODE_HEADER_BYTES)
            return damaged(w);
        node = page + offset;
        rc = kind == LEAF ? take_node(w, node, page + w->page_bytes)
                          : take_page(w, get(node, 4) | get(node + 4, 2) << 32, depth + 1);
    }
    return rc;
}

/* Returns the page size that a header names; 0 if it is no valid header. */
static uint64_t page_bytes_of(const uint8_t *header)
{
    uint64_t bytes = get(header + AT_PAGE_BYTES, 4);

    return get(header + AT_MAGIC, 4) == MAGIC && get(header + AT_DATA_VERSION, 4) == DATA_VERSION &&
                   bytes >= PAGE_BYTES_MIN && bytes <= PAGE_BYTES_MAX && (bytes & (bytes - 1)) == 0
               ? bytes
               : 0;
}

/* Returns the later of both headers; NULL unless both are sound. */
static const uint8_t *find_header(const uint8_t *file, uint64_t size_bytes)
{
    uint64_t page_bytes = size_bytes >= HEADER_BYTES ? page_bytes_of(file) : 0;

    if (page_bytes == 0 || size_bytes < page_bytes + HEADER_BYTES ||
        page_bytes_of(file + page_bytes) != page_bytes)
        return NULL;
    return get(file + AT_TXN, 8) > get(file + page_bytes + AT_TXN, 8) ? file : file + page_bytes;
}

static int take_tree(struct walk *w, uint64_t size_bytes)
{
    const uint8_t *header = find_header(w->file, size_bytes);
    uint64_t root, wanted_bytes;
    int rc;

    if (!header)
        return sl_err_set(w->err, -SL_ECORRUPT, "%s: damaged: its header pages are not LMDB's",
                          w->where);
    w->page_bytes = get(header + AT_PAGE_BYTES, 4);
    w->n_pages = size_bytes / w->page_bytes;
    root = get(header + AT_ROOT, 8);
    rc = root == NO_PAGE ? 0 : take_page(w, root, 0);
    wanted_bytes = (get(header + AT_LAST_PAGE, 8) + 1) * w->page_bytes;
    if (rc == -SL_ECORRUPT && size_bytes < wanted_bytes) /* LMDB need not write the last ones */
        return sl_err_set(w->err, rc, "%s: truncated: it has %llu bytes, expected %llu", w->where,
                          (unsigned long long)size_bytes, (unsigned long long)wanted_bytes);
    if (rc == 0 && get(header + AT_COUNT, 8) != w->entries->n_entries)
        return sl_err_set(w->err, -SL_ECORRUPT, "%s: damaged: it has %u entries, expected %llu",
                          w->where, w->entries->n_entries,
                          (unsigned long long)get(header + AT_COUNT, 8));
    return rc;
}

int sl_catalog_read_bytes(struct sl_catalog_entries *entries, const uint8_t *file,
                          uint64_t size_bytes, const char *where, struct sl_err *err)
{
    struct walk w = {.file = file, .entries = entries, .where = where, .err = err};
    int rc;

    *entries = (struct sl_catalog_entries){0};
    rc = take_tree(&w, size_bytes);
    if (rc < 0)
        sl_catalog_entries_fini(entries);
    return rc;
}

int sl_catalog_read(struct sl_catalog_entries *entries, const char *path, struct sl_err *err)
{
    uint8_t *file;
    size_t size_bytes;
    int rc;

    *entries = (struct sl_catalog_entries){0};
    rc = sl_plain_file_read(path, SL_CATALOG_BYTES_MAX, &file, &size_bytes, err);
    if (rc < 0)
        return rc;
    rc = sl_catalog_read_bytes(entries, file, size_bytes, path, err);
    free(file);
    return rc;
}
