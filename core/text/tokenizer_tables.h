/* The two large tables of tokenizer.json: the vocabulary and the merges, in the order of the file.
 *
 * Jansson would make some hundred thousand values of them, which take three searches for each
 * merge. So they are read from the text, in the way that tokenizers are written in, and the rest of
 * the file by jansson. A file with anything else in them, be it an error or another spelling, is
 * left to jansson as a whole, and the tables are filled from its values. */
#ifndef SL_TEXT_TOKENIZER_TABLES_H
#define SL_TEXT_TOKENIZER_TABLES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/json.h"

struct sl_vocab_entry {
    const char *text; /* as the file spells it; ends with a zero byte */
    uint32_t length;
    uint32_t id;
};

struct sl_merge_entry {
    const char *text; /* the left part and the right one */
    uint32_t left_length, length;
};

struct sl_tokenizer_tables {
    struct sl_vocab_entry *vocab;
    struct sl_merge_entry *merges;
    size_t n_vocab, n_merges;

    /* Its own. */
    size_t vocab_room, merges_room, text_bytes;
    char *text;      /* what the entries point to */
    uint32_t *slots; /* the vocabulary's entries by their text: number, or UINT32_MAX */
    uint32_t slots_log2;
};

/* Reads the tables of a plain file, and gives the rest of it as *ret_root, where both are empty.
 * Returns 1; 0 where the file is not plain; or -ENOMEM. The caller frees the zeroed tables and,
 * after 1, *ret_root. */
int sl_tokenizer_tables_cut(struct sl_tokenizer_tables *tables, const char *json, size_t length,
                            json_t **ret_root);

/* To fill them by hand: texts of at most `length` bytes in all, zero bytes included. Entries are
 * added one by one, all of the vocabulary before index(), which returns -EEXIST where a text comes
 * twice. They fail with -ENOMEM. */
int sl_tokenizer_tables_begin(struct sl_tokenizer_tables *tables, size_t length);
int sl_tokenizer_tables_add(struct sl_tokenizer_tables *tables, const char *text, size_t length,
                            uint32_t id);
int sl_tokenizer_tables_add_merge(struct sl_tokenizer_tables *tables, const char *left,
                                  size_t left_length, const char *right, size_t right_length);
int sl_tokenizer_tables_index(struct sl_tokenizer_tables *tables);

/* NULL where the vocabulary has no such text. After index(). */
const struct sl_vocab_entry *sl_tokenizer_tables_find(const struct sl_tokenizer_tables *tables,
                                                      const char *text, size_t length);

/* Zeroed tables are allowed. */
void sl_tokenizer_tables_free(struct sl_tokenizer_tables *tables);

#endif
