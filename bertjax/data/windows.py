"""Questions to windows: what the network reads, with the way back to the text.

Window layout and stride follow the BERT reference (google-research/bert, run_squad.py; MLPerf's language
reference): `[CLS] question [SEP] part of the context [SEP]`, each part starting `doc_stride` tokens after the last.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from bertjax.data.squad import Answer, Example
from bertjax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowSettings:
    """Lengths in tokens. The defaults are the MLPerf reference's."""

    max_seq: int = 384
    doc_stride: int = 128
    max_query: int = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """One input of the network.

    `input_ids` int32 [length] without padding; tokens before `context_start` are of type 0, the others of type 1.
    `offsets` int32 [context tokens, 2] are character spans in the context. `max_context` bool [context tokens]
    is True where this window shows the token with more surroundings than any other window of the question does.
    `start` and `end` are token positions of the first answer; 0 and 0 where the window does not hold it.
    """

    example: int
    input_ids: np.ndarray
    context_start: int
    offsets: np.ndarray
    max_context: np.ndarray
    start: int
    end: int

    def __len__(self) -> int:
        return len(self.input_ids)


def make_windows(examples: Sequence[Example], tokenizer: Tokenizer, settings: WindowSettings) -> list[Window]:
    """Cut every example into windows, in the examples' order.

    Raises:
      UserError: `max_seq` leaves no room for the context beside the longest question allowed.
    """
    if settings.max_seq < settings.max_query + 4 or settings.doc_stride < 1:
        raise UserError(
            f"--max-seq {settings.max_seq}: must be at least --max-query + 4 = {settings.max_query + 4},"
            f" and --doc-stride {settings.doc_stride} at least 1"
        )
    contexts = list(dict.fromkeys(example.context for example in examples))
    encoded = dict(zip(contexts, _encode(tokenizer, contexts), strict=True))
    questions = _encode(tokenizer, [example.question.strip() for example in examples])
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    windows: list[Window] = []
    for index, (example, (question, _)) in enumerate(zip(examples, questions, strict=True)):
        ids, offsets = encoded[example.context]
        span = _token_span(offsets, example.answers[0]) if example.answers else (-1, -1)
        prefix = np.concatenate([[cls], question[: settings.max_query], [sep]]).astype(np.int32)
        room = settings.max_seq - len(prefix) - 1
        parts = _parts(len(ids), room, settings.doc_stride)
        owner = _owners(parts, len(ids))
        for part, (begin, size) in enumerate(parts):
            start, end = 0, 0
            if span[0] >= begin and span[1] < begin + size:
                start, end = span[0] - begin + len(prefix), span[1] - begin + len(prefix)
            windows.append(
                Window(
                    example=index,
                    input_ids=np.concatenate([prefix, ids[begin : begin + size], [sep]]).astype(np.int32),
                    context_start=len(prefix),
                    offsets=offsets[begin : begin + size],
                    max_context=owner[begin : begin + size] == part,
                    start=start,
                    end=end,
                )
            )
    return windows


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Token ids int32 [n] and character offsets int32 [n, 2] of each text, without special tokens."""
    return [
        (np.array(e.ids, np.int32), np.array(e.offsets, np.int32).reshape(-1, 2))
        for e in tokenizer.encode_batch(list(texts), add_special_tokens=False)
    ]


def _token_span(offsets: np.ndarray, answer: Answer) -> tuple[int, int]:
    """First and last token that touch the answer's characters; (-1, -1) where none does."""
    touching = np.flatnonzero((offsets[:, 1] > answer.start) & (offsets[:, 0] < answer.start + len(answer.text)))
    return (int(touching[0]), int(touching[-1])) if len(touching) else (-1, -1)


def _parts(length: int, room: int, stride: int) -> list[tuple[int, int]]:
    """(begin, size) of each part of a context of `length` tokens."""
    parts, begin = [], 0
    while True:
        size = min(room, length - begin)
        parts.append((begin, size))
        if begin + size >= length:
            return parts
        begin += min(size, stride)


def _owners(parts: list[tuple[int, int]], length: int) -> np.ndarray:
    """For each context token the part that shows it with the largest smaller margin (ties: the first part).

    The reference adds a hundredth of the part's length to the margin, which decides between parts of other sizes.
    """
    score = np.full((len(parts), length), -1.0)
    for row, (begin, size) in enumerate(parts):
        position = np.arange(size)
        score[row, begin : begin + size] = np.minimum(position, size - 1 - position) + 0.01 * size
    return score.argmax(axis=0)
