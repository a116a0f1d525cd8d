"""The geometry of a cell against closed forms, oracles and deliberately wrong versions; its study on tables."""

from __future__ import annotations

import json

import models
import numpy as np
import pandas as pd
import pytest
import tables
from saved import read_measured
from scipy.stats import norm, special_ortho_group, t

from clsprobe.analysis.answer import Answer
from clsprobe.analysis.contract import check_study
from clsprobe.analysis.geometry import measures
from clsprobe.analysis.geometry.measures import (
    COLUMNS,
    KEY,
    Pairs,
    cka,
    comparable,
    dimension,
    effective_rank,
    geometry,
    nearest,
    ranks,
    shape,
)
from clsprobe.cli import main
from clsprobe.flags import make_study
from clsprobe.geometry import Geometry
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.states import States, tensor_name


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def cosine(x: np.ndarray) -> float:
    """The mean over all pairs, computed directly."""
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    return float((u @ u.T)[np.triu_indices(len(x), 1)].mean())


def states(cells: dict[tuple[int, str], np.ndarray], *, ids: list[str] | None = None) -> States:
    """States with these vectors; NaN rows are texts that a readout cannot read."""
    layers, readouts = (tuple(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    n, dim = next(iter(cells.values())).shape
    present = np.column_stack([np.isfinite(cells[layers[0], r]).all(1) for r in readouts]).astype(np.uint8)
    halves = [slice(None, None, 2), slice(1, None, 2)]  # two shards, each with every other text
    shards = [
        {tensor_name(*key): x[half].astype(np.float32) for key, x in cells.items()} | {"present": present[half]}
        for half in halves
    ]
    locations = pd.DataFrame(
        {"shard": np.arange(n) % 2, "at": np.arange(n) // 2, "tokens": 5, "ids": ids or [f"id{i}" for i in range(n)]}
    )
    return States([f"text {i}" for i in range(n)], layers, readouts, dim, shards, locations, 40, {}, max(layers))


# ------------------------------------------------------------------------------------------------------------ cosines


def test_the_mean_cosine_matches_closed_forms():
    assert shape([np.ones((7, 5))]).cosine == pytest.approx(1, abs=1e-12)
    assert shape([np.eye(6) * 3]).cosine == pytest.approx(0, abs=1e-12)
    sides = np.repeat([[2.0, 0], [-5.0, 0]], 8, axis=0)
    assert shape([sides]).cosine == pytest.approx(-1 / 15, abs=1e-12)  # 56 pairs of 1 and 64 of -1
    x = draw(40, 9) + 0.5
    assert shape([x]).cosine == pytest.approx(cosine(x), abs=1e-12)
    assert shape([x]).norm[0] == pytest.approx(np.linalg.norm(x, axis=1).mean(), abs=1e-12)


def test_a_massive_coordinate_is_found_and_its_contribution_is_that_of_taking_it_out():
    x = draw(500, 30)
    x[:, 7] -= 50
    found = shape([x])
    assert found.massive.tolist() == [7]
    assert found.sizes[7] == pytest.approx(2500, rel=0.1)  # over a median of 1
    assert found.contributions.sum() == pytest.approx(found.cosine)
    assert found.contributions[7] == pytest.approx(found.cosine, abs=0.01)
    assert found.cosine > 0.9
    assert abs(shape([np.delete(x, 7, axis=1)]).cosine) < 0.01
    assert not len(shape([draw(500, 30)]).massive)
    assert not len(shape([draw(500, 30) * np.where(np.arange(30) == 7, 9, 1)]).massive)  # 81 times
    assert not len(shape([np.zeros((5, 4))]).massive)


@pytest.mark.parametrize("offset", [0, 3, 1e4])
def test_vectors_in_batches_give_the_same_measures(offset):
    x = draw(257, 12) * np.arange(1, 13) + offset
    expected, stream = shape([x]), shape(np.split(x, [1, 5, 100, 256]))
    for name in ("norm", "cosine", "contributions", "sizes"):
        np.testing.assert_allclose(getattr(stream, name), getattr(expected, name), rtol=1e-10, atol=1e-10)
    whole, chunked = (ranks(chunks, groups=10) for chunks in ([x], np.split(x, [1, 5, 100, 256])))
    np.testing.assert_allclose(chunked, whole, rtol=1e-7)
    assert whole[0] == pytest.approx(effective_rank(x), rel=1e-9)


def test_plain_sums_of_squares_would_lose_precision():
    """Far from the origin; our running scatter does not."""
    near = draw(257, 12) * np.arange(1, 13)
    far, truth = near + 1e6, effective_rank(near)
    singular = np.sqrt(np.linalg.eigvalsh(far.T @ far - np.outer(far.sum(0), far.sum(0)) / len(far)))
    share = singular / singular.sum()
    assert abs(np.exp(-(share * np.log(share)).sum()) - truth) > 1e-6
    assert ranks(np.split(far, [99, 200]))[0] == pytest.approx(truth, abs=1e-8)


def test_the_interval_of_a_mean_cosine_covers_it():
    """The truth is |E u|^2. The wrong version treats all n (n - 1) / 2 pairs as independent."""
    offset = np.array([1.5, 0, 0, 0])
    many = draw(400_000, 4, seed=99) + offset
    truth = (np.mean(many / np.linalg.norm(many, axis=1, keepdims=True), 0) ** 2).sum()
    covered = covered_by_twin = 0
    for seed in range(150):
        x = draw(80, 4, seed=seed) + offset
        low, high = np.nanquantile(shape([x], seed=seed).replicates, [0.025, 0.975])
        covered += low <= truth <= high
        u = x / np.linalg.norm(x, axis=1, keepdims=True)
        pairs = (u @ u.T)[np.triu_indices(80, 1)]
        covered_by_twin += abs(pairs.mean() - truth) <= norm.ppf(0.975) * pairs.std() / len(pairs) ** 0.5
    assert 0.89 * 150 <= covered <= 150
    assert covered_by_twin < 0.7 * 150


def test_replicates_are_paired_between_cells():
    x = draw(300, 10) + 0.7
    a, b = shape([x]), shape([x + 0.05 * draw(300, 10, seed=1)])
    other_seed = shape([x + 0.05 * draw(300, 10, seed=1)], seed=1)
    assert (a.replicates - b.replicates).std() < 0.2 * (a.replicates - other_seed.replicates).std()


# --------------------------------------------------------------------------------------------------------- directions


@pytest.mark.parametrize(("n", "dim", "k"), [(200, 30, 7), (20, 100, 12), (200, 30, 1)])
def test_k_equal_directions_have_rank_k(n, dim, k):
    left_vectors = np.linalg.qr(np.column_stack([np.ones(n), draw(n, k)]))[0][:, 1:]  # orthonormal, of mean 0
    right_vectors = np.linalg.qr(draw(dim, k, seed=1))[0]
    x = 5 * left_vectors @ right_vectors.T
    assert effective_rank(x) == pytest.approx(k, abs=1e-6)
    assert effective_rank(x + 1000) == pytest.approx(k, abs=1e-4)
    singular = np.linalg.svd(x + 1000, compute_uv=False)  # the wrong version does not subtract the mean
    share = singular[singular > 1e-9] / singular.sum()
    assert abs(np.exp(-(share * np.log(share)).sum()) - k) > 0.5 or k == 1


def test_one_vector_for_all_texts_has_no_rank():
    assert np.isnan(effective_rank(np.ones((9, 4))))
    assert np.isnan(effective_rank(1 + 1e-8 * draw(9, 4)))


def test_the_interval_of_an_effective_rank_covers_that_of_as_many_other_texts():
    """Heavy tails and groups of texts, too. The wrong version is a percentile bootstrap: it draws some texts twice,
    which spans fewer directions."""
    spread, centres = 1 / np.arange(1, 31) ** 0.5, 3 * draw(4, 30, seed=98)

    def draw_texts(n: int, seed: int) -> np.ndarray:
        random = np.random.default_rng(seed)
        scale = np.sqrt(random.chisquare(9, (n, 1)) / 9)
        return centres[random.integers(4, size=n)] + random.normal(size=(n, 30)) * spread / scale

    estimates = np.array([ranks([draw_texts(120, seed)], groups=10) for seed in range(150)])
    truth = np.mean([effective_rank(draw_texts(120, 1000 + seed)) for seed in range(600)])
    covered = (estimates[:, 1] <= truth) & (truth <= estimates[:, 2])
    assert covered.sum() >= 0.9 * 150
    width = (estimates[:, 2] - estimates[:, 1]).mean()
    assert width < 1.5 * 2 * t.isf(0.025, 9) * estimates[:, 0].std()
    covered_by_twin = 0
    for seed in range(20):
        x, random = draw_texts(120, seed), np.random.default_rng(seed)
        replicates = [effective_rank(x[random.integers(120, size=120)]) for _ in range(60)]
        low, high = np.quantile(replicates, [0.025, 0.975])
        covered_by_twin += low <= truth <= high
    assert covered_by_twin < 10


def test_texts_in_the_order_of_their_kind_do_not_widen_the_interval():
    """The broken twin leaves out neighbours in the file together, which are alike."""
    x = draw(200, 20)
    x[:100, 2:] *= 0.01
    _, low, high = ranks([x], groups=10)
    apart = [effective_rank(np.delete(x, slice(i * 20, i * 20 + 20), axis=0)) for i in range(10)]
    mixed = [effective_rank(np.delete(x, slice(i, None, 10), axis=0)) for i in range(10)]
    assert np.std(apart) > 2 * np.std(mixed)
    assert high - low == pytest.approx(2 * t.isf(0.025, 9) * 3 * np.std(mixed), rel=1e-6)


# ---------------------------------------------------------------------------------------------------------- dimension


def draw_manifold(n: int, d: int, dim: int = 30, seed: int = 0) -> np.ndarray:
    """A sphere of dimension d, bent into `dim` dimensions, with an uneven density."""
    x = draw(n, d + 1, seed=seed) * np.linspace(1, 2, d + 1)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    bent = np.column_stack([x, 0.3 * np.sin(3 * x), np.zeros((n, dim - 2 * (d + 1)))])
    return bent @ special_ortho_group.rvs(dim, random_state=0)


@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_the_dimension_of_a_known_manifold(d):
    estimate, low, high = dimension(Pairs.of(draw_manifold(1500, d)))
    assert estimate == pytest.approx(d, rel=0.1)
    assert low < estimate < high


def test_copies_are_removed_first():
    x = draw_manifold(600, 2)
    twice = np.vstack([x, x[::3], x[::3] * (1 + 1e-9)])
    pairs = Pairs.of(twice)
    assert pairs.distinct.sum() == 600
    assert dimension(pairs) == pytest.approx(dimension(Pairs.of(x)), rel=1e-6)
    with np.errstate(divide="ignore", invalid="ignore"):
        assert dimension(Pairs(pairs.squared, -1.0))[0] != pytest.approx(2, rel=0.5)  # the wrong version keeps them


def test_too_few_distinct_vectors_have_no_dimension():
    assert np.isnan(dimension(Pairs.of(np.repeat(draw(30, 4), 20, axis=0)))).all()
    square = np.stack(np.meshgrid(np.arange(12.0), np.arange(12.0)), -1).reshape(-1, 2)
    assert np.isnan(dimension(Pairs.of(square))).all()


def test_the_interval_of_a_dimension_covers_it():
    """The wrong version treats the texts as independent (the exact interval of an exponential rate)."""
    covered = covered_by_twin = 0
    for seed in range(150):
        x = draw(300, 3, seed=seed)
        estimate, low, high = dimension(Pairs.of(x / np.linalg.norm(x, axis=1, keepdims=True)))
        covered += low <= 2 <= high
        covered_by_twin += abs(np.log(estimate / 2)) <= norm.ppf(0.975) / 270**0.5
    assert 0.9 * 150 <= covered <= 150
    assert covered_by_twin < 0.93 * 150
    assert covered_by_twin < covered


# ---------------------------------------------------------------------------------------------------------------- CKA


def hsic(x: np.ndarray, y: np.ndarray) -> float:
    """Equation 5 of Song et al. (2012), term by term."""
    K, L, n = x @ x.T, y @ y.T, len(x)
    np.fill_diagonal(K, 0)
    np.fill_diagonal(L, 0)
    ones = np.ones(n)
    between = (ones @ K @ ones) * (ones @ L @ ones) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (ones @ K @ L @ ones)
    return float((np.trace(K @ L) + between) / (n * (n - 3)))


def biased(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    return float(((x.T @ y) ** 2).sum() / np.sqrt(((x.T @ x) ** 2).sum() * ((y.T @ y) ** 2).sum()))


def test_cka_of_unrelated_vectors_is_near_0_for_few_texts():
    x, y = draw(2, 100, 2000)
    assert abs(cka([x, y])[0, 1]) < 0.05
    assert biased(x, y) > 0.9  # the wrong version


def test_cka_is_invariant_to_rotation_scale_and_offset():
    x = draw(300, 20) * np.arange(1, 21)
    similarity = cka([x, 7 * x @ special_ortho_group.rvs(20, random_state=1) + 100, np.flip(x, 0)])
    assert similarity[0, 1] == pytest.approx(1, abs=1e-10)
    assert abs(similarity[0, 2]) < 0.2
    np.testing.assert_allclose(similarity, similarity.T)


@pytest.mark.parametrize("size", [20, 50, 1000])
def test_cka_divides_averages_over_batches(size, monkeypatch):
    monkeypatch.setattr(measures, "BATCH", size)
    x = draw(200, 6)
    y = x[:, :3] @ draw(3, 5, seed=1) + draw(200, 5, seed=2)
    of_x, of_y = (np.array_split(side, max(1, 200 // size)) for side in (x, y))
    sides = ((of_x, of_y), (of_x, of_x), (of_y, of_y))
    xy, xx, yy = (np.mean([hsic(a, b) for a, b in zip(*pair, strict=True)]) for pair in sides)
    assert cka([x, y])[0, 1] == pytest.approx(xy / np.sqrt(xx * yy), abs=1e-10)
    assert cka([x, y])[0, 1] == pytest.approx(0.37, abs=0.03)  # whatever their size


def test_cka_of_constant_vectors_is_nan_and_of_three_texts_an_error():
    similarity = cka([draw(50, 4), np.ones((50, 4))])
    assert np.isnan(similarity[0, 1])
    assert similarity[0, 0] == pytest.approx(1, abs=1e-12)
    with pytest.raises(ValueError, match="at least 4 texts, not 3"):
        cka([draw(3, 4)])


# --------------------------------------------------------------------------------------------------------- neighbours


def test_neighbours_are_the_nearest_texts():
    x = draw(60, 5)
    neighbours = nearest(Pairs.of(x), 4)
    distances = ((x[:, None] - x) ** 2).sum(-1) + np.diag([np.inf] * 60)
    assert [set(row) for row in neighbours] == [set(row) for row in np.argsort(distances, axis=1)[:, :4]]
    assert nearest(Pairs.of(np.ones((20, 3))), 4) is None


def test_equally_near_texts_are_drawn_independently_per_cell():
    """Two unrelated cells with three distinct vectors each: taking the first ones would share neighbours."""
    words = [np.random.default_rng(seed).integers(3, size=300) for seed in (1, 2)]
    cells = [np.eye(3)[codes] for codes in words]
    neighbours = [nearest(Pairs.of(x), 10, seed=i) for i, x in enumerate(cells)]
    shared = measures._shared_neighbours(neighbours)[0, 1]
    twin = [np.argsort(Pairs.of(x).squared.round(9), axis=1, kind="stable")[:, :10] for x in cells]
    assert shared < 0.06
    assert measures._shared_neighbours(twin)[0, 1] > 0.2


# ------------------------------------------------------------------------------------------------------- whole tables


@pytest.fixture(scope="module")
def states_and_table() -> tuple[States, pd.DataFrame]:
    """Layer 0: one vector in cls. Layer 1: cls a rotation of mean; random without an offset, but for coordinate 5."""
    x = draw(300, 16) + 2
    rotation = special_ortho_group.rvs(16, random_state=2)
    cells = {
        (0, "cls"): np.ones((300, 16)),
        (0, "mean"): x,
        (0, "random"): draw(300, 16, seed=3),
        (1, "cls"): x @ rotation,
        (1, "mean"): x,
        (1, "random"): draw(300, 16, seed=4) + 40 * (np.arange(16) == 5),
    }
    layer_states = states(cells)
    return layer_states, geometry(layer_states, np.arange(300))


def value(table: pd.DataFrame, measure: str, *cells: tuple[int, str]) -> float:
    rows = table[(table.measure == measure) & (table.layer == cells[0][0]) & (table.readout == cells[0][1])]
    if len(cells) > 1:
        rows = rows[(rows.other_layer == cells[1][0]) & (rows.other_readout == cells[1][1])]
    assert len(rows) == 1
    return float(rows.value.iloc[0])


def test_the_table_has_one_row_per_measure_and_cell(states_and_table):
    _, table = states_and_table
    assert tuple(table.columns) == COLUMNS
    assert not table.duplicated(list(KEY)).any()
    known = table.dropna(subset=["low"])
    assert (known.low <= known.value + 1e-9).all()
    assert (known.value <= known.high + 1e-9).all()
    with_interval = {"norm", "self_similarity", "without_massive", "adjusted", "dimension", "effective_rank"}
    assert set(known.measure) == with_interval
    assert set(known[known.measure == "effective_rank"].layer) == {1}  # the layer that is described
    assert value(table, "texts", (-1, "none")) == 300
    assert value(table, "width", (1, "cls")) == 16
    assert value(table, "chance", (-1, "none")) == pytest.approx(10 / 299)


def test_cells_equal_up_to_a_rotation_have_equal_measures(states_and_table):
    _, table = states_and_table
    cls, mean = (1, "cls"), (1, "mean")
    assert value(table, "cka", cls, mean) == pytest.approx(1, abs=1e-6)
    assert value(table, "neighbours", cls, mean) > 0.99
    assert value(table, "self_similarity", cls) == pytest.approx(value(table, "self_similarity", mean), abs=1e-6)
    assert value(table, "neighbours", (0, "random"), (1, "random")) == pytest.approx(10 / 299, abs=0.02)
    for measure in ("effective_rank", "dimension", "norm"):
        assert value(table, measure, cls) == pytest.approx(value(table, measure, mean), rel=1e-4)


def test_cosines_are_adjusted_by_those_of_random_tokens(states_and_table):
    _, table = states_and_table
    cls, random = (value(table, "self_similarity", (1, name)) for name in ("cls", "random"))
    assert random > 0.9
    assert value(table, "adjusted", (1, "cls")) == pytest.approx(cls - random)
    assert not ((table.measure == "adjusted") & (table.readout == "random")).any()


def test_cosines_with_and_without_massive_coordinates(states_and_table):
    _, table = states_and_table
    massive = table[table.coordinate >= 0]
    assert massive[["measure", "layer", "readout", "coordinate"]].to_numpy().tolist() == [
        ["massive", 1, "random", 5],
        ["contribution", 1, "random", 5],
    ]
    assert value(table, "massive", (1, "random")) == pytest.approx(1600, rel=0.2)
    assert value(table, "contribution", (1, "random")) > 0.9
    assert value(table, "without_massive", (1, "random")) == pytest.approx(0, abs=0.01)
    for cell in ((1, "cls"), (1, "mean"), (0, "random")):
        assert value(table, "without_massive", cell) == value(table, "self_similarity", cell)


def test_one_vector_for_all_texts_has_cosine_1_and_no_other_measure(states_and_table):
    _, table = states_and_table
    assert value(table, "self_similarity", (0, "cls")) == pytest.approx(1)
    for measure in ("effective_rank", "dimension"):
        assert np.isnan(value(table, measure, (0, "cls")))
    for measure in ("cka", "neighbours"):
        assert np.isnan(value(table, measure, (0, "cls"), (1, "cls")))


def test_the_size_of_chunks_does_not_change_the_table(states_and_table, monkeypatch):
    layer_states, table = states_and_table
    monkeypatch.setattr(measures, "CHUNK", 37)
    chunked = geometry(layer_states, np.arange(300))
    np.testing.assert_allclose(chunked.value, table.value, rtol=1e-10, atol=1e-10)


def test_texts_that_a_readout_cannot_read_and_copies_are_dropped():
    short = draw(20, 4)
    short[3] = np.nan
    short_states = states({(0, "cls"): draw(20, 4), (0, "token[2]"): short}, ids=[*"abcdefghijklmnopqr", "a", "s"])
    assert comparable(short_states, np.arange(20)).tolist() == [i for i in range(20) if i not in (3, 18)]
    assert comparable(short_states, np.array([18, 4])).tolist() == [18, 4]
    with pytest.raises(ValueError, match="named twice"):
        comparable(short_states, np.array([1, 1]))
    with pytest.raises(ValueError, match="at least 4 texts, not 3"):
        geometry(short_states, np.arange(3))


# ---------------------------------------------------------------------------------------------------------- the study


def make_table(cells: dict[tuple[int, str], np.ndarray]) -> pd.DataFrame:
    """The table of these cells, as of a task."""
    return geometry(states(cells), np.arange(len(next(iter(cells.values()))))).assign(task="file:made:label")


@pytest.fixture(scope="module")
def one_coordinate() -> pd.DataFrame:
    """[CLS] is narrower than the mean in coordinate 3 alone: the trap of a mean cosine."""
    return make_table(
        {(layer, name): draw(200, 12, seed=i) + 30 * layer * (name == "cls") * (np.arange(12) == 3)
         for i, (layer, name) in enumerate([(0, "cls"), (0, "mean"), (1, "cls"), (1, "mean")])}
    )  # fmt: skip


def interval(table: pd.DataFrame, measure: str, readout: str, decimals: int) -> str:
    row = table[(table.measure == measure) & (table.layer == 1) & (table.readout == readout)].iloc[0]
    return f"{row.value:.{decimals}f} ({row.low:.{decimals}f} to {row.high:.{decimals}f})"


def test_the_answer_is_a_sentence_that_names_the_coordinate(one_coordinate):
    verdict = tables.judge(Geometry(), one_coordinate)
    cosines = {(name, measure): interval(one_coordinate, measure, name, 3)
               for name in ("cls", "mean") for measure in ("self_similarity", "without_massive")}  # fmt: skip
    rank = {name: interval(one_coordinate, "effective_rank", name, 1) for name in ("cls", "mean")}
    assert verdict.sentence == (
        f"On made: label (200 texts, layer 1): in [CLS] the effective rank is {rank['cls']} of 12 and the mean cosine "
        f"of two texts {cosines['cls', 'self_similarity']}, or {cosines['cls', 'without_massive']} without the massive "
        f"coordinate 3; in mean the effective rank is {rank['mean']} of 12 and the mean cosine of two texts "
        f"{cosines['mean', 'self_similarity']}, with no massive coordinate."
    )
    assert (verdict.label, verdict.is_claim) == ("described", False)
    values = one_coordinate[one_coordinate.layer == 1].set_index(["measure", "readout"]).value
    assert values["self_similarity", "cls"] > 0.9
    assert abs(values["without_massive", "cls"]) < 0.01


def test_a_layer_can_be_named():
    cells = states({(layer, name): draw(50, 4, seed=layer) for layer in (0, 1) for name in ("cls", "mean")})
    table = geometry(cells, np.arange(50), layer=0).assign(task="file:made:label")
    sentence = tables.judge(make_study(Geometry, {"at": "0"}), table).sentence
    assert "(50 texts, layer 0): in [CLS] the effective rank is " in sentence
    assert "nan" not in sentence


def test_one_vector_for_all_texts_is_said():
    sentence = tables.judge(Geometry(), make_table({(0, "cls"): np.ones((50, 4)), (0, "mean"): draw(50, 4)})).sentence
    assert "layer 0): in [CLS] every text has one and the same vector; in mean the effective rank is " in sentence


@pytest.mark.parametrize(
    ("cells", "start"),
    [
        ([(1, "vector")], "In v.npy (50 texts): the effective rank is "),
        ([(1, "cls"), (1, "mean")], "In v.npy (50 texts): in cls the effective rank is "),
        ([(5, "cls"), (6, "cls")], "In layer 6 of v.npy (50 texts): the effective rank is "),
    ],
)
def test_vectors_of_a_file_are_called_as_in_the_file(cells, start):
    study = Geometry(vectors="folder/v.npy")
    table = make_table({cell: draw(50, 4, seed=i) for i, cell in enumerate(cells)})
    answer = study.answer(tables.measured(measured=table, projection=pd.DataFrame(columns=["task", "map"])))
    assert answer.headline.sentence.startswith(start)
    texts = [answer.headline.sentence, *(exhibit.caption for exhibit in answer.exhibits)]
    assert not [text for text in texts if "[CLS]" in text or "layer 1" in text]
    assert not answer.failures
    assert all(exhibit.draw() for exhibit in answer.exhibits if exhibit.plot)


def test_several_tasks_are_listed(one_coordinate):
    both = pd.concat([one_coordinate, one_coordinate.assign(task="file:other:label")])
    verdict = Geometry().verdict(tables.measured(measured=both))
    assert verdict.sentence.startswith(
        "Effective ranks, and mean cosines of two texts without massive coordinates: made: label [CLS] "
    )
    assert verdict.sentence.count("mean ") == 3
    assert "; other: label [CLS] " in verdict.sentence


def test_the_exhibits_draw(one_coordinate):
    points = pd.DataFrame(
        {
            "task": ["file:made:label"],
            "map": ["PCA"],
            "panel": ["cls"],
            "x": [0.0],
            "y": [0.0],
            "label": ["a"],
            "text": ["a"],
            "row": [0],
        }
    )
    answer = Geometry().answer(tables.measured(measured=one_coordinate, projection=points))
    assert {exhibit.section for exhibit in answer.exhibits} == {"made: label"}
    exhibits = answer.exhibits
    assert [bool(exhibit.draw()) for exhibit in exhibits if exhibit.plot]
    cosines, coordinates = exhibits[0].table.set_index(["readout", "layer"]).value, exhibits[1].table
    assert cosines["[CLS]", 1] > 0.9 > 0.01 > cosines["[CLS], without massive", 1]
    assert cosines["mean", 1] == cosines["mean, without massive", 1]
    assert coordinates[["layer", "readout", "coordinate"]].to_numpy().tolist() == [[1, "cls", 3]]
    assert coordinates["of the cosine"].item() == pytest.approx(cosines["[CLS]", 1], abs=0.01)
    assert coordinates["times the median"].item() == pytest.approx(900, rel=0.3)
    square = [exhibit.table for exhibit in exhibits if exhibit.plot == "squares"][-1]
    assert square[square.row == square.column].value.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"readouts": ["cls,mean,flatten[8]"]},
            "--readouts: 'flatten[8]' is no single vector of a text. Leave it out.",
        ),
        ({"at": "9"}, "--at 9: this layer is not read. Name one of 0, 1, 2, 3, 4, 5, 6."),
    ],
)
def test_wrong_flags_are_an_error_before_anything_is_loaded(flags, message):
    with pytest.raises(InputError) as error:
        make_study(Geometry, {"task": ("grammar:tense:60",), **flags}).prepare()
    assert str(error.value) == message


def test_the_command_runs_on_a_model_in_a_folder(tmp_path, monkeypatch, one_thread):
    """From a table to the page; UMAP is replaced, and has its own test."""
    from clsprobe.analysis.geometry import measure

    monkeypatch.setattr(measure, "compute_umap", lambda vectors, seed: measure.compute_pca(vectors))
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    words = [word for word in models.WORDS if word.isalpha()]
    texts = [" ".join(random.choice(words, random.integers(2, 9))) for _ in range(80)]
    rows = [*texts, texts[0].upper(), "<b>cat</b>"]
    labels = ["a", "b"] * 41
    pd.DataFrame({"text": rows, "label": labels}).to_csv("t.csv", index=False)
    models.save("bert", tmp_path / "model")
    command = ["geometry", "--task", "file:t.csv", "--model", "./model", "--out", "out", "--quiet"]
    with pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code == 0
    answer = Answer.load("out/answers/geometry.json")
    assert answer.headline.label == "described"
    assert answer.headline.sentence.startswith("On t: label (")
    table = pd.read_parquet("out/tables/measured.parquet")
    assert set(table.layer) == {-1, 0, 1, 2, 3}
    counts = json.loads((tmp_path / "out" / "run.json").read_text())["rows"]["file:t:label"]
    assert counts["used"] + counts["left out: copies"] == 82
    page = (tmp_path / "out" / "report.html").read_text()
    measured = read_measured(tmp_path / "out")
    check_study(Geometry(), measured, worlds={"undecided": measured})  # it describes, and states nothing
    assert "<b>cat" not in page
    points = next(exhibit.table for exhibit in answer.exhibits if exhibit.plot == "scatter")
    assert "<b>cat</b>" in set(points.text)
    assert dict(zip(points.text, points.label, strict=True))[texts[1]] == "b"
