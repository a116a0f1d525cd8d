"""Learning curves and bits of chosen cells: planted cells have them, null cells have not."""

from __future__ import annotations

import numpy as np
import pytest
from cells import cell, states, task
from scipy.integrate import quad
from scipy.stats import norm
from sklearn.linear_model import RidgeClassifier

from clsprobe.analysis.sweep.choose import ChosenCell
from clsprobe.analysis.sweep.grid import split_task
from clsprobe.analysis.sweep.information import INFORMATION, LEARNING, information
from clsprobe.probes.linear import LogisticProbe


def chosen(layer, readout):
    where = {"control": "none", "layer": layer, "readout": readout, "probe": "logistic"}
    return ChosenCell(where, f"{readout} at layer {layer}", 0, 0, 0, 0)


@pytest.fixture(scope="module")
def curves_and_bits():
    made = task((2000, 200, 2000))
    vectors = states([made])
    cell(vectors, 1, 1)[:, 0] += 2 * (made.y == "b")
    cells = [chosen(1, "mean"), chosen(1, "cls"), chosen(0, "mean")]
    curves, bits = information(split_task(made, vectors, 0), vectors, cells, LogisticProbe())
    return curves, bits.set_index("name")


def test_a_planted_cell_is_told_in_bits(curves_and_bits):
    _, bits = curves_and_bits
    assert set(bits.columns) | {"name"} == set(INFORMATION)
    d = 2.0
    density = lambda z: norm.pdf(z) * np.log2(1 + np.exp(-d * (d / 2 + z)))  # noqa: E731
    wanted = 1 - quad(density, -12, 12)[0]
    planted = bits.loc["mean at layer 1"]
    assert planted["v_information low"] < wanted < planted["v_information high"]
    assert planted["adds low"] < wanted < planted["adds high"]  # the bag is noise: all of it is added
    assert planted.codelength < 0.75 * 2000
    assert planted.compression == pytest.approx(2000 / planted.codelength)
    assert planted.converged


def test_noise_has_no_bits(curves_and_bits):
    _, bits = curves_and_bits
    null = bits.loc["cls at layer 1"]
    assert null["v_information low"] <= 0 <= null["v_information high"] + 0.01
    assert null.codelength == pytest.approx(2000, rel=0.03)
    assert np.isnan(bits.loc["mean at layer 0"].adds)  # it cannot add to itself


def test_curves_rise_where_there_is_something_to_learn(curves_and_bits):
    curves, _ = curves_and_bits
    assert tuple(curves.columns) == LEARNING
    by_name = dict(tuple(curves.groupby("name")))
    planted = by_name["mean at layer 1"]
    assert planted.n.is_monotonic_increasing
    assert planted.n.iloc[-1] == 2000
    assert abs(planted.value.iloc[-1] - norm.cdf(1)) < 0.03
    assert planted.value.iloc[-1] > planted.value.iloc[0] + 0.05
    assert ((planted.low <= planted.value) & (planted.value <= planted.high)).all()
    assert abs(by_name["cls at layer 1"].value.iloc[-1] - 0.5) < 0.05


def test_a_probe_without_probabilities_is_refused():
    made = task()
    vectors = states([made])
    with pytest.raises(ValueError, match="no probabilities"):
        information(split_task(made, vectors, 0), vectors, [chosen(1, "mean")], RidgeClassifier())
