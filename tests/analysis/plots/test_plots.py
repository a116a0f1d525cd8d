"""Every plot draws whatever a table holds, shows labels as typed, and its SVG is the same bytes every time."""

from __future__ import annotations

import re
import warnings
import xml.etree.ElementTree as ET
from itertools import pairwise

import matplotlib
import numpy as np
import pandas as pd
import pytest
from answers import CLASSES, answer, cells, confusions, effects, pairs, points, recalls, scored

from clsprobe.analysis.plots import PLOTS, draw
from clsprobe.analysis.plots.curves import curves
from clsprobe.analysis.plots.forest import differences, intervals
from clsprobe.analysis.plots.grids import confusion, heatmap, squares
from clsprobe.analysis.plots.points import assign_point_styles, scatter
from clsprobe.analysis.plots.style import PALETTE, assign_styles, display_text
from clsprobe.analysis.plots.svg import render_svg

HOSTILE = (
    "_x",
    "$5",
    r"$\frac{$",
    "x" * 500,
    "漢字とかな交じり文の名前",
    "שלום עולם",
    "a\x00b\n\u202ec",
    "<b>\"&'</b>]]>",
    "two  spaces",
    'id="x" url(#y)',
    "🦉\u200d🌲",
)
TABLES = {
    "heatmap": (lambda names: cells(4, names), {"metric": "$m_", "best": [1, "_x"]}),
    "curves": (lambda names: cells(4, names), {"metric": "$m_", "baselines": {"_b": 0.5, "$$": 0.6}}),
    "confusion": (confusions, {}),
    "intervals": (recalls, {"metric": "$m_", "reference": {"_b": 0.5, "$5$": 0.51}}),
    "differences": (
        lambda names: pd.concat([effects()] * 4, ignore_index=True).head(len(names)).assign(name=list(names)),
        {"margin": 0.02, "metric": "$m_"},
    ),
    "scatter": (lambda names: points(60, names), {}),
    "squares": (lambda names: pairs(names), {"metric": "$m_", "label": "_l"}),
    "token_strips": (lambda names: scored(names), {"metric": "$m_"}),
}
MANY = tuple(f"class {i}" for i in range(1000))


def texts(picture: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("plot", TABLES)
def test_labels_are_shown_as_typed(plot: str) -> None:
    build, arguments = TABLES[plot]
    drawn_texts = texts(render_svg(draw(plot, build(HOSTILE), arguments), prefix="p"))
    short = [name for name in HOSTILE if len(name) < 20]
    assert [name for name in short if display_text(name) not in drawn_texts] == []
    (long,) = {text for text in drawn_texts if text.startswith("xxxx")}
    assert re.fullmatch("x{3,}…x{3,}", long)


@pytest.mark.parametrize("plot", TABLES)
def test_the_svg_is_the_same_bytes_and_its_ids_are_its_own(plot: str) -> None:
    build, arguments = TABLES[plot]
    figure = draw(plot, build(CLASSES), arguments)
    picture = render_svg(figure, prefix="left")
    assert picture == render_svg(figure, prefix="left")
    assert picture == render_svg(draw(plot, build(CLASSES), arguments), prefix="left")
    root = ET.fromstring(picture)
    ids = {element.get("id") for element in root.iter() if element.get("id")}
    used = set(re.findall(r"url\(#([^)]+)\)", picture)) | set(re.findall(r'href="#([^"]+)"', picture))
    assert ids == used
    assert all(name.startswith("left-") for name in ids)
    assert root.get("role") == "img"
    assert root.get("aria-label")
    assert root.get("viewBox")
    assert root.get("width") is None
    assert not re.search(r"<\?xml|<!DOCTYPE|<style|<metadata|<script", picture)
    assert set(re.findall(r"https?://[^\s\"<]+", picture)) == {"http://www.w3.org/2000/svg"}


@pytest.mark.parametrize("plot", TABLES)
def test_every_table_can_be_empty_or_without_values(plot: str) -> None:
    build, arguments = TABLES[plot]
    table = build(CLASSES)
    assert "no rows to draw" in texts(render_svg(draw(plot, table.head(0), arguments), prefix="p"))
    numbers = [name for name in ("value", "low", "high", "effect", "x", "y", "score") if name in table]
    assert render_svg(draw(plot, table.assign(**dict.fromkeys(numbers, np.nan)), arguments), prefix="p")
    with pytest.raises(ValueError, match=f"{plot}: the table lacks "):
        draw(plot, table.iloc[:, 1:], arguments)


@pytest.mark.parametrize("plot", TABLES)
def test_a_plot_leaves_nothing_behind(plot: str) -> None:
    import matplotlib._pylab_helpers

    build, arguments = TABLES[plot]
    table = build(CLASSES)
    copy = table.copy()
    with matplotlib.rc_context({"text.usetex": True, "font.size": 40, "axes.facecolor": "red"}):
        before = dict(matplotlib.rcParams)
        picture = render_svg(draw(plot, table, arguments), prefix="p")
        assert dict(matplotlib.rcParams) == before
    assert picture == render_svg(draw(plot, table, arguments), prefix="p"), "the user's settings reach the figure"
    assert not matplotlib._pylab_helpers.Gcf.figs
    pd.testing.assert_frame_equal(table, copy)


def test_big_tables_stay_legible() -> None:
    grid = render_svg(heatmap(cells(25, tuple(f"readout{i}" for i in range(12))), metric="bits"), prefix="p")
    assert not [text for text in texts(grid) if "–" in text], "the interval leaves when there are too many cells"
    thirty = MANY[:30]
    assert set(thirty) <= set(texts(render_svg(confusion(confusions(thirty)), prefix="p")))
    assert set(thirty) <= set(texts(render_svg(intervals(recalls(thirty), metric="recall"), prefix="p")))
    assert set(thirty) <= set(texts(render_svg(scatter(points(300, thirty)), prefix="p")))


def test_a_thousand_classes_are_folded() -> None:
    rng = np.random.default_rng(0)
    pairs = pd.DataFrame({"label": rng.choice(MANY, 4000), "predicted": rng.choice(MANY, 4000), "count": 1})
    drawn_texts = texts(render_svg(confusion(pairs), prefix="p"))
    assert any(re.fullmatch(r"9\d\d other classes", text) for text in drawn_texts)
    counts = [int(text.replace(",", "")) for text in drawn_texts if re.fullmatch(r"[\d,]+", text)]
    assert sum(counts) == 4000
    assert "940 more rows in the table" in texts(render_svg(intervals(recalls(MANY), metric="recall"), prefix="p"))
    assert any("other labels" in text for text in texts(render_svg(scatter(points(2000, MANY)), prefix="p")))


def test_a_blank_cell_is_hatched_and_the_chosen_one_outlined() -> None:
    table = cells(3)
    table.loc[(table["layer"] == 1) & (table["readout"] == "sep"), "value"] = np.nan
    figure = heatmap(table, metric="accuracy", best=[2, "cls"])
    axes = figure.axes[0]
    hatched = [patch.get_xy() for patch in axes.patches if patch.get_hatch()]
    outlined = {patch.get_xy() for patch in axes.patches if not patch.get_fill()}
    assert hatched == [(1, 1)]
    assert outlined == {(0, 2)}
    assert axes.get_ylim() == (0, 3), "layer 0 is at the bottom"
    assert "0.22" in [text.get_text() for text in axes.texts]


@pytest.mark.parametrize("layers", [1, 2])
def test_few_layers_and_one_readout_draw(layers: int) -> None:
    table = cells(layers, ("cls",))
    assert render_svg(heatmap(table, metric="accuracy", best=[9, "cls"]), prefix="p")
    assert render_svg(curves(table, metric="accuracy"), prefix="p")


def test_squares_write_every_pair_until_there_are_too_many() -> None:
    figure = squares(pairs(("a", "b", "c")), metric="CKA", label="layer")
    first = figure.axes[1]
    assert sum(bool(re.fullmatch(r"1\.00|−?\.\d\d", text.get_text())) for text in first.texts) == 8
    assert sum(bool(patch.get_hatch()) for patch in first.patches) == 1
    assert first.get_ylim() == (0, 3), "the first row is at the bottom"
    assert not squares(pairs(MANY[:25]), metric="CKA", label="layer").axes[1].texts


def test_two_rows_for_one_cell_are_refused() -> None:
    with pytest.raises(ValueError, match="duplicate"):
        heatmap(pd.concat([cells(2), cells(2)]), metric="accuracy")


def test_a_single_layer_has_a_single_tick() -> None:
    axes = curves(cells(7)[lambda table: table.layer == 6], metric="accuracy").axes[0]
    ticks = [tick for tick in axes.get_xticks() if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
    assert ticks == [6]


def test_line_labels_do_not_overlap() -> None:
    figure = curves(cells(7), metric="accuracy", baselines={f"b{i}": 0.5 + i / 1000 for i in range(6)})
    axes = figure.axes[0]
    height = axes.get_position().height * figure.get_figheight()
    low, high = axes.get_ylim()
    inches = sorted((text.get_position()[1] - low) / (high - low) * height for text in axes.texts)
    assert len(inches) == 14
    assert all(b - a > 8.5 / 72 for a, b in pairwise(inches))
    assert inches[0] >= 0
    assert inches[-1] <= height + 1e-9


def test_outcomes_differ_in_colour_and_in_marker() -> None:
    figure = differences(effects(), margin=0.02, metric="accuracy")
    looks = {(line.get_color(), line.get_marker()) for line in figure.axes[0].lines if line.get_marker() != "None"}
    assert len(looks) == len({c for c, _ in looks}) == len({m for _, m in looks}) == 3


def test_no_two_of_48_labels_look_alike() -> None:
    styles = assign_styles(range(60))
    assert len({styles[i] for i in range(48)}) == 48
    assert len({styles[i] for i in range(48, 60)}) == 1
    assert list(assign_point_styles(pd.Series(["class 10", "class 2", "_"]))) == ["_", "class 2", "class 10"]


def test_the_palette_is_apart_for_colour_blind_readers() -> None:
    """Machado et al. 2009 at full severity; distances in Oklab. seaborn's colorblind palette has 0.032."""
    sight = {
        "normal": np.eye(3),
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
        "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
    }
    to_lms = np.array(
        [[0.41222147, 0.53633254, 0.05144599], [0.2119035, 0.68069955, 0.10739696], [0.08830246, 0.28171884, 0.6299787]]
    )
    to_lab = np.array(
        [
            [0.21045426, 0.79361779, -0.00407205],
            [1.9779985, -2.4285922, 0.45059371],
            [0.02590404, 0.78277177, -0.80867577],
        ]
    )
    colours = np.array([matplotlib.colors.to_rgb(colour) for colour in PALETTE])
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    for name, matrix in sight.items():
        lab = np.cbrt(np.clip(linear @ np.array(matrix).T, 0, 1) @ to_lms.T) @ to_lab.T
        distances = np.linalg.norm(lab[:, None] - lab[None], axis=-1)[np.triu_indices(len(lab), 1)]
        assert distances.min() > 0.08, name
    contrast = 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05)
    assert contrast.min() >= 2.5


def test_displayed_text_is_as_typed_with_control_characters_as_escapes() -> None:
    assert display_text("a  b\u00a0c") == "a  b\u00a0c"
    assert display_text("👩\u200d🔬 می\u200cخواهم") == "👩\u200d🔬 می\u200cخواهم"
    assert display_text("a\x00\n\u202e\u2028\ud800\ufeff") == r"a\x00\n\u202e\u2028\ud800\ufeff"
    assert display_text("x" * 500, 9) == "xxxx…xxxx"
    assert display_text(3) == "3"


def test_a_prefix_must_be_an_id() -> None:
    with pytest.raises(ValueError, match="is no id"):
        render_svg(confusion(confusions()), prefix='"><script>')


def test_a_missing_glyph_is_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        render_svg(scatter(points(20, ("漢字", "ᚠ", "\U0001f9ff"))), prefix="p")


def test_exhibits_of_the_example_draw() -> None:
    assert [bool(exhibit.draw()) for exhibit in answer().exhibits if exhibit.plot] == [True] * 6


@pytest.mark.parametrize("name", ["pie", "draw", "_grid", "style", "svg", ""])
def test_only_what_is_registered_is_drawn(name: str) -> None:
    with pytest.raises(ValueError, match=f"^there is no plot '{name}'$"):
        draw(name, cells(4), {})
    assert set(PLOTS.built_in) == set(TABLES)
