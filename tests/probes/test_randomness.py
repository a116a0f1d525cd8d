"""Global random states are watched, and left as they were."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from clsprobe.probes.randomness import forbid_global_randomness


def test_generators_of_ones_own_are_no_fault():
    before = random.getstate(), torch.get_rng_state()
    with forbid_global_randomness():
        np.random.default_rng(0).random()
        torch.rand(1, generator=torch.Generator().manual_seed(0))
        random.Random(0).random()
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


@pytest.mark.parametrize(
    ("name", "draw"),
    [
        ("random", random.random),
        ("numpy.random", lambda: np.random.rand()),  # noqa: NPY002
        ("torch", lambda: torch.rand(1)),
        ("random", lambda: random.seed(0)),
        ("numpy.random", lambda: np.random.seed(0)),  # noqa: NPY002
        ("torch", lambda: torch.manual_seed(0)),
    ],
)
def test_drawing_and_seeding_are_seen_and_undone(name, draw):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    with (
        pytest.raises(
            AssertionError, match=f"global random state of {name} is moved: draw from a generator of its own"
        ),
        forbid_global_randomness(),
    ):
        draw()
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[:2]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])
