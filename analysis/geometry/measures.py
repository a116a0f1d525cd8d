"""The geometry of cells: how narrow they are, of how many dimensions, and how similar to each other.

1. `comparable` chooses the texts: those that every readout can read, without copies.
2. `shape` reads a cell in chunks, with sums in float64: norms, mean cosine, massive coordinates. `ranks` does so for
   the effective rank and its interval.
3. `dimension` and `nearest` use distances between pairs of texts, `cka` Gram matrices, over one sample of the texts.
4. `geometry` collects all of it in one tidy table. Cosines have the interval of a Poisson bootstrap with the same
   weights for all cells, so that differences between cells are paired; effective ranks that of a jackknife over groups.

A cell whose vectors are all the same, such as [CLS] at layer 0, has no directions to count and no neighbours: NaN.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse, stats

if TYPE_CHECKING:
    import pandas as pd

    from clsprobe.probes.extraction.states import States

KEY = ("measure", "layer", "readout", "other_layer", "other_readout", "coordinate")
COLUMNS = (*KEY, "value", "low", "high")
MEASURES = ("norm", "self_similarity", "without_massive", "adjusted", "effective_rank", "dimension")  # of one cell
BASELINE = "random"  # the readout of one random token of every text, the baseline of a layer's cosines

CHUNK = 4_096  # texts that are in memory at once
SAMPLE = 2_000  # texts for measures of pairs of texts
BATCH = 128  # texts of a minibatch of CKA
NEIGHBOURS = 10
DRAWS = 1_000
GROUPS = 10  # of texts, left out in turn for the interval of the effective rank
LEVEL = 0.95
MASSIVE = 100  # times the median mean square of the coordinates
SAME = 1e-6  # times the norm: vectors no farther apart differ only by the rounding of float32
UNCENSORED = 0.9  # share of the ratios of distances, the smallest, that are used (Facco et al. 2017)
FEWEST = 50  # distinct vectors for an estimate of the dimension


def comparable(states: States, rows: np.ndarray) -> np.ndarray:
    """Those among `rows` of the States that every readout can read, without copies to the encoder (equal tokens).

    Raises ValueError where a row is named twice.
    """
    if len(np.unique(rows)) < len(rows):
        raise ValueError("a row is named twice")
    readable = rows[states.present[:, rows].all(0)]
    _, first = np.unique(states.locations.ids.to_numpy()[readable], return_index=True)
    return readable[np.sort(first)]


def geometry(states: States, rows: np.ndarray, *, layer: int | None = None, seed: int = 0) -> pd.DataFrame:
    """Every measure of every cell, and of every pair of cells, over these rows of the States: the columns `COLUMNS`.

    Of one cell (other_layer -1, other_readout "none", coordinate -1):
      width            its dimensions.
      norm             the mean Euclidean norm.
      self_similarity  the mean cosine of two different texts.
      without_massive  the same without the massive coordinates of the cell.
      effective_rank   see `ranks`.                dimension   see `dimension`.
    Of a massive coordinate of a cell (see `Shape`), by its index:
      massive          its mean square, in times of the median coordinate's.
      contribution     what it adds to the mean cosine (Timkey & van Schijndel 2021).
    Of two readouts of one layer:
      adjusted         self_similarity minus that of `BASELINE`, the anisotropy of the layer (Ethayarajh 2019).
    Of any two cells:
      cka              see `cka`.
      neighbours       the share of the nearest neighbours of a text in one cell that are among those in the other.
    Of none:
      chance           that share in two unrelated cells.
      texts            how many there are.

    low, high: the 95 % interval; NaN where there is none. rows: distinct, see `comparable`. layer: whose effective
    ranks get an interval; None for the last. seed: of the sample, the bootstrap and the order of ties. Raises
    ValueError for fewer than four rows.
    """
    import pandas as pd

    if len(rows) < 4:
        raise ValueError(f"a geometry needs at least 4 texts, not {len(rows)}")
    random = np.random.default_rng([seed, 0])
    sample = random.permutation(rows)[:SAMPLE]  # in random order, for the minibatches of CKA
    detailed_layer = max(states.layers) if layer is None else layer
    measured: list[tuple[Any, ...]] = []
    shapes: dict[tuple[int, str], Shape] = {}
    grams, neighbours = [], []
    for number, (cell_layer, readout) in enumerate(states.cells):

        def read_chunks(cell: tuple[int, str] = (cell_layer, readout)) -> Iterator[np.ndarray]:
            return _chunks(states, *cell, rows)

        shapes[cell_layer, readout] = summed = shape(read_chunks(), seed=seed)
        remaining = summed
        if len(summed.massive):
            remaining = shape((np.delete(chunk, summed.massive, axis=1) for chunk in read_chunks()), seed=seed)
        vectors = states.cell(cell_layer, readout, sample).astype(np.float64)
        pairs = Pairs.of(vectors)
        grams.append(_gram(vectors))
        neighbours.append(nearest(pairs, NEIGHBOURS, seed=number))
        cell = (cell_layer, readout, -1, "none")
        measured += [
            ("width", *cell, -1, vectors.shape[1], np.nan, np.nan),
            ("norm", *cell, -1, *summed.norm),
            ("self_similarity", *cell, -1, summed.cosine, *_percentile(summed.replicates)),
            ("without_massive", *cell, -1, remaining.cosine, *_percentile(remaining.replicates)),
            ("effective_rank", *cell, -1, *ranks(read_chunks(), groups=GROUPS if cell_layer == detailed_layer else 1)),
            ("dimension", *cell, -1, *dimension(pairs)),
        ]
        for coordinate in summed.massive.tolist():
            size, contribution = summed.sizes[coordinate], summed.contributions[coordinate]
            measured.append(("massive", *cell, coordinate, size, np.nan, np.nan))
            measured.append(("contribution", *cell, coordinate, contribution, np.nan, np.nan))
    for (cell_layer, readout), own in shapes.items():
        if readout != BASELINE and (other := shapes.get((cell_layer, BASELINE))):
            interval = _percentile(own.replicates - other.replicates)
            pair = (cell_layer, readout, cell_layer, BASELINE, -1)
            measured.append(("adjusted", *pair, own.cosine - other.cosine, *interval))
    for measure, square in (("cka", _normalise(grams)), ("neighbours", _shared_neighbours(neighbours))):
        for a, b in zip(*np.triu_indices(len(square), 1), strict=True):
            measured.append((measure, *states.cells[a], *states.cells[b], -1, square[a, b], np.nan, np.nan))
    others = len(sample) - 1
    of_none = (-1, "none", -1, "none", -1)
    measured.append(("chance", *of_none, min(NEIGHBOURS, others) / others, np.nan, np.nan))
    measured.append(("texts", *of_none, len(rows), np.nan, np.nan))
    return pd.DataFrame(measured, columns=list(COLUMNS))


def choose_described(readouts: Sequence[str]) -> list[str]:
    """The readouts that are described and drawn: cls and mean, or the first two where neither was read."""
    return [name for name in ("cls", "mean") if name in readouts] or list(readouts[:2])


def _chunks(states: States, layer: int, readout: str, rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), CHUNK):
        yield states.cell(layer, readout, rows[start : start + CHUNK])


# ----------------------------------------------------------------------------------------------------- one cell, summed


@dataclass(frozen=True, eq=False)
class Shape:
    """Summary of the vectors of a cell.

    norm: mean, low, high. cosine: the mean over pairs of different texts; replicates: (draw,) of it, paired between
    cells of the same texts. contributions: (coordinate,) what each adds to that cosine. sizes: (coordinate,) the mean
    square of each, in times of the median coordinate's that is not 0. massive: the indices of those more than `MASSIVE`
    times as large, the largest first.

    A few coordinates of transformers have many times the size of all others, on the same tokens whatever the text (Sun
    et al. 2024), and cosines are then about them alone (Timkey & van Schijndel 2021).
    """

    norm: tuple[float, float, float]
    cosine: float
    replicates: np.ndarray
    contributions: np.ndarray
    sizes: np.ndarray
    massive: np.ndarray


def shape(chunks: Iterable[np.ndarray], *, seed: int = 0) -> Shape:
    """The shape of a cell from chunks (text, dim), with two texts or more in all.

    The mean cosine is (|sum of u|^2 - n) / (n (n - 1)) of the unit vectors u. In the bootstrap every text of every
    draw has a Poisson weight of mean 1 (Hanley & MacGibbon 2006), which needs no second pass; a text and its copy in a
    draw are no pair.
    """
    count, norms, squared_norms = 0, 0.0, 0.0
    squares = units = squared_units = drawn_sums = weight = weight2 = np.zeros(0)
    for number, chunk in enumerate(chunks):
        vectors = np.asarray(chunk, np.float64)
        if not number:
            dim = vectors.shape[1]
            squares, units, squared_units = np.zeros((3, dim))
            drawn_sums = np.zeros((DRAWS, dim))
            weight, weight2 = np.zeros((2, DRAWS))
        length = np.linalg.norm(vectors, axis=1)
        directions = vectors / np.where(length > 0, length, 1)[:, None]
        norms, squared_norms = norms + length.sum(), squared_norms + (length**2).sum()
        squares = squares + (vectors**2).sum(0)
        units, squared_units = units + directions.sum(0), squared_units + (directions**2).sum(0)
        bits = np.random.default_rng([seed, 1, number]).integers(2**16, size=(DRAWS, len(vectors)), dtype=np.uint16)
        draw_counts = _poisson()[bits]
        drawn_sums += draw_counts @ directions.astype(np.float32)
        weight, weight2 = weight + draw_counts.sum(1), weight2 + draw_counts**2 @ (directions**2).sum(1)
        count += len(vectors)
    if count < 2:
        raise ValueError(f"a cell of {count} texts has no shape")
    contributions = (units**2 - squared_units) / (count * (count - 1))
    spread = np.sqrt(max(squared_norms / count - (norms / count) ** 2, 0) / (count - 1))
    half = stats.t.ppf((1 + LEVEL) / 2, count - 1) * spread
    drawn_pairs = weight**2 - weight2
    sums = (drawn_sums**2).sum(1) - weight2
    replicates = np.divide(sums, drawn_pairs, out=np.full(DRAWS, np.nan), where=drawn_pairs > 0.5)  # NaN: no pairs
    average = norms / count
    sizes = squares / (np.median(squares[squares > 0]) if squares.any() else 1.0)
    massive = np.flatnonzero(sizes > MASSIVE)
    return Shape(
        (average, average - half, average + half),
        float(contributions.sum()),
        replicates,
        contributions,
        sizes,
        massive[np.argsort(-sizes[massive], kind="stable")],
    )


@cache
def _poisson() -> np.ndarray:
    """Poisson quantiles of mean 1 at 65,536 equally likely levels: a table lookup is ten times as fast as sampling."""
    return stats.poisson.ppf((np.arange(2**16) + 0.5) / 2**16, 1).astype(np.float32)


def effective_rank(vectors: np.ndarray) -> float:
    """exp of the entropy of the normalised singular values (Roy & Vetterli 2007) of centred (text, dim).

    k directions of equal variance have rank k. NaN where all vectors are the same.
    """
    return ranks([vectors])[0]


def ranks(chunks: Iterable[np.ndarray], *, groups: int = 1) -> tuple[float, float, float]:
    """The `effective_rank` of chunks (text, dim) and its 95 % interval; NaN, NaN for fewer than two groups.

    The texts are dealt into groups, which are left out in turn (the delete-a-group jackknife, Shao & Tu 1995), with the
    t of one degree less than there are groups. The interval is about the effective rank that as many other texts would
    have: the rank grows with their number, until there are many times as many texts as dimensions.
    """
    scatters = [EMPTY] * groups
    dealt, squares = 0, 0.0
    for chunk in chunks:
        vectors = np.asarray(chunk, np.float64)
        squares += float((vectors**2).sum())
        group_of = (dealt + np.arange(len(vectors))) % groups  # neighbours in a file, which may be alike, lie apart
        scatters = [scatter + _Scatter.of(vectors[group_of == i]) for i, scatter in enumerate(scatters)]
        dealt += len(vectors)
    whole = sum(scatters, EMPTY)
    value = whole.rank(squares / whole.count)
    if groups < 2 or np.isnan(value):
        return value, np.nan, np.nan
    remaining = (sum((scatter for j, scatter in enumerate(scatters) if j != i), EMPTY) for i in range(groups))
    without = np.array([scatter.rank(squares / whole.count) for scatter in remaining])
    error = np.sqrt((groups - 1) / groups * ((without - without.mean()) ** 2).sum())
    half = float(stats.t.ppf((1 + LEVEL) / 2, groups - 1) * error)
    return value, max(value - half, 1.0), min(value + half, len(whole.products), whole.count - 1)


@dataclass(frozen=True, eq=False)
class _Scatter:
    """The products of deviations from the mean, (dim, dim), of `count` vectors with this mean; they can be added (Chan,
    Golub & LeVeque 1983: no large numbers cancel)."""

    count: int
    mean: Any
    products: Any

    @classmethod
    def of(cls, vectors: np.ndarray) -> _Scatter:
        """That of vectors (text, dim)."""
        if not len(vectors):
            return EMPTY
        centred = vectors - vectors.mean(0)
        return cls(len(vectors), vectors.mean(0), centred.T @ centred)

    def __add__(self, other: _Scatter) -> _Scatter:
        count = self.count + other.count
        if not (self.count and other.count):
            return self if self.count else other
        shift = other.mean - self.mean
        products = self.products + other.products + np.outer(shift, shift) * (self.count * other.count / count)
        return _Scatter(count, self.mean + shift * (other.count / count), products)

    def rank(self, square: float) -> float:
        """The effective rank. square: the mean squared norm before centring; vectors that differ by no more than its
        rounding errors are the same."""
        eigenvalues = np.linalg.eigvalsh(self.products)
        total, largest = eigenvalues.sum(), eigenvalues.max()
        if total <= SAME**2 * square * self.count:
            return np.nan
        # Rounding errors in zero eigenvalues would be enlarged by the square root.
        singular = np.sqrt(eigenvalues[eigenvalues > len(eigenvalues) * np.finfo(np.float64).eps * largest])
        share = singular / singular.sum()
        return float(np.exp(-(share * np.log(share)).sum()))


EMPTY = _Scatter(0, 0.0, 0.0)


def _percentile(replicates: np.ndarray) -> tuple[float, float]:
    low, high = np.nanquantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


# ---------------------------------------------------------------------------------------------------- pairs of texts


@dataclass(frozen=True, eq=False)
class Pairs:
    """Squared distances (text, text), infinite on the diagonal; at most `same` means equal vectors."""

    squared: np.ndarray
    same: float

    @classmethod
    def of(cls, vectors: np.ndarray) -> Pairs:
        """The distances between vectors (text, dim)."""
        same = SAME**2 * float((vectors**2).sum(1).mean())
        x = vectors - vectors.mean(0)
        own = (x**2).sum(1)
        squared = own[:, None] + own - 2 * (x @ x.T)
        np.fill_diagonal(squared, np.inf)
        return cls(squared.clip(0, out=squared), same)

    @property
    def distinct(self) -> np.ndarray:
        """(text,) False where an earlier text has the same vector."""
        return np.asarray(~np.tril(self.squared <= self.same, -1).any(1))


def dimension(pairs: Pairs) -> tuple[float, float, float]:
    """The intrinsic dimension and its 95 % interval, from the two nearest neighbours of every text (TwoNN).

    On a manifold of dimension d the log of the ratio of the two distances is exponential with rate d, whatever the
    density (Facco et al. 2017). Copies are removed first: their ratio is infinite. As there, the largest tenth of the
    ratios is not used, but treated as censored, with the estimate for censored lifetimes (Epstein & Sobel 1953). Texts
    with a common neighbour are not independent: the interval sums the errors of all such pairs, as for clusters (Liang
    & Zeger 1986); without that it covers 0.88. In many dimensions n texts are too few, and the estimate is a lower
    bound. NaN for fewer than `FEWEST` distinct vectors.
    """
    distinct = pairs.distinct
    n = int(distinct.sum())
    if n < FEWEST:
        return np.nan, np.nan, np.nan
    squared = pairs.squared[np.ix_(distinct, distinct)]
    nearest_two = np.argpartition(squared, 1, axis=1)[:, :2]
    near = np.take_along_axis(squared, nearest_two, 1)
    logs = np.log(near[:, 1] / near[:, 0]) / 2
    m = int(UNCENSORED * n)
    censored_at = np.partition(logs, m - 1)[m - 1]
    total = logs.clip(max=censored_at).sum()
    if total <= 0:  # points on a grid: all distances are the same
        return np.nan, np.nan, np.nan
    estimate = (m - 1) / total
    error = (logs <= censored_at) - estimate * logs.clip(max=censored_at)  # (text,) sums to about 0
    columns = np.column_stack([np.arange(n), nearest_two]).ravel()
    touches = sparse.csr_array((np.ones(3 * n), (np.repeat(np.arange(n), 3), columns)), (n, n))
    related = touches @ touches.T
    related.data[:] = 1
    half = stats.norm.ppf((1 + LEVEL) / 2) * np.sqrt(max(error @ (related @ error), 0)) / m
    return float(estimate), float(estimate * np.exp(-half)), float(estimate * np.exp(half))


def nearest(pairs: Pairs, k: int, *, seed: int = 0) -> np.ndarray | None:
    """(text, k) the nearest neighbours of every text, ties broken at random. None where all vectors are the same.

    Otherwise texts would share the first neighbours wherever many have one vector.
    """
    n = len(pairs.squared)
    if pairs.distinct.sum() == 1:
        return None
    order = np.random.default_rng([seed, 2]).permutation(n)
    near = np.where(pairs.squared <= pairs.same, 0, pairs.squared)[:, order]
    k = min(k, n - 1)
    return order[np.argpartition(near, k - 1, axis=1)[:, :k]]


def _shared_neighbours(cells: Sequence[np.ndarray | None]) -> np.ndarray:
    """(cell, cell) the mean share of common neighbours; NaN for a cell without any."""
    measured = [cell for cell in cells if cell is not None]
    square = np.full((len(cells), len(cells)), np.nan)
    if measured:
        n, k = measured[0].shape
        flat = [(cell + n * np.arange(n)[:, None]).ravel() for cell in measured]
        rows = np.repeat(np.arange(len(measured)), n * k)
        incidence = sparse.csr_array((np.ones(len(rows)), (rows, np.concatenate(flat))), (len(measured), n * n))
        present = [i for i, cell in enumerate(cells) if cell is not None]
        square[np.ix_(present, present)] = (incidence @ incidence.T).toarray() / (n * k)
    return square


def cka(cells: Sequence[np.ndarray]) -> np.ndarray:
    """(cell, cell) linear centred kernel alignment (Kornblith et al. 2019), without the bias towards 1 for few texts.

    cells: (text, dim) each, the same texts in the same random order. HSIC is the unbiased estimate of Song et al.
    (2012), averaged over minibatches before it is divided (Nguyen et al. 2021). May be below 0 where nothing is
    shared. NaN for a cell whose vectors are all the same. Raises ValueError for fewer than four texts.
    """
    return _normalise([_gram(np.asarray(cell, np.float64)) for cell in cells])


def _gram(vectors: np.ndarray) -> np.ndarray:
    """(minibatch x pair of texts,) the upper triangles of U-centred Gram matrices (Szekely & Rizzo 2014): the sum of
    their products is the unbiased HSIC, times n (n - 3)."""
    n = len(vectors)
    if n < 4:
        raise ValueError(f"unbiased CKA needs at least 4 texts, not {n}")
    if len(vectors) and np.ptp(vectors, axis=0).max() ** 2 <= SAME**2 * (vectors**2).sum(1).mean():
        vectors = np.full_like(vectors, np.nan)
    parts = []
    for batch in np.array_split(vectors - vectors.mean(0), max(1, n // BATCH)):
        m = len(batch)
        gram = batch @ batch.T
        np.fill_diagonal(gram, 0)
        rows = gram.sum(0) / (m - 2)
        gram += rows.sum() / (m - 1) - rows[:, None] - rows
        parts.append(gram[np.triu_indices(m, 1)] / np.sqrt(m * (m - 3)))
    return np.concatenate(parts)


def _normalise(grams: Sequence[np.ndarray]) -> np.ndarray:
    """(cell, cell) cosines of Gram matrices."""
    stacked = np.stack(grams)
    hsic = stacked @ stacked.T
    scale = np.sqrt(np.diag(hsic))
    with np.errstate(invalid="ignore", divide="ignore"):
        return hsic / scale / scale[:, None]
