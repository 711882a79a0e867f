"""A backend: a model that is ready to answer."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Protocol

import numpy as np

from bertjax import machine
from bertjax.errors import UserError

Logits = tuple[np.ndarray, np.ndarray]
Shape = tuple[int, int]  # sequences, tokens

BACKENDS = ("auto", "openvino", "onnxruntime", "tensorrt", "jax", "noop")
CPU_ENGINES = ("openvino", "onnxruntime")


class Backend(Protocol):
    """A model that is ready to answer. Engines derive from it and say what they can beyond `infer`.

    The following conditions hold: `infer` may be called from up to `streams` threads at once, any other number
    of calls waits; a call either returns or raises; results are the caller's own arrays.
    """

    name: str  # one of BACKENDS
    description: str  # library, version, arithmetic, streams and threads, for the record
    streams: int  # how many calls of `infer` it runs at once
    batch_tokens: int  # padded tokens in a batch at which its throughput is about best
    shares_cores: bool = False  # takes any number of streams and threads of each; else what fits its device
    compiles_shapes: bool = False  # `compile_shapes` makes batches faster

    @property
    def calls(self) -> int:
        """Calls of `infer` at once that keep all streams busy; more than `streams` where arrays have to travel."""
        return self.streams

    def infer(self, input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray) -> Logits:
        """Run one padded batch.

        Args:
          input_ids, attention_mask, token_type_ids: int64 [batch, seq].

        Returns:
          start_logits, end_logits: float32 [batch, seq]; what they hold at padding means nothing.
        """
        ...

    def compile_shapes(self, shapes: Sequence[Shape]) -> None:
        """Compile the model once more for batches of just each of these shapes, on every stream.

        Nothing happens for a shape that was compiled before, and on a backend without `compiles_shapes`.
        """
        return

    def resident_bytes(self) -> int:
        """Memory of the processes that hold the models; on several machines, of the one where that is most."""
        return machine.resident_bytes() or 0


def require(module: str, backend: str, install: str) -> ModuleType:
    """Import a backend's library.

    Raises:
      UserError: it is not installed, or does not load here.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: a shared library that it links to is missing
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"--backend {backend}: {module} does not load ({line}); {install}") from None
