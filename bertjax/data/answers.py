"""From span logits to answers: the BERT reference's choice, cut out of the context at grapheme clusters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import regex

from bertjax.data.squad import Example
from bertjax.data.windows import Window
from bertjax.files import write_file_aside

N_BEST = 20
MAX_ANSWER_TOKENS = 30

_CLUSTER = regex.compile(r"\X")
# Between two printable ASCII characters there is always a boundary, so that clusters can be counted from there on.
_LAST_ASCII_PAIR = regex.compile(r"(?r)[ -~]{2}")


def candidate_spans(window: Window, start_logits: np.ndarray, end_logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the spans of one window from which its answer is chosen, and their scores.

    These are the pairs among the `N_BEST` best starts and ends that are inside the context, at most `MAX_ANSWER_TOKENS`
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
    """Return the best of `candidate_spans`: its logit sum and its characters; (-inf, None) if there is none."""
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
    """Answer each question with the best span over its windows, cut from its context at grapheme clusters.

    Args:
      start_logits, end_logits: one float array per window, of the window's length or longer.

    Returns:
      Answers by question id; "" for a question without a candidate span.
    """
    best: dict[int, tuple[float, tuple[int, int] | None]] = {}
    for window, starts, ends in zip(windows, start_logits, end_logits, strict=True):
        found = best_span(window, starts, ends)
        if window.example not in best or found[0] > best[window.example][0]:
            best[window.example] = found
    answers = {}
    for index, example in enumerate(examples):
        span = best.get(index, (-np.inf, None))[1]
        answers[example.id] = example.context[slice(*whole_clusters(example.context, *span))] if span else ""
    return answers


def whole_clusters(text: str, start: int, end: int) -> tuple[int, int]:
    """Widen the span [start, end) of `text` to whole grapheme clusters (Unicode UAX 29).

    Tokenizers drop or split off combining marks, variation selectors, joiners and vowel signs; a span that ends with
    its last token's offset would cut them off. Every answer that is shown or scored passes through here.
    """
    if text.isascii():
        return start, end
    pair = _LAST_ASCII_PAIR.search(text, 0, start)
    first = start
    for cluster in _CLUSTER.finditer(text, pair.start() + 1 if pair else 0):
        if cluster.start() <= start:
            first = cluster.start()
        if cluster.end() >= end:
            return first, cluster.end()
    return first, end


def write_predictions(path: Path, answers: dict[str, str]) -> None:
    """Write `{id: text}` JSON, which the official SQuAD evaluation script reads.

    Raises:
      UserError: the place cannot be written.
      WorkFailed: the disk is full.
    """
    write_file_aside(path, json.dumps(answers, ensure_ascii=False, indent=1) + "\n")
