"""A register: what names mean, and every way in which a plug-in can fail, which is one line."""

from __future__ import annotations

import sys

import pytest
from packages import install, on_path

from clsprobe import studies
from clsprobe.analysis.contents import plugin_contents
from clsprobe.analysis.sources import SOURCES, Loaded, SourceOptions, load
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction import readouts
from clsprobe.probes.extraction.extractor import _digest_code
from clsprobe.probes.extraction.readouts import FORMS, READOUTS, Readout, list_plugins, parse_readouts
from clsprobe.probes.registry import PROBES, digest_source, find_probe

READOUT = """
from clsprobe.probes.extraction.readouts import Max, Mean, Readout

class First(Readout):
    name = "first"
    def read(self, hidden, batch):
        return hidden[:, 0]

class Second(First):
    name = "second"

class Nameless(First):
    name = None

class Impostor(First):
    name = "mean"

class Layers(First):
    name, depth = "layers", 2

class Needy(First):
    def __init__(self, size):
        self.name = f"needy[{size}]"

class Unfinished(Readout):
    name = "unfinished"

class Exits(First):
    def __init__(self):
        raise SystemExit(3)

class Listed(First):
    name = "a,b"

other_first, needy = Second(), Needy(3)
other_first.name = "first"
number = 3
def function(): ...
"""
SOURCE = """
import numpy as np
from clsprobe.analysis.sources import Loaded
from clsprobe.probes.errors import InputError
from clsprobe.probes.tasks.task import Task

def load(rest, options):
    texts = [f"text {i} of {rest}" for i in range(4)]
    return Loaded([Task(f"mine:{rest}", texts, np.array(["a", "b"] * 2))], rows=4)

def refuse(rest, options):
    raise InputError("mine.txt:3", "is no text", "Write one")

def fail(rest, options):
    raise SystemExit("over")

def give_list(rest, options):
    return []

def give_names(rest, options):
    return Loaded(["mine"], rows=4)

def give_nothing(rest, options):
    return Loaded([], rows=0)

number = 3
"""


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with modules of the user's own, which is the current one."""
    (tmp_path / "own_readouts.py").write_text(READOUT)
    (tmp_path / "own_sources.py").write_text(SOURCE)
    (tmp_path / "leaves.py").write_text("raise SystemExit(5)\n")
    (tmp_path / "lacks.py").write_text("import no_such_library\n")
    (tmp_path / "breaks.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(readouts, "_PLUGINS", {})
    with on_path(tmp_path):
        yield tmp_path


def refusal(call, *arguments) -> str:
    with pytest.raises(InputError) as caught:
        call(*arguments)
    return str(caught.value)


def make_readout(name: str) -> Readout:
    (readout,) = parse_readouts([name])
    return readout


NO_MODULE = "Install the package, or run where the module is."
NO_READOUT = "not a readout. Derive it from clsprobe.Readout."
NO_FULL_NAME = "is no package.module:Name. Write it as in mypackage.module:Name."
UNMADE = "cannot be made without arguments"
FAILURES = {
    "nowhere:X": f"no module named 'nowhere'. {NO_MODULE}",
    "own_readouts.sub:X": f"no module named 'own_readouts.sub'. {NO_MODULE}",
    "lacks:X": "lacks cannot be imported (ModuleNotFoundError: No module named 'no_such_library'). Mend the plug-in.",
    "breaks:X": "breaks cannot be imported (ZeroDivisionError: division by zero). Mend the plug-in.",
    "leaves:X": "leaves cannot be imported (SystemExit: 5). Mend the plug-in.",
    "own_readouts:Frist": "own_readouts has no Frist. Did you mean 'own_readouts:First'?",
    "own_readouts:function": f"is a function, {NO_READOUT}",
    "own_readouts:number": f"is an int, {NO_READOUT}",
    "collections:Counter": f"is the class Counter, {NO_READOUT}",
    "own_readouts:Exits": f"{UNMADE} (SystemExit: 3). Give them defaults, or name an instance.",
    "own_readouts:": NO_FULL_NAME,
    ":X": NO_FULL_NAME,
    "own_readouts:Impostor": "its name is 'mean', which is a readout of clsprobe. Give its class another `name`.",
    "own_readouts:Nameless": "has no name. Give its class a `name` of letters, digits and _, for the tables.",
    "own_readouts:Layers": "reads more than the tokens of one layer. "
    "Read one layer, and name it in last4(layers) or layers+norm.",
}


@pytest.mark.parametrize(("name", "line"), FAILURES.items())
def test_every_failure_of_a_plug_in_is_one_line(name, line, desk):
    assert refusal(make_readout, name) == f"--readouts {name}: {line}"


@pytest.mark.parametrize("name", ["own_readouts:Needy", "own_readouts:Unfinished"])
def test_what_cannot_be_made_says_what_is_missing(name, desk):
    assert f"{UNMADE} (TypeError: " in refusal(make_readout, name)


def test_a_name_that_would_split_a_list_is_refused(desk):
    assert "its name is 'a,b', which cannot stand in a list of names" in refusal(make_readout, "own_readouts:Listed")


def test_a_readout_by_its_full_name_stands_wherever_a_name_does(desk):
    names = [r.name for r in parse_readouts(["cls", "own_readouts:First", "own_readouts:needy"])]
    assert names == ["cls", "first", "needy[3]"]
    for name, expected in (
        ("cat(cls,own_readouts:First)", "cat(cls,first)"),
        ("last4(own_readouts:First)", "last4(first)"),
        ("own_readouts:First+norm", "first+norm"),
        ("cat(cls,own_readouts:First)+norm", "cat(cls,first)+norm"),
    ):
        readout = make_readout(name)
        assert readout.name == expected
        assert make_readout(expected).name == expected  # as tables name it
        assert list_plugins([name]) == {"own_readouts:First": "own_readouts:First"}
        assert list_plugins([expected]) == {"first": "own_readouts:First"}
    assert list_plugins(["cls", "token[1]", "cat(cls,mean)+norm", "new@first", "nonsense"]) == {}


def test_a_name_means_one_readout(desk):
    assert "'first' is given twice" in refusal(parse_readouts, ["own_readouts:First", "own_readouts:First"])
    line = "--readouts own_readouts:other_first: its name is 'first', which is that of own_readouts:First."
    assert refusal(make_readout, "own_readouts:other_first").startswith(line)


def test_probes_fail_in_one_line_too(desk):
    assert refusal(find_probe, "own_readouts:First") == (
        "--probes own_readouts:First: is the class First, not a scikit-learn estimator. "
        "Derive it from CellProbe or BaseEstimator."
    )
    assert "has no Mlp" in refusal(find_probe, "sklearn.naive_bayes:Mlp")


def test_a_source_by_its_full_name(desk):
    loaded = load("own_sources:load:a:b", SourceOptions())
    assert isinstance(loaded, Loaded)
    assert loaded.tasks[0].texts[0] == "text 0 of a:b"


FAILURES_OF_SOURCES = {
    "own_sources:refuse:x": "mine.txt:3: is no text. Write one.",
    "own_sources:fail:x:y": "--task own_sources:fail: failed on 'x:y' (SystemExit: over). Mend the plug-in.",
    "own_sources:give_list:x": "--task own_sources:give_list: returned a list, not a Loaded. Return a clsprobe.Loaded.",
    "own_sources:give_names:x": "--task own_sources:give_names: returned a str among its tasks. "
    "Make each a clsprobe.Task.",
    "own_sources:give_nothing:x": "--task own_sources:give_nothing: made no task of 'x'. "
    "Raise InputError where there is none.",
    "own_sources:number:x": "--task own_sources:number: is an int, not a source. Name a function load(rest, options).",
    "own_sources:laod": "--task own_sources:laod: own_sources has no laod. Did you mean 'own_sources:load'?",
    "no.where:load:x": f"--task no.where:load: no module named 'no'. {NO_MODULE}",
    "breaks:load:x": f"--task breaks:load: {FAILURES['breaks:X']}",
}


@pytest.mark.parametrize(("spec", "line"), FAILURES_OF_SOURCES.items())
def test_every_failure_of_a_source_is_one_line(spec, line, desk):
    assert refusal(load, spec, SourceOptions()) == line


def test_a_mistyped_source_is_no_module(desk):
    assert "unknown source 'grammer'. Did you mean 'grammar'" in refusal(load, "grammer:tense:300", SourceOptions())


# ------------------------------------------------------------------------------------------- packages that register


@pytest.fixture
def site(desk):
    """Two packages that are installed beside clsprobe, and one whose metadata is no metadata."""
    site = desk / "site"
    modules = {"ours/__init__.py": "", "ours/readouts.py": READOUT, "ours/broken.py": "1 / 0\n"}
    names = {
        "mean": "ours.readouts:First", "first": "ours.readouts:First", "shared": "ours.readouts:Second",
        "broken": "ours.broken:X", "odd name": "ours.readouts:First", "nonsense": "ours.readouts",
    }  # fmt: skip
    install(
        site,
        "ours",
        modules,
        {READOUTS.group: names, PROBES.group: {"logistic": "clsprobe.probes.linear:LogisticProbe"}},
    )
    install(site, "theirs", {"theirs.py": READOUT}, {READOUTS.group: {"shared": "theirs:Second"}}, "2.0")
    with on_path(site):
        yield site


def test_clsprobes_own_names_win_and_the_others_are_listed_by_their_full_names(site):
    assert READOUTS.full_name("mean") == "clsprobe.probes.extraction.readouts:Mean"
    assert make_readout("mean").name == "mean"
    others = {entry.full_name: entry for entry in READOUTS.entries() if entry.package}
    assert {(entry.name, entry.package, entry.reason) for entry in others.values()} >= {
        ("ours.readouts:Second", "ours 1.0", "two packages call theirs 'shared'"),
        ("theirs:Second", "theirs 2.0", "two packages call theirs 'shared'"),
        ("broken", "ours 1.0", ""),
    }
    reasons = {(entry.name, entry.reason) for entry in READOUTS.entries() if entry.full_name == "ours.readouts:First"}
    assert reasons == {
        ("first", ""),
        ("ours.readouts:First", "'mean' is clsprobe's own"),
        ("ours.readouts:First", "'odd name' cannot be typed"),
    }
    assert [entry.name for entry in PROBES.entries() if entry.package] == []  # the same object under the same name
    assert not {"ours", "theirs"} & sys.modules.keys()


def test_a_registered_name_is_a_name(site):
    assert make_readout("first").name == "first"
    assert make_readout("cat(cls,first)").name == "cat(cls,first)"
    assert READOUTS.name_of(type(make_readout("first"))) == "first"
    assert "Did you mean 'first'?" in refusal(make_readout, "frist")


def test_a_name_of_two_packages_is_nobodys(site):
    line = refusal(make_readout, "shared")
    assert line == (
        "--readouts shared: two packages have a readout of this name: ours 1.0 (ours.readouts:Second) and "
        "theirs 2.0 (theirs:Second). Name one in full, as in ours.readouts:Second."
    )
    assert make_readout("theirs:Second").name == "second"


def test_what_is_registered_wrongly_fails_when_it_is_used(site):
    assert "is registered as 'ours.readouts', which is no package.module:Name" in refusal(make_readout, "nonsense")
    assert "ours.broken cannot be imported (ZeroDivisionError" in refusal(make_readout, "broken")


def test_metadata_that_cannot_be_read_hides_no_other_package(site):
    install(site, "garbage", {}, {})
    (site / "garbage-1.0.dist-info" / "entry_points.txt").write_text(f"[{READOUTS.group}]\nno equals sign\n")
    (site / "nameless-1.0.dist-info").mkdir()
    (site / "nameless-1.0.dist-info" / "entry_points.txt").write_text(f"[{READOUTS.group}]\nx = y:Z\n")
    names = READOUTS.names()
    assert {"first", "x"} <= set(names)


def test_every_name_of_clsprobes_own_is_described_without_an_import():
    for register in (PROBES, READOUTS, SOURCES):
        for name in register.built_in:
            description = register.describe(name)
            assert 10 < len(description) < 160, (name, description)
    assert all(FORMS.values())
    assert PROBES.describe("ridge")


def test_the_digest_of_a_plug_in_is_that_of_all_its_own_modules(desk):
    (desk / "deep.py").write_text("import deeper\nclass X: ...\n")
    (desk / "deeper.py").write_text("NUMBER = 1\n")
    (desk / "unrelated.py").write_text("NUMBER = 1\n")
    with pytest.raises(InputError):
        digest_source("deep")
    PROBES.load("deep:X")
    before = digest_source("deep")
    (desk / "unrelated.py").write_text("NUMBER = 2\n")
    assert digest_source("deep") == before
    (desk / "deeper.py").write_text("NUMBER = 2\n")
    assert digest_source("deep") != before


def test_cached_vectors_depend_on_all_modules_of_a_readout(desk):
    (desk / "shallow.py").write_text(f"import deeper\n{READOUT}")
    (desk / "deeper.py").write_text("NUMBER = 1\n")
    (readout,) = parse_readouts(["shallow:First"])
    before = _digest_code(readout)
    assert before == _digest_code(readout)
    (desk / "deeper.py").write_text("NUMBER = 2\n")
    assert _digest_code(readout) != before


def test_a_readout_of_ones_own_is_a_setting_of_every_study(desk):
    for study, names in (
        (studies.Run, "own_readouts:First"),
        (studies.Formation, "cls,own_readouts:First"),
        (studies.FineTuning, "cls,own_readouts:First@no_cls"),
    ):
        settings = study(readouts=names)
        assert {*plugin_contents(settings)} == {"readout own_readouts:First"}
    with pytest.raises(InputError, match=r"'cat\(cls,first\)' is no vector of a single layer"):
        studies.Formation(readouts="cls,cat(cls,own_readouts:First)")
