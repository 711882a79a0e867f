"""A data file's questions together with their windows, as training, calibration and evaluation read them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from bertjax.data.squad import Example, read_squad
from bertjax.data.windows import Window, WindowSettings, make_windows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """`windows` in the order of `examples`; `lengths` in tokens, int32 [windows]."""

    examples: list[Example]
    windows: list[Window]
    lengths: np.ndarray
    longest: int  # the longest window allowed, in tokens


def load_dataset(
    path: Path, tokenizer: Tokenizer, settings: WindowSettings, *, questions: int | None = None, seed: int = 0
) -> Dataset:
    """Read a file of questions and cut it into windows.

    Args:
      questions: keep this many, drawn at random by `seed`; None keeps all.

    Raises:
      UserError: the file has faults, or `max_seq` leaves no room for a context.
    """
    examples = read_squad(path)
    if questions is not None and questions < len(examples):
        chosen = np.random.default_rng(seed).choice(len(examples), questions, replace=False)
        examples = [examples[index] for index in sorted(chosen)]
    return from_examples(examples, tokenizer, settings)


def from_examples(examples: list[Example], tokenizer: Tokenizer, settings: WindowSettings) -> Dataset:
    """Cut questions into windows.

    Raises:
      UserError: `max_seq` leaves no room for a context.
    """
    windows = make_windows(examples, tokenizer, settings)
    lengths = np.array([len(window) for window in windows], np.int32)
    return Dataset(examples=examples, windows=windows, lengths=lengths, longest=settings.max_seq)
