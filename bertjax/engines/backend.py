"""What a backend is: a model that is ready to answer."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Protocol, runtime_checkable

import numpy as np

from bertjax.errors import UserError

Logits = tuple[np.ndarray, np.ndarray]

BACKENDS = ("auto", "openvino", "onnxruntime", "tensorrt", "jax", "noop")
CPU_ENGINES = ("openvino", "onnxruntime")  # they take any number of streams and threads


class Backend(Protocol):
    """A model that is ready to answer.

    The following conditions hold: `infer` may be called from up to `streams` threads at once, any other number
    of calls waits; a call either returns or raises; results are the caller's own arrays.
    """

    name: str  # as in BACKENDS
    description: str  # library, version, arithmetic, streams and threads, for the record
    streams: int  # how many calls of `infer` it runs at once
    batch_tokens: int  # padded tokens in a batch at which its throughput is about best

    def infer(self, input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray) -> Logits:
        """Run one padded batch.

        Args:
          input_ids, attention_mask, token_type_ids: int64 [batch, seq].

        Returns:
          start_logits, end_logits: float32 [batch, seq]; what they hold at padding means nothing.
        """
        ...


@runtime_checkable
class ShapeCompiler(Protocol):
    """A backend that can compile a model once more for batches of just one shape."""

    def fix(self, shape: tuple[int, int], stream: int) -> None:
        """Do so for `(batch, seq)` on one stream; a second time nothing happens."""
        ...


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
