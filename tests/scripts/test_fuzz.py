"""Whatever bytes a file holds, a reader gives what it reads or an InputError that says where; nothing else leaves it.

1. `readers` are those of everything that a user gives, each with a corpus of valid files.
2. `mutants` breaks a file of the corpus as files are broken: words exchanged, doubled, lost, replaced by values that
   hurt; bytes flipped, put in, cut off. Hypothesis draws, so that a find is small and comes again.
3. Every reader is tried on as many files as a few seconds take, the same on every machine, and for a minute in the long
   run; there, atheris looks for new branches too (``pip install clsprobe[fuzz]``). A find becomes a row of
   bad_inputs.yaml.

As a program, ``python test_fuzz.py READER SECONDS``: atheris on one reader.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import models
import pytest
from answers import answer
from deadline import deadline
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from inputs import content

from clsprobe.analysis.answer import Answer
from clsprobe.analysis.folder import read_run
from clsprobe.analysis.sources import SourceOptions, load
from clsprobe.analysis.sources.conllu import PROPERTIES
from clsprobe.analysis.sources.treebank import read_treebank
from clsprobe.analysis.table import read_results
from clsprobe.flags import make_study
from clsprobe.probes.encoders.describing import describe
from clsprobe.probes.encoders.layers import parse_layers
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.errors import InputError
from clsprobe.run import Run

FILES = 50  # of a round
QUICK, LONG = 20, 60.0  # rounds of every reader; seconds
PATIENCE = 60  # seconds after which a file that is not read yet never will be

TABLE = SourceOptions()
LENIENT = SourceOptions(
    drop_empty=True, drop_missing_labels=True, replace_invalid=True, detokenise=True, quoting="none",
    missing_labels=("null",), merge_labels=True,
)  # fmt: skip
NUMBERS = SourceOptions(target="number", drop_empty=True, label_column=("label", "score"))
SIDED = SourceOptions(split_column="side", group_column="group")


@dataclass(frozen=True)
class Reader:
    """name: of the file. corpus: valid files. read: what is tried. pieces: values that hurt there."""

    name: str
    corpus: tuple[bytes, ...]
    read: Callable[[Path], object]
    pieces: tuple[bytes, ...] = ()


def _load(*options: SourceOptions, source: str = "file") -> Callable[[Path], object]:
    def read(path: Path) -> None:
        refused = None
        for variant in options:
            try:
                loaded = load(f"{source}:{path}", variant)
            except InputError as error:
                refused = error
                continue
            for task in loaded.tasks:
                assert len(list(task.texts)) == len(task.y)
                assert all(text.strip() for text in task.texts)
            assert loaded.rows == len(loaded.tasks[0].texts) + sum(loaded.left_out.values())
        if refused:
            raise refused

    return read


def _read_treebank(path: Path) -> None:
    refused = None
    for skip in (False, True):
        try:
            bank, _ = read_treebank(path, skip_bad_sentences=skip)
        except InputError as error:
            refused = error
            continue
        for prop in PROPERTIES.values():
            assert len(prop.make_rows(bank)) == len(bank.sentences)
        assert bank.rows == len(bank.sentences) + len(bank.repeated) + sum(map(len, bank.skipped.values()))
    if refused:
        raise refused


def _read_model(path: Path) -> None:
    described = describe(str(path.parent))
    assert parse_layers("all", described) == list(range(described.layers + 1))
    assert described.max_length >= 3


def _read_tokenizer(path: Path) -> None:
    encoder = load_encoder(str(path.parent))
    assert len(encoder.tokenize(["the cat sees a dog", "x"])) == 2


def _read_answer(path: Path) -> None:
    Answer.load(path)


CSV = (
    b'text,label,score,side,group\nthe first text,neg,1.5,train,a\n"second, quoted",pos,-2,train,b\n'
    b'"two\nlines",neg,3e2,dev,c\n"a ""word""",pos,0,test,d\nfive of these,neg,7,test,e\n'
)
TSV = CSV.replace(b",", b"\t").replace(b'"two\nlines"', b'"open')
JSONL = b"".join(
    json.dumps({"text": f"text {i} \u00e9", "label": label, "score": i / 2, "side": side, "group": i}).encode() + b"\n"
    for i, (label, side) in enumerate([("a", "train"), (1, "train"), (True, "dev"), (None, "test"), ("a", "test")])
)
ARRAYS = tuple(
    start + b",\n ".join(JSONL.splitlines()) + end for start, end in ((b" [", b"]\n"), (b'{"data": [', b"]}"))
)
ARROW = {"text": ["a", "b"], "label": ["x", "y"]}
CSV_ROWS = "text,label\na,x\nb,y\n"
STATE = b'{"_data_files": [{"filename": "a.arrow"}], "_fingerprint": "x", "_split": null}'
README = (
    b"---\nlicense: mit\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: s/a*.csv\n"
    b"  - split: test\n    path: [s/b.csv]\n---\n# Films\n"
)
IN_READMES = (b"default", b"train", b"**/*", b"../*", b"configs:", b"- ", b"&a ", b"*a", b"---\n", b"[", b"{", b"3")
_TYPES: dict[str, Any] = {
    "label": ["x", "y"] * 4, "numbers": [1.0, None, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], "flags": [True, False] * 4,
    "bytes": [b"a", b"\xff"] * 4, "lists": [[1], []] * 4, "maps": [{"a": 1}, {"a": 2}] * 4, "nothing": [None] * 8,
}  # fmt: skip


def _parquets(kind: str = "parquet") -> Iterator[bytes]:
    words = ["red", "green", "blue", "grey", "black", "white", "brown", "pink"]
    for values in _TYPES.values():
        yield content({kind: {"text": words, "label": values}})
    for dtype in ("large_string", "binary"):
        yield content({kind: {"text": words, "label": words[::-1]}, "types": {"text": dtype}})
    sides = ["train", "train", "dev", "dev", "test", "test", "train", "test"]
    yield content({kind: {"text": words, "label": words, "score": [*range(8)], "side": sides, "group": [*range(8)]}})


def _packed() -> Iterator[bytes]:
    for kind in ("gzip", "bz2", "xz", "zst"):
        yield content({"of": {"of": {"bytes": CSV.decode("latin-1")}, "times": 9}, "pack": kind})


TREE = (
    "# text = Es regnet nicht, aber die alte Stadt schl\u00e4ft.\n"
    "1\tEs\tes\tPRON\t_\tNumber=Sing\t2\tnsubj\t_\t_\n2\tregnet\tregnen\tVERB\t_\tMood=Ind|Tense=Pres\t0\troot\t_\t_\n"
    "3\tnicht\tnicht\tPART\t_\t_\t2\tadvmod\t_\tSpaceAfter=No\n4\t,\t,\tPUNCT\t_\t_\t9\tpunct\t_\t_\n"
    "5\taber\taber\tCCONJ\t_\t_\t9\tcc\t_\t_\n6-7\tzur\t_\t_\t_\t_\t_\t_\t_\t_\n6\tzu\tzu\tADP\t_\t_\t8\tcase\t_\t_\n"
    "7\tder\tder\tDET\t_\t_\t8\tdet\t_\t_\n7.1\tleer\t_\t_\t_\t_\t_\t_\t_\t_\n8\tStadt\tStadt\tNOUN\t_\tNumber=Sing\t9\tobj\t_\t_\n"
    "9\tschl\u00e4ft\tschlafen\tVERB\t_\tMood=Ind|Tense=Pres\t2\tconj\t_\tSpaceAfter=No\n10\t.\t.\tPUNCT\t_\t_\t2\tpunct\t_\t_\n\n"
).encode()
SENTEVAL = b"".join(
    b"%s\t%s\t%s %d ca n't `` run '' -LRB- ( a ) -RRB- .\n" % (part, label, label, n)
    for n, part in enumerate((b"tr", b"tr", b"va", b"te"))
    for label in (b"PAST", b"PRES")
)
YAML = (
    b"# mine\ntask: [grammar:tense, 'file:a.csv']\nlayers: 0,3\nlabel-column:\n  - a\n  - b\nseed: 7\n"
    b'fast: true\nmodel: "x"\n'
)


def _read_files(*names: str) -> Callable[[Path], tuple[bytes, ...]]:
    return lambda folder: tuple((folder / name).read_bytes() for name in names)


HURTS = (
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\r", b"\n", b"\n\n", b'"', b"'", b"\\", b"-1", b"0", b"1e999", b"9" * 30, b"0.5",
    b"NaN", b"null", b"true", b"[]", b"{}", b"[[", b"{{", b"\xed\xa0\x80", b"\\ud800", b"\xe2\x80\xa8", b" ", b"",
    b"../../x", b"a" * 2000, b"\x1b[31m", b"\x85",
)  # fmt: skip
IN_YAML = (
    b"&a ",
    b"*a",
    b"!!python/x ",
    b"!!int ",
    b"? ",
    b"- ",
    b"--- ",
    b"%YAML 9.9\n",
    b"<<: ",
    b"|\n",
    b">",
    b"@",
    b"`",
)
IN_TREES = (b"1-2", b"1.1", b"11", b"-", b"|", b"=", b"# text = x\n", b"SpaceAfter=No", b"conj", b"root", b"cc", b"_")
IN_TABLES = (b",", b"\t", b";", b"text", b"label", b"train", b"tset", b"1_0", b"inf")
IN_MODELS = (
    b'"roberta"', b'"t5"', b'"funnel"', b'"albert"', b'"deberta-v2"', b'"xlnet"', b'"own"', b'"block_sizes": [2, "x"],',
    b'"inner_group_num": 1000000000,', b'"num_hidden_layers": 1000000000,', b'"auto_map": 3,', b'"pad_token_id": -5,',
    b'"vocab_size": [],', b'"transformers_weights": 3,',
)  # fmt: skip


def readers(folder: Path) -> dict[str, Reader]:
    """All of them. folder: for a model and for a run, which those need whose files lie beside others."""
    model, run = folder / "model", folder / "run" / "answers"
    if not model.exists():
        models.save("bert", model)
        saved = answer()
        run.mkdir(parents=True)
        saved.save(run / "a.json")
        for name, data in (("saved/a.arrow", {"arrow": ARROW}), ("saved/dataset_info.json", "{}"),
                           ("hub/s/a.csv", CSV_ROWS), ("hub/s/b.csv", CSV_ROWS)):  # fmt: skip
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content(data))
    config, tokenizer = _read_files("config.json")(model), _read_files("tokenizer.json")(model)
    done = json.dumps({"command": "run", "digest": "x", "settings": {"a": 1}, "finished": True}).encode()
    text = (TABLE, LENIENT, NUMBERS, SIDED)
    return {
        "csv": Reader("d.csv", (CSV,), _load(*text), IN_TABLES),
        "tsv": Reader("d.tsv", (TSV,), _load(*text), IN_TABLES),
        "jsonl": Reader("d.jsonl", (JSONL,), _load(*text), IN_TABLES),
        "json": Reader("d.json", ARRAYS, _load(*text), (*IN_TABLES, b"[", b"]", b"},", b'{"data": [')),
        "packed": Reader("d.csv", tuple(_packed()), _load(*text)),
        "parquet": Reader("d.parquet", tuple(_parquets()), _load(TABLE, LENIENT, NUMBERS, SIDED)),
        "arrow": Reader("d.arrow", tuple(_parquets("arrow")), _load(TABLE, LENIENT, NUMBERS, SIDED)),
        "state.json": Reader("saved/state.json", (STATE,), lambda path: load(f"file:{path.parent}"), (b"a.arrow",)),
        "README.md": Reader("hub/README.md", (README,), lambda path: load(f"file:{path.parent}"), IN_READMES),
        "conllu": Reader("d.conllu", (TREE, TREE * 2), _read_treebank, IN_TREES),
        "senteval": Reader("d.txt", (SENTEVAL,), _load(TABLE, LENIENT, source="senteval"), (b"tr", b"te", b"\t")),
        "yaml": Reader("run.yaml", (YAML,), lambda path: make_study(Run, {}, str(path)), IN_YAML),
        "config.json": Reader("model/config.json", config, _read_model, IN_MODELS),
        "tokenizer.json": Reader("model/tokenizer.json", tokenizer, _read_tokenizer),
        "run.json": Reader("run/run.json", (done,), lambda path: read_run(path.parent)),
        "answers": Reader("run/answers/a.json", _read_files("a.json")(run), _read_answer),
        "results": Reader("run/results.parquet", tuple(_parquets())[:3], lambda path: read_results(path)),
    }  # fmt: skip


WORDS = re.compile(rb"(\s|[,:;\"\[\]{}|=])")


@st.composite
def mutants(draw: Any, corpus: tuple[bytes, ...], pieces: tuple[bytes, ...]) -> bytes:
    """A file of the corpus after one to five accidents."""
    data = draw(st.sampled_from(corpus))
    for _ in range(draw(st.integers(1, 5))):
        accident = draw(st.sampled_from(["word", "double", "lose", "swap", "flip", "put", "cut", "piece", "piece"]))
        if accident in ("word", "double", "lose", "swap", "piece"):
            words = WORDS.split(data)
            i, j = (draw(st.integers(0, len(words) - 1)) for _ in range(2))
            if accident == "word":
                words[i] = words[j]
            elif accident == "double":
                words[i:i] = words[min(i, j) : max(i, j)][:200]
            elif accident == "lose":
                del words[min(i, j) : max(i, j)]
            elif accident == "swap":
                words[i], words[j] = words[j], words[i]
            else:
                words[i] = draw(st.sampled_from(pieces))
            data = b"".join(words)
            continue
        i = draw(st.integers(0, max(0, len(data) - 1)))
        i = max(0, len(data) - 1 - i) if draw(st.booleans()) else i  # ends are as telling as beginnings
        if accident == "flip" and data:
            data = data[:i] + bytes([draw(st.integers(0, 255))]) + data[i + 1 :]
        elif accident == "put":
            data = data[:i] + draw(st.binary(min_size=1, max_size=4)) + data[i:]
        elif accident == "cut":
            data = data[:i]
    return data


def check_reader(reader: Reader, folder: Path, data: bytes) -> None:
    """Read it; AssertionError where anything but a well-made InputError comes out."""
    path = folder / reader.name
    path.write_bytes(data)
    error = None
    with deadline(PATIENCE):
        try:
            reader.read(path)
        except InputError as refused:
            error = refused
    if error is not None:
        assert error.what
        assert re.search(r"\.\w|--\w|/|d\b", error.where), error.where
        assert str(error).isprintable()
        assert len(str(error)) < 3000


def seconds_long(seconds: float) -> Iterator[int]:
    """Rounds until so many seconds of computing are over."""
    start = time.process_time()
    return takewhile(lambda _: time.process_time() - start < seconds, count())


def fuzz(reader: Reader, folder: Path, rounds: Iterable[int]) -> int:
    """How many files were tried in so many rounds; raises what none of them may raise."""
    examples = 0
    for data in reader.corpus:
        check_reader(reader, folder, data)
    for number in rounds:

        @seed(number)
        @settings(
            max_examples=FILES,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(mutants(reader.corpus, (*HURTS, *reader.pieces)))
        def attempt(data: bytes) -> None:
            nonlocal examples
            examples += 1
            check_reader(reader, folder, data)

        attempt()
    return examples


@pytest.fixture
def bench(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("bench")


NAMES = (
    "csv", "tsv", "jsonl", "json", "packed", "parquet", "arrow", "state.json", "README.md", "conllu", "senteval",
    "yaml", "config.json", "tokenizer.json", "run.json", "answers", "results",
)  # fmt: skip
SLOWER = {
    "json": 5, "packed": 5, "arrow": 5, "state.json": 5, "README.md": 5,
    "config.json": 2, "tokenizer.json": 30, "run.json": 3, "answers": 3, "results": 3,
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_any_file_is_read_or_refused(name, bench) -> None:
    rounds = QUICK // SLOWER.get(name, 1)
    assert fuzz(readers(bench)[name], bench, range(rounds)) >= 0.9 * rounds * FILES


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_any_file_is_read_or_refused_for_a_minute(name, bench) -> None:
    print(f"{name}: {fuzz(readers(bench)[name], bench, seconds_long(LONG))} files")


@pytest.mark.parametrize("name", ["csv", "jsonl", "yaml"])
def test_a_reader_that_stumbles_over_one_byte_would_be_found(name, bench) -> None:
    """The broken twin: where byte 0x9D stands, it raises what is no InputError."""
    sound = readers(bench)[name]

    def stumbling(path: Path) -> None:
        if b"\x9d" in path.read_bytes():
            raise ValueError("that byte")
        sound.read(path)

    with pytest.raises(ValueError, match="that byte"):
        fuzz(Reader(sound.name, sound.corpus, stumbling, sound.pieces), bench, range(10 * QUICK))


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_atheris_finds_nothing_either(name) -> None:
    pytest.importorskip("atheris", reason="pip install clsprobe[fuzz]", exc_type=ImportError)
    done = subprocess.run([sys.executable, __file__, name, str(int(LONG))], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stderr.strip().splitlines()[-1])


def _with_atheris(name: str, seconds: str) -> None:
    import atheris

    for module in (
        "clsprobe.analysis.sources",
        "clsprobe.config",
        "clsprobe.probes.encoders",
        "clsprobe.analysis.study",
        "clsprobe.analysis.folder",
    ):
        for there in [m for m in sys.modules if m.startswith(module)]:
            for value in vars(sys.modules[there]).values():
                if getattr(value, "__module__", None) == there and callable(value) and hasattr(value, "__code__"):
                    with suppress(Exception):
                        atheris.instrument_func(value)
    folder = Path(mkdtemp())
    reader = readers(folder)[name]
    corpus = folder / "corpus"
    corpus.mkdir()
    for n, data in enumerate(reader.corpus):
        (corpus / str(n)).write_bytes(data)
    atheris.Setup(
        [sys.argv[0], str(corpus), f"-max_total_time={seconds}", "-max_len=20000", f"-timeout={PATIENCE}"],
        lambda data: check_reader(reader, folder, data),
    )
    try:
        atheris.Fuzz()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _with_atheris(*sys.argv[1:])
