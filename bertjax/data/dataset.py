"""A data file's questions together with their windows, as training, calibration and evaluation read them."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from bertjax.data.squad import Example, read_squad
from bertjax.data.windows import Window, WindowSettings, make_windows
from bertjax.identity import digest_arrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """`windows` in the order of `examples`; `lengths` in tokens, int32 [windows]."""

    examples: list[Example]
    windows: list[Window]
    lengths: np.ndarray
    longest: int  # the longest window allowed, in tokens

    @functools.cached_property
    def digest(self) -> str:
        """Digest of what a network reads and learns from: token ids, types and answers of all windows, in order."""
        ids = [window.input_ids for window in self.windows]
        spans = [(window.context_start, window.start, window.end) for window in self.windows]
        return digest_arrays(
            {
                "ids": np.concatenate(ids) if ids else np.empty(0, np.int32),
                "lengths": self.lengths,
                "spans": np.array(spans, np.int64),
                "longest": np.array(self.longest),
            }
        )


def load_dataset(
    path: Path, tokenizer: Tokenizer, settings: WindowSettings, *, questions: int | None = None, seed: int = 0
) -> Dataset:
    """Read a file of questions and cut it into windows.

    Args:
      questions: keep this many, drawn at random by `seed`; None keeps all.

    Raises:
      UserError: the file has faults, or `max_seq` leaves no room for a context.
    """
    return from_examples(draw_questions(read_squad(path), questions, seed), tokenizer, settings)


def draw_questions(examples: list[Example], count: int | None, seed: int) -> list[Example]:
    """So many questions, drawn at random by `seed`, in their order; all if `count` is None or there are fewer."""
    if count is None or count >= len(examples):
        return examples
    chosen = np.random.default_rng(seed).choice(len(examples), count, replace=False)
    return [examples[index] for index in sorted(chosen)]


def from_examples(examples: list[Example], tokenizer: Tokenizer, settings: WindowSettings) -> Dataset:
    """Cut questions into windows.

    Raises:
      UserError: `max_seq` leaves no room for a context.
    """
    windows = make_windows(examples, tokenizer, settings)
    lengths = np.array([len(window) for window in windows], np.int32)
    return Dataset(examples=examples, windows=windows, lengths=lengths, longest=settings.max_seq)
