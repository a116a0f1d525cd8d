"""Two dimensions to look at: UMAP (McInnes, Healy & Melville 2018) of chosen cells.

The rows are put into an order of their own first, because UMAP moves points by several units when they are permuted.
`trustworthiness` (Venna & Kaski 2001) says how many near neighbours in the picture are near in truth. Distances between
clusters are no evidence of anything.
"""

from __future__ import annotations

import warnings

import numpy as np

SMALLEST = 10  # texts; UMAP needs more points than neighbours
NEIGHBOURS = 15


def umap_of(vectors: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, float]:
    """(text, dim) -> (text, 2) and the trustworthiness in 0..1. Raises ValueError below ten texts."""
    if len(vectors) < SMALLEST:
        raise ValueError(f"UMAP needs at least {SMALLEST} texts, not {len(vectors)}")
    from sklearn.manifold import trustworthiness

    with warnings.catch_warnings():
        # its optional Tensorflow part, and a graph in several pieces, which needs no warning in a picture
        warnings.filterwarnings("ignore", module="umap")
        import umap

        order = np.lexsort(vectors.T[::-1])
        neighbours = min(NEIGHBOURS, (len(vectors) - 1) // 2)
        placed = umap.UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1).fit_transform(vectors[order])
    flat = np.empty_like(placed)
    flat[order] = placed
    return flat, float(trustworthiness(vectors, flat, n_neighbors=min(neighbours, (len(vectors) - 1) // 2)))
