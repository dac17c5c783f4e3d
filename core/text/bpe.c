#include "core/text/bpe.h"

#include <stdbool.h>
#include <string.h>

#include "core/base/assert.h"

#define NONE UINT32_MAX
#define NO_PAIR UINT64_MAX

/* Nearly all words of a text are short and have come before, so their tokens are kept. One slot is
 * one cache line; 16,384 of them (1 MiB) hold the words of an English book. A word whose slot is
 * taken takes it over: no list, no bookkeeping. */
#define CACHE_SLOTS_LOG2 14
#define CACHED_WORD_BYTES_MAX 31
#define CACHED_IDS_MAX 7

struct pair_slot {
    uint64_t pair; /* left << 32 | right, or NO_PAIR */
    uint32_t rank;
    uint32_t merged;
};

struct sl_bpe {
    uint32_t byte_ids[256];
    uint32_t slots_log2;
    size_t n_merges_left;
    struct pair_slot *slots; /* open addressing, at most half full */
};

struct cached_word {
    uint64_t key[4]; /* the bytes, zeros, and in the last byte their number */
    uint32_t n_ids;
    uint32_t ids[CACHED_IDS_MAX];
};
_Static_assert(sizeof(struct cached_word) == 64, "one cache line");

/* A token of the word being merged. Symbols are linked by index; prev of the first is NONE, next of
 * the last is the number of bytes in the word. */
struct symbol {
    uint32_t id;
    uint32_t prev;
    uint32_t next;
    uint32_t rank;   /* of merging this symbol with the next one; NONE if they do not merge */
    uint32_t merged; /* what they would become */
};

struct sl_bpe_scratch {
    const struct sl_bpe *bpe;
    struct cached_word *cache;
    struct symbol *symbols; /* one per byte of the word */
    uint64_t *heap;         /* rank << 32 | index of the left symbol: least first */
    size_t n_heap;
    size_t capacity; /* bytes of the longest word that fits in symbols and heap */
};

struct sl_bpe *sl_bpe_create(const uint32_t byte_ids[256], size_t n_merges_max)
{
    struct sl_bpe *bpe = calloc(1, sizeof(*bpe));

    sl_assert(n_merges_max < NONE / 2);
    if (!bpe)
        return NULL;
    memcpy(bpe->byte_ids, byte_ids, sizeof(bpe->byte_ids));
    bpe->n_merges_left = n_merges_max;
    bpe->slots_log2 = 1;
    while ((size_t)1 << bpe->slots_log2 < n_merges_max * 2)
        bpe->slots_log2++;
    bpe->slots = malloc(sizeof(*bpe->slots) << bpe->slots_log2);
    if (!bpe->slots) {
        free(bpe);
        return NULL;
    }
    for (size_t i = 0; i < (size_t)1 << bpe->slots_log2; i++)
        bpe->slots[i].pair = NO_PAIR;
    return bpe;
}

void sl_bpe_destroy(struct sl_bpe *bpe)
{
    if (!bpe)
        return;
    free(bpe->slots);
    free(bpe);
}

/* The slot of the pair, or the empty one where it would go. */
static struct pair_slot *find_slot(const struct sl_bpe *bpe, uint64_t pair)
{
    size_t mask = ((size_t)1 << bpe->slots_log2) - 1;
    size_t i = (pair ^ pair >> 29) * UINT64_C(0x9E3779B97F4A7C15) >> (64 - bpe->slots_log2);

    while (bpe->slots[i].pair != pair && bpe->slots[i].pair != NO_PAIR)
        i = (i + 1) & mask;
    return &bpe->slots[i];
}

void sl_bpe_add_merge(struct sl_bpe *bpe, uint32_t left, uint32_t right, uint32_t rank,
                      uint32_t merged)
{
    uint64_t pair = (uint64_t)left << 32 | right;

    sl_assert(bpe->n_merges_left > 0);
    sl_assert(rank < NONE);
    bpe->n_merges_left--;
    *find_slot(bpe, pair) = (struct pair_slot){.pair = pair, .rank = rank, .merged = merged};
}

struct sl_bpe_scratch *sl_bpe_scratch_create(const struct sl_bpe *bpe)
{
    struct sl_bpe_scratch *scratch = calloc(1, sizeof(*scratch));

    if (!scratch)
        return NULL;
    scratch->bpe = bpe;
    /* Zeroed: a key of length 0, which no word has. */
    scratch->cache = aligned_alloc(64, sizeof(*scratch->cache) << CACHE_SLOTS_LOG2);
    if (!scratch->cache) {
        free(scratch);
        return NULL;
    }
    memset(scratch->cache, 0, sizeof(*scratch->cache) << CACHE_SLOTS_LOG2);
    return scratch;
}

void sl_bpe_scratch_destroy(struct sl_bpe_scratch *scratch)
{
    if (!scratch)
        return;
    free(scratch->cache);
    free(scratch->symbols);
    free(scratch->heap);
    free(scratch);
}

static int reserve(struct sl_bpe_scratch *scratch, size_t n)
{
    size_t capacity = n < 256 ? 256 : n;
    struct symbol *symbols;
    uint64_t *heap;

    if (n <= scratch->capacity)
        return 0;
    symbols = reallocarray(scratch->symbols, capacity, sizeof(*symbols));
    if (!symbols)
        return -ENOMEM;
    scratch->symbols = symbols;
    /* n - 1 pairs at the start; each merge takes one out and puts at most two in. */
    heap = reallocarray(scratch->heap, capacity, 2 * sizeof(*heap));
    if (!heap)
        return -ENOMEM;
    scratch->heap = heap;
    scratch->capacity = capacity;
    return 0;
}

static void heap_push(struct sl_bpe_scratch *scratch, uint64_t item)
{
    uint64_t *heap = scratch->heap;
    size_t i = scratch->n_heap++;

    sl_dassert(i < 2 * scratch->capacity);
    for (; i > 0 && heap[(i - 1) / 2] > item; i = (i - 1) / 2)
        heap[i] = heap[(i - 1) / 2];
    heap[i] = item;
}

static uint64_t heap_pop(struct sl_bpe_scratch *scratch)
{
    uint64_t *heap = scratch->heap;
    uint64_t least = heap[0], item = heap[--scratch->n_heap];
    size_t n = scratch->n_heap, i = 0, child;

    while ((child = 2 * i + 1) < n) {
        if (child + 1 < n && heap[child + 1] < heap[child])
            child++;
        if (heap[child] >= item)
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = item;
    return least;
}

/* Symbol i has a new neighbour on its right: what would merging them give? */
static void meet(struct sl_bpe_scratch *scratch, uint32_t i, uint32_t n)
{
    struct symbol *symbol = &scratch->symbols[i];
    const struct pair_slot *slot;

    symbol->rank = NONE;
    if (symbol->next == n)
        return;
    slot = find_slot(scratch->bpe, (uint64_t)symbol->id << 32 | scratch->symbols[symbol->next].id);
    if (slot->pair == NO_PAIR)
        return;
    symbol->rank = slot->rank;
    symbol->merged = slot->merged;
    heap_push(scratch, (uint64_t)slot->rank << 32 | i);
}

/* A heap keeps a run of one letter, however long, from taking time that grows with its square.
 * Items are not removed from it when a symbol changes: they are recognised when they come up,
 * because the symbol's rank is then another (a rank names one pair). */
static void merge(struct sl_bpe_scratch *scratch, const uint8_t *word, uint32_t n)
{
    struct symbol *symbols = scratch->symbols;

    scratch->n_heap = 0;
    for (uint32_t i = 0; i < n; i++)
        symbols[i] = (struct symbol){.id = scratch->bpe->byte_ids[word[i]],
                                     .prev = i - 1, /* NONE for the first */
                                     .next = i + 1};
    for (uint32_t i = 0; i < n; i++)
        meet(scratch, i, n);
    while (scratch->n_heap > 0) {
        uint64_t item = heap_pop(scratch);
        struct symbol *left = &symbols[(uint32_t)item], *right;

        if (left->rank != item >> 32)
            continue;
        right = &symbols[left->next];
        left->id = left->merged;
        left->next = right->next;
        right->rank = NONE;
        if (left->next < n)
            symbols[left->next].prev = (uint32_t)item;
        meet(scratch, (uint32_t)item, n);
        if (left->prev != NONE)
            meet(scratch, left->prev, n);
    }
}

static struct cached_word *cache_slot(struct sl_bpe_scratch *scratch, const uint64_t key[4])
{
    uint64_t hash = key[0] * UINT64_C(0x9E3779B97F4A7C15) + key[1] * UINT64_C(0xC2B2AE3D27D4EB4F) +
                    key[2] * UINT64_C(0x165667B19E3779F9) + key[3] * UINT64_C(0xD6E8FEB86659FD93);

    hash = (hash ^ hash >> 32) * UINT64_C(0xFF51AFD7ED558CCD);
    return &scratch->cache[hash >> (64 - CACHE_SLOTS_LOG2)];
}

static uint64_t read_bytes(const uint8_t *bytes, size_t n)
{
    uint64_t value = 0;

    memcpy(&value, bytes, n);
    return value;
}

/* The word's bytes, zeros, and in the last byte their number. The parts are read whole and put
 * together in registers: reading words of 8 bytes back from where a copy has just written fewer
 * would wait for that copy. */
static void make_key(uint64_t key[4], const uint8_t *word, size_t n)
{
    size_t i = 0, rest;

    key[0] = key[1] = key[2] = key[3] = 0;
    for (; i < n / 8; i++)
        key[i] = read_bytes(word + 8 * i, 8);
    rest = n % 8;
    if (rest && n > 8)
        key[i] = read_bytes(word + n - 8, 8) >> (64 - 8 * rest);
    else if (rest >= 4)
        key[i] = read_bytes(word, 4) | read_bytes(word + n - 4, 4) << 8 * (n - 4);
    else if (rest)
        key[i] = (uint64_t)word[0] | (uint64_t)word[n / 2] << 8 * (n / 2) |
                 (uint64_t)word[n - 1] << 8 * (n - 1);
    key[3] |= (uint64_t)n << 56;
}

int sl_bpe_encode(struct sl_bpe_scratch *scratch, const uint8_t *word, size_t n,
                  struct sl_token_list *out)
{
    struct cached_word *slot = NULL;
    uint64_t key[4];
    size_t first = out->n;
    int rc = sl_token_list_reserve(out, n);

    sl_dassert(n > 0 && n < NONE);
    if (rc < 0)
        return rc;
    if (n <= CACHED_WORD_BYTES_MAX) {
        make_key(key, word, n);
        slot = cache_slot(scratch, key);
        if (memcmp(slot->key, key, sizeof(key)) == 0) {
            memcpy(out->ids + out->n, slot->ids, slot->n_ids * sizeof(*slot->ids));
            out->n += slot->n_ids;
            return 0;
        }
    }
    rc = reserve(scratch, n);
    if (rc < 0)
        return rc;
    merge(scratch, word, (uint32_t)n);
    for (uint32_t i = 0; i < n; i = scratch->symbols[i].next)
        out->ids[out->n++] = scratch->symbols[i].id;
    if (slot && out->n - first <= CACHED_IDS_MAX) {
        memcpy(slot->key, key, sizeof(key));
        slot->n_ids = (uint32_t)(out->n - first);
        memcpy(slot->ids, out->ids + first, slot->n_ids * sizeof(*slot->ids));
    }
    return 0;
}
