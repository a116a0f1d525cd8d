"""Cells that dev chooses, on predictions made by hand."""

from __future__ import annotations

import pytest
from tables import first, predictions

from analysis import choose


def table():
    return predictions(
        {
            ("none", 0, "cls"): (first(0.5), first(0.99)),  # the best of all on test, which must not choose
            ("none", 1, "cls"): (first(0.9), first(0.80)),
            ("none", 1, "mean"): (first(0.85), first(0.95)),
            ("majority", -1, "none"): (first(0.5), first(0.5)),
            ("bag_of_words", -1, "none"): (first(0.7), first(0.6)),
            ("untrained", 1, "mean"): (first(0.6), first(0.9)),
        }
    )


def test_the_layer_of_a_readout_is_chosen_on_dev():
    chosen = choose.chosen_cell(table(), "cls")
    assert (chosen.layer, chosen.readout, chosen.told) == (1, "cls", "cls at layer 1")
    assert (chosen.dev, chosen.test) == (0.9, 0.8)
    assert 0.75 < chosen.low < 0.8 < chosen.high < 0.85


def test_the_best_cell_of_all_is_chosen_on_dev():
    assert choose.chosen_cell(table(), None).readout == "cls"


def test_the_best_baseline_is_chosen_on_dev():
    assert choose.best_baseline(table()).told == "bag of words"


def test_baselines_are_listed_by_the_names_a_reader_knows():
    lines = choose.baselines_of(table(), choose.chosen_cell(table(), "mean"))
    assert list(lines.name) == ["mean at layer 1", "majority class", "bag of words", "untrained encoder"]
    assert lines.value.tolist() == [0.95, 0.5, 0.6, 0.9]


def test_rows_of_a_choice_are_its_own():
    rows = choose.chosen_cell(table(), "mean").rows(table())
    assert len(rows) == 800
    assert set(rows.readout) == {"mean"}
    with pytest.raises(IndexError):
        choose.chosen_cell(table(), "max")
