"""The register of studies holds all of clsprobe's, and whatever is wrong with another one is said in a line."""

from __future__ import annotations

import pytest
from house import modules
from packages import on_path

from clsprobe import cli
from clsprobe.analysis.registers import COMMANDS, STUDIES, further_studies, load_study, read_question
from clsprobe.analysis.study import Study
from clsprobe.probes.errors import InputError

STUDY = """
from typing import ClassVar
from clsprobe.analysis.study import Study

class Unfinished(Study):
    question: ClassVar[str] = "Is it so?"
    def judge(self, measured, task): ...
    def measure(self, folder=None): ...

class Silent(Unfinished):
    claim: ClassVar[str] = ""
    def show(self, measured, task): ...

class Whole(Silent):
    further: ClassVar[tuple[str, ...]] = ("poolings", "own_studies:Silent")

class NoQuestion(Study):
    def judge(self, measured, task): ...
    def measure(self, folder=None): ...
    def show(self, measured, task): ...

def function(): ...
"""


@pytest.fixture
def desk(tmp_path, monkeypatch):
    (tmp_path / "own_studies.py").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    with on_path(tmp_path):
        yield


def test_every_study_of_clsprobe_is_registered_under_its_command():
    defined = {
        f"{module.name}:{node.name}"
        for module in modules()
        if module.path.parent.name == "scripts"
        for node in module.tree.body
        if hasattr(node, "bases") and any(getattr(base, "id", "").endswith("Study") for base in node.bases)
    }
    assert defined == set(STUDIES.built_in.values())
    for name in STUDIES.built_in:
        study = load_study(name)
        assert issubclass(study, Study)
        assert study.command() == name == study.name().replace("_", "-")
        assert read_question(name) == study.question


def test_no_package_can_take_the_name_of_a_command():
    assert {info.name or info.callback.__name__ for info in cli.app.registered_commands} == set(COMMANDS)


FAILURES = {
    "poolngs": "clsprobe: unknown study 'poolngs'. Did you mean 'poolings'? One of: ",
    "own_studies:function": "is a function, not a study. Derive it from clsprobe.Study.",
    "collections:Counter": "is the class Counter, not a study. Derive it from clsprobe.Study.",
    "own_studies:Unfinished": "is unfinished: it has no show. Define what is missing.",
    "own_studies:NoQuestion": "is unfinished: it has no question. Write question: ClassVar[str] = ",
    "own_studies:Whoel": "own_studies has no Whoel. Did you mean 'own_studies:Whole'?",
}


@pytest.mark.parametrize(("name", "line"), FAILURES.items())
def test_what_is_no_study_is_one_line(name, line, desk):
    with pytest.raises(InputError) as caught:
        load_study(name)
    assert str(caught.value).removeprefix(f"clsprobe {name}: ").startswith(line)


def test_a_study_says_which_others_its_measurement_answers(desk):
    assert [study.name() for study in further_studies(load_study("run"))] == ["aggregate", "positions", "poolings"]
    assert [study.name() for study in further_studies(load_study("fine-tuning"))] == ["trajectory"]
    assert [study.name() for study in further_studies(load_study("own_studies:Whole"))] == ["poolings", "silent"]
    assert further_studies(load_study("poolings")) == []
    for name in STUDIES.built_in:
        for other in further_studies(load_study(name)):
            assert other.judged in load_study(name).tables
