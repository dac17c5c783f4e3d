/* Owns what we know of LMDB's file:
 *
 *     page   u64 number, u16 -, u16 kind, u16 lower, u16 upper, u16 offsets of nodes ...   ...
 * nodes node   u16 low, u16 high, u16 flags, u16 length of key, key, data
 *
 * In a leaf low and high are the size of the data, which may be on pages of their own; in a branch
 * they are, with the flags above them, the number of the page below. Pages 0 and 1 are headers, for
 * odd and even transactions: where the trees of values and of free pages have their roots. */
#include "storage/catalog_check.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/file.h"
#include "storage/catalog.h"

#define MAGIC 0xBEEFC0DEu
#define PAGE_HEADER_BYTES 16u
#define NODE_HEADER_BYTES 8u
#define PAGE_BYTES_MIN 512u
#define PAGE_BYTES_MAX 65536u
#define DEPTH_MAX 32u
#define NO_PAGE UINT64_MAX

enum { BRANCH = 0x01, LEAF = 0x02, OVERFLOW = 0x04 }; /* kinds of pages */
enum { BIG_DATA = 0x01 };                             /* flag of a node */
enum { FREE_PAGES, VALUES, TREES };

/* Offsets in a header page. */
enum {
    AT_MAGIC = PAGE_HEADER_BYTES,
    AT_TREES = PAGE_HEADER_BYTES + 24, /* 48 bytes each */
    AT_PAGE_BYTES = AT_TREES,
    AT_ROOT = 40, /* in a tree */
    TREE_BYTES = 48,
    AT_LAST_PAGE = AT_TREES + TREES * TREE_BYTES,
    AT_TXN = AT_LAST_PAGE + 8,
    HEADER_BYTES = AT_TXN + 8,
};

static uint64_t get(const uint8_t *bytes, uint32_t n_bytes)
{
    uint64_t value = 0;

    for (uint32_t i = 0; i < n_bytes; i++)
        value |= (uint64_t)bytes[i] << 8 * i;
    return value;
}

static bool is_page_size(uint64_t bytes)
{
    return bytes >= PAGE_BYTES_MIN && bytes <= PAGE_BYTES_MAX && (bytes & (bytes - 1)) == 0;
}

static int damaged(const char *where, uint64_t page, struct sl_err *err)
{
    return sl_err_set(err, -SL_ECORRUPT,
                      "%s: the catalog is damaged: page %llu of %s makes no sense", where,
                      (unsigned long long)page, SL_CATALOG_FILE);
}

int sl_catalog_check_header(int fd, const char *where, struct sl_err *err)
{
    uint64_t at_bytes = 0, page_bytes = 0;

    for (uint32_t i = 0; i < 2; i++) {
        uint8_t header[HEADER_BYTES];
        int64_t got = sl_file_read_at(fd, header, sizeof(header), at_bytes);

        if (got < 0)
            return sl_err_set(err, (int)got, "%s: cannot read the catalog: %s", where,
                              sl_strerror((int)got));
        if (got < (int64_t)sizeof(header) || get(header + AT_MAGIC, 4) != MAGIC)
            return 0;
        at_bytes = get(header + AT_PAGE_BYTES, 4);
        if (!is_page_size(at_bytes) || (i > 0 && at_bytes != page_bytes))
            return damaged(where, i, err);
        page_bytes = at_bytes;
    }
    return 0;
}

/* ---- pages ------------------------------------------------------------------------------------
 */

struct walk {
    const uint8_t *file;
    uint64_t page_bytes;
    uint64_t n_pages; /* in the file */
    uint64_t n_named; /* up to the last that was ever taken: free ones may not be in the file */
    uint64_t n_seen;
    uint64_t bad_page;
};

static bool check_free_list(const struct walk *w, const uint8_t *list, uint64_t size_bytes)
{
    uint64_t n = size_bytes >= 8 ? get(list, 8) : UINT64_MAX;
    uint64_t before = w->n_named;

    if (n > size_bytes / 8 - 1)
        return false;
    for (uint64_t i = 1; i <= n; i++) {
        uint64_t page = get(list + 8 * i, 8);

        if (page < 2 || page >= before)
            return false;
        before = page;
    }
    return true;
}

/* The data of a leaf's node. */
static bool check_data(struct walk *w, const uint8_t *node, const uint8_t *page_end, bool is_free)
{
    uint64_t size_bytes = get(node, 4), key_bytes = get(node + 6, 2), flags = get(node + 4, 2);
    const uint8_t *data = node + NODE_HEADER_BYTES + key_bytes;
    uint64_t room_bytes, first, n;

    if (NODE_HEADER_BYTES + key_bytes > (uint64_t)(page_end - node) || (flags & ~BIG_DATA) ||
        (is_free && key_bytes != 8))
        return false;
    room_bytes = (uint64_t)(page_end - data);
    if (flags & BIG_DATA) {
        if (room_bytes < 8)
            return false;
        first = get(data, 8);
        if (first < 2 || first >= w->n_pages)
            return false;
        data = w->file + first * w->page_bytes;
        n = get(data + 12, 4);
        if (get(data, 8) != first || get(data + 10, 2) != OVERFLOW || n > w->n_pages - first)
            return false;
        data += PAGE_HEADER_BYTES;
        room_bytes = n * w->page_bytes;
        room_bytes -= room_bytes < PAGE_HEADER_BYTES ? room_bytes : PAGE_HEADER_BYTES;
    }
    return size_bytes <= room_bytes && (!is_free || check_free_list(w, data, size_bytes));
}

/* A tree has no page twice, or there would be more than the file has; and no branch with one page
 * below it, which LMDB asserts of values. */
static bool check_page(struct walk *w, uint64_t number, uint32_t depth, bool is_free)
{
    const uint8_t *page = w->file + number * w->page_bytes;
    uint64_t kind, lower, upper;

    w->bad_page = number;
    if (number < 2 || number >= w->n_pages || number >= w->n_named || depth == DEPTH_MAX ||
        w->n_seen++ == w->n_pages)
        return false;
    kind = get(page + 10, 2);
    lower = get(page + 12, 2);
    upper = get(page + 14, 2);
    if (get(page, 8) != number || (kind != BRANCH && kind != LEAF) || lower < PAGE_HEADER_BYTES ||
        lower % 2 || lower > upper || upper > w->page_bytes || lower == PAGE_HEADER_BYTES ||
        (kind == BRANCH && !is_free && lower == PAGE_HEADER_BYTES + 2))
        return false;
    for (uint64_t at = PAGE_HEADER_BYTES; at < lower; at += 2) {
        uint64_t offset = get(page + at, 2);
        const uint8_t *node = page + offset;

        w->bad_page = number;
        if (offset < upper || offset % 2 || offset > w->page_bytes - NODE_HEADER_BYTES)
            return false;
        if (kind == LEAF && !check_data(w, node, page + w->page_bytes, is_free))
            return false;
        if (kind == BRANCH &&
            (get(node + 6, 2) > w->page_bytes - NODE_HEADER_BYTES - offset ||
             !check_page(w, get(node, 4) | get(node + 4, 2) << 32, depth + 1, is_free)))
            return false;
    }
    return true;
}

/* NULL if there is none of this transaction. */
static const uint8_t *find_header(const uint8_t *file, uint64_t size_bytes, uint64_t txn_id)
{
    uint64_t at_bytes = 0;

    for (uint32_t i = 0; i < 2 && at_bytes + HEADER_BYTES <= size_bytes; i++) {
        const uint8_t *header = file + at_bytes;

        if (get(header + AT_TXN, 8) == txn_id && is_page_size(get(header + AT_PAGE_BYTES, 4)))
            return header;
        at_bytes = get(header + AT_PAGE_BYTES, 4);
    }
    return NULL;
}

static int check_trees(const uint8_t *file, uint64_t size_bytes, uint64_t txn_id, const char *where,
                       struct sl_err *err)
{
    const uint8_t *header = find_header(file, size_bytes, txn_id);
    struct walk w = {.file = file};

    if (!header)
        return 1;
    w.page_bytes = get(header + AT_PAGE_BYTES, 4);
    w.n_pages = size_bytes / w.page_bytes;
    w.n_named = get(header + AT_LAST_PAGE, 8) + 1;
    for (uint32_t tree = 0; tree < TREES; tree++) {
        uint64_t root = get(header + AT_TREES + tree * TREE_BYTES + AT_ROOT, 8);

        if (root == NO_PAGE || check_page(&w, root, 0, tree == FREE_PAGES))
            continue;
        if (w.n_pages < w.n_named)
            return sl_err_set(err, -SL_ECORRUPT,
                              "%s: the catalog is truncated: %s has %llu bytes, expected %llu",
                              where, SL_CATALOG_FILE, (unsigned long long)size_bytes,
                              (unsigned long long)(w.n_named * w.page_bytes));
        return damaged(where, w.bad_page, err);
    }
    return 0;
}

int sl_catalog_check_pages(int fd, uint64_t txn_id, const char *where, struct sl_err *err)
{
    struct stat status;
    uint8_t *file;
    int rc;

    if (fstat(fd, &status) < 0)
        return sl_err_set(err, -errno, "%s: cannot read the catalog: %s", where,
                          sl_strerror(errno));
    file = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (file == MAP_FAILED)
        return sl_err_set(err, -errno, "%s: cannot read the catalog: %s", where,
                          sl_strerror(errno));
    rc = check_trees(file, (uint64_t)status.st_size, txn_id, where, err);
    munmap(file, (size_t)status.st_size);
    return rc;
}
