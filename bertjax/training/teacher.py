"""The teacher's outputs for the training windows: computed once, then read from disk.

Logits and the distilled layers' outputs are kept as float16 in flat token arrays, filled while the first epoch runs:
4 bytes a token, and 2 for each number of a layer. With three layers of hidden size 384 a window of 180 tokens, SQuAD's
mean, takes 415 kB. All losses are computed from these two. Values always pass through float16, computed just now or
read back, so that a resumed run sees the same numbers.
"""

from __future__ import annotations

import dataclasses
import errno
import io
import math
import mmap
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bertjax.data.batching import Batch
from bertjax.data.dataset import Dataset
from bertjax.files import claim_disk, disk_error, write_file_aside
from bertjax.identity import differing_parts, make_identity
from bertjax.model.bert import BertForQuestionAnswering, DeviceBatch, Model, as_arrays, bind
from bertjax.modeldir.config import INPUTS
from bertjax.training.data import StepBatch

METHOD = 1  # revision of what a teacher's outputs are
KEEP_SECONDS = 60.0  # between two times that what was computed is brought to the disk
_IDENTITY = "identity.txt"

Forms = dict[str, tuple[int, ...]]  # shape of each array


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

    identity: str  # of the teacher, the windows and the form of the outputs
    layers: tuple[int, ...]  # 1-based
    add: Callable[[Batch], StepBatch]
    keep: Callable[[], None]  # bring what was computed to the disk; it is also done every now and then


def cache_bytes(teacher: Teacher, dataset: Dataset) -> int:
    """Bytes on disk of the outputs for every token of `dataset`."""
    return int(dataset.lengths.sum()) * 2 * (2 + len(teacher.layers) * teacher.model.config.hidden_size)


def make_targets(teacher: Teacher, dataset: Dataset, *, cache: Path | None, dtype: DTypeLike = jnp.float32) -> Targets:
    """The teacher's outputs for `dataset`.

    Args:
      cache: the folder that keeps the outputs, in a folder of its own for every choice of layers, or None to compute
        them anew for every batch; they then stay on the device, so that an accelerator is not slowed by copies. What
        is there of another teacher or of other windows, or is not whole, is said and begun anew.
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

    identity = make_identity(
        method=METHOD,
        teacher=teacher.model.digest,
        windows=dataset.digest,
        layers="-".join(map(str, teacher.layers)),
        dtype=jnp.dtype(dtype).name,
    )
    if cache is None:
        return Targets(
            identity=identity,
            layers=teacher.layers,
            add=lambda batch: {**batch, **compute(batch)},
            keep=lambda: None,
        )
    kept = f"layers-{'-'.join(map(str, teacher.layers))}" if teacher.layers else "logits"
    store = _Store(cache / kept, identity, dataset.lengths, len(teacher.layers), teacher.model.config.hidden_size)

    def read_or_compute(batch: Batch) -> Batch:
        rows = batch["rows"]
        if not store.holds(rows):
            store.write(rows, as_arrays(compute(batch)))
        return batch | store.read(rows, batch["input_ids"].shape[1])

    return Targets(identity=identity, layers=teacher.layers, add=read_or_compute, keep=store.keep)


class _Store:
    """Memory-mapped arrays over all tokens of all windows, and one byte per window that says it is filled.

    The bytes are written after the outputs that they vouch for have reached the disk, so that after a power failure
    no window counts as filled whose outputs are lost; those are computed again.
    """

    def __init__(self, folder: Path, identity: str, lengths: np.ndarray, layers: int, size: int):
        self.folder, self.lengths, self.begins = folder, lengths, np.concatenate([[0], np.cumsum(lengths)])
        tokens = int(self.begins[-1])
        forms: dict[str, tuple[int, ...]] = {"logits": (2, tokens)}
        if layers:
            forms["hidden"] = (layers, tokens, size)
        try:
            arrays, self.done = self._open(identity, forms) or self._make(identity, forms)
        except OSError as error:
            raise disk_error(folder, error) from None
        self.logits, self.hidden = arrays["logits"], arrays.get("hidden")
        self._kept_at, self._is_kept = time.monotonic(), True
        if self.hidden is not None:
            # The kernel is not to read ahead around touched pages: `_ask_for` names all that is needed.
            _mapping(self.hidden).madvise(mmap.MADV_RANDOM)

    def _open(self, identity: str, forms: Forms) -> tuple[dict[str, np.memmap], np.ndarray] | None:
        """What is kept of this identity; None, and a line, if it is of another one or not whole."""
        if not (self.folder / _IDENTITY).exists():
            return None
        found = (self.folder / _IDENTITY).read_text(encoding="utf-8", errors="replace").strip()
        if found != identity:
            print(f"{self.folder}: of other {', '.join(differing_parts(found, identity))}; computed anew")
            return None
        try:
            for name in forms:  # a file that is too short is lengthened with zeros where it is opened for writing
                np.lib.format.open_memmap(self.folder / f"{name}.npy", mode="r")
            arrays = {name: np.lib.format.open_memmap(self.folder / f"{name}.npy", mode="r+") for name in forms}
            done = np.load(self.folder / "done.npy")
        except (OSError, ValueError, EOFError) as error:
            print(f"{self.folder}: not whole ({error}); computed anew")
            return None
        fits = all(arrays[name].shape == form and arrays[name].dtype == np.float16 for name, form in forms.items())
        if not fits or done.shape != self.lengths.shape or done.dtype != np.uint8:
            print(f"{self.folder}: of another size; computed anew")
            return None
        return arrays, done

    def _make(self, identity: str, forms: Forms) -> tuple[dict[str, np.memmap], np.ndarray]:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        needed = sum(2 * math.prod(form) for form in forms.values())
        if shutil.disk_usage(self.folder).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        arrays = {}
        for name, form in forms.items():
            path = self.folder / f"{name}.npy"
            arrays[name] = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=form)
            claim_disk(path)
        done = np.zeros(self.lengths.shape, np.uint8)
        self._write_done(done)
        write_file_aside(self.folder / _IDENTITY, f"{identity}\n")
        return arrays, done

    def _write_done(self, done: np.ndarray) -> None:
        buffer = io.BytesIO()
        np.save(buffer, done)
        write_file_aside(self.folder / "done.npy", buffer.getvalue())

    def keep(self) -> None:
        """Bring the outputs to the disk, and then the word that they are there."""
        if self._is_kept:
            return
        for array in (self.logits, self.hidden):
            if array is not None:
                array.flush()
        self._write_done(self.done)
        self._kept_at, self._is_kept = time.monotonic(), True

    def holds(self, rows: np.ndarray) -> bool:
        return bool(self.done[rows].all())

    def write(self, rows: np.ndarray, outputs: Batch) -> None:
        for place, row in enumerate(rows):
            begin, length = self.begins[row], self.lengths[row]
            self.logits[0, begin : begin + length] = outputs["teacher_start"][place, :length]
            self.logits[1, begin : begin + length] = outputs["teacher_end"][place, :length]
            if self.hidden is not None:
                self.hidden[:, begin : begin + length] = outputs["teacher_hidden"][:, place, :length]
        self.done[rows], self._is_kept = 1, False
        if time.monotonic() - self._kept_at > KEEP_SECONDS or self.done.all():
            self.keep()

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
