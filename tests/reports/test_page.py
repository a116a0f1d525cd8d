"""The page: whatever the data hold is shown and never obeyed; nothing is fetched; it stays small."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from answers import answer, points, recalls

from clsprobe.analysis.answer import Answer, Exhibit
from clsprobe.analysis.verdict import Part, Verdict
from clsprobe.reports.page import POINTS, ROWS, render_page, write_page

EVIL = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "javascript:alert(1)",
    "--><!-- <style>*{display:none}</style>",
    "${alert(1)} {{ 7*7 }} {% raw %}",
    '=cmd()|"\' onmouseover="alert(1)',
    "a\u2028b\u2029c",
    "../../etc/passwd",
    "nul\x00 bell\x07 bidi\u202e",
)


class Elements(HTMLParser):
    """The start tags of a page with their attributes, and the text of its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag == "script"
        if self._inside:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts[-1] += data


def evil_answer() -> Answer:
    rows = recalls(EVIL)
    cloud = points(90, EVIL)
    cloud["text"] = [EVIL[i % len(EVIL)] for i in range(len(cloud))]
    cloud["panel"] = cloud["panel"].map({"cls, layer 5": EVIL[0], "mean, layer 5": EVIL[1]})
    text = " ".join(EVIL)
    parts = {
        name: Verdict(
            "no", name, -0.1, -0.2, -0.05, warnings=(name,), comparisons=(Part.from_interval(name, 0, -1, 1),)
        )
        for name in EVIL
    }
    return Answer(
        question=text,
        claim=text,
        verdict=Verdict("no", text, -0.1, -0.2, float("nan"), parts=parts, warnings=EVIL, advice=text),
        exhibits=(
            *(Exhibit(name, rows, "intervals", {"metric": name}, name) for name in EVIL),
            Exhibit(text, cloud, "scatter", {}, EVIL[1]),
            Exhibit(text, rows.rename(columns={"name": EVIL[1]}), None, {}, text),
        ),
        notes=EVIL,
        settings={name: {name: {name: [name]}} for name in EVIL},
    )


def test_data_are_shown_and_never_obeyed() -> None:
    page = render_page({EVIL[1]: evil_answer(), EVIL[0]: answer(20)}, title=EVIL[0])
    plain = Elements(render_page({"a": answer(20), "b": answer(20)}))
    seen = Elements(page)
    assert {tag for tag, _ in seen.tags} <= {tag for tag, _ in plain.tags}, "no tag but ours"
    for tag, attributes in seen.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert not re.match(r"\s*(javascript|https?):", attributes.get("href") or ""), (tag, attributes)
        assert "src" not in attributes
    assert [script for script in seen.scripts if "alert(1)" in script and not script.startswith("{")] == []
    assert len(seen.scripts) == 3, "two scatters and ours"
    assert "alert(1)" in unescape(page)
    assert not re.search("[\x00-\x08\x0b-\x1f\u2028\u2029\u202e]", page)
    assert r"bell\x07 bidi\u202e" in page


def test_scatter_data_survive_the_way() -> None:
    seen = Elements(render_page({"a": evil_answer()}))
    (raw,) = (script for script in seen.scripts if script.startswith("{"))
    assert not set(raw) & set("<>&")
    data = json.loads(raw)
    assert "</script><img src=x onerror=alert(1)>" in data["texts"]
    assert "</script><img src=x onerror=alert(1)>" in [label for label, _, _ in data["labels"]]
    for panel in data["panels"]:
        assert {len(panel[name]) for name in ("x", "y", "label", "text")} == {90}
        assert max(map(abs, panel["x"] + panel["y"])) <= 2048


def test_the_policy_stands_first_and_names_the_script() -> None:
    page = render_page({"a": answer(20)})
    head = page[page.index("<head>") + len("<head>") :].lstrip()
    policy = re.match(r'<meta http-equiv="Content-Security-Policy" content="([^"]+)">', head)
    assert policy
    script = Elements(page).scripts[-1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy[1] == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def test_nothing_is_fetched() -> None:
    page = render_page({"a": answer(20), "b": answer(20)})
    assert set(re.findall(r"\w+://[^\s\"'<>]*", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\((?!#)", page)
    for tag, attributes in Elements(page).tags:
        address = attributes.get("href") or ""
        assert address == "" or address.startswith(("#", "data:")), (tag, address)


def test_the_question_leads_and_the_verdict_follows() -> None:
    page = render_page({"a": answer(20)})
    order = [
        "<h1",
        "Is mean pooling",
        "undecided",
        "Undecided: of 2 tasks no on 1",
        "on grammar:tense, mean pooling minus [CLS] is -1.7 points",
        '"Yes" means:',
        "Every comparison, taken alone",
        "Layer 0 of",
        "Figure 1",
        "Settings",
    ]
    body = page[page.index("<main>") :]
    places = [body.index(text) for text in order]
    assert places == sorted(places)
    assert "<nav" not in page
    assert re.findall(r"<h(\d)", page) == ["1", "2", "2", "2", "2", "2", "2"]


def test_several_answers_begin_with_their_verdicts() -> None:
    second = dataclasses.replace(answer(20), question="Why?", verdict=Verdict.described("Because it is.", 0.1))
    page = render_page({"poolings": answer(20), "positions": second})
    nav = page[page.index("<nav") : page.index("</nav>")]
    sentences = re.findall(r"<p>(.*?)</p>", nav)
    assert sentences[0].startswith("Undecided: of 2 tasks no on 1")
    assert sentences[1] == "Because it is."
    assert (
        len(re.findall('class="badge ', page)) == 3
    )  # of the first answer and its tasks; why is no yes-or-no question
    assert "2 questions put to an encoder" in page
    ids = [attributes["id"] for _, attributes in Elements(page).tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {"#a1", "#a2"} == set(re.findall(r'<a href="([^"]+)"', nav))
    levels = list(map(int, re.findall(r"<h(\d)", page)))
    assert all(b <= a + 1 for a, b in pairwise(levels))


def test_a_page_corrects_its_answers_for_their_number() -> None:
    weak = Verdict.of([Part.from_interval("a", 0.021, 0.001, 0.041)], lambda *_: "more by 2.1 points")
    alone = dataclasses.replace(answer(20), verdict=weak)
    assert '<p class="because">Yes: more by 2.1 points.</p>' in render_page({"a": alone})
    page = render_page(dict.fromkeys("abcd", alone))
    assert (
        page.count("Undecided: not certain among the 4 answers of this page (Holm, p = 0.16). By itself: Yes: more")
        == 8
    )
    assert "p = 0.16 among the 4 answers of this page (Holm)." in page


def test_the_page_says_what_its_intervals_are_about() -> None:
    """Beside the verdict; for the probes as they were fitted in the table of comparisons, where that is another one."""
    part = Part("a rival", 0.1, 0.05, 0.15, 0.0, 0.001, 0.999, 0.08, 0.12)
    verdict = Verdict("yes", "More.", 0.1, 0.05, 0.15, interval_of="other <texts>", comparisons=(part,))
    page = render_page({"a": Answer("Q?", "C", verdict, ())})
    assert '<p class="remark">95 % intervals are about other &lt;texts&gt;.</p>' in page
    assert (
        page.index('class="because"') < page.index("95 % intervals are") < page.index("Every comparison, taken alone")
    )
    details = page[page.index("Every comparison, taken alone") :]
    assert [details.count(text) for text in ("low, these probes", "high, these probes", "0.080", "0.120")] == [1] * 4
    for of_fits in ((0.05, 0.15), (float("nan"),) * 2):  # no other interval; an answer of an older version
        part = dataclasses.replace(part, low_of_fits=of_fits[0], high_of_fits=of_fits[1])
        page = render_page(
            {"a": Answer("Q?", "C", dataclasses.replace(verdict, interval_of="", comparisons=(part,)), ())}
        )
        assert "these probes" not in page
        assert "95 % intervals" not in page
        assert "0.150" in page[page.index("Every comparison, taken alone") :]


def test_warnings_stand_before_the_answer_in_red() -> None:
    verdict = dataclasses.replace(answer(20).verdict, warnings=("Only 12 test texts.",), advice="Try: clsprobe run")
    page = render_page({"a": dataclasses.replace(answer(20), verdict=verdict)})
    assert page.index('<p class="warning">Only 12 test texts.</p>') < page.index('class="because"')
    several = render_page({"a": dataclasses.replace(answer(20), verdict=verdict), "b": answer(20)})
    assert "Only 12 test texts." in several[several.index("<nav") : several.index("</nav>")]
    assert '<p class="advice">Try: clsprobe run</p>' in page
    assert re.search(r"\.warning \{[^}]*color: var\(--alarm\)", page)


def test_numbers_in_tables() -> None:
    table = pd.DataFrame(
        {
            "layer": [0, 12, 25000],
            "value": [0.71649, -0.00001, float("nan")],
            "count": [1.0, 2.0, float("nan")],
            "fine": [True, False, True],
            "name": ["a", None, "01"],
            "inf": [float("inf"), float("-inf"), 0.5],
        }
    )
    page = render_page({"a": dataclasses.replace(answer(20), exhibits=(Exhibit("t", table),))})
    body = page[page.rindex("<tbody>") : page.rindex("</tbody>")]
    rows = [re.findall(r"<td[^>]*>(?:<bdi>)?(.*?)(?:</bdi>)?</td>", row) for row in body.split("</tr>")[:3]]
    assert rows == [
        ["0", "0.716", "1", "yes", "a", "∞"],
        ["12", "−1.0e−05", "2", "no", "–", "−∞"],
        ["25,000", "–", "–", "yes", "01", "0.500"],
    ]


def test_long_tables_are_cut_and_say_so() -> None:
    exhibits = (Exhibit("t", recalls(tuple(f"row {i:04d} of it" for i in range(1234)))),)
    page = render_page({"a": dataclasses.replace(answer(20), exhibits=exhibits)})
    assert f"The first {ROWS} of 1,234 rows." in page
    assert f"row {ROWS - 1:04d} of it" in page
    assert f"row {ROWS:04d} of it" not in page


def test_sizes() -> None:
    assert len(render_page({"a": answer(2500)}).encode()) < 1_000_000, "5,000 points"
    page = render_page({"a": answer(50_000)})
    assert len(page.encode()) < 2_000_000, "100,000 points"
    assert f"{POINTS:,} of 100,000 points" in page
    panels = json.loads(Elements(page).scripts[-2])["panels"]
    assert panels[0]["text"] == panels[1]["text"], "the sample is the same in every panel"


def test_the_same_answers_give_the_same_page() -> None:
    assert render_page({"a": answer(50)}) == render_page({"a": answer(50)})


def test_nothing_to_show_is_a_page_too() -> None:
    assert "No answers yet" in render_page({})
    bare = Answer("Q?", "C", Verdict("undecided", "No rows.", float("nan"), float("nan"), float("nan")), ())
    page = render_page({"a": bare})
    assert "No rows." in page
    assert "nan" not in page[page.index("<main>") : page.index("</main>")]
    empty = dataclasses.replace(bare, exhibits=(Exhibit("none", points(0), "scatter"), Exhibit("none", points(0))))
    assert "no rows to draw" in render_page({"a": empty})


def test_write_page_replaces_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    write_page(path, {"a": answer(20)}, title="T")
    assert path.read_text(encoding="utf-8") == render_page({"a": answer(20)}, title="T")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("module", ["torch", "sklearn", "umap", "transformers"])
def test_the_page_loads_no_model_library(module: str) -> None:
    code = f"import sys, clsprobe.reports.page; raise SystemExit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
