"""Agreement of attribution with measured changes: coverage over lemmas, and where there is no interval."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from clsprobe.analysis.formation.agreement import summarise_twins


def test_intervals_of_pairs_cover_over_lemmas():
    """Pairs of a lemma share its error: intervals over lemmas cover, intervals over pairs do not."""
    covered = {"lemma": 0, "pair": 0}
    lemmas = np.repeat(np.arange(25), 6)
    clusters = {"lemma": lemmas.astype(str), "pair": np.arange(150).astype(str)}
    for seed in range(60):
        random = np.random.default_rng(seed)
        scores = random.normal(size=25)[lemmas] + 0.3 * random.normal(size=150) + 1
        change = 0.5 + 2 * scores + random.normal(size=25)[lemmas] + 0.3 * random.normal(size=150)
        table = pd.DataFrame({"scores": scores, "change": change})
        for name, ids in clusters.items():
            slope = summarise_twins(table, ids).set_index("measure").loc["slope"]
            covered[name] += slope["low"] <= 2 <= slope["high"]
    assert covered["lemma"] >= 53
    assert covered["pair"] < 48


def test_few_lemmas_have_no_interval():
    table = pd.DataFrame({"scores": np.arange(8.0), "change": np.arange(8.0) * 2 + 1})
    assert summarise_twins(table, ["a", "b"] * 4)["low"].isna().all()
    assert summarise_twins(table, list("abcdefgh")).set_index("measure").loc["slope", "low"] == pytest.approx(2)
    assert summarise_twins(table[:1], ["a"])["value"].isna().all()
