"""The teacher's outputs for the training windows: computed once, then read from disk.

Logits and the distilled layers' outputs are kept as float16 in flat token arrays, filled while the first epoch runs:
4 bytes a token, and 2 for each number of a layer. With three layers of hidden size 384 a window of 180 tokens, SQuAD's
mean, takes 415 kB. All losses are computed from these two. Values always pass through float16, computed just now or
read back, so that a resumed run sees the same numbers.
"""

from __future__ import annotations

import dataclasses
import mmap
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bertjax.data.batching import Batch
from bertjax.data.dataset import Dataset
from bertjax.files import claim_disk, disk_error
from bertjax.model.bert import BertForQuestionAnswering, DeviceBatch, Model, as_arrays, bind
from bertjax.modeldir.config import INPUTS
from bertjax.training.data import StepBatch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
    """A span-predicting model, and the layers whose outputs are matched (1-based); none where logits are enough."""

    model: Model
    layers: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Targets:
    """A teacher's outputs for the windows of one dataset.

    `add` gives a batch with `teacher_start` and `teacher_end`, float16 [B, S], and, where there are `layers`,
    `teacher_hidden`, float16 [layers, B, S, D]. The batch must hold `rows`, the indexes of its windows.
    """

    layers: tuple[int, ...]  # 1-based
    add: Callable[[Batch], StepBatch]


def cache_bytes(teacher: Teacher, dataset: Dataset) -> int:
    """Bytes on disk of the outputs for every token of `dataset`."""
    return int(dataset.lengths.sum()) * 2 * (2 + len(teacher.layers) * teacher.model.config.hidden_size)


def make_targets(teacher: Teacher, dataset: Dataset, *, cache: Path | None, dtype: DTypeLike = jnp.float32) -> Targets:
    """The teacher's outputs for `dataset`.

    Args:
      cache: the folder that keeps the outputs, in a folder of its own for every choice of layers, or None to compute
        them anew for every batch; they then stay on the device, so that an accelerator is not slowed by copies.
      dtype: of the teacher's activations.

    Raises:
      WorkFailed: the outputs do not fit the disk.
      UserError: the folder cannot be written.
    """

    @jax.jit
    def forward(model: Model, batch: DeviceBatch) -> dict[str, jax.Array]:
        module = bind(BertForQuestionAnswering, model, dtype=dtype)
        output = module(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
        found = {"teacher_start": output.start_logits, "teacher_end": output.end_logits}
        if teacher.layers:
            found["teacher_hidden"] = jnp.stack([output.hidden_states[layer] for layer in teacher.layers])
        return {name: value.astype(jnp.float16) for name, value in found.items()}

    def compute(batch: Batch) -> dict[str, jax.Array]:
        outputs: dict[str, jax.Array] = forward(teacher.model, {name: batch[name] for name in INPUTS})
        return outputs

    if cache is None:
        return Targets(layers=teacher.layers, add=lambda batch: {**batch, **compute(batch)})
    kept = f"layers-{'-'.join(map(str, teacher.layers))}" if teacher.layers else "logits"
    store = _Store(cache / kept, dataset.lengths, len(teacher.layers), teacher.model.config.hidden_size)

    def read_or_compute(batch: Batch) -> Batch:
        rows = batch["rows"]
        if not store.holds(rows):
            store.write(rows, as_arrays(compute(batch)))
        return batch | store.read(rows, batch["input_ids"].shape[1])

    return Targets(layers=teacher.layers, add=read_or_compute)


class _Store:
    """Memory-mapped arrays over all tokens of all windows, and one byte per window that says it is filled."""

    def __init__(self, folder: Path, lengths: np.ndarray, layers: int, size: int):
        self.lengths, self.begins = lengths, np.concatenate([[0], np.cumsum(lengths)])
        tokens, count = int(self.begins[-1]), len(lengths)
        forms: dict[str, tuple[tuple[int, ...], type]]
        forms = {"done": ((count,), np.uint8), "logits": ((2, tokens), np.float16)}
        if layers:
            forms["hidden"] = ((layers, tokens, size), np.float16)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            needed = tokens * 2 * (2 + layers * size)
            present = sum(file.stat().st_size for file in folder.glob("*.npy"))
            if shutil.disk_usage(folder).free + present < needed:
                raise OSError(28, "No space left on device")
            arrays = {name: _open(folder / f"{name}.npy", *form) for name, form in forms.items()}
        except OSError as error:
            raise disk_error(folder, error) from None
        self.done, self.logits, self.hidden = arrays["done"], arrays["logits"], arrays.get("hidden")
        if self.hidden is not None:
            # The kernel is not to read ahead around touched pages: `_ask_for` names all that is needed.
            _mapping(self.hidden).madvise(mmap.MADV_RANDOM)

    def holds(self, rows: np.ndarray) -> bool:
        return bool(self.done[rows].all())

    def write(self, rows: np.ndarray, outputs: Batch) -> None:
        for place, row in enumerate(rows):
            begin, length = self.begins[row], self.lengths[row]
            self.logits[0, begin : begin + length] = outputs["teacher_start"][place, :length]
            self.logits[1, begin : begin + length] = outputs["teacher_end"][place, :length]
            if self.hidden is not None:
                self.hidden[:, begin : begin + length] = outputs["teacher_hidden"][:, place, :length]
        self.done[rows] = 1

    def read(self, rows: np.ndarray, length: int) -> Batch:
        shape = (len(rows), length)
        found: Batch = {name: np.zeros(shape, np.float16) for name in ("teacher_start", "teacher_end")}
        if self.hidden is not None:
            self._ask_for(self.hidden, rows)
            found["teacher_hidden"] = np.zeros((len(self.hidden), *shape, self.hidden.shape[-1]), np.float16)
        for place, row in enumerate(rows):
            begin, size = self.begins[row], self.lengths[row]
            found["teacher_start"][place, :size] = self.logits[0, begin : begin + size]
            found["teacher_end"][place, :size] = self.logits[1, begin : begin + size]
            if self.hidden is not None:
                found["teacher_hidden"][:, place, :size] = self.hidden[:, begin : begin + size]
        return found

    def _ask_for(self, hidden: np.memmap, rows: np.ndarray) -> None:
        """Have the kernel read the pages of these windows, all at once and nothing else.

        By itself it reads ahead around every touched page, one after the other: 200 MB and 190 ms for a batch of
        10 MB, on a disk with 8 MB of readahead, where this takes 7 ms.
        """
        mapping, token = _mapping(hidden), hidden.strides[1]
        for row in rows:
            for layer in range(len(hidden)):
                begin = hidden.offset + layer * hidden.strides[0] + int(self.begins[row]) * token
                page = begin - begin % mmap.PAGESIZE
                length = begin + int(self.lengths[row]) * token - page
                mapping.madvise(mmap.MADV_WILLNEED, page, length)


def _mapping(array: np.memmap) -> mmap.mmap:
    """The memory map under an array."""
    base: Any = array.base
    return base


def _open(path: Path, shape: tuple[int, ...], dtype: type) -> np.memmap:
    """The array kept in `path`; made anew (all zero, so nothing done) if it is absent or of another shape."""
    if path.exists():
        found = np.lib.format.open_memmap(path, mode="r+")
        if found.shape == shape and found.dtype == dtype:
            return found
    made = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    claim_disk(path)
    return made
