"""Turns the files of a Debian package into clean paragraphs of English.

Each reader takes the bytes of one file and yields documents: pairs of a name and a list of blocks.
A block is one paragraph, heading, list item or code example; TIGHT in front of it says that only a
line break, not an empty line, stands between it and the block before. corpus.py decides which file
goes to which reader, and what becomes of the documents.
"""
import re
import subprocess
import unicodedata
import zlib
from html.parser import HTMLParser

TIGHT = "\x01"

# --------------------------------------------------------------------------- characters and words

# One way to write a thing: a small vocabulary has no room for the typographer's variants.
PLAIN = str.maketrans({
    "\u2018": "'", "\u2019": "'", "\u201a": "'", "\u201c": '"', "\u201d": '"', "\u201e": '"',
    "\u2026": "...", "\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u2212": "-",
    "\u2022": "-", "\u2190": "<-", "\u2192": "->", "\u00b4": "'", "\u02bc": "'",
    "\u00ad": None, "\u200b": None, "\u200c": None, "\u200d": None, "\ufeff": None, "\u00b6": None,
    "\ufb01": "fi", "\ufb02": "fl", "\ufb00": "ff", "\r": None, "\f": None, TIGHT: None,
})


def plain(text):
    text = unicodedata.normalize("NFC", text).translate(PLAIN)
    text = re.sub(r"[\u00a0\u2000-\u200a\u202f\u205f\u3000]", " ", text)
    text = re.sub(r"\s+\u2014\s+", " - ", text).replace("\u2014", "--")
    # Private-use characters (icons of web fonts) and what is left of control characters.
    return re.sub(r"[\ue000-\uf8ff\x00\x02-\x08\x0b\x0e-\x1f\x7f-\x9f\ufffd]|[\ufff0-\ufffc]", "", text)


def one_line(text):
    return re.sub(r"\s+", " ", text).strip()


def decode(data):
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def first_sentence(text):
    """The first sentence of a paragraph, or "" if none ends in it."""
    match = re.match(r"(.{15,300}?[^.\W](?<!\be\.g)(?<!\bi\.e)(?<!\betc)(?<!\bvs)[)\"'\]]*\.)(?=\s+[A-Z\"'(]|\s*$)",
                     one_line(text))
    return match.group(1) if match else ""


# --------------------------------------------------------------------------- what is left out

MAIL = re.compile(r"[\w.+-]+(?:@| ?\(at\) ?| AT )(?!(?:[\w-]+\.)*(?:example|localhost|invalid|test)\b)"
                  r"(?:[\w-]+(?:\.| DOT ))+(?:com|org|net|edu|gov|de|fr|uk|jp|se|nl|it|ch|at|be|au|ca|ru|pl|cz|hu|"
                  r"fi|no|dk|es|br|info|name|io|eu|us|nz|ie|il|in|cx|cc|tv|me|pt|gr|ro|hr|lt|si|sk|ee|lv|ua|tw|kr|cn|"
                  r"hk|sg|za|mx|ar|cl|dev|edu\.au|biz|gmbh|sh|ai|hm|li|lu|is|md|to)\b", re.I)
LEGAL = re.compile(r"copyright|\(c\) ?(?:19|20)\d\d|\u00a9|all rights reserved|permission is hereby granted|free software foundation|"
                   r"(?:General|Lesser|Library) Public Licen[sc]e|Documentation Licen[sc]e|merchantability|Licensed under|"
                   r"SPDX|registered trademark|trademarks? of|Creative Commons|warranty|This (?:program|library|page|manual) is free|"
                   r"is free software|freely redistribut|GPL-?v?\d|BSD licen[sc]e|(?:LGPL|FDL)\b", re.I)
CREDIT = re.compile(r"\b(?:written|originally written|maintained|contributed|co-?authored|authored|developed|compiled|edited|translated|"
                    r"documentation|patch(?:es)?|page) by [A-Z][\w.-]+ (?:[A-Z][\w.-]+|and|van|de|von)|^(?:Authors?|Maintainers?|Contact|Credits|Signed-off-by|Reviewed-by|"
                    r"Thanks to|Many thanks|Special thanks|Last updated?|Date|Revision|Version|Reported-by|Cc|From|To)\b ?:|"
                    r"[Tt]hanks (?:go )?to [A-Z]|was (?:written|created|designed|invented) by [A-Z]\w+ [A-Z]|\[\d+ \w{3} \d{4}\]|mailto:")
PHONE = re.compile(r"\+\d{1,3}[ -]\(?\d{2,4}\)?[ -]\d{3}|\(\d{3}\) ?\d{3}-\d{4}|\b\d{3}-\d{3}-\d{4}\b|\bphone:? *\+?\d|\b(?:Tel|Fax)[.:]")


def is_name_list(text):
    """A list of people: nearly all words start with a capital, and commas or lines divide them."""
    words = re.findall(r"[^\W\d_][\w'.-]*", text)
    if len(words) < 8:
        return False
    capitals = sum(w[0].isupper() and not w.isupper() for w in words)
    return capitals > 0.7 * len(words) and text.count(",") + text.count("\n") + text.count(";") >= len(words) / 5


def is_unwanted(block):
    """Whether a block is of no use to learn from, or must not be learned."""
    text = block.lstrip(TIGHT)
    if MAIL.search(text) or PHONE.search(text) or CREDIT.search(text) or LEGAL.search(text):
        return True
    letters = sum(c.isalpha() for c in text)
    is_code = text.startswith("    ")
    if len(text) > 40 and letters < (0.35 if is_code else 0.5) * len(re.sub(r"\s", "", text)):
        return True   # a table of numbers, a drawing, a dump
    if re.search(r"[^\W\d_a-zA-Z\u00c0-\u017f]{3}", text):
        return True   # another script
    return is_name_list(text)


COMMON = frozenset("the of to and a in is that for it as be this with on are by or not you if can an from will".split())


def is_english(text):
    words = re.findall(r"[a-zA-Z']+", text.lower())
    return len(words) > 20 and sum(w in COMMON for w in words) > 0.1 * len(words)


# --------------------------------------------------------------------------- HTML

SKIP_TAGS = frozenset("script style nav footer aside form button svg select label textarea noscript title math object dialog".split())
SKIP_NAMES = frozenset("""
    navheader navfooter docnav sphinxsidebar related footer headerlink mobile-nav menu-wrapper wy-nav-side
    rst-footer-buttons toc contents toc-title titletoc menu-bar nav-wrapper nav-wide-wrapper page-header path up
    quickview toplang bottomlang top banner Contents search-wrapper nosearch book-navigation page-links nvsrch
    SectionTOC list-of-tables list-of-figures list-of-examples list-of-equations LEGALNOTICE legalnotice
    copyright releaseinfo pubdate author authorgroup revhistory othercredit head foot index footer-text
    localtoc breadcrumb breadcrumbs NAVHEADER NAVFOOTER howtoget DonationFrame TopLeftHeader rightside leftside
    SearchFrame DEBUG contents-treeview toctree-wrapper printfooter indexterm field-list
    inline-search bottomsearch source-link srclink jumpmenu navigation innertoc apidetail
    srchomemenu header comments_section comments document-versions table-of-contents
    footnotes authors editsection t-navbar t-sdsc-nopad mark alt-api-doc gtoc api_metadata stability-index-link nodes
    direct-link type-signature toc_holder column1 lof lot colophon""".split())
SKIP_ROLES = frozenset(("navigation", "contentinfo", "search"))
BLOCKS = frozenset("""p div section article main blockquote ul ol dl table tbody thead tr pre li dt dd center address figure figcaption
    h1 h2 h3 h4 h5 h6 hr body caption header details summary fieldset screen programlisting""".split())
DROP_SECTIONS = re.compile(
    r"(?:\W|\d)*(?:authors?|authors? and .*|about the authors?|copyright.*|copying|licen[sc]e.*|licensing.*|reporting bugs|bug reports|credits?|"
    r"acknowledge?ments?.*|contributors?|thanks|colophon|maintainers?|legal( notice)?|resources|contact.*|table of contents|"
    r"contents|translators?|index|full license.*|permission.*|revision history|document history|mailing lists?|"
    r"availability|distribution|download|navigation|changelog|further information|see also|references|"
    r"project information|support|notes on conditions.*)\W*$", re.I)


class HtmlReader(HTMLParser):
    """Blocks of an HTML page by its block elements, without navigation.

    Old pages leave elements open, so there is no tree: what is to be skipped is counted by its own
    tag only, and a new block ends the one before. `facts` collects ("term", term, first sentence) of
    the definition lists.
    """

    def __init__(self, skip_until_heading=False):
        super().__init__(convert_charrefs=True)
        self.blocks, self.facts = [], []
        self.text, self.kind = [], "p"
        self.skip_tag, self.skip_depth = None, 0
        self.lists, self.pre_depth = [], 0
        self.cells, self.term = None, None
        self.drop_level = 0            # level of the heading whose section is dropped, or 0
        self.waiting = skip_until_heading

    # An element is skipped for its name, or for one of its class names, its id or its role.
    def is_skipped(self, tag, attrs):
        if tag in SKIP_TAGS:
            return True
        if tag in ("body", "html", "main", "pre"):
            return False
        names = (attrs.get("class") or "").split() + [attrs.get("id") or "", attrs.get("rel") or ""]
        return any(n in SKIP_NAMES for n in names) or attrs.get("role") in SKIP_ROLES

    def handle_starttag(self, tag, attr_list):
        if self.skip_tag:
            self.skip_depth += tag == self.skip_tag
            return
        attrs = dict(attr_list)
        if tag not in ("br", "img", "hr", "input", "meta", "link") and self.is_skipped(tag, attrs):
            self.skip_tag, self.skip_depth = tag, 1
            return
        if tag == "br":
            self.text.append("\n" if self.pre_depth else "\x02")
        elif tag == "tr":
            self.flush()
            self.cells = []
        elif tag in ("td", "th"):
            self.end_cell()
            self.cells = self.cells if self.cells is not None else []
        elif tag in BLOCKS:
            self.start_block(tag)
        elif tag == "a" and attrs.get("class") == "headerlink":
            self.skip_tag, self.skip_depth = tag, 1

    def start_block(self, tag):
        if self.cells is not None and tag != "table":
            self.text.append(" ")
            return
        self.flush()
        if tag in ("ul", "ol", "dl"):
            self.lists.append([tag, 0])
        elif tag == "pre":
            self.pre_depth += 1
            self.kind = "pre"
        elif tag == "li":
            self.kind = "li"
            if self.lists:
                self.lists[-1][1] += 1
        elif tag in ("dt", "dd") or (tag[0] == "h" and tag[1:].isdigit()):
            self.kind = tag

    def handle_endtag(self, tag):
        if self.skip_tag:
            if tag == self.skip_tag:
                self.skip_depth -= 1
                if self.skip_depth == 0:
                    self.skip_tag = None
            return
        if tag in ("td", "th"):
            self.end_cell()
        elif tag == "tr" or (tag == "table" and self.cells is not None):
            self.end_row()
        elif tag in BLOCKS and self.cells is None:
            self.flush()
            if tag in ("ul", "ol", "dl") and self.lists:
                self.lists.pop()
            elif tag == "pre":
                self.pre_depth = max(0, self.pre_depth - 1)
            self.kind = "pre" if self.pre_depth else "p"

    def handle_data(self, data):
        if not self.skip_tag:
            self.text.append(data)

    def end_cell(self):
        if self.cells is not None:
            cell = one_line(plain("".join(self.text)).replace("\x02", " "))
            self.text = []
            if cell:
                self.cells.append(cell)

    def end_row(self):
        """Rows of prose become "name: description"; rows of numbers and short words are left out."""
        self.end_cell()
        cells, self.cells = self.cells or [], None
        if cells and len(cells[-1]) >= 40 and sum(c.isalpha() for c in cells[-1]) > 0.7 * len(cells[-1]):
            head = ", ".join(cells[:-1])
            if len(head) < 120:
                self.emit((head + ": " if head else "") + cells[-1], "p")
        self.kind = "p"

    def flush(self):
        raw, self.text = "".join(self.text), []
        if not raw.strip():
            return
        kind = self.kind
        if self.kind in ("li", "dd"):
            self.kind = self.kind + "+"      # a further paragraph of the same item
        if kind == "pre":
            lines = [line.rstrip() for line in plain(raw.replace("\x02", "\n")).expandtabs(8).strip("\n").split("\n")]
            margin = min((len(l) - len(l.lstrip()) for l in lines if l), default=0)
            self.emit("\n".join("    " + l[margin:] if l else "" for l in lines).rstrip(), kind)
            return
        lines = [one_line(line) for line in plain(raw.replace("\n", " ")).split("\x02")] if "\x02" not in raw else \
                [one_line(plain(line)) for line in raw.replace("\n", " ").split("\x02")]
        self.emit("\n".join(l for l in lines if l), kind)

    def emit(self, text, kind):
        if not text.strip():
            return
        if kind[0] == "h":
            self.emit_heading(text, int(kind[1]))
        elif self.drop_level or self.waiting:
            pass
        elif kind.startswith("li"):
            mark = "- " if kind == "li" else "  "
            if kind == "li" and self.lists and self.lists[-1][0] == "ol":
                mark = "%d. " % self.lists[-1][1]
            indent = "  " * max(0, len(self.lists) - 1)
            self.blocks.append(TIGHT * (kind == "li") + indent + mark + text)
        elif kind == "dt":
            self.term = text
            self.blocks.append(text)
        elif kind.startswith("dd"):
            if self.term and kind == "dd":
                self.facts.append(("term", self.term, first_sentence(text)))
                self.term = None
            self.blocks.append(TIGHT * (kind == "dd") + "  " + text.replace("\n", "\n  "))
        else:
            self.blocks.append(text)

    def emit_heading(self, text, level):
        # Section numbers go: outside of their book they say nothing.
        text = re.sub(r"^(?:(?:Chapter|Appendix|Part|Section|Preface)\s+)?(?:[0-9A-Z]{1,2}\.)?(?:\d{1,2}\.)*\d{0,2}\.?:?\s+(?=\S)", "",
                      one_line(text)) or text
        if self.drop_level and level > self.drop_level:
            return
        self.drop_level = level if DROP_SECTIONS.match(text) else 0
        self.waiting = False
        if not self.drop_level:
            self.blocks.append(text)


def read_html(name, data):
    reader = HtmlReader()
    reader.feed(decode(data))
    reader.close()
    reader.flush()
    yield name, drop_empty_headings(reader.blocks), reader.facts


def drop_empty_headings(blocks):
    """A page of links alone leaves headings with nothing below; so does a dropped section."""
    prose = sum(len(b) for b in blocks if len(b) > 100)
    return blocks if prose > 150 else []


MALLARD = {"title": "h2", "item": "li", "list": "ul", "steps": "ol", "code": "pre", "screen": "pre", "para": "p",
           "listitem": "li", "itemizedlist": "ul", "orderedlist": "ol", "programlisting": "pre", "note": "div"}


def read_mallard(name, data):
    """Help pages of GNOME and MATE (Mallard, DocBook): XML with names of its own for HTML's blocks."""
    text = re.sub(r"(?s)<(info|credit|articleinfo|bookinfo|legalnotice|links)\b[^>]*?(?:/>|>.*?</\1>)|<!--.*?-->", "", decode(data))
    text = re.sub(r"</?(code|cmd)\b[^>]*>(?=[^\n<]{0,80}</?(?:code|cmd))", "", text)
    text = re.sub(r"(</?)([a-z]+)\b", lambda m: m.group(1) + MALLARD.get(m.group(2), m.group(2)) if m.group(2) != "code" else m.group(1) + "tt", text)
    yield from read_html(name, re.sub(r"&(\w+);", lambda m: "&%s;" % m.group(1), text).encode())


# --------------------------------------------------------------------------- manual pages

def read_man(name, data):
    """One manual page, by way of mandoc's HTML: so lines are joined and nothing is hyphenated."""
    if data.lstrip().startswith(b".so "):
        return
    try:    # a few pages keep mandoc busy for ever
        made = subprocess.run(["mandoc", "-T", "html", "-O", "fragment"], input=data, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, check=False, timeout=5)
    except subprocess.TimeoutExpired:
        return
    page, section = re.match(r"(?:.*/)?([^/]+)\.(\d\w*)$", name).groups()
    for _, blocks, facts in read_html(name, made.stdout):
        # The heading says NAME; what follows is "ls - list directory contents".
        if len(blocks) > 2:
            options = [(t, s) for _, t, s in facts if re.match(r"--?[A-Za-z0-9]", t)]
            summary = re.match(r"\S.*? --? (.{8,})$", blocks[1]) if blocks[0] == "NAME" else None
            facts = [(page, section, summary.group(1))] if summary else []
            yield name, blocks, [("page",) + f for f in facts] + [("option", page, t, s) for t, s in options]


# --------------------------------------------------------------------------- plain text

def paragraphs(text):
    """Blocks of a plain text: filled paragraphs are joined, indented ones stay as they are."""
    for part in re.split(r"\n[ \t]*\n", plain(text).expandtabs(8)):
        lines = [line.rstrip() for line in part.split("\n") if line.strip()]
        if not lines:
            continue
        if all(line.startswith("  ") for line in lines) and len(lines) > 1:
            margin = min(len(l) - len(l.lstrip()) for l in lines)
            yield "\n".join("    " + l[margin:] for l in lines)
        else:
            yield one_line(" ".join(lines))


def read_text(name, data):
    yield name, list(paragraphs(decode(data))), []


def read_markdown(name, data):
    text = re.sub(r"(?s)<!--.*?-->|<[a-z/][^>\n]*>", "", decode(data))
    blocks = []
    for number, part in enumerate(re.split(r"(?m)^```.*$", text)):
        if number % 2:
            blocks.append("\n".join("    " + l.rstrip() for l in plain(part).strip("\n").split("\n")))
            continue
        for block in re.split(r"\n\s*\n", plain(part)):
            if block.count("|") > 5 or re.match(r"\s*(\[[^\]]+\]:|[-=*]{4,}\s*$)", block):
                continue
            block = re.sub(r"!?\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])", r"\1", block)
            block = re.sub(r"^#+\s*|\s*<a id.*$", "", block.strip())
            items = re.split(r"\n(?=\s*(?:[-*+]|\d+\.)\s)", block)
            for i, item in enumerate(items):
                item = one_line(re.sub(r"\*\*|`|(?<!\w)[*_](?=\w)|(?<=\w)[*_](?!\w)", "", re.sub(r"^\s*[*+]\s", "- ", item)))
                if item:
                    blocks.append(TIGHT * (i > 0) + item)
    yield name, blocks, []


# --------------------------------------------------------------------------- stories

def read_austen(name, data):
    """The novels in R's serialised form: zlib chunks of strings, one string a line of the book."""
    while data:
        unpacker = zlib.decompressobj()
        chunk = unpacker.decompress(data[4:])     # four bytes of size first
        data = unpacker.unused_data
        lines = [chunk[m.end():m.end() + int.from_bytes(m.group(1), "big")]
                 for m in re.finditer(rb"\x00\x04\x00\x09([\x00-\x01].{3})", chunk, re.S)]
        text = b"\n".join(lines).decode("utf-8", "replace")
        for number, part in enumerate(re.split(r"\n(?=(?:CHAPTER|Chapter) [\dIVXL]+)", text)):
            part = re.sub(r"_(\w[^_]{0,200}?)_", r"\1", part)
            yield "%s/%d/%d" % (name, len(data), number), list(paragraphs(part)), []


def read_wesnoth(name, data):
    """The story and the dialogue of one scenario, in the order of its file."""
    text = decode(data)
    blocks, speaker = [], ""
    for match in re.finditer(r'^\s*\[message\]()|\b(speaker|story|message|description)\s*=\s*(?:_\s*"((?:[^"]|"")*)"((?:\s*\+\s*_\s*"(?:[^"]|"")*")*)|([^\s"_][^\n]*))', text, re.M):
        if match.group(2) is None:
            speaker = ""
        elif match.group(2) == "speaker":
            speaker = (match.group(5) or "").strip()
        elif match.group(3):
            words = match.group(3) + "".join(re.findall(r'_\s*"((?:[^"]|"")*)"', match.group(4) or ""))
            words = re.sub(r"<[^>]*>", "", words.replace('""', '"')).replace("\\n", "\n")
            if "$" in words or "{" in words or not re.search(r"[.!?][\"')]*\s*$", words):
                continue
            known = re.fullmatch(r"[A-Z][\w' -]{2,24}", speaker) if match.group(2) == "message" else None
            for part in re.split(r"\n\s*\n", words):
                blocks.append((speaker.replace("_", " ") + ": " if known else "") + one_line(plain(part)))
                known = None
    yield name, blocks, []


SKY_WORDS = {"<first> <last>": "Captain", "<last>": "Captain", "<first>": "Captain", "<payment>": "the agreed payment", "<ship>": "your ship",
             "<destination>": "your destination", "<planet>": "the planet", "<origin>": "the port you came from",
             "<system>": "the system", "<commodity>": "the cargo", "<npc>": "the ship", "<day>": "that day",
             "<date>": "the date agreed", "<tons>": "a few tons", "<cargo>": "the cargo", "<stopovers>": "the stops on the way",
             "<bunks>": "a few", "<passengers>": "the passengers", "<fare>": "the fare"}


def read_endless_sky(name, data):
    """Conversations and descriptions of the game: strings in backquotes, one node one document."""
    for number, node in enumerate(re.split(r"\n(?=\S)", decode(data))):
        blocks = []
        title = re.match(r'(?:planet|outfit|ship|mission|conversation|event|phrase|person) ["`]?([^"`\n]+)', node)
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
        group = entries[first:first + ENTRIES_PER_DOCUMENT]
        yield "%s/%d" % (name, first), [b for e in group for b in e[1]], [f for e in group for f in e[2]]


def define(word, part, meaning):
    return ("word", word, part, meaning)


def jargon_entries(text):
    for entry in re.split(r"\n(?=\S)", text):
        head, _, body = entry.partition("\n")
        if head.startswith("00-") or not body.strip():
            continue
        body = re.sub(r"[{}]", "", plain(body))
        body = re.sub(r"^\s*(?:[a-z]+\.,?)?\s*/[^\n/]*/\s*\n", "\n", body)
        blocks = [one_line(p) for p in re.split(r"\n\s*\n", body) if len(one_line(p)) > 12]
        blocks = [b for b in blocks if not re.match(r"\(\d{4}-\d\d-\d\d\)$", b)]
        if blocks:
            yield head, [head] + [TIGHT + blocks[0]] + blocks[1:], [define(head, "", first_sentence(blocks[0]))]


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
        blocks = [b for b in blocks if not re.match(r"(Usenet|Mailing list|See also|Home|E-?mail|Telephone|\[)", b)]
        if blocks and len(blocks[0]) > 40:
            blocks[0] = re.sub(r"^\d\. ", "", blocks[0])
            yield head, [head] + [TIGHT + blocks[0]] + blocks[1:], [define(head, "", first_sentence(blocks[0]))]


def read_foldoc(name, data):
    yield from entry_documents(name, foldoc_entries(decode(data)))


def devil_entries(text):
    for entry in re.split(r"\n\n(?=[A-Z][A-Z' -]+, (?:n|v|adj|adv|pp|x|interj|pro)\.)", text)[1:]:
        blocks = list(paragraphs(entry))
        yield blocks[0].split(",")[0], blocks, []


def read_devil(name, data):
    yield from entry_documents(name, devil_entries(decode(data)))


PARTS = {"n.": "noun", "a.": "adjective", "v. t.": "verb", "v. i.": "verb", "v. t. & i.": "verb", "adv.": "adverb",
         "prep.": "preposition", "interj.": "interjection", "p. a.": "adjective"}


def gcide_entries(text):
    for entry in re.split(r"\n(?=\S)", text):
        match = re.match(r"([A-Za-z][\w' -]*?) \\[^\\]*\\,?\s*(?:\([^()]*\),?)?\s*([a-z. &]+?\.)(?=[\s;,])", entry)
        if not match or match.group(2) not in PARTS:
            continue
        lines = [l for l in plain(entry[match.end():]).split("\n")[1:] if len(l) - len(l.lstrip()) < 10]
        body = re.sub(r"\[[^\]]*\]|[{}]|\([A-Z][\w. &]*\.\)", "", "\n".join(lines))
        senses = [one_line(re.split(r"\bSyn:|\bNote:|--|\n\s*\n", s)[0]) for s in re.split(r"(?:^|\n)\s+\d+\.\s", body)]
        # A sense ends in its last stop: what follows is a quotation begun or the next headword.
        senses = [re.sub(r"\s+([.,;])", r"\1", re.sub(r"[;.][^;.]*$", ".", s)) for s in senses if "." in s or ";" in s]
        senses = [s for s in senses if len(s) > 12 and not re.search(r"[\\\[\]|*<>]|\^", s)]
        if senses:
            head, part = match.group(1), PARTS[match.group(2)]
            body = senses[0] if len(senses) == 1 else " ".join("%d. %s" % (i + 1, s) for i, s in enumerate(senses[:5]))
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
        words = [re.sub(r"\(.*\)", "", w).replace("_", " ") for w in fields[0:2 * int(match.group(2), 16):2]]
        part, gloss = kinds[match.group(1)], plain(match.group(4).strip())
        meaning, *examples = [s.strip().rstrip(";") for s in re.split(r'; (?=")', gloss)]
        text = "%s (%s): %s" % (", ".join(words), part, meaning)
        if examples:
            text += "; for example " + ", ".join(examples)
        yield words[0], [text + ("" if text.endswith((".", '."', '!"', '?"')) else ".")], [define(words[0], part, meaning)]


def read_wordnet(name, data):
    yield from entry_documents(name, wordnet_entries(decode(data)))
