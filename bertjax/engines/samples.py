"""The query sample library: a SQuAD file as windows, and the loaded ones as arrays to cut batches from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from bertjax.data.batching import collate
from bertjax.data.dataset import Dataset, load_dataset
from bertjax.data.tokenizer import load_tokenizer, tokenizer_size
from bertjax.data.windows import WindowSettings
from bertjax.modeldir.check import check_config
from bertjax.modeldir.config import INPUTS, BertConfig

LENGTH_MULTIPLE = 8  # batches are padded to multiples of this many tokens
# In Server, where batches have any number of rows: half as many shapes to compile models for, at about 1 % of the rate.
SERVER_MULTIPLE = 16
# In SingleStream where each length has a compiled model of its own, whose kernels, weights and buffers have left the
# caches when its turn comes again: few lengths are worth some padding (benchmarks/backends.py --pad-to).
SINGLE_MULTIPLE = 32


def read_dataset(path: Path, directory: Path, settings: WindowSettings) -> Dataset:
    """Read and tokenize a SQuAD file with a model directory's tokenizer. One window is one LoadGen sample.

    Raises:
      UserError: the file or the tokenizer is wrong, or windows are longer than the model's positions.
    """
    return load_dataset(path, fitting_tokenizer(directory, settings), settings)


def fitting_tokenizer(directory: Path, settings: WindowSettings) -> Tokenizer:
    """A model directory's tokenizer, after it and the windows were found to fit the model.

    Raises:
      UserError: the tokenizer is missing, wrong or larger than the model's table, or windows are longer than the
        model's positions.
    """
    check_config(directory, longest=settings.max_seq)
    tokenizer = load_tokenizer(directory)
    check_config(directory, tokenizer_size=tokenizer_size(tokenizer))
    return tokenizer


def open_library(path: Path, directory: Path, settings: WindowSettings) -> tuple[Dataset, SampleLibrary]:
    """`read_dataset` and the library of its windows, none of which is loaded yet.

    Raises:
      UserError: the file or the tokenizer is wrong, or windows are longer than the model's positions.
    """
    dataset = read_dataset(path, directory, settings)
    return dataset, SampleLibrary(dataset, BertConfig.from_json(Path(directory) / "config.json").pad_token_id)


class SampleLibrary:
    """The windows that are loaded, as padded arrays from which batches are cut. Indices are those of the dataset."""

    def __init__(self, dataset: Dataset, pad_id: int):
        self.lengths = dataset.lengths  # int32 [windows], of all of them
        self.sizes = dataset.lengths.tolist()  # the same as plain integers, for batches of a few
        self.longest = int(dataset.lengths.max())
        self._windows, self._pad_id = dataset.windows, pad_id
        self._rows = [-1] * len(dataset.windows)  # each window's row in the arrays, -1: not loaded
        self._arrays: dict[str, np.ndarray] = {}

    def load(self, indices: Sequence[int]) -> None:
        """Bring windows into memory; those loaded before are forgotten."""
        arrays = collate(self._windows, indices, self.longest, self._pad_id)
        self._arrays = {name: arrays[name].astype(np.int64) for name in INPUTS}  # as backends take them
        self._rows = [-1] * len(self._rows)
        for row, index in enumerate(indices):
            self._rows[index] = row

    def unload(self, indices: Sequence[int]) -> None:
        """Forget windows."""
        for index in indices:
            self._rows[index] = -1
        if max(self._rows) < 0:
            self._arrays = {}

    def gather(self, indices: Sequence[int] | np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`input_ids`, `attention_mask`, `token_type_ids`, int64 [len(indices), length], of loaded windows.

        `length` is at least that of each of them and at most `longest`. To be read only: one window is not copied.
        """
        rows = [self._rows[index] for index in indices]
        assert min(rows) >= 0, "LoadGen asked for a sample that it did not load"
        taken = slice(rows[0], rows[0] + 1) if len(rows) == 1 else np.array(rows)
        ids, mask, types = (self._arrays[name][:, :length][taken] for name in INPUTS)
        return ids, mask, types
