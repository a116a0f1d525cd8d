"""Maps: the rows may come in any order, a picture tells how far it can be trusted, too few texts are a sentence."""

from __future__ import annotations

import numpy as np
import pytest

from clsprobe.analysis.sweep.maps import compute_pca, compute_umap
from clsprobe.probes.errors import InputError


def clusters(n: int = 60, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.normal(size=(n, 12)) + 6 * (np.arange(n) % 3)[:, None]).astype(np.float32)


def test_the_order_of_the_rows_moves_no_point():
    """UMAP itself is the broken twin: it moves them."""
    import umap

    x = clusters()
    order = np.random.default_rng(1).permutation(len(x))
    flat, trust = compute_umap(x)
    again, trusted = compute_umap(x[order])
    assert np.array_equal(again, flat[order])
    assert trust == trusted
    assert trust > 0.7
    bare = [umap.UMAP(n_neighbors=15, random_state=0, n_jobs=1).fit_transform(rows) for rows in (x, x[order])]
    assert np.abs(bare[1] - bare[0][order]).max() > 0.1


def test_pca_keeps_the_scale_and_the_largest_variance():
    x = clusters()
    order = np.random.default_rng(1).permutation(len(x))
    flat, trust = compute_pca(x)
    again, trusted = compute_pca(x[order])
    assert np.array_equal(again, flat[order])
    assert trust == trusted
    values = np.linalg.svd(x.astype(np.float64) - x.mean(0, dtype=np.float64), compute_uv=False)
    np.testing.assert_allclose(np.linalg.norm(flat, axis=0), values[:2], rtol=1e-6)


def test_trustworthiness_is_high_where_two_dimensions_hold_it_all_and_low_in_many():
    flat = np.random.default_rng(0).normal(size=(200, 2))
    assert compute_pca(np.column_stack([flat, np.zeros((200, 10))]))[1] > 0.999
    assert compute_pca(np.random.default_rng(0).normal(size=(200, 60)))[1] < 0.75


@pytest.mark.parametrize("place", [compute_umap, compute_pca])
def test_nine_texts_are_too_few(place):
    with pytest.raises(InputError, match=r"^--max-texts: a map needs at least 10 texts, not 9\. Give more texts\.$"):
        place(np.eye(9))


def test_ten_texts_are_enough():
    assert compute_umap(clusters(10))[0].shape == (10, 2)
