"""Cutting questions and their contexts into windows, the network's inputs, with the way back to the text.

The layout and stride follow the BERT reference (google-research/bert, run_squad.py; MLPerf's language
reference): `[CLS] question [SEP] part of the context [SEP]`, each part starting `doc_stride` tokens after the last.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from bertjax.data.squad import Answer, Example
from bertjax.errors import UserError

ENCODED_TOGETHER = 256  # texts; the tokenizer's own results take some 200 bytes a token until they are copied


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

    Time and memory are linear in the tokens of the windows. What windows share (offsets, ownership) is shared memory.

    Raises:
      UserError: a length is below 1, or `max_seq` leaves no room for the context beside the longest question allowed.
    """
    for flag, tokens in (("--max-query", settings.max_query), ("--doc-stride", settings.doc_stride)):
        if tokens < 1:
            raise UserError(f"{flag} {tokens}: must be at least 1")
    if settings.max_seq < settings.max_query + 4:
        raise UserError(f"--max-seq {settings.max_seq}: must be at least --max-query + 4 = {settings.max_query + 4}")
    contexts = list(dict.fromkeys(example.context for example in examples))
    encoded = dict(zip(contexts, encode(tokenizer, contexts), strict=True))
    questions = encode(tokenizer, [example.question.strip() for example in examples])
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    layouts: dict[tuple[int, int], list[_Part]] = {}  # by tokens of the context and room for them
    windows: list[Window] = []
    for index, (example, (question, _)) in enumerate(zip(examples, questions, strict=True)):
        ids, offsets = encoded[example.context]
        span = _token_span(offsets, example.answers[0]) if example.answers else (-1, -1)
        prefix = np.concatenate([[cls], question[: settings.max_query], [sep]]).astype(np.int32)
        shape = len(ids), settings.max_seq - len(prefix) - 1
        if shape not in layouts:
            layouts[shape] = _parts(*shape, settings.doc_stride)
        for part in layouts[shape]:
            inside = part.begin <= span[0] and span[1] < part.end
            windows.append(
                Window(
                    example=index,
                    input_ids=np.concatenate([prefix, ids[part.begin : part.end], [sep]]).astype(np.int32),
                    context_start=len(prefix),
                    offsets=offsets[part.begin : part.end],
                    max_context=part.owned,
                    start=span[0] - part.begin + len(prefix) if inside else 0,
                    end=span[1] - part.begin + len(prefix) if inside else 0,
                )
            )
    return windows


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Tokenize texts without special tokens.

    Returns:
      Token ids int32 [n] and character offsets int32 [n, 2] of each text.
    """
    found = []
    for first in range(0, len(texts), ENCODED_TOGETHER):
        batch = tokenizer.encode_batch(list(texts[first : first + ENCODED_TOGETHER]), add_special_tokens=False)
        found += [(np.array(e.ids, np.int32), np.array(e.offsets, np.int32).reshape(-1, 2)) for e in batch]
    return found


def _token_span(offsets: np.ndarray, answer: Answer) -> tuple[int, int]:
    """First and last token that touch the answer's characters; (-1, -1) where none does."""
    touching = np.flatnonzero((offsets[:, 1] > answer.start) & (offsets[:, 0] < answer.start + len(answer.text)))
    return (int(touching[0]), int(touching[-1])) if len(touching) else (-1, -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Part:
    """Context tokens from `begin` up to `end` that share a window; `owned` bool [end - begin] is `max_context`."""

    begin: int
    end: int
    owned: np.ndarray


def _parts(length: int, room: int, stride: int) -> list[_Part]:
    """Cut a context of `length` tokens into overlapping parts of at most `room` tokens.

    A token is owned by the part that shows it with the largest smaller margin, and of equal ones by the first. The
    reference adds a hundredth of the part's length to the margin, which decides between parts of unequal lengths.
    """
    bounds: list[tuple[int, int]] = []
    begin = 0
    while not bounds or bounds[-1][1] < length:
        bounds.append((begin, min(begin + room, length)))
        begin += min(room, stride)
    best, owner = np.full(length, -1.0), np.zeros(length, np.int32)
    for number, (begin, end) in enumerate(bounds):
        position = np.arange(end - begin)
        margin = np.minimum(position, position[::-1]) + 0.01 * len(position)
        better = margin > best[begin:end]
        best[begin:end][better] = margin[better]
        owner[begin:end][better] = number
    return [_Part(begin=b, end=e, owned=owner[b:e] == number) for number, (b, e) in enumerate(bounds)]
