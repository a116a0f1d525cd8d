"""Two dimensions to look at: UMAP (McInnes, Healy & Melville 2018) and PCA of chosen cells.

The rows are put into an order of their own first, because UMAP moves points by several units when they are permuted.
`trustworthiness` (Venna & Kaski 2001) says how many near neighbours in the picture are near in truth. Distances between
clusters are no evidence of anything.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

from clsprobe.probes.errors import InputError

SMALLEST = 10  # texts; UMAP needs more points than neighbours
NEIGHBOURS = 15


def umap_of(vectors: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, float]:
    """(text, dim) -> (text, 2) and the trustworthiness in 0..1. Raises InputError below ten texts."""

    def place(ordered: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            # its optional Tensorflow part, and a graph in several pieces, which needs no warning in a picture
            warnings.filterwarnings("ignore", module="umap")
            import umap

            return umap.UMAP(n_neighbors=_neighbours(ordered), random_state=seed, n_jobs=1).fit_transform(ordered)

    return _placed(vectors, place)


def pca_of(vectors: np.ndarray) -> tuple[np.ndarray, float]:
    """The same on the two directions of the largest variance; their own scale, so that shares of it can be told."""
    from sklearn.decomposition import PCA

    # in float64, and every singular value: nothing is drawn
    return _placed(vectors, lambda ordered: PCA(2, svd_solver="full").fit_transform(ordered.astype(np.float64)))


def _placed(vectors: np.ndarray, place: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, float]:
    """Rows placed in an order of their own, given back in theirs, with the trustworthiness of the picture."""
    from sklearn.manifold import trustworthiness

    if len(vectors) < SMALLEST:
        raise InputError("--max-texts", f"a map needs at least {SMALLEST} texts, not {len(vectors)}", "Give more texts")
    order = np.lexsort(vectors.T[::-1])
    ordered = vectors[order]
    placed = place(ordered)
    flat = np.empty_like(placed)
    flat[order] = placed
    return flat, float(trustworthiness(ordered, placed, n_neighbors=_neighbours(ordered)))


def _neighbours(vectors: np.ndarray) -> int:
    return min(NEIGHBOURS, (len(vectors) - 1) // 2)
