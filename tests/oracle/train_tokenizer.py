#!/usr/bin/python3
"""Trains the byte-level BPE tokenizer of Sluice's small model, in the form of V4's tokenizer.json.

    python3 tests/oracle/train_tokenizer.py TRAIN.jsonl OUT/tokenizer.json [--vocab 4096]

TRAIN.jsonl holds one document a line, a JSON string with V4's special tokens in it (corpus.py
writes it). Ids are given as in V4: three control tokens, the 256 bytes, the merges in the order
in which they were learned, and the named special tokens last. The same text gives the same file.

How it learns: the text is split into words by V4's three expressions, equal words are counted
once, and the most frequent pair of neighbouring symbols is merged until the vocabulary is full. A
pair's count changes only in the words that hold it, so only these are looked at. Of pairs that are
equally frequent the one with the smaller ids wins.
"""
import argparse
import collections
import heapq
import json

import regex

SAMPLE_BYTES = 30 << 20

# V4's splitting, in this order: each expression splits what the ones before it left over.
SPLITS = [
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^"""
    "\r\n"      # the file has the two characters themselves, not their escapes
    r"\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[" "\r\n" r"]*|\s*[" "\r\n" r"]+|\s+(?!\S)|\s+",
]
FIRST_TOKENS = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"]
LAST_TOKENS = [
    "<｜fim▁hole｜>",
    "<｜fim▁begin｜>",
    "<｜fim▁end｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<|EOT|>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁outputs▁begin｜>",
    "<｜tool▁outputs▁end｜>",
    "<｜tool▁output▁begin｜>",
    "<｜tool▁output▁end｜>",
    "<｜tool▁sep｜>",
    "<think>",
    "</think>",
    "｜DSML｜",
    "<｜latest_reminder｜>",
    "<｜action｜>",
    "<｜query｜>",
    "<｜authority｜>",
    "<｜domain｜>",
    "<｜title｜>",
    "<｜extracted_url｜>",
    "<｜read_url｜>",
]
# The tokens that V4's file marks as special: not to be shown to a reader.
HIDDEN = frozenset(FIRST_TOKENS + ["<|EOT|>"])


def byte_alphabet():
    """The printable character that stands for each byte: GPT-2's table, which V4 uses as well."""
    printable = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255]
    others = [b for b in range(256) if b not in printable]
    letters = {b: chr(b) for b in printable}
    letters.update({b: chr(256 + i) for i, b in enumerate(others)})
    return letters


def sorted_bytes(letters):
    """Bytes in the order of their ids: by the character that stands for them."""
    return sorted(range(256), key=lambda b: letters[b])


# --------------------------------------------------------------------------- words


def read_sample(path, size_bytes):
    """Documents spread evenly over the file, up to the size."""
    with open(path, "rb") as f:
        total = sum(len(line) for line in f)
    share, taken, passed = min(1.0, size_bytes / total), 0, 0
    with open(path, encoding="utf-8") as f:
        for line in f:
            passed += len(line.encode())
            if taken < share * passed:
                taken += len(line.encode())
                yield json.loads(line)


def isolate(pieces, expression):
    """Cuts each piece at the matches, which are pieces as well."""
    for piece in pieces:
        end = 0
        for match in expression.finditer(piece):
            if match.start() > end:
                yield piece[end : match.start()]
            yield match.group()
            end = match.end()
        if end < len(piece):
            yield piece[end:]


def count_words(documents):
    """How often each word occurs. No word reaches over a special token."""
    specials = regex.compile("|".join(map(regex.escape, FIRST_TOKENS + LAST_TOKENS)))
    expressions = [regex.compile(s) for s in SPLITS]
    counts = collections.Counter()
    for document in documents:
        pieces = specials.split(document)
        for expression in expressions:
            pieces = isolate(pieces, expression)
        counts.update(pieces)
    return counts


# --------------------------------------------------------------------------- merges


def merge_word(word, left, right, made):
    """The word with each pair left, right replaced by the symbol made."""
    out, i = [], 0
    while i < len(word):
        if i + 1 < len(word) and word[i] == left and word[i + 1] == right:
            out.append(made)
            i += 2
        else:
            out.append(word[i])
            i += 1
    return out


def learn_merges(counts, first_id, id_of_byte, merge_count):
    """The pairs of ids to merge, most frequent first; merge i makes the id first_id + i."""
    words = [
        ([id_of_byte[b] for b in w.encode()], n) for w, n in sorted(counts.items()) if len(w.encode()) > 1
    ]
    words = [list(w) for w in words]
    pair_count, pair_words = collections.Counter(), collections.defaultdict(set)
    for i, (word, n) in enumerate(words):
        for pair in zip(word, word[1:]):
            pair_count[pair] += n
            pair_words[pair].add(i)
    heap = [(-n, pair) for pair, n in pair_count.items()]
    heapq.heapify(heap)
    merges = []
    while len(merges) < merge_count:
        n, pair = heapq.heappop(heap)
        if -n != pair_count[pair]:
            continue  # an old entry: the pair's count has changed since, and was pushed again
        made = first_id + len(merges)
        merges.append(pair)
        changed = set()
        for i in pair_words.pop(pair):
            word, count = words[i]
            new = merge_word(word, *pair, made)
            for old in zip(word, word[1:]):
                pair_count[old] -= count
                changed.add(old)
            for old in zip(new, new[1:]):
                pair_count[old] += count
                pair_words[old].add(i)
                changed.add(old)
            words[i][0] = new
        del pair_count[pair]
        for other in changed:
            if pair_count[other] > 0:
                heapq.heappush(heap, (-pair_count[other], other))
    return merges


# --------------------------------------------------------------------------- the file


def added_token(token_id, content):
    hidden = content in HIDDEN
    return {
        "id": token_id,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": not hidden or content == "<|EOT|>",
        "special": hidden,
    }


def tokenizer_json(symbols, merges, first_added_id):
    """The file as a dictionary; symbols is the list of all vocabulary entries by id."""
    split = [
        {"type": "Split", "pattern": {"Regex": s}, "behavior": "Isolated", "invert": False} for s in SPLITS
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    added = [added_token(i, t) for i, t in enumerate(FIRST_TOKENS)]
    added += [added_token(first_added_id + i, t) for i, t in enumerate(LAST_TOKENS)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": []},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": split + [dict(byte_level, add_prefix_space=False, use_regex=False)],
        },
        "post_processor": dict(byte_level, trim_offsets=False),
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {s: i for i, s in enumerate(symbols)},
            "merges": ["%s %s" % (symbols[a], symbols[b]) for a, b in merges],
        },
    }


def train(path, vocab_size):
    letters = byte_alphabet()
    order = sorted_bytes(letters)
    first_id = len(FIRST_TOKENS)
    id_of_byte = {b: first_id + i for i, b in enumerate(order)}
    symbols = FIRST_TOKENS + [letters[b] for b in order]
    counts = count_words(read_sample(path, SAMPLE_BYTES))
    merges = learn_merges(counts, len(symbols), id_of_byte, vocab_size - len(symbols) - len(LAST_TOKENS))
    for left, right in merges:
        symbols.append(symbols[left] + symbols[right])
    return tokenizer_json(symbols, merges, len(symbols))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("train_jsonl")
    parser.add_argument("tokenizer_json")
    parser.add_argument("--vocab", type=int, default=4096)
    options = parser.parse_args()
    made = train(options.train_jsonl, options.vocab)
    with open(options.tokenizer_json, "w", encoding="utf-8") as f:
        json.dump(made, f, ensure_ascii=False, indent=1)
        f.write("\n")


if __name__ == "__main__":
    main()
