"""Global random states: nobody draws from them or seeds them, since the result would depend on what ran before."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def forbid_global_randomness() -> Iterator[None]:
    """Raise AssertionError if a global random state changes: of `random`, of numpy, and of torch where it is loaded.

    The states start randomly, so that seeding is noticed, and are restored.
    """
    torch = sys.modules.get("torch")

    def read_states() -> dict[str, str]:
        states = {
            "random": repr(random.getstate()),
            "numpy.random": repr([np.asarray(part).tolist() for part in np.random.get_state()]),  # noqa: NPY002
        }
        return states | ({"torch": repr(torch.get_rng_state().tolist())} if torch else {})

    before = random.getstate(), np.random.get_state(), torch and torch.get_rng_state()  # noqa: NPY002
    start = int(np.random.default_rng().integers(1 << 32))
    random.seed(start)
    np.random.seed(start)  # noqa: NPY002
    if torch:
        torch.manual_seed(start)
    initial = read_states()
    try:
        yield
        moved = [name for name, state in read_states().items() if state != initial[name]]
        assert not moved, (
            f"the global random state of {moved[0]} is moved: draw from a generator of its own, "
            "numpy.random.default_rng(seed) or torch.Generator().manual_seed(seed)"
        )
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        if torch:
            torch.set_rng_state(before[2])
