"""Treebanks of other scripts, untagged and unparsed ones, and files with invalid sentences.

What comes out of three treebanks (tests/support/treebanks.py) is counted again by a reader of its own, `read_plainly`,
which knows nothing of clsprobe's.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import call
from treebanks import TREEBANKS

from clsprobe.analysis.sources import Loaded, SourceOptions, load, load_pairs
from clsprobe.analysis.sources.conllu import PROPERTIES
from clsprobe.probes.errors import InputError

# ----------------------------------------------------------------------------------------------- an independent count


def read_plainly(content: bytes) -> tuple[list[dict[str, Any]], int]:
    """The distinct sentences of a file, and how many there are with repeated ones."""
    sentences, total = {}, 0
    for part in content.decode("utf-8-sig").replace("\r\n", "\n").split("\n\n"):
        lines = [line.split("\t") for line in part.split("\n") if line and line[0] != "#"]
        if not lines:
            continue
        total += 1
        words = [line for line in lines if line[0].isdigit()]
        tokens, covered = [], 0
        for line in lines:
            first, _, last = line[0].partition("-")
            if "." in first or int(first) <= covered:
                continue
            covered = int(last or first)
            space = " " if "SpaceAfter=No" not in line[9] else ""
            tokens.append((line[1], space, words[int(first) - 1][3], line[1].casefold()))
        comments = [line.partition("= ")[2] for line in part.split("\n") if line.startswith("# text = ")]
        text = comments[0] if comments else "".join(form + space for form, space, *_ in tokens).strip()
        key = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
        sentences.setdefault(key, {"words": words, "tokens": tokens})
    return list(sentences.values()), total


def heads_of(words: list[list[str]]) -> list[int]:
    return [int(word[6]) for word in words]


def root_of(words: list[list[str]]) -> list[str]:
    return words[heads_of(words).index(0)]


def depth_of(words: list[list[str]], number: int = 0) -> int:
    children = [i for i, head in enumerate(heads_of(words), 1) if head == number]
    return max((depth_of(words, child) + (number > 0) for child in children), default=0)


def bin_of(words: list[list[str]]) -> str | None:
    return next((f"{low}-{high}" for low, high in ((5, 8), (9, 12), (13, 16)) if low <= len(words) <= high), None)


def feature_of(words: list[list[str]], name: str) -> str | None:
    root = root_of(words)
    values = dict(part.split("=") for part in root[5].split("|") if "=" in part)
    return values.get(name) if root[3] in ("VERB", "AUX") else None


def number_of_subject(words: list[list[str]]) -> str | None:
    root = root_of(words)[0]
    subjects = [word for word in words if word[6] == root and word[7] == "nsubj"]
    if len(subjects) != 1 or subjects[0][3] != "NOUN":
        return None
    return {"Number=Sing": "singular", "Number=Plur": "plural"}.get(subjects[0][5])


def can_be_shifted(tokens: list[tuple[str, ...]]) -> bool:
    is_word = [tag != "PUNCT" and any(c.isalnum() for c in form) for form, _, tag, _ in tokens]
    spaced = any(space for _, space, *_ in tokens[:-1])
    gaps = [bool(space) for _, space, *_ in tokens[:-1]] + [True, True]
    return any(
        is_word[i]
        and is_word[i + 1]
        and tokens[i][3] != tokens[i + 1][3]
        and (not spaced or (gaps[i - 1] and gaps[i] and (gaps[i + 1] or gaps[i + 2])))
        for i in range(1, len(tokens) - 1)
    )


LABELS: dict[str, tuple[bool, Callable[[list[list[str]]], str | None]]] = {  # whether it needs heads, the label
    "sentence_length": (False, bin_of),
    "root_pos": (True, lambda words: root_of(words)[3]),
    "tense": (True, lambda words: {"Past": "past", "Pres": "present"}.get(feature_of(words, "Tense") or "")),
    "mood": (True, lambda words: feature_of(words, "Mood")),
    "subject_number": (True, number_of_subject),
}


def balance(counts: Counter[str]) -> dict[str, int]:
    """The most frequent classes, equally many rows of each, for the number of classes that gives the most bits."""
    best, bits = {}, 0.0
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    for k in range(2, len(ordered) + 1):
        rows = ordered[k - 1][1]
        if rows >= 30 and k * rows * math.log2(k) > bits:
            best, bits = {name: rows for name, _ in ordered[:k]}, k * rows * math.log2(k)
    return best


def balance_depths(sentences: list[dict[str, Any]]) -> dict[str, int]:
    """Consecutive depths, equally many sentences of each of every length."""
    counts = Counter((depth_of(s["words"]), len(s["words"])) for s in sentences)
    depths, lengths = {depth for depth, _ in counts}, {length for _, length in counts}
    best, bits = {}, 0.0
    for first in depths:
        for last in range(first + 1, max(depths) + 1):
            k = last - first + 1
            rows = sum(min(counts[depth, length] for depth in range(first, last + 1)) for length in lengths)
            if rows >= 30 and rows * k * math.log2(k) > bits:
                best = {str(depth): rows for depth in range(first, last + 1)}
                bits = rows * k * math.log2(k)
    return best


def rows_of(loaded: Loaded) -> dict[str, dict[str, int]]:
    """Property -> class -> rows, over all sides."""
    return {
        name.rpartition(":")[2]: {label: sum(sides.values()) for label, sides in classes.items()}
        for name, classes in loaded.classes.items()
    }


@pytest.mark.parametrize("language", TREEBANKS)
def test_an_independent_count_finds_the_same_rows(language: str, tmp_path: Path) -> None:
    content = TREEBANKS[language]()
    (tmp_path / f"{language}.conllu").write_bytes(content)
    loaded = load(f"conllu:{tmp_path / language}.conllu:all", SourceOptions())
    rows, (sentences, total) = rows_of(loaded), read_plainly(content)
    parsed = [s for s in sentences if s["words"][0][6] != "_"]
    counted = set()
    for name, (needs_heads, label_of) in LABELS.items():
        labels = [label_of(s["words"]) for s in (parsed if needs_heads else sentences)]
        expected = balance(Counter(label for label in labels if label))
        assert rows.get(name, {}) == expected, name
        counted |= {name} if expected else set()
    if expected := balance_depths(parsed):
        assert rows["tree_depth"] == expected
        counted.add("tree_depth")
    shiftable = sum(can_be_shifted(s["tokens"]) for s in sentences)
    assert rows["bigram_shift"] == dict.fromkeys(("original", "shifted"), shiftable // 2)
    assert counted > {"sentence_length"}
    for name in rows:
        left_out = sum(n for reason, n in loaded.left_out.items() if reason.startswith(f"{name}: "))
        assert sum(rows[name].values()) + left_out == total
        assert loaded.left_out.get(f"{name}: repeats another sentence", 0) == total - len(sentences) > 1
    assert loaded.rows == total * len(rows)


# ------------------------------------------------------------------------------------------------- columns that are _


def sentences(count: int, *, heads: bool = True, columns: str = "", start: int = 0) -> str:
    """Sentences of five or nine words, half of them each. columns: names of those that are ``_``."""
    blocks = []
    for i in range(start, start + count):
        words = ["The", ("dog", "cat")[i % 2], "sleeps", "at", f"n{i}", *(["in", "the", "old", "house"] * (i % 2))]
        lines = []
        for number, word in enumerate(words, 1):
            upos, head = ("VERB", 0) if number == 3 else ("NOUN", 3)
            cells = {"lemmas": word.lower(), "upos": upos, "heads": str(head), "relations": "root" if not head else "x"}
            cells |= dict.fromkeys(columns.split(), "_") | ({} if heads else {"heads": "_", "relations": "_"})
            order = [cells["lemmas"], cells["upos"], "_", "_", cells["heads"], cells["relations"], "_", "_"]
            lines.append("\t".join([str(number), word, *order]))
        blocks.append("\n".join(lines) + "\n\n")
    return "".join(blocks)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    """Writes a treebank, and returns the beginning of its SPEC."""

    def write(content: str) -> str:
        (tmp_path / "d.conllu").write_text(content, encoding="utf-8")
        return f"conllu:{tmp_path / 'd.conllu'}"

    return write


def refusal(spec: str, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        load(spec, SourceOptions(**options))
    return str(caught.value)


def test_an_unparsed_treebank_serves_what_needs_no_heads(write: Callable[[str], str]) -> None:
    spec = write("# text = two lines above the words\n" + sentences(80, heads=False))
    assert load(f"{spec}:sentence_length").classes["conllu:d:sentence_length"] == {
        "5-8": {"all": 40},
        "9-12": {"all": 40},
    }
    others = "(sentence_length, word_content, bigram_shift, odd_man_out)"
    assert refusal(f"{spec}:tree_depth") == (
        "d.conllu:2: tree_depth needs heads, and column 7 (HEAD) is _ in all 80 sentences. Take a property that does "
        f"not need it {others}, or a treebank that has it."
    )
    loaded = load(f"{spec}:all")
    assert {task.label for task in loaded.tasks} == {"sentence_length", "bigram_shift", "odd_man_out"}
    (note,) = [note for note in loaded.notes if "HEAD" in note]
    assert note.endswith(" need heads, and column 7 (HEAD) is _ in all 80 sentences")
    assert note.split(" need ")[0].split(", ") == [name for name, prop in PROPERTIES.items() if "heads" in prop.needs]
    assert load_pairs(f"{spec}:tense")["conllu:d:tense"].texts == []


def test_what_a_property_needs_is_what_it_reads(write: Callable[[str], str]) -> None:
    """Without a column that is not declared, a property gives the same rows; without one that is, none."""
    languages = [TREEBANKS[name]().decode("utf-8-sig").replace("\r\n", "\n") for name in ("arabic", "japanese")]
    whole = [load(f"{write(content)}:all") for content in languages]
    for number, column in ((2, "lemmas"), (3, "upos"), (6, "heads"), (7, "relations")):
        for content, before in zip(languages, whole, strict=True):
            lines = [line.split("\t") for line in content.split("\n")]
            for cells in lines:
                if len(cells) == 10:
                    cells[number] = "_"
            spec = write("\n".join("\t".join(cells) for cells in lines))
            for task in before.tasks:
                if column in PROPERTIES[task.label].needs:
                    assert f"{task.label} needs {'parts' if column == 'upos' else column}" in refusal(
                        f"{spec}:{task.label}"
                    )
                elif (task.label, column) != ("bigram_shift", "upos"):  # which tells some punctuation from words
                    assert load(f"{spec}:{task.label}").tasks[0].y.tolist() == task.y.tolist()


def test_sentences_without_heads_are_left_out_of_what_needs_them(write: Callable[[str], str]) -> None:
    deep = sentences(80).replace("4\tat\tat\tNOUN\t_\t_\t3\tx", "4\tat\tat\tNOUN\t_\t_\t5\tx", 50)
    alone, mixed = (
        load(f"{write(deep)}:tree_depth"),
        load(f"{write(deep + sentences(50, heads=False, start=80))}:tree_depth"),
    )
    assert mixed.classes == alone.classes
    assert list(mixed.tasks[0].texts) == list(alone.tasks[0].texts)
    assert mixed.left_out == alone.left_out | {"column 7 (HEAD) is _": 50}
    assert mixed.rows == alone.rows + 50


def test_a_corrupted_sentence_is_none_of_the_unparsed_ones(write: Callable[[str], str]) -> None:
    """What is no row may still be a sentence of the language."""
    spec = write(sentences(80) + sentences(40, heads=False, start=80))
    assert "the dog sleeps at n80" in load_bank(spec).normalized_texts


def load_bank(spec: str) -> Any:
    from clsprobe.analysis.sources.treebank import read_treebank

    return read_treebank(Path(spec.removeprefix("conllu:")))[0]


def test_words_without_a_part_of_speech_have_no_tag(write: Callable[[str], str]) -> None:
    loaded = load(f"{write(sentences(80, columns='upos'))}:sentence_length")
    assert {tag for words in loaded.words.values() for _, tag in words} == {""}


def test_every_row_has_its_line(tmp_path: Path) -> None:
    """The first line of its sentence below the comments, in the file that it comes from."""
    for side, start, count in (("train", 0, 60), ("dev", 60, 90), ("test", 60, 60)):  # test stands in dev as well
        part = "# a comment\n" * (side == "dev") + sentences(count, start=start)
        (tmp_path / f"x-{side}.conllu").write_text(part, encoding="utf-8")
    loaded = load(f"conllu:{tmp_path}:sentence_length")
    (task,) = loaded.tasks
    for row, text in enumerate(task.texts):
        name, _, line = task.places.locate(row).partition(":")
        lines = (tmp_path / name).read_text("utf-8").splitlines()
        number, word, *_ = lines[int(line) - 1].split("\t")
        assert (number, word) == ("1", text.split()[0])
        assert lines[int(line) + 3].split("\t")[1] == text.split()[4]
    assert sum(map(len, loaded.excluded[task.name].values())) + len(task.texts) == loaded.rows
    together = load(f"conllu:{tmp_path}:all")
    assert len(together.tasks) > 1
    for task in together.tasks:
        excluded = together.excluded[task.name].values()
        assert sum(map(len, excluded)) + len(task.texts) == loaded.rows


# ----------------------------------------------------------------------------------------------- invalid sentences


BAD = [
    "1\ta\ta\tX\t_\t_\t0\troot\t_\n\n",  # nine columns
    "1\tb\tb\tX\t_\t_\t7\troot\t_\t_\n\n",  # no such head
    "1\tc\tc\tX\t_\t_\t0\troot\t_\t_\n2\tc\tc\tX\t_\t_\t0\troot\t_\t_\n\n",  # two roots
    "1\td\td\tX\t_\t_\t0\troot\t_\t_\n3\td\td\tX\t_\t_\t1\tx\t_\t_\n\n",  # word 2 is missing
    "1\te\te\tX\t_\t_\t2\tx\t_\t_\n2\te\te\tX\t_\t_\t1\tx\t_\t_\n3\te\te\tX\t_\t_\t0\troot\t_\t_\n\n",  # a cycle
    "1\tf\tf\tX\t_\tf\t0\troot\t_\t_\n\n",  # no feature
    "1\t\tg\tX\t_\t_\t0\troot\t_\t_\n\n",  # no form
]


def test_few_invalid_sentences_are_left_out_on_demand(
    write: Callable[[str], str], capsys: pytest.CaptureFixture
) -> None:
    good = sentences(160)
    spec = write(good.replace("\n\n", "\n\n" + BAD[0], 1) + "".join(BAD)) + ":sentence_length"
    line = refusal(spec)
    assert line.startswith("d.conllu:7: 9 columns, CoNLL-U has 10 (likewise line 1,283). Write _ for an empty column")
    assert line.endswith(", or leave the sentence out with --skip-bad-sentences.")
    loaded, alone = load(spec, SourceOptions(skip_bad_sentences=True)), load(write(good) + ":sentence_length")
    assert loaded.classes == alone.classes
    assert loaded.left_out == alone.left_out | {
        "invalid sentence (a line without ten columns)": 2,
        "invalid sentence (a head that is no word of it)": 1,
        "invalid sentence (not one root)": 1,
        "invalid sentence (words that are not numbered 1, 2, 3, ...)": 1,
        "invalid sentence (heads that form a cycle)": 1,
        "invalid sentence (features that cannot be read)": 1,
        "invalid sentence (a word without a form)": 1,
    }
    assert loaded.rows == alone.rows + 8
    assert {reason: len(places) for reason, places in loaded.excluded[loaded.tasks[0].name].items()} == loaded.left_out
    lines = loaded.excluded[loaded.tasks[0].name]["invalid sentence (a line without ten columns)"]
    assert [lines.locate(0), lines.locate(1)] == ["d.conllu:7", "d.conllu:1283"]
    assert len(loaded.notes) == 7
    assert "invalid sentences left out: d.conllu:7: 9 columns, CoNLL-U has 10 (likewise line 1,283)" in loaded.notes
    write(good + BAD[1])
    assert call("list", "tasks", "--task", spec) == 2
    assert call("list", "tasks", "--task", spec, "--skip-bad-sentences") == 0
    assert "left out, invalid sentence (a head that is no word of it): 1" in capsys.readouterr().out
    write(good + BAD[1])
    assert call("list", "tasks", "--task", spec.replace("sentence_length", "all"), "--skip-bad-sentences") == 0
    output = capsys.readouterr().out
    tasks = len(re.findall("^conllu:d:", output, re.MULTILINE))
    line = f"left out of each of the {tasks} tasks, invalid sentence (a head that is no word of it): 1"
    assert tasks > 1
    assert re.findall(".*invalid sentence .*", output) == [line]


def test_many_invalid_sentences_are_no_accident(write: Callable[[str], str]) -> None:
    """Where more than one in twenty is invalid, the file is another format or damaged: not to be skipped by advice."""
    good = [f"{block}\n\n" for block in sentences(38).split("\n\n")[:-1]]
    assert "--skip-bad-sentences" in refusal(write("".join(good) + BAD[0] * 2) + ":all")
    assert "--skip-bad-sentences" not in refusal(write("".join(good[1:]) + BAD[0] * 2) + ":all")
    only_bad = write("".join(BAD)) + ":all"
    assert refusal(only_bad, skip_bad_sentences=True).startswith("d.conllu:1: 9 columns")
    assert "--skip-bad-sentences" not in refusal(only_bad)


def test_minimal_pairs_skip_what_the_task_skips(write: Callable[[str], str]) -> None:
    spec = write(TREEBANKS["arabic"]().decode().replace("\r\n", "\n") + BAD[1]) + ":tense"
    options = SourceOptions(skip_bad_sentences=True)
    assert load_pairs(spec, options)["conllu:d:tense"].labels == ("past", "present")
    with pytest.raises(InputError, match=r"head '7' is no word"):
        load_pairs(spec)
