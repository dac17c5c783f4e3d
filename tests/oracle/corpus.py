#!/usr/bin/python3
"""Makes the text that Sluice's small model is trained on, from Debian's documentation packages.

    python3 tests/oracle/corpus.py OUT_DIR [--table]

Fetches the packages listed below with apt-get (into OUT_DIR/debs; none is installed), reads the
manual pages, handbooks, dictionaries and stories in them, and writes

    OUT_DIR/train.jsonl    one JSON string a line, one document a line, special tokens included
    OUT_DIR/heldout.jsonl  one per cent of the documents; no paragraph of it occurs in train.jsonl
    OUT_DIR/sources.json   per package: version, source package, licence, documents, bytes

--table also prints the sources as a table in Markdown. The same packages give the same bytes.
Needs Debian with a working apt, python3 and mandoc; two processes run at a time.

The text is for a model that learns to write sentences, so prose is kept and everything else is
dropped: navigation, tables of numbers, licences and credits (they repeat), addresses and lists of
people. How it is read and cleaned is corpus_text.py's business.
"""
import argparse
import collections
import glob
import gzip
import hashlib
import json
import multiprocessing
import os
import random
import re
import subprocess
import sys
import tarfile

import corpus_books as books
import corpus_text as text
from corpus_chat import make_chats
from corpus_text import HEADING, TIGHT

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
MIB = 1 << 20
DOCUMENT_BYTES_MIN = 200
DOCUMENT_BYTES_MAX = 64 << 10
PIECE_BYTES = 32 << 10           # what a longer document is cut into, about
LONG_PARAGRAPH = 79              # characters; those no longer may repeat
HELD_OUT_PER_MILLE = 10
FEW_FILES = 6                    # a package with fewer is capped by documents, not by files

# --------------------------------------------------------------------------- sources

Source = collections.namedtuple("Source", "package licence reader wanted unwanted cap_bytes")


def source(package, licence, reader, wanted, unwanted=r"(?!)", cap_mib=99.0):
    """Files whose path matches `wanted` and not `unwanted`, at most `cap_mib` of text from them."""
    return Source(package, licence, reader, re.compile(wanted), re.compile(unwanted), int(cap_mib * MIB))


# Pages that list, repeat or date: indexes, release notes, search.
LISTS = (
    r"(?i)genindex|search\.html|py-modindex|whatsnew|release|changes|/news|changelog|copyright|licen[sc]e|"
    r"acknowl|credits|/index-|bookindex|glossary-index|contributors|_sources|_modules"
)
MAN = r"/man/man(?:[1578][a-z]*|3|3const|3type|2|2type|3head|3perl|4|6)/"

BOOKS = [
    # The whole handbook of a system, and the rules of those who make it.
    source("debian-handbook", "GPL-2+ or CC-BY-SA-3.0", text.read_html, r"/html/en-US/"),
    source("debian-reference-en", "GPL-2+", text.read_html, r"\.en\.html"),
    source("developers-reference", "GPL-2+", text.read_html, r"\.html", LISTS),
    source("debian-policy", "GPL-2+", text.read_html,
           r"policy\.html/.*\.html|(?:perl|debconf|menu)[\w-]*\.html",
           LISTS + r"|upgrading-checklist|policy-1"),
    source("installation-guide-amd64", "GPL-2", text.read_html, r"/en/.*\.html"),
    source("maint-guide", "GPL-2+", text.read_html, r"\.en\.html"),
    source("debian-history", "GPL-2+", text.read_html, r"\.en\.html|history/.*\.html",
           r"\.(?:de|fr|it|ja|ko|lt|pt|ru|es|nl)\b"),
    source("debian-kernel-handbook", "GPL-2+", text.read_html, r"\.html"),
    source("debian-edu-doc-en", "GPL-2+", text.read_html, r"bookworm-manual\.html"),
    source("harden-doc", "GPL-2+", text.read_html, r"/html/en-US/"),
    source("aptitude-doc-en", "GPL-2+", text.read_html, r"\.html", LISTS),
    source("abs-guide", "public domain", text.read_html, r"/html/.*\.html",
           r"contributed-scripts|xrefindex|index"),
    source("bash-doc", "GFDL-1.3+ (no invariant sections)", text.read_html, r"bashref\.html"),
    source("zsh-doc", "Zsh (MIT-like)", text.read_html, r"\.html", r"Index|toc", 0.7),
    source("postgresql-doc-15", "PostgreSQL", text.read_html, r"/html/.*\.html",
           LISTS + r"|features|errcodes|biblio|sql-keywords", 2.5),
    source("sqlite3-doc", "public domain", text.read_html, r"\.html",
           LISTS + (r"|syntax/|hlr|toc|keyword_index|consortium|crew|mostdeployed|chronology|"
           r"famous|pressrelease|oldnews|books|requirements|docs\.html|sitemap|matrix"), 1.5),
    source("python3.11-doc", "PSF", text.read_html,
           r"/html/(?:tutorial|library|howto|faq|using|extending|reference|installing|distributing|c-api)/",
           LISTS + r"|c-api/(?:stable|apiabi)", 3.2),
    source("python-django-doc", "BSD-3-Clause", text.read_html, r"/html/.*\.html",
           LISTS + r"|/releases/|internals/contributing/committing", 2),
    source("perl-doc", "GPL-1+ or Artistic", text.read_man, r"/man/man(?:1|3perl)/",
           r"delta|perlhist|perlcn|perljp|perlko|perltw|perlartistic|perlgpl|perltodo|perluniprops|"
           r"perlbook|perlapi|perlintern", 1.7),
    source("linux-doc-6.1", "GPL-2", text.read_html,
           r"/html/(?:admin-guide|process|core-api|filesystems|kernel-hacking|networking|scheduler|mm|"
           r"locking|RCU|security|trace|driver-api|doc-guide|dev-tools|block|accounting|cpu-freq|timers|"
           r"power|PCI|virt|bpf|livepatch|input|sound|usb|leds|i2c|hwmon|kbuild|vm)/.*\.html",
           LISTS + r"|devices\.html|kernel-parameters|maintainers|/xfs", 3.2),
    source("apache2-doc", "Apache-2.0", text.read_html, r"/manual/en/.*\.html",
           LISTS + r"|directives|quickreference|sitemap|developer/", 1.5),
    source("git-doc", "GPL-2", text.read_html,
           r"(?:howto|technical)/.*\.html|/(?:user-manual|git-tutorial|gitcore-tutorial|everyday|"
           r"MyFirst\w+|SubmittingPatches|git-bisect-lk2009|gitworkflows)\.html", LISTS),
    source("rust-doc", "MIT or Apache-2.0", text.read_html,
           r"/html/(?:book|rust-by-example|reference|nomicon|edition-guide|embedded-book|rustc|"
           r"rustdoc)/.*\.html", LISTS + r"|print\.html|toc|appendix-07|lints/listing", 2.7),
    source("nodejs-doc", "MIT", text.read_html, r"/api/.*\.html", r"all\.html|deprecations|index", 1),
    source("erlang-doc", "Apache-2.0", text.read_html, r"/(?:doc|lib/[\w.-]+)/.*\.html",
           LISTS + r"|/wx-|java/|notes|index|/megaco|/snmp|/eldap|/jinterface", 0.8),
    source("octave-doc", "GPL-3+", text.read_html, r"octave\.html/.*\.html", LISTS + r"|Index", 0.8),
    source("cmake-doc", "BSD-3-Clause", text.read_html,
           r"/html/(?:manual|guide|command|variable|prop_tgt|policy)/.*\.html", LISTS, 0.5),
    source("krb5-doc", "MIT", text.read_html, r"\.html", LISTS + r"|/refs/|resources|mitK5"),
    source("bind9-doc", "MPL-2.0", text.read_html, r"/arm/.*\.html", LISTS + r"|notes|history|manpages", 0.5),
    source("postfix-doc", "EPL-2.0 or IPL-1.0", text.read_html,
           r"/html/.*README\.html|/html/(?:OVERVIEW|postconf|TLS)\S*\.html", LISTS, 0.7),
    source("exim4-doc-html", "GPL-2+", text.read_html, r"/spec_html/.*\.html", LISTS, 1),
    source("icinga2-doc", "GPL-2+", text.read_markdown, r"\.md", r"changelog|CHANGELOG", 0.6),
    source("buildbot-doc", "GPL-2", text.read_html, r"/html/.*\.html", LISTS + r"|relnotes", 0.6),
    source("shorewall-doc", "GFDL-1.2+ (no invariant sections)", text.read_html, r"/html/.*\.html?",
           LISTS + r"|Index|upgrade|starting_and_stopping_shorewall_old", 0.7),
    source("sphinx-doc", "BSD-2-Clause", text.read_html,
           r"/html/(?:usage|development|extdev|man|tutorial|faq|theming|templating|latex)\S*\.html", LISTS),
    source("docutils-doc", "public domain", text.read_html, r"/docs/(?:user|ref|howto)/.*\.html", LISTS),
    source("libvirt-doc", "LGPL-2.1+", text.read_html, r"/html/(?:kbase/|format|[a-z]+)[\w-]*\.html",
           LISTS + r"|libvirt-lib|hvsupport|apps|downloads|/html/html/|manpages|api_ext|support", 0.6),
    source("gnome-user-docs", "CC-BY-SA-3.0", text.read_mallard, r"/help/C/.*\.page"),
    source("mate-user-guide", "GFDL-1.1+ (no invariant sections)", text.read_mallard,
           r"/help/C/mate-user-guide/.*\.xml", r"legal|index"),
    source("libreoffice-help-en-us", "MPL-2.0", text.read_html, r"/help/en-US/text/.*\.html",
           r"00000|/help/en-US/text/shared/05|sbasic/shared/(?:03[01]|uno)", 1.8),
    source("live-manual-txt", "GPL-3+", text.read_text, r"live-manual\.en\.txt"),
    source("bird-doc", "GPL-2+", text.read_html, r"/(?:bird|prog)-\d+\.html"),
    source("mh-book", "GPL-2+", text.read_html, r"/html/(?:mh|exmh|xmh|mhe|tip|ove|sheb)\S*/.*\.html",
           LISTS + r"|index", 1),
]

STORIES = [
    source("r-cran-janeaustenr", "public domain", books.read_austen, r"data/Rdata\.rdb"),
    source("anarchism", "GPL-2+", text.read_html, r"/html/.*\.html", r"biblio|index|links|append|history|new",
           4),
    source("endless-sky-data", "GPL-3+", books.read_endless_sky, r"/data/.*\.txt",
           r"names\.txt|keys|interfaces|effects|copyright|hails", 3),
    source("wesnoth-1.16-data", "GPL-2+", books.read_wesnoth, r"/data/.*\.cfg", r"/ai/|/test"),
] + [
    source("wesnoth-1.16-" + campaign, "GPL-2+", books.read_wesnoth, r"/data/campaigns/.*\.cfg")
    for campaign in "did dm dw ei httt l low nr sof sota sotbe thot trow tsg ttb utbs".split()
]

DICTIONARIES = [
    source("dict-jargon", "public domain", books.read_jargon, r"\.dict\.dz"),
    source("dict-foldoc", "GFDL-1.1+ (no invariant sections)", books.read_foldoc, r"\.dict\.dz", cap_mib=1.6),
    source("dict-devil", "public domain", books.read_devil, r"\.dict\.dz"),
    source("dict-gcide", "GPL-2+", books.read_gcide, r"\.dict\.dz", cap_mib=1.8),
    source("wordnet-base", "WordNet-3.0 (MIT-like)", books.read_wordnet, r"/data\.(?:noun|verb|adj|adv)$",
           cap_mib=1.8),
]

# Packages of which the manual pages are read, by licence.
MANUALS = {
    "GPL-2+ and similar": "manpages manpages-dev",
    "GPL-3+": """
        bash coreutils diffutils findutils gawk grep gzip nano parallel screen sed tar wget bison make m4
        automake autoconf bc binutils-common texinfo groff groff-base ed aria2""",
    "GPL-2+": """
        adduser apt debhelper devscripts lintian dpkg dpkg-dev man-db psmisc cron at e2fsprogs dosfstools
        mdadm parted util-linux mount fdisk bsdutils bsdextrautils iproute2 net-tools iptables ethtool
        lynx mutt neomutt lftp logrotate mercurial-common moreutils msmtp network-manager nfs-common
        patch pciutils usbutils pv qemu-utils qemu-system-common quilt rrdtool smartmontools socat sox
        squashfs-tools squid sysstat xorriso genisoimage chrony dnsmasq-base cryptsetup-bin lvm2
        btrfs-progs xfsprogs git-man units gpg gpgconf gpg-agent fail2ban fish-common kmod lxc
        mariadb-client poppler-utils htop iotop alsa-utils ltrace acl attr auditd policycoreutils cvs
        valgrind wireless-tools bmon aptitude-common rsync haproxy""",
    "LGPL-2.1+": "systemd systemd-container udev procps strace libvirt-clients ffmpeg",
    "BSD-2-Clause or BSD-3-Clause": """
        dash tcsh tcpdump libcap2-bin iputils-ping netcat-openbsd i3-wm borgbackup restic libarchive-tools
        debconf debconf-doc mandoc libpam-modules libpam-runtime unbound openssh-client openssh-server
        passwd login bsdgames cmake-data""",
    "MIT, X11 or ISC": """
        curl libcurl4-doc iw jq ncurses-bin ncurses-doc sudo tmux xterm x11-utils
        x11-xserver-utils xserver-common debootstrap wpasupplicant zsh-common file expect tcl8.6-doc
        tk8.6-doc w3m""",
    "Apache-2.0": """
        openssl libssl-doc podman buildah skopeo runc subversion apache2 apache2-utils erlang-manpages
        qpdf""",
    "GPL-1+ or Artistic": "perl",
    "LGPL-2.1+ and GPL-2+": "libc-bin locales",
    "MPL-2.0": "bind9-dnsutils isc-dhcp-client",
    "PostgreSQL": "postgresql-client-15",
    "public domain": "sqlite3 xz-utils",
    "GPL-3+ or Less": "less",
    "EPL-2.0": "postfix ksh93u+m",
    "AGPL-3+": "ghostscript",
    "GPL-3+ (Samba)": "samba-common-bin smbclient",
}
# Most give few pages; a package with hundreds must not outweigh the others.
MANUAL_CAP_MIB = collections.defaultdict(lambda: 0.3, {
    "manpages": 1.8, "manpages-dev": 2.5, "coreutils": 1.0, "git-man": 0.9, "systemd": 0.9, "util-linux": 0.5,
    "perl": 0.4,
})


def all_sources():
    # Not in English; repeated elsewhere; and md(4), with which mandoc does not come to an end.
    unwanted = r"/man/[a-z]{2}(?:_|/)|gittutorial|-all\.1|perl\d*delta|/md\.4"
    manuals = [source(package, licence, text.read_man, MAN, unwanted, MANUAL_CAP_MIB[package])
               for licence, packages in MANUALS.items() for package in packages.split()]
    return BOOKS + STORIES + DICTIONARIES + manuals


# --------------------------------------------------------------------------- packages

def output_of(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False, text=True).stdout


def fetch(packages, folder):
    """Downloads the packages that are not in the folder yet. Those that apt lacks are left out."""
    os.makedirs(folder, exist_ok=True)
    have = {os.path.basename(p).split("_")[0] for p in glob.glob(folder + "/*.deb")}
    wanted = set(packages) - have
    if not wanted:
        return
    shown = output_of("apt-cache", "show", "--no-all-versions", *sorted(wanted))
    known = set(re.findall(r"(?m)^Package: (\S+)", shown))
    for package in sorted(wanted - known):
        print("corpus: apt has no package %s; going on without it" % package, file=sys.stderr)
    subprocess.run(["apt-get", "download", "-qq", *sorted(wanted & known)], cwd=folder, check=True,
                   stderr=subprocess.DEVNULL)


def package_facts(path):
    fields = dict(re.findall(r"(?m)^(\w+): (.*)$", output_of("dpkg-deb", "-f", path)))
    return {"package": fields["Package"], "source": fields.get("Source", fields["Package"]).split(" ")[0],
            "version": fields["Version"], "summary": fields["Description"]}


def files_of(path, wanted, unwanted):
    """(name, bytes) of the plain files in a package that are wanted, by name, decompressed."""
    found = {}
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", path], stdout=subprocess.PIPE) as dpkg:
        with tarfile.open(fileobj=dpkg.stdout, mode="r|") as tar:
            for member in tar:
                name = member.name[1:]
                if member.isfile() and wanted.search(name) and not unwanted.search(name):
                    found[name] = tar.extractfile(member).read()
        dpkg.stdout.read()
    for name in sorted(found):
        data = found[name]
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        yield re.sub(r"\.(gz|dz)$", "", name), data


# --------------------------------------------------------------------------- documents

def stable_hash(words):
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big")


def is_held_out(name):
    return stable_hash("held out " + name) % 1000 < HELD_OUT_PER_MILLE


def read_package(job):
    """The documents of one package, each (name, blocks, facts), in the order of their names.

    Files are read in an order by hash until the cap is reached: a choice from all over the package.
    """
    item, path = job
    files = sorted(files_of(path, item.wanted, item.unwanted), key=lambda f: stable_hash(f[0]))
    documents, size_bytes = [], 0
    for number, (name, data) in enumerate(files):
        read = item.reader(name, data)
        for part, blocks, facts in read if len(files) >= FEW_FILES else chosen(read, item.cap_bytes // len(files)):
            blocks = [b for b in blocks if b.strip(TIGHT) and not text.is_unwanted(b)]
            if blocks and text.is_english(" ".join(blocks)):
                facts = [f for f in facts if not any(text.is_unwanted(str(x)) for x in f)]
                documents.append((number, item.package + part, blocks, facts))
                size_bytes += size_of(blocks)
        if size_bytes > item.cap_bytes:
            break
    documents = [d[1:] for d in sorted(documents, key=lambda d: files[d[0]][0])]
    furniture = repeated_blocks(documents) if item.reader is not text.read_man else frozenset()
    return [(name, text.without_empty_sections([b for b in blocks if b not in furniture]), facts)
            for name, blocks, facts in documents]


def repeated_blocks(documents):
    """What stands on every tenth page of a handbook belongs to its layout, unless it is a heading."""
    pages = collections.Counter(b for _, blocks, _ in documents for b in set(blocks) if b[0] != HEADING)
    return frozenset(b for b, n in pages.items() if n > max(3, len(documents) / 10))


def chosen(documents, cap_bytes):
    """Of a large file (a dictionary): a choice of its documents by hash, up to the cap."""
    documents = list(documents)
    left, keep = cap_bytes, set()
    for name, blocks, _ in sorted(documents, key=lambda d: stable_hash(d[0])):
        left -= size_of(blocks)
        if left < 0:
            break
        keep.add(name)
    return [d for d in documents if d[0] in keep]


def size_of(blocks):
    return sum(len(b.encode()) + 2 for b in blocks)


def join(blocks):
    out = ""
    for block in blocks:
        out += ("\n" if block.startswith(TIGHT) else "\n\n") + block.lstrip(TIGHT)
    return re.sub(r"\n{3,}", "\n\n", out).strip("\n")


def without_repeats(documents):
    """(name, paragraphs) of the documents, with each long paragraph kept once in all of them.

    Held-out documents come first, so that they stay whole. One that loses more than half of its
    text is dropped.
    """
    seen = set()
    for name, blocks in sorted(documents, key=lambda d: not is_held_out(d[0])):
        paragraphs, kept = join(blocks).split("\n\n"), []
        for paragraph in paragraphs:
            if len(paragraph) > LONG_PARAGRAPH:
                digest = hashlib.sha256(" ".join(paragraph.lower().split()).encode()).digest()[:12]
                if digest in seen:
                    continue
                seen.add(digest)
            kept.append(paragraph)
        if 2 * sum(map(len, kept)) > sum(map(len, paragraphs)):
            yield name, kept


def pieces(paragraphs):
    """The document's text; cut at paragraph ends if it is long."""
    size = size_of(paragraphs)
    target = size if size <= DOCUMENT_BYTES_MAX else size / round(size / PIECE_BYTES)
    part, part_bytes = [], 0
    for paragraph in paragraphs:
        if part_bytes >= target:
            yield "\n\n".join(part)
            part, part_bytes = [], 0
        part.append(paragraph)
        part_bytes += len(paragraph.encode()) + 2
    yield "\n\n".join(part)


# --------------------------------------------------------------------------- all together

def gather(sources, folder):
    paths = {os.path.basename(p).split("_")[0]: p for p in glob.glob(folder + "/*.deb")}
    jobs = [(s, paths[s.package]) for s in sources if s.package in paths]
    with multiprocessing.Pool(2) as pool:
        results = pool.map(read_package, jobs, chunksize=1)
    return [(s, package_facts(path), documents) for (s, path), documents in zip(jobs, results)]


def write_jsonl(path, documents):
    with open(path, "w", encoding="utf-8") as f:
        for document in documents:
            f.write(json.dumps(document, ensure_ascii=False) + "\n")


def add_texts(found, sides):
    """Puts the documents on their sides; returns documents and bytes by package."""
    package_of = {name: info["package"] for _, info, documents in found for name, _, _ in documents}
    counts = collections.defaultdict(lambda: [0, 0])
    for name, paragraphs in without_repeats([d[:2] for _, _, documents in found for d in documents]):
        for body in pieces(paragraphs):
            if len(body.encode()) >= DOCUMENT_BYTES_MIN and text.is_english(body):
                sides[is_held_out(name)].append(BOS + body + EOS)
                counts[package_of[name]][0] += 1
                counts[package_of[name]][1] += len(body.encode())
    return counts


def add_chats(found, sides):
    facts = [(info, [(name,) + f for name, _, more in documents for f in more]) for _, info, documents in found]
    count = [0, 0]
    for name, body in make_chats(facts, BOS, EOS, stable_hash):
        sides[is_held_out(name)].append(body)
        count[0] += 1
        count[1] += len(body.encode())
    return count


def build(out_dir):
    sources = all_sources()
    fetch([s.package for s in sources], out_dir + "/debs")
    found = gather(sources, out_dir + "/debs")
    sides = {False: [], True: []}
    counts = add_texts(found, sides)
    chat_count = add_chats(found, sides)
    random.Random(20).shuffle(sides[False])
    summary = {
        "sources": [{"package": info["package"], "source": info["source"], "version": info["version"],
                     "licence": s.licence, "documents": counts[info["package"]][0],
                     "bytes": counts[info["package"]][1]} for s, info, _ in found if counts[info["package"]][0]],
        "chats": {"documents": chat_count[0], "bytes": chat_count[1]},
    }
    for name, side in (("train", sides[False]), ("heldout", sides[True])):
        write_jsonl("%s/%s.jsonl" % (out_dir, name), side)
        summary[name] = {"documents": len(side), "bytes": sum(len(d.encode()) for d in side)}
    with open(out_dir + "/sources.json", "w", encoding="utf-8") as f:
        json.dump(summary, f, indent=1)
        f.write("\n")
    return summary


def print_table(summary):
    row_format = "| %s | %s | %s | %s | %d | %d |"
    print("| package | source package | version | licence | documents | KiB |")
    print("| --- | --- | --- | --- | ---: | ---: |")
    for row in summary["sources"]:
        print(row_format % (row["package"], row["source"], row["version"], row["licence"], row["documents"],
                            row["bytes"] >> 10))
    chats = summary["chats"]
    print(row_format % ("questions and answers", "the above", "", "as the above", chats["documents"],
                        chats["bytes"] >> 10))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out_dir")
    parser.add_argument("--table", action="store_true", help="print the sources as a table in Markdown")
    options = parser.parse_args()
    summary = build(options.out_dir)
    if options.table:
        print_table(summary)
    for side in ("train", "heldout"):
        count = summary[side]
        print("%s: %d documents, %.1f MB" % (side, count["documents"], count["bytes"] / 1e6), file=sys.stderr)


if __name__ == "__main__":
    main()
