/* The tokenizer's tables: tokenizer_file.c fills them and tokenizer.c uses them, nobody else. */
#ifndef SL_TEXT_TOKENIZER_INTERNAL_H
#define SL_TEXT_TOKENIZER_INTERNAL_H

#include <stddef.h>
#include <stdint.h>

#include "core/text/bpe.h"
#include "core/text/splitter.h"

#define SL_TOKENIZER_NOTES_MAX 3

enum sl_token_flag {
    SL_TOKEN_KNOWN = 1u << 0, /* some text stands for this id */
    SL_TOKEN_ADDED = 1u << 1,
    SL_TOKEN_SPECIAL = 1u << 2,
};

struct sl_token {
    uint32_t offset_bytes; /* in sl_tokenizer.bytes */
    uint32_t length_bytes;
    uint32_t flags;
};

struct sl_added_token {
    const uint8_t *bytes; /* in sl_tokenizer.bytes */
    uint32_t length_bytes;
    uint32_t id;
    uint32_t round; /* 0: looked for in the whole text; 1 ("normalized"): in what then is left */
};

struct sl_tokenizer {
    struct sl_bpe *bpe;
    struct sl_splitter *splitter;
    uint8_t *bytes; /* of all tokens; no longer than the file, where each had at least as many */
    uint32_t n_bytes;
    uint32_t token_bytes_max;
    struct sl_token *tokens; /* by id */
    uint32_t n_tokens;
    struct sl_added_token *added; /* sorted by their bytes */
    uint32_t n_added;
    char *notes[SL_TOKENIZER_NOTES_MAX]; /* the first n_notes of them */
    uint32_t n_notes;
    uint32_t added_first[257]; /* added[added_first[b] .. added_first[b + 1]) begin with byte b */
};

#endif
