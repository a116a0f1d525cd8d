"""Maps in two dimensions: UMAP (McInnes, Healy & Melville 2018) and PCA of chosen cells.

The rows are sorted first, because UMAP moves points by several units when they are permuted. `trustworthiness` (Venna &
Kaski 2001) measures how many near neighbours in the map are near in the vectors. Distances between clusters carry no
information.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

from clsprobe.probes.errors import InputError

SMALLEST = 10  # texts; UMAP needs more points than neighbours
NEIGHBOURS = 15


def compute_umap(vectors: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, float]:
    """(text, dim) -> (text, 2) and the trustworthiness in 0..1. Raises InputError below ten texts."""

    def place(ordered: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            # about its optional Tensorflow part, and a graph in several pieces, which does not matter in a map
            warnings.filterwarnings("ignore", module="umap")
            import umap

            return umap.UMAP(n_neighbors=_count_neighbours(ordered), random_state=seed, n_jobs=1).fit_transform(ordered)

    return _place_sorted(vectors, place)


def compute_pca(vectors: np.ndarray) -> tuple[np.ndarray, float]:
    """As `compute_umap`, on the two directions of largest variance, unscaled: their shares of it can be computed."""
    from sklearn.decomposition import PCA

    # float64 and the full decomposition: deterministic
    return _place_sorted(vectors, lambda ordered: PCA(2, svd_solver="full").fit_transform(ordered.astype(np.float64)))


def _place_sorted(vectors: np.ndarray, place: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, float]:
    """Positions computed on the sorted rows, in the original order, and the trustworthiness of the map."""
    from sklearn.manifold import trustworthiness

    if len(vectors) < SMALLEST:
        raise InputError("--max-texts", f"a map needs at least {SMALLEST} texts, not {len(vectors)}", "Give more texts")
    order = np.lexsort(vectors.T[::-1])
    ordered = vectors[order]
    placed = place(ordered)
    positions = np.empty_like(placed)
    positions[order] = placed
    return positions, float(trustworthiness(ordered, placed, n_neighbors=_count_neighbours(ordered)))


def _count_neighbours(vectors: np.ndarray) -> int:
    return min(NEIGHBOURS, (len(vectors) - 1) // 2)
