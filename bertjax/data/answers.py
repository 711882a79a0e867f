"""Span logits to answers, as the BERT reference does it, in NumPy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bertjax.data.squad import Example
from bertjax.data.windows import Window
from bertjax.files import write_file_aside

N_BEST = 20
MAX_ANSWER_TOKENS = 30


def candidate_spans(window: Window, start_logits: np.ndarray, end_logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The spans of one window that its answer is chosen from.

    They are the pairs among the `N_BEST` best starts and ends that are inside the context, at most `MAX_ANSWER_TOKENS`
    long, and start at a token that this window owns: no span is a candidate of two windows.

    Args:
      start_logits, end_logits: float [at least len(window)]; what lies past the window's length is ignored.

    Returns:
      The sums of the two logits, float [spans], and the character spans in the context, int32 [spans, 2].
    """
    size = len(window)
    starts, ends = _largest(start_logits[:size]), _largest(end_logits[:size])
    first, last = window.context_start, window.context_start + len(window.offsets)
    starts = starts[(starts >= first) & (starts < last)]
    starts = starts[window.max_context[starts - first]]
    ends = ends[(ends >= first) & (ends < last)]
    length = ends[None, :] - starts[:, None] + 1
    rows, columns = np.nonzero((length >= 1) & (length <= MAX_ANSWER_TOKENS))
    starts, ends = starts[rows], ends[columns]
    spans = np.stack([window.offsets[starts - first, 0], window.offsets[ends - first, 1]], axis=1)
    return start_logits[starts] + end_logits[ends], spans


def best_span(window: Window, start_logits: np.ndarray, end_logits: np.ndarray) -> tuple[float, tuple[int, int] | None]:
    """The best of a window's `candidate_spans`: its logit sum and its characters; (-inf, None) if there is none."""
    scores, spans = candidate_spans(window, start_logits, end_logits)
    if not len(scores):
        return -np.inf, None
    best = scores.argmax()
    return float(scores[best]), (int(spans[best, 0]), int(spans[best, 1]))


def _largest(logits: np.ndarray) -> np.ndarray:
    """Positions of the `N_BEST` largest logits, the largest first."""
    if len(logits) <= N_BEST:
        return np.argsort(-logits, kind="stable")
    top = np.argpartition(-logits, N_BEST)[:N_BEST]
    return top[np.argsort(-logits[top], kind="stable")]


def predict(
    examples: Sequence[Example],
    windows: Sequence[Window],
    start_logits: Sequence[np.ndarray],
    end_logits: Sequence[np.ndarray],
) -> dict[str, str]:
    """Each question's answer: the best span over its windows, cut from the original context ("" if none is valid).

    Args:
      start_logits, end_logits: one float array per window, of the window's length or longer.
    """
    best: dict[int, tuple[float, tuple[int, int] | None]] = {}
    for window, starts, ends in zip(windows, start_logits, end_logits, strict=True):
        found = best_span(window, starts, ends)
        if window.example not in best or found[0] > best[window.example][0]:
            best[window.example] = found
    answers = {}
    for index, example in enumerate(examples):
        span = best.get(index, (-np.inf, None))[1]
        answers[example.id] = example.context[span[0] : span[1]] if span else ""
    return answers


def write_predictions(path: Path, answers: dict[str, str]) -> None:
    """Write `{id: text}` JSON, which the official SQuAD evaluation script reads."""
    write_file_aside(path, json.dumps(answers, ensure_ascii=False, indent=1) + "\n")
