"""Questions and answers in V4's chat form, made by template from what the documents say.

So that `chat` shows the format working: the model is to learn who speaks, that a question is
answered in whole sentences, and where the answer ends. Facts come from corpus_text.py:

    ("page", page, section, summary)        a manual page and its summary
    ("option", page, option, sentence)      an option and its first sentence
    ("word", word, part of speech, meaning) a dictionary word and its gloss
    ("term", term, sentence)                a term of a definition list and its first sentence
"""
import random
import re

USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜></think>"

KINDS = {
    "1": "command",
    "8": "command for the administrator",
    "5": "file format",
    "7": "topic",
    "2": "system call",
    "3": "library function",
    "3perl": "Perl module",
    "4": "device",
    "6": "game",
}
OPTIONS_PER_PAGE = 6
WORD_CHATS_MAX = 8000
TURNS = (1, 1, 1, 1, 2, 2, 3)  # how often a chat has so many questions


def upper(words):
    return words[:1].upper() + words[1:]


def lower(words):
    """Lower case first letter, unless the word is a name or an abbreviation."""
    return words if re.match(r"[A-Z][A-Z0-9]|I\b|[A-Z]\w*[A-Z]", words) else words[:1].lower() + words[1:]


def stop(words):
    words = words.strip().rstrip(";:,").strip()
    return words if re.search(r"[.!?][\"')]?$", words) else words + "."


def article(noun):
    return ("an " if noun[0] in "aeiouAEIOU" else "a ") + noun


# Summaries that begin with a verb go into "X is used to ..."; others are said as they stand.
VERBS = frozenset("""
    add adjust allocate allow analyze append apply arrange attach bind build calculate call cancel change
    check clean clear close combine communicate compare compile compress compute concatenate configure
    connect consult control convert copy count create cut decode decompress decrypt define delete describe
    determine disable display download dump edit eject embed enable encode encrypt enumerate establish
    estimate evaluate examine execute expand export extract fetch filter find fix flush follow force format
    free generate get give handle hash identify import initialize insert inspect install interpret join kill
    launch limit link list load locate lock log look maintain make manage manipulate map merge mirror modify
    monitor mount move obtain open operate output parse patch perform place plot pop prepare print process
    produce provide push put query queue read rebuild receive record recover redirect reformat register
    release relocate remove rename repair replace report request rescan reset resize resolve restart restore
    resume retrieve return reverse rewrite rotate run save scan schedule search select send set show shut
    shutdown sign simulate skip sleep sort specify split start stop store strip submit summarize suspend
    switch synchronize tail talk terminate test trace transfer translate trim truncate turn unlock unmount
    unpack update upgrade upload use validate verify view wait watch wipe write
""".split())


def page_turns(rng, package, page, section, summary):
    kind = KINDS.get(section, KINDS.get(section[:1]))
    if kind is None or len(summary) < 12:
        return []
    is_verb = summary.split(" ")[0].lower() in VERBS
    job = lower(summary).rstrip(".")
    if is_verb:
        said = "%s is used to %s" % (page, stop(job))
    elif re.match(r"(?:an?|the)\b", summary, re.I):
        said = "%s is %s" % (page, stop(job))
    else:
        said = "%s is described in its manual page as: %s" % (page, stop(summary))
    if page[0].islower():            # a sentence begins with a capital, a command's name must not
        said = "The %s %s" % (kind, said)
    ask = ["What does %s do?", "What is %s for?", "What is %s?", "Tell me about %s.",
           "Can you explain what %s is?", "What can I use %s for?"]
    back = []
    if is_verb and kind == "command":
        back = [("Which command can %s?" % job, "The command %s can %s" % (page, stop(job))),
                ("How do I %s?" % job, "You can use the command %s. It is made to %s" % (page, stop(job))),
                ("I want to %s. What should I use?" % job, "Use %s: it can %s" % (page, stop(job)))]
    elif is_verb and kind in ("system call", "library function"):
        back = [("Which %s can I use to %s?" % (kind, job),
                 "You can use %s(). Its purpose is to %s" % (page, stop(job)))]
    where = [("In which section of the manual is %s?" % page,
              "The page of %s is in section %s of the manual, because it is %s." % (page, section, article(kind))),
             ("Where can I read more about %s?" % page,
              "Read its manual page with the command man %s %s." % (section, page)),
             ("Which package has the manual page of %s?" % page,
              "The manual page %s(%s) is in the Debian package %s." % (page, section, package))]
    turns = [(rng.choice(ask) % page, said)]
    if back and rng.random() < 0.6:
        turns.append(rng.choice(back))
    if rng.random() < 0.35:
        turns.append(rng.choice(where))
    return turns


def option_turns(rng, page, option, sentence):
    option = re.split(r",\s|\s*\n", option)[0].strip()
    if (
        not sentence
        or len(option) > 40
        or sentence.count(".") > 3
        or not re.match(r"[A-Z][a-z]", sentence)
        or not re.match(r"[\w.+-]+$", page)
    ):
        return []
    ask = [
        "What does the option %s of %s do?" % (option, page),
        "What is %s %s for?" % (page, option),
        "What does %s do with %s?" % (page, option),
        "Explain the option %s of %s." % (option, page),
    ]
    first = sentence.split(" ")[0].lower()
    if first in VERBS:
        said = "With the option %s, %s is told to %s" % (option, page, stop(lower(sentence)))
    else:
        said = "About the option %s of %s the manual says: %s" % (option, page, stop(sentence))
    return [(rng.choice(ask), said)]


def word_turns(rng, word, part, meaning):
    meaning = re.sub(r"^(?:\d\. )?(?:(?:n|v|vt|vi|adj|adv|interj)\.,? )?", "", meaning)
    meaning = re.sub(r"^\([^()]*\)\s*|\s*\([^()]*\)\s*$", "", meaning)
    if (
        not 20 <= len(meaning) <= 260
        or re.search(r"[\[\]|\\]|:$", meaning)
        or len(word) > 30
        or re.match(r"\d|-", word)
        or re.match(r"See\b|Syn", meaning)
    ):
        return []
    ask = [
        "What does %s mean?" % word,
        "What is the meaning of %s?" % word,
        "Define %s." % word,
        "Can you explain the word %s?" % word,
    ]
    noun_phrase = re.match(r"(an?|any|one)\b|(?:the|some)\b", meaning, re.I)
    if part in ("noun", "") and noun_phrase:
        # "A tallyman is one who ..."; but "illegibility is the quality of ..." and names.
        subject = article(word) if part and word.islower() and noun_phrase.group(1) else word
        ask += ["What is %s?" % subject] * 2
        said = "%s is %s" % (upper(subject), stop(lower(meaning)))
    elif part:
        said = rng.choice(
            (
                "%s is %s. It means: %s" % (upper(word), article(part), stop(lower(meaning))),
                "As %s, %s means: %s" % (article(part), word, stop(lower(meaning))),
            )
        )
    else:
        said = "%s means this: %s" % (upper(word), stop(upper(meaning)))
    return [(rng.choice(ask), said)]


def package_turns(rng, info):
    summary = info["summary"]
    if len(summary) < 12:
        return []
    ask = [
        "What is in the package %s?",
        "What is the Debian package %s?",
        "Tell me about the package %s.",
        "What does the package %s contain?",
    ]
    return [
        (
            rng.choice(ask) % info["package"],
            "Debian describes the package %s in one line: %s" % (info["package"], stop(summary)),
        )
    ]


def python_turns(rng, name, sentence):
    match = re.match(r"(?:class |classmethod |async |exception )?([a-z_]\w*(?:\.\w+)+)\(", name)
    if not match or not sentence or not re.match(r"[A-Z][a-z]", sentence):
        return []
    name, first = match.group(1), sentence.split(" ")[0].lower()
    if first in VERBS:
        said = "The Python function %s() is used to %s" % (name, stop(lower(sentence)))
    else:
        said = "About %s() the Python documentation says: %s" % (name, stop(sentence))
    return [
        (
            rng.choice(
                ["What does %s() do in Python?", "What is %s() for?", "Explain the Python function %s()."]
            )
            % name,
            said,
        )
    ]


def turns_of(facts_by_package, stable_hash):
    """(name of the document, list of question and answer) for all facts, in a fixed order."""
    for info, facts in facts_by_package:
        yield "package " + info["package"], package_turns(random.Random(stable_hash(info["package"])), info)
        options = {}
        for document, *fact in facts:
            rng = random.Random(stable_hash("%s %s" % (document, fact)))
            if fact[0] == "page":
                yield document, page_turns(rng, info["package"], *fact[1:])
            elif fact[0] == "option":
                options[fact[1]] = options.get(fact[1], 0) + 1
                if options[fact[1]] <= OPTIONS_PER_PAGE:
                    yield document, option_turns(rng, *fact[1:])
            elif fact[0] == "word":
                yield document, word_turns(rng, *fact[1:])
            elif info["package"].startswith("python3"):
                yield document, python_turns(rng, *fact[1:])


def make_chats(facts_by_package, bos, eos, stable_hash):
    """Yields (name, text) of the chats. The name says on which side of the split its facts are."""
    seen, words, pending = set(), [], {}
    found = []
    for document, turns in turns_of(facts_by_package, stable_hash):
        turns = [t for t in turns if t[0] not in seen and not seen.add(t[0])]
        if turns:
            (words if "/dict" in document or "wordnet" in document else found).append((document, turns))
    words.sort(key=lambda w: stable_hash(w[1][0][0]))
    # Neighbours of one document may share a chat; those of two documents may not, as one may be held out.
    for document, turns in found + sorted(words[:WORD_CHATS_MAX]):
        rng = random.Random(stable_hash(turns[0][0]))
        waiting = pending.setdefault(document, [])
        waiting += turns
        if len(waiting) >= rng.choice(TURNS):
            yield document, bos + "".join(USER + q + ASSISTANT + a + eos for q, a in waiting[:4])
            pending[document] = []
    for document, waiting in pending.items():
        if waiting:
            yield document, bos + "".join(USER + q + ASSISTANT + a + eos for q, a in waiting[:4])
