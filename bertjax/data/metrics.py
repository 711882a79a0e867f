"""Exact match and token F1 as the official SQuAD v1.1 script counts them (Rajpurkar et al. 2016)."""

from __future__ import annotations

import collections
import dataclasses
import re
import string
from collections.abc import Mapping, Sequence

from bertjax.data.squad import Example

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """Means over all questions."""

    exact_match: float  # percent
    f1: float  # percent


def normalize(text: str) -> str:
    """Lower the case and take out punctuation, articles and extra white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def token_f1(prediction: str, answer: str) -> float:
    """Harmonic mean of token precision and recall after normalization, 0 to 1."""
    predicted, accepted = normalize(prediction).split(), normalize(answer).split()
    common = sum((collections.Counter(predicted) & collections.Counter(accepted)).values())
    return 2 * common / (len(predicted) + len(accepted)) if common else 0.0


def score(examples: Sequence[Example], answers: Mapping[str, str]) -> Score:
    """Score answers against the accepted answer that fits best.

    Args:
      examples: at least one, each with at least one accepted answer.
      answers: by question id; a question without one counts as wrong.
    """
    exact = f1 = 0.0
    for example in examples:
        answer = answers.get(example.id, "")
        exact += max(normalize(answer) == normalize(accepted.text) for accepted in example.answers)
        f1 += max(token_f1(answer, accepted.text) for accepted in example.answers)
    return Score(exact_match=100.0 * exact / len(examples), f1=100.0 * f1 / len(examples))
