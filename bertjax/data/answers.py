"""Span logits to answers, as the BERT reference does it, in NumPy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bertjax.data.features import Window
from bertjax.data.squad import Example
from bertjax.modeldir import write_file_aside

N_BEST = 20
MAX_ANSWER_TOKENS = 30


def best_span(window: Window, start_logits: np.ndarray, end_logits: np.ndarray) -> tuple[float, tuple[int, int] | None]:
    """The best answer span of one window.

    Args:
      start_logits, end_logits: float [at least len(window)]; what lies past the window's length is ignored.

    Returns:
      The sum of the two logits and the answer's character span in the context; (-inf, None) if no pair among the
      `N_BEST` best starts and ends is a valid span: inside the context, at most `MAX_ANSWER_TOKENS` long, starting
      at a token that this window owns.
    """
    size = len(window)
    starts, ends = _largest(start_logits[:size]), _largest(end_logits[:size])
    first, last = window.context_start, window.context_start + len(window.offsets)
    starts = starts[(starts >= first) & (starts < last)]
    starts = starts[window.max_context[starts - first]]
    ends = ends[(ends >= first) & (ends < last)]
    length = ends[None, :] - starts[:, None] + 1
    valid = (length >= 1) & (length <= MAX_ANSWER_TOKENS)
    if not valid.any():
        return -np.inf, None
    score = np.where(valid, start_logits[starts][:, None] + end_logits[ends][None, :], -np.inf)
    row, column = np.unravel_index(np.argmax(score), score.shape)
    begin, end = window.offsets[starts[row] - first][0], window.offsets[ends[column] - first][1]
    return float(score[row, column]), (int(begin), int(end))


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
