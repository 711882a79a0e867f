"""The model itself, in JAX, on whatever device JAX finds. The only module of this room that imports JAX."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import tqdm

from bertjax.engines.backend import Backend, Logits, require
from bertjax.modeldir.config import BertConfig

LENGTH_STEP = 64  # XLA compiles anew for every shape, so few shapes are let through


class JaxBackend(Backend):
    """The model compiled ahead for a few lengths, each for one row and for a full batch. See `backend.Backend`."""

    name = "jax"
    streams = 1  # XLA runs one program over all threads
    batch_tokens = 2048

    def __init__(self, directory: Path, *, longest: int):
        """Load a model directory and compile every shape that windows of up to `longest` tokens need.

        The dense layers of a quantized model multiply integers. What it leaves in float runs in bfloat16 on a GPU or
        TPU, whose matrix units take it; on a CPU the casts save nothing, and FP32 is exact.

        Raises:
          UserError: JAX is missing, or the directory is no complete model.
        """
        jax = require("jax", self.name, "pip install jax flax")
        from bertjax.model import bert
        from bertjax.model.int8 import use_integers

        quantized = BertConfig.from_json(Path(directory) / "config.json").quantization is not None
        device = jax.devices()[0].platform
        dtype = jax.numpy.bfloat16 if quantized and device != "cpu" else jax.numpy.float32
        module = bert.load(directory, dtype=dtype)
        if quantized:
            use_integers(module)
        self._logits = bert.jit_logits(module)
        self._lock = threading.Lock()
        self._lengths = [*range(LENGTH_STEP, longest, LENGTH_STEP), longest]
        for length in tqdm.tqdm(self._lengths, desc="compile for JAX", unit="length", leave=False, disable=None):
            for rows in (1, self._full(length)):
                blank = np.ones((rows, length), np.int32)
                self._logits(blank, blank, blank)
        floats = "BF16" if dtype == jax.numpy.bfloat16 else "FP32"
        numbers = f"INT8 + {floats}" if quantized else floats
        self.description = f"JAX {jax.__version__}, {numbers}, {device}"

    def infer(self, input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray) -> Logits:
        rows, length = input_ids.shape
        padded = next(n for n in self._lengths if n >= length)
        step = self._full(padded) if rows > 1 else 1
        pad = ((0, -rows % step), (0, padded - length))
        inputs = [np.pad(array.astype(np.int32), pad) for array in (input_ids, attention_mask, token_type_ids)]
        with self._lock:
            parts = [self._logits(*(array[first : first + step] for array in inputs)) for first in range(0, rows, step)]
            starts, ends = (np.concatenate(column)[:rows, :length] for column in zip(*parts, strict=True))
        return starts, ends

    def _full(self, length: int) -> int:
        """Rows of a full batch."""
        return max(1, self.batch_tokens // length)
