"""Exact match and F1 by the official normalization."""

from __future__ import annotations

import pytest

from bertjax.data.metrics import Score, score
from bertjax.data.squad import Answer, Example


def test_scores_follow_the_official_normalization():
    examples = [
        Example(id="a", question="", context="", answers=(Answer(text="The  Denver Broncos!", start=0),)),
        Example(
            id="b", question="", context="", answers=(Answer(text="in 1999", start=0), Answer(text="1999", start=3))
        ),
        Example(id="c", question="", context="", answers=(Answer(text="a red house", start=0),)),
    ]
    found = score(examples, {"a": "denver broncos", "b": "1999", "c": "red car"})
    assert found.exact_match == pytest.approx(200 / 3)
    assert found.f1 == pytest.approx(100 * (1 + 1 + 0.5) / 3)
    right = {"a": "Denver Broncos", "b": "In 1999.", "c": "an red  house"}
    assert score(examples, right) == Score(exact_match=100.0, f1=100.0)
    assert score(examples, {"c": "nothing"}) == Score(exact_match=0.0, f1=0.0)
