"""Readers for the packages that are no manuals: novels, stories of games, dictionaries.

They work as those of corpus_text.py do: the bytes of one file in, documents out.
"""
import re
import zlib

from corpus_text import TIGHT, decode, first_sentence, one_line, paragraphs, plain

# --------------------------------------------------------------------------- stories


def read_austen(name, data):
    """The novels in R's serialised form: zlib chunks of strings, one string a line of the book."""
    while data:
        unpacker = zlib.decompressobj()
        chunk = unpacker.decompress(data[4:])  # four bytes of size first
        data = unpacker.unused_data
        lines = [
            chunk[m.end() : m.end() + int.from_bytes(m.group(1), "big")]
            for m in re.finditer(rb"\x00\x04\x00\x09([\x00-\x01].{3})", chunk, re.S)
        ]
        text = b"\n".join(lines).decode("utf-8", "replace")
        for number, part in enumerate(re.split(r"\n(?=(?:CHAPTER|Chapter) [\dIVXL]+)", text)):
            part = re.sub(r"_(\w[^_]{0,200}?)_", r"\1", part)
            yield "%s/%d/%d" % (name, len(data), number), list(paragraphs(part)), []


STRING = r'_\s*"(?:[^"]|"")*"'
WESNOTH = re.compile(
    r"^\s*\[message\]|\b(?P<key>speaker|story|message|description)\s*=\s*"
    r"(?:(?P<strings>%s(?:\s*\+\s*%s)*)|(?P<name>[^\s\"_][^\n]*))" % (STRING, STRING),
    re.M,
)


def read_wesnoth(name, data):
    """The story and the dialogue of one scenario, in the order of its file."""
    blocks, speaker = [], ""
    for match in WESNOTH.finditer(decode(data)):
        if match["key"] is None:
            speaker = ""
        elif match["key"] == "speaker":
            speaker = (match["name"] or "").strip().replace("_", " ")
        elif match["strings"]:
            words = "".join(re.findall(r'_\s*"((?:[^"]|"")*)"', match["strings"])).replace('""', '"')
            words = re.sub(r"<[^>]*>", "", words).replace("\\n", "\n")
            if "$" in words or "{" in words or not re.search(r"[.!?][\"')]*\s*$", words):
                continue
            is_said = match["key"] == "message" and re.fullmatch(r"[A-Z][\w' -]{2,24}", speaker)
            parts = [one_line(plain(part)) for part in re.split(r"\n\s*\n", words)]
            blocks += [speaker + ": " + parts[0] if is_said else parts[0]] + parts[1:]
    yield name, blocks, []


SKY_WORDS = {
    "<first> <last>": "Captain",
    "<last>": "Captain",
    "<first>": "Captain",
    "<payment>": "the agreed payment",
    "<ship>": "your ship",
    "<destination>": "your destination",
    "<planet>": "the planet",
    "<origin>": "the port you came from",
    "<system>": "the system",
    "<commodity>": "the cargo",
    "<npc>": "the ship",
    "<day>": "that day",
    "<date>": "the date agreed",
    "<tons>": "a few tons",
    "<cargo>": "the cargo",
    "<stopovers>": "the stops on the way",
    "<bunks>": "a few",
    "<passengers>": "the passengers",
    "<fare>": "the fare",
}


def read_endless_sky(name, data):
    """Conversations and descriptions of the game: strings in backquotes, one node one document."""
    for number, node in enumerate(re.split(r"\n(?=\S)", decode(data))):
        blocks = []
        title = re.match(
            r'(?:planet|outfit|ship|mission|conversation|event|phrase|person) ["`]?([^"`\n]+)', node
        )
        if node.startswith(("phrase", "person", "fleet", "tip")):
            continue
        for words in re.findall(r"(?:^|\s)`([^`\n]{12,})`|description \"([^\"\n]{12,})\"", node):
            words = words[0] or words[1]
            for key, value in SKY_WORDS.items():
                words = words.replace(key, value)
            if not re.search(r"[<>]", words):
                blocks.append(one_line(plain(words)))
        if blocks and title and node.startswith(("planet", "outfit", "ship")):
            blocks.insert(0, title.group(1).strip('"'))
        yield "%s/%d" % (name, number), blocks, []


# --------------------------------------------------------------------------- dictionaries

ENTRIES_PER_DOCUMENT = 24


def entry_documents(name, entries):
    """Dictionary entries (headword, blocks, facts) in documents of a few pages."""
    entries = list(entries)
    for first in range(0, len(entries), ENTRIES_PER_DOCUMENT):
        group = entries[first : first + ENTRIES_PER_DOCUMENT]
        yield "%s/%d" % (name, first), [b for e in group for b in e[1]], [f for e in group for f in e[2]]


def define(word, part, meaning):
    return ("word", word, part, meaning)


def jargon_entries(text):
    for entry in re.split(r"\n(?=\S)", text):
        head, _, body = entry.partition("\n")
        if head.startswith("00-") or not body.strip():
            continue
        body = re.sub(r"[{}]", "", plain(body))
        body = re.sub(r"^\s*(?:/[^\n]*/|[a-z]+\.)[,; ]*(?:[^\n]{0,30}\.|/[^\n]*/)?\s*\n", "\n", body)
        blocks = [one_line(p) for p in re.split(r"\n\s*\n", body) if len(one_line(p)) > 12]
        blocks = [b for b in blocks if not re.match(r"\(\d{4}-\d\d-\d\d\)$", b)]
        if blocks:
            yield head, [head] + [TIGHT + blocks[0]] + blocks[1:], [
                define(head, "", first_sentence(blocks[0]))
            ]


def read_jargon(name, data):
    yield from entry_documents(name, jargon_entries(decode(data)))


def foldoc_entries(text):
    for entry in re.split(r"\n\n(?=\S)", text):
        head, _, body = entry.partition("\n")
        head = head.split("%%%")[0]
        if head.startswith("00-") or head in ("Dictionary", "Acknowledgements", "missing", "Pronunciation"):
            continue
        body = re.sub(r"\{[^{}]*\((?:https?|ftp|news)[^{}]*\}\.?|\((?:https?|ftp)://[^)]*\)", "", plain(body))
        body = re.sub(r"[{}]|<[^<>\n]{2,60}>|\((?:19|20)\d\d-\d\d-\d\d\)", "", body)
        blocks = [one_line(p) for p in re.split(r"\n\s*\n", body) if len(one_line(p)) > 25]
        blocks = [
            b for b in blocks if not re.match(r"(Usenet|Mailing list|See also|Home|E-?mail|Telephone|\[)", b)
        ]
        if blocks and len(blocks[0]) > 40:
            blocks[0] = re.sub(r"^\d\. ", "", blocks[0])
            yield head, [head] + [TIGHT + blocks[0]] + blocks[1:], [
                define(head, "", first_sentence(blocks[0]))
            ]


def read_foldoc(name, data):
    yield from entry_documents(name, foldoc_entries(decode(data)))


def devil_entries(text):
    for entry in re.split(r"\n\n(?=[A-Z][A-Z' -]+, (?:n|v|adj|adv|pp|x|interj|pro)\.)", text)[1:]:
        blocks = list(paragraphs(entry))
        yield blocks[0].split(",")[0], blocks, []


def read_devil(name, data):
    yield from entry_documents(name, devil_entries(decode(data)))


PARTS = {
    "n.": "noun",
    "a.": "adjective",
    "v. t.": "verb",
    "v. i.": "verb",
    "v. t. & i.": "verb",
    "adv.": "adverb",
    "prep.": "preposition",
    "interj.": "interjection",
    "p. a.": "adjective",
}


def gcide_entries(text):
    for entry in re.split(r"\n(?=\S)", text):
        match = re.match(
            r"([A-Za-z][\w' -]*?) \\[^\\]*\\,?\s*(?:\([^()]*\),?)?\s*([a-z. &]+?\.)(?=[\s;,])", entry
        )
        if not match or match.group(2) not in PARTS:
            continue
        lines = [l for l in plain(entry[match.end() :]).split("\n")[1:] if len(l) - len(l.lstrip()) < 10]
        body = re.sub(r"\[[^\]]*\]|[{}]|\([A-Z][\w. &]*\.\)", "", "\n".join(lines))
        senses = [
            one_line(re.split(r"\bSyn:|\bNote:|--|\n\s*\n", s)[0])
            for s in re.split(r"(?:^|\n)\s+\d+\.\s", body)
        ]
        # A sense ends in its last stop: what follows is a quotation begun or the next headword.
        senses = [
            re.sub(r"\s+([.,;])", r"\1", re.sub(r"[;.][^;.]*$", ".", s))
            for s in senses
            if "." in s or ";" in s
        ]
        senses = [s for s in senses if len(s) > 12 and not re.search(r"[\\\[\]|*<>]|\^", s)]
        if senses:
            head, part = match.group(1), PARTS[match.group(2)]
            # The dictionary of 1913 writes every headword with a capital, names or not.
            if part != "noun" or re.match(
                r"(?:An?|One|The (?:act|art|quality|state|condition)|That|Any|He who) ", senses[0]
            ):
                head = head[:1].lower() + head[1:]
            body = (
                senses[0]
                if len(senses) == 1
                else " ".join("%d. %s" % (i + 1, s) for i, s in enumerate(senses[:5]))
            )
            yield head, ["%s (%s): %s" % (head, part, body)], [define(head, part, first_sentence(senses[0]))]


def read_gcide(name, data):
    yield from entry_documents(name, gcide_entries(decode(data)))


def wordnet_entries(text):
    kinds = {"n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb"}
    for line in text.split("\n"):
        match = re.match(r"\d{8} \d\d ([nvasr]) ([0-9a-f]{2}) (.*?) \| (.*)", line)
        if not match:
            continue
        fields = match.group(3).split(" ")
        words = [
            re.sub(r"\(.*\)", "", w).replace("_", " ") for w in fields[0 : 2 * int(match.group(2), 16) : 2]
        ]
        part, gloss = kinds[match.group(1)], plain(match.group(4).strip())
        meaning, *examples = [s.strip().rstrip(";") for s in re.split(r'; (?=")', gloss)]
        text = "%s (%s): %s" % (", ".join(words), part, meaning)
        if examples:
            text += "; for example " + ", ".join(examples)
        yield words[0], [text + ("" if text.endswith((".", '."', '!"', '?"')) else ".")], [
            define(words[0], part, meaning)
        ]


def read_wordnet(name, data):
    yield from entry_documents(name, wordnet_entries(decode(data)))
