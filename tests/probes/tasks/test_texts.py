"""Texts in one buffer are a sequence of strings."""

from __future__ import annotations

import numpy as np
import pytest

from clsprobe.probes.tasks.texts import ArrowTexts, Texts


def test_arrow_texts_are_a_sequence() -> None:
    packed = Texts()
    for i in range(10_000):
        packed.append(f"é{i}")
    with pytest.raises(UnicodeEncodeError):
        packed.append("\ud800")
    texts = packed.finish()
    expected = [f"é{i}" for i in range(10_000)]
    assert len(texts) == 10_000
    assert list(texts) == expected
    assert texts[0] == "é0"
    assert texts[-1] == "é9999"
    assert texts[np.int64(7)] == "é7"
    assert type(texts[3]) is str
    assert isinstance(texts[5:9], ArrowTexts)
    assert list(texts[5:9]) == expected[5:9]
    assert list(texts[::-3]) == expected[::-3]
    assert "é5" in texts
    assert texts.index("é5") == 5
    with pytest.raises(IndexError):
        texts[10_000]
