"""Three small treebanks in other scripts, with the quirks that CoNLL-U allows and files have.

arabic: right to left, multi-word tokens with and without ``# text``, CR LF, vowel signs, a letter composed or not,
Arabic digits and punctuation. japanese: no spaces, fullwidth letters and digits, empty nodes, enhanced dependencies,
comments between the lines of a sentence, no lemmas. vietnamese: spaces within words, tones composed or not, a
byte-order mark, every fifth sentence tagged but not parsed.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from itertools import product

Word = tuple[str, str, str, str, int, str]  # form, lemma, part of speech, features, head, relation


def block(
    words: Sequence[Word],
    text: str = "",
    *,
    spaces: Sequence[bool],
    joined: Mapping[int, tuple[int, str]] | None = None,
    after: Mapping[int, str] | None = None,
    enhanced: bool = False,
) -> str:
    """The lines of one sentence. joined: first word -> last word and form of a multi-word token. after: word -> a line
    that follows it. spaces: (word,) whether one follows; after a multi-word token that of its last word."""
    joined, after = joined or {}, after or {}
    lines = [f"# text = {text}"] if text else ["# no text here"]
    for number, (form, lemma, upos, features, head, relation) in enumerate(words, 1):
        if number in joined:
            last, token = joined[number]
            lines.append(f"{number}-{last}\t{token}" + "\t_" * 7 + f"\t{'_' if spaces[last - 1] else 'SpaceAfter=No'}")
        misc = "_" if spaces[number - 1] else "Gloss=x|SpaceAfter=No"
        heads = ["_", "_"] if head < 0 else [str(head), relation]
        deps = f"{head}:{relation}|8.1:dep" if enhanced else "_"
        lines.append("\t".join([str(number), form, lemma, upos, "_", features, *heads, deps, misc]))
        if number in after:
            lines.append(after[number])
    return "\n".join(lines) + "\n\n"


def arabic() -> bytes:
    """Verb, subject, object, and perhaps a place or a number of days: 120 different sentences, three of them twice."""
    verbs = [("قرأ", "يقرأ"), ("كَتَبَ", "يَكْتُبُ"), ("فهم", "يفهم")]
    subjects = [("الولد", "الأولاد"), ("القارئ", "القُرّاء")]
    objects = ["كتابا", "مقالا", "القرآن", "رسالة", "درسا"]
    blocks = []
    for i, (verb, tense, subject, plural, obj) in enumerate(product(verbs, (0, 1), subjects, (0, 1), objects)):
        number, days = ("Sing", "Plur")[plural], i % 2
        words = [
            ("و", "و", "CCONJ", "_", 2, "cc"),
            (verb[tense], verb[0], "VERB", f"Mood=Ind|Tense={('Past', 'Pres')[tense]}|VerbForm=Fin", 0, "root"),
            (subject[plural], subject[0], "NOUN", f"Number={number}", 2, "nsubj"),
            (obj, obj, "NOUN", "Number=Sing", 2, "obj"),
            *([("٣", "٣", "NUM", "_", 6, "nummod"), ("أيام", "يوم", "NOUN", "Number=Plur", 2, "obl")] * days),
            *([("في", "في", "ADP", "_", 6 + 2 * days, "case"), ("البيت", "بيت", "NOUN", "_", 2, "obl")] * (i % 3 > 0)),
            ("؟" if i % 3 else "،", "_", "PUNCT", "_", 2, "punct"),
        ]
        token = f"و{verb[tense]}"
        spaces = [True] * (len(words) - 2) + [False, True]
        text = " ".join([token, *(word[0] for word in words[2:-1])]) + words[-1][0]
        blocks.append(block(words, text if i % 2 else "", spaces=spaces, joined={1: (2, token)}))
    decomposed = [unicodedata.normalize("NFD", part) for part in blocks[3:6]]  # the same texts
    return "".join([*blocks, *decomposed]).replace("\n", "\r\n").encode()


def japanese() -> bytes:
    """Topic, object, verb in two tenses: 128 sentences, four of them again in fullwidth letters."""
    blocks = []
    people, things, verbs = (
        ["猫", "学生", "ABC", "私"],
        ["本", "水", "12", "ご飯"],
        [("買う", "買った"), ("見る", "見た")],
    )
    for i, (person, thing, verb, tense, adverb) in enumerate(product(people, things, verbs, (0, 1), (0, 1))):
        adverbs = [("今日", "_", "NOUN", "_", 0, "obl"), ("、", "_", "PUNCT", "_", 0, "punct")] * adverb
        adverbs = [("毎朝", "_", "NOUN", "_", 0, "obl"), ("、", "_", "PUNCT", "_", 0, "punct"), *adverbs] * adverb
        root = 5 + len(adverbs)
        words = [
            *((*word[:4], root, word[5]) for word in adverbs),
            (person, "_", "NOUN", "_", root, "nsubj"),
            ("は", "_", "ADP", "_", root - 4, "case"),
            (thing, "_", "NUM" if thing.isdigit() else "NOUN", "_", root, "obj"),
            ("を", "_", "ADP", "_", root - 2, "case"),
            (verb[tense], "_", "VERB" if i % 3 else "ADJ", f"Tense={('Pres', 'Past')[tense]}", 0, "root"),
            ("。", "_", "PUNCT", "_", root, "punct"),
        ]
        after = {2: "# text_en = a comment between two words", 3: "3.1\t_\t_\tVERB" + "\t_" * 6, 4: "#"}
        spaces = [False] * len(words)
        blocks.append(block(words, spaces=spaces, after=after, enhanced=True))
        if person == "ABC" and thing == "12" and verb == verbs[0]:
            wide = [(word[0].replace("ABC", "ＡＢＣ").replace("12", "１２"), *word[1:]) for word in words]
            blocks.append(block(wide, spaces=spaces))
    return ("\n\n# a comment of no sentence\n\n" + "".join(blocks)).encode()


def vietnamese() -> bytes:
    """Words of several syllables: 160 sentences, of which 32 have no heads, and two again with decomposed tones."""
    subjects = ["học sinh", "giáo viên", "bác sĩ", "Nguyễn Huệ"]
    verbs = [("đọc", "đọc"), ("viết", "viết"), ("nghiên cứu", "nghiên_cứu"), ("mua", "mua"), ("bán", "bán")]
    blocks = []
    for i, (subject, verb, times, late) in enumerate(product(subjects, verbs, (0, 1, 2, 3), (0, 1))):
        root = 2 if late else 3
        nested = [("tờ", "tờ", "NOUN", "_", root, "obj")]
        for k in range(4):  # the first ones one below the other, the rest side by side
            nested.append((f"báo{k}{times}", "báo", "NOUN", "_", root + 1 + k if k < times else root, "nmod"))
        tense = [] if late else [("đã", "đã", "ADV", "_", 3, "advmod")]
        words = [
            (subject, subject.replace(" ", "_"), "PROPN" if subject.istitle() else "NOUN", "_", root, "nsubj"),
            *tense,
            (verb[0], verb[1], "VERB", f"Mood={('Ind', 'Imp')[times % 2]}", 0, "root"),
            *nested,
            (".", ".", "PUNCT", "_", root, "punct"),
        ]
        if i % 5 == 4:
            words = [(*word[:4], -1, "_") for word in words]
        spaces = [True] * (len(words) - 2) + [False, True]
        text = " ".join(word[0] for word in words[:-1]) + "."
        blocks.append(block(words, text, spaces=spaces))
    decomposed = [unicodedata.normalize("NFD", part) for part in blocks[:2]]
    return "\ufeff".encode() + "".join([*blocks, *decomposed]).rstrip("\n").encode()  # no newline at its end


TREEBANKS = {"arabic": arabic, "japanese": japanese, "vietnamese": vietnamese}
