"""Turns the files of a Debian package into clean paragraphs of English.

Each reader takes the bytes of one file and yields documents: pairs of a name and a list of blocks.
A block is one paragraph, heading, list item or code example. TIGHT in front of it says that only a
line break, not an empty line, stands between it and the block before; HEADING and a digit, that it
is a heading of that level (without_empty_sections() takes it off). corpus.py decides which file
goes to which reader, and what becomes of the documents.
"""
import re
import subprocess
import unicodedata
from html.parser import HTMLParser

TIGHT, HEADING = "\x01", "\x03"

# --------------------------------------------------------------------------- characters and words

# One way to write a thing: a small vocabulary has no room for the typographer's variants.
PLAIN = str.maketrans(
    {
        "\u2018": "'",
        "\u2019": "'",
        "\u201a": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u201e": '"',
        "\u2026": "...",
        "\u2010": "-",
        "\u2011": "-",
        "\u2012": "-",
        "\u2013": "-",
        "\u2212": "-",
        "\u2022": "-",
        "\u2190": "<-",
        "\u2192": "->",
        "\u00b4": "'",
        "\u02bc": "'",
        "\u00ad": None,
        "\u200b": None,
        "\u200c": None,
        "\u200d": None,
        "\ufeff": None,
        "\u00b6": None,
        "\ufb01": "fi",
        "\ufb02": "fl",
        "\ufb00": "ff",
        "\r": None,
        "\f": None,
        TIGHT: None,
        HEADING: None,
    }
)


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
    match = re.match(
        r"(.{15,300}?[^.\W](?<!\be\.g)(?<!\bi\.e)(?<!\betc)(?<!\bvs)[)\"'\]]*\.)(?=\s+[A-Z\"'(]|\s*$)",
        one_line(text),
    )
    return match.group(1) if match else ""


# --------------------------------------------------------------------------- what is left out

MAIL = re.compile(
    r"[\w.+-]+(?:@| ?\(at\) ?| AT )(?!(?:[\w-]+\.)*(?:example|localhost|invalid|test)\b)"
    r"(?:[\w-]+(?:\.| DOT ))+(?:com|org|net|edu|gov|de|fr|uk|jp|se|nl|it|ch|at|be|au|ca|ru|pl|cz|hu|"
    r"fi|no|dk|es|br|info|name|io|eu|us|nz|ie|il|in|cx|cc|tv|me|pt|gr|ro|hr|lt|si|sk|ee|lv|ua|tw|kr|cn|"
    r"hk|sg|za|mx|ar|cl|dev|edu\.au|biz|gmbh|sh|ai|hm|li|lu|is|md|to)\b",
    re.I,
)
# In lower case; looked for as they stand.
LEGAL = (
    "copyright", "(c) 19", "(c) 20", "\u00a9", "all rights reserved", "permission is hereby granted",
    "free software foundation", "general public licen", "lesser public licen", "library public licen",
    "documentation licen", "merchantability", "licensed under", "spdx", "registered trademark",
    "trademark of", "trademarks of", "creative commons", "warranty", "is free software",
    "this program is free", "freely redistribut", "gplv", "gpl-2", "gpl-3", "bsd licen", "lgpl", "gfdl",
    "gnu fdl",
)
CREDIT = re.compile(
    r"\b(?:written|maintained|contributed|co-?authored|authored|developed|compiled|edited|translated|documentation|"
    r"patch(?:es)?|page) by [A-Z][\w.-]+ (?:[A-Z][\w.-]+|and|van|de|von)|"
    r"^(?:Maintainers?|Contact|Credits|Signed-off-by|Reviewed-by|Thanks to|Many thanks|Special thanks|Last updated?|"
    r"Date|Revision|Version|Reported-by|Cc|From|To)\b ?:|^(?:Module|Section|Code)? ?[Aa]uthors?:|"
    r"[Tt]hanks (?:go )?to [A-Z]|was (?:written|created|designed|invented) by [A-Z]\w+ [A-Z]|"
    r"\[\d+ \w{3} \d{4}\]|mailto:"
)
PHONE = re.compile(
    r"\+\d{1,3}[ -]\(?\d{2,4}\)?[ -]\d{3}|\(\d{3}\) ?\d{3}-\d{4}|\b\d{3}-\d{3}-\d{4}\b|"
    r"\bphone:? *\+?\d|\b(?:Tel|Fax)[.:]"
)


NO_LETTER = re.compile(r"[\W\d_]+")


def is_name_list(text):
    """A list of people: nearly all words start with a capital, and commas or lines divide them."""
    marks = text.count(",") + text.count("\n") + text.count(";")
    words = re.findall(r"[^\W\d_][\w'.-]*", text) if marks >= 3 else ()
    if len(words) < 8 or marks < len(words) / 5:
        return False
    capitals = sum(w[0].isupper() and not w.isupper() for w in words)
    return capitals > 0.7 * len(words)


def is_unwanted(block):
    """Whether a block is of no use to learn from, or must not be learned."""
    text = block.lstrip(TIGHT)
    if text.count(" | ") > 1 or text.startswith(("\u00ab ", "Next: ", "Previous: ", "Prev Up ")):
        return True  # navigation
    small = text.lower()
    if any(words in small for words in LEGAL) or CREDIT.search(text) or PHONE.search(text):
        return True
    if ("@" in text or "(at)" in small or " AT " in text) and MAIL.search(text):
        return True
    is_code = text.startswith("    ")
    if len(text) > 40 and len(NO_LETTER.sub("", text)) < (0.35 if is_code else 0.5) * len(
        re.sub(r"\s+", "", text)
    ):
        return True  # a table of numbers, a drawing, a dump
    if not text.isascii() and re.search(r"[^\W\d_a-zA-Z\u00c0-\u017f]{3}", text):
        return True  # another script
    return is_name_list(text)


def without_empty_sections(blocks):
    """Leaves out headings with nothing below them, and takes the marks off the others."""
    kept, below = [], 0  # below: level of the heading that follows, 0 if text does
    for block in reversed(blocks):
        level = int(block[1]) if block.startswith(HEADING) else 0
        if level and (not kept or 0 < below <= level):
            continue
        kept.append(block[2:] if level else block)
        below = level
    return kept[::-1]


COMMON = frozenset("""
    the of to and a in is that for it as be this with on are by or not you if can an from will
""".split())


def is_english(text):
    words = re.findall(r"[a-zA-Z']+", text.lower())
    return len(words) > 20 and sum(w in COMMON for w in words) > 0.1 * len(words)


# --------------------------------------------------------------------------- HTML

SKIP_TAGS = frozenset("""
    script style nav footer aside form button svg select label textarea noscript title math object dialog
""".split())
SKIP_NAMES = frozenset("""
    viewcode-link navheader navfooter docnav sphinxsidebar related footer headerlink mobile-nav menu-wrapper wy-nav-side
    rst-footer-buttons toc contents toc-title titletoc menu-bar nav-wrapper nav-wide-wrapper page-header up
    quickview toplang bottomlang banner Contents Contents_element search-wrapper nosearch book-navigation
    page-links SectionTOC list-of-tables list-of-figures list-of-examples list-of-equations LEGALNOTICE
    legalnotice copyright releaseinfo pubdate author authorgroup revhistory othercredit head foot index
    footer-text localtoc breadcrumb breadcrumbs NAVHEADER NAVFOOTER howtoget DonationFrame TopLeftHeader
    rightside leftside SearchFrame contents-treeview toctree-wrapper printfooter indexterm field-list
    inline-search source-link srclink navigation innertoc header comments document-versions
    table-of-contents footnotes authors editsection alt-api-doc gtoc api_metadata stability-index-link
    toc_holder lof lot colophon column2 hd ft global-nav nav nav-links path
""".split())
SKIP_ROLES = frozenset(("navigation", "contentinfo", "search"))
BLOCKS = frozenset("""
    p div section article main blockquote ul ol dl table tbody thead tr pre li dt dd center address figure
    figcaption h1 h2 h3 h4 h5 h6 hr body caption header details summary fieldset screen programlisting
""".split())
DROP_SECTIONS = re.compile(
    r"(?:\W|\d)*(?:authors?( and .*)?|about the authors?|copyright.*|copying|licen[sc]e.*|licensing.*|"
    r"reporting bugs|bug reports|credits?|acknowledge?ments?.*|contributors?|thanks|colophon|maintainers?|"
    r"legal( notice)?|resources|contact.*|table of contents|contents|translators?|index|full license.*|"
    r"permission.*|revision history|document history|mailing lists?|availability|distribution|download|"
    r"navigation|changelog|further information|see also|references|project information|support|"
    r"notes on conditions.*)\W*$",
    re.I,
)


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
        self.cells, self.term, self.bullet = None, None, None
        self.is_synopsis = False  # in the table that mandoc makes of a synopsis
        self.drop_level = 0  # level of the heading whose section is dropped, or 0
        self.waiting = skip_until_heading

    # An element is skipped for its name, or for one of its class names, its id or its role.
    def is_skipped(self, tag, attrs):
        if tag in SKIP_TAGS:
            return True
        if tag in ("body", "html", "main", "pre"):
            return False
        if tag == "a":         # may be the heading itself
            return attrs.get("class") == "headerlink"
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
            self.is_synopsis = tag == "table" and attrs.get("class") == "Nm"
            self.start_block(tag)

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
        if self.is_synopsis:
            self.emit(" ".join(cells), "p")
        elif cells and len(cells[-1]) >= 40 and sum(c.isalpha() for c in cells[-1]) > 0.7 * len(cells[-1]):
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
            self.kind = self.kind + "+"  # a further paragraph of the same item
        if kind == "pre":
            lines = [
                line.rstrip()
                for line in plain(raw.replace("\x02", "\n")).expandtabs(8).strip("\n").split("\n")
            ]
            margin = min((len(l) - len(l.lstrip()) for l in lines if l), default=0)
            self.emit("\n".join("    " + l[margin:] if l else "" for l in lines).rstrip(), kind)
            return
        lines = (
            [one_line(line) for line in plain(raw.replace("\n", " ")).split("\x02")]
            if "\x02" not in raw
            else [one_line(plain(line)) for line in raw.replace("\n", " ").split("\x02")]
        )
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
        elif kind == "dt" and re.fullmatch(r"[-*o+\u00b7]|\(?\w{1,2}[.)]", text):
            self.bullet = "- " if len(text) == 1 else text + " "  # a list, as man(7) writes it
        elif kind == "dt":
            self.term = text
            self.blocks.append(text)
        elif kind == "dd" and self.bullet:
            self.blocks.append(TIGHT + self.bullet + text)
            self.bullet = None
        elif kind.startswith("dd"):
            if self.term and kind == "dd":
                self.facts.append(("term", self.term, first_sentence(text)))
                self.term = None
            self.blocks.append(TIGHT * (kind == "dd") + "  " + text.replace("\n", "\n  "))
        else:
            self.blocks.append(text)

    def emit_heading(self, text, level):
        # Section numbers go: outside of their book they say nothing.
        number = r"(?:(?:Chapter|Appendix|Part|Section)\s+)?(?:[0-9A-Z]{1,2}\.)?(?:\d{1,2}\.)*\d{0,2}\.?:?\s+(?=\S)"
        text = re.sub("^" + number, "", one_line(text).rstrip("#")) or text
        if self.drop_level and level > self.drop_level:
            return
        self.drop_level = level if DROP_SECTIONS.match(text) else 0
        self.waiting = False
        if not self.drop_level:
            self.blocks.append("%s%d%s" % (HEADING, level, text))


def read_html(name, data):
    reader = HtmlReader()
    reader.feed(decode(data))
    reader.close()
    reader.flush()
    if sum(len(b) for b in reader.blocks if len(b) > 100) > 150:  # else a page of links
        yield name, reader.blocks, reader.facts


MALLARD = {
    "title": "h2",
    "item": "li",
    "list": "ul",
    "steps": "ol",
    "code": "pre",
    "screen": "pre",
    "para": "p",
    "listitem": "li",
    "itemizedlist": "ul",
    "orderedlist": "ol",
    "programlisting": "pre",
    "note": "div",
}


def read_mallard(name, data):
    """Help pages of GNOME and MATE (Mallard, DocBook): XML with names of its own for HTML's blocks."""
    text = re.sub(
        r"(?s)<(info|credit|articleinfo|bookinfo|legalnotice|links)\b[^>]*?(?:/>|>.*?</\1>)|<!--.*?-->",
        "",
        decode(data),
    )
    text = re.sub(r"</?(code|cmd)\b[^>]*>(?=[^\n<]{0,80}</?(?:code|cmd))", "", text)
    text = re.sub(
        r"(</?)([a-z]+)\b",
        lambda m: m.group(1) + MALLARD.get(m.group(2), m.group(2))
        if m.group(2) != "code"
        else m.group(1) + "tt",
        text,
    )
    yield from read_html(name, re.sub(r"&(\w+);", lambda m: "&%s;" % m.group(1), text).encode())


# --------------------------------------------------------------------------- manual pages


def read_man(name, data):
    """One manual page, by way of mandoc's HTML: so lines are joined and nothing is hyphenated."""
    if data.lstrip().startswith(b".so "):
        return
    # Whoever adds a page that mandoc does not come to an end with gets an error, not a smaller text.
    made = subprocess.run(
        ["mandoc", "-T", "html", "-O", "fragment"],
        input=data,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
        timeout=120,
    )
    page, section = re.match(r"(?:.*/)?([^/]+)\.(\d\w*)$", name).groups()
    for _, blocks, facts in read_html(name, made.stdout):
        # The heading says NAME; what follows is "ls - list directory contents".
        if len(blocks) > 2:
            options = [(t, s) for _, t, s in facts if re.match(r"--?[A-Za-z0-9]", t)]
            summary = re.match(r"\S.*? --? (.{8,})$", blocks[1]) if blocks[0][2:] == "NAME" else None
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
            # Signatures of verse stand far to the right; how far does not matter.
            yield "\n".join("    " + re.sub(r"^ {12,}", " " * 12, l[margin:]) for l in lines)
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
                item = one_line(
                    re.sub(
                        r"\*\*|`|(?<!\w)[*_](?=\w)|(?<=\w)[*_](?!\w)", "", re.sub(r"^\s*[*+]\s", "- ", item)
                    )
                )
                if item:
                    blocks.append(TIGHT * (i > 0) + item)
    yield name, blocks, []
