"""What a serving backend is, and how one is chosen and opened."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np

from bertjax.config import BertConfig
from bertjax.errors import UserError
from bertjax.mlperf import cpu

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


def open_backend(name: str, directory: Path, *, streams: int, threads: int, longest: int) -> Backend:
    """Open a model directory on a backend.

    Args:
      name: one of BACKENDS. `auto` takes `tensorrt` where an engine and a GPU are there, else the faster of the
        CPU engines (`cpu_engine`).
      streams, threads: wanted concurrent calls, and threads of each; a backend on a device uses what fits it.
      longest: the longest window that will come, in tokens, for backends that compile or were built per shape.

    Raises:
      UserError: the name is unknown, the directory is no model, or the backend cannot run here.
    """
    directory = Path(directory)
    if name not in BACKENDS:
        raise UserError(f"--backend {name}: unknown; choose one of {', '.join(BACKENDS)}")
    config = BertConfig.from_json(directory / "config.json")
    if name == "auto":
        name = _fastest(directory, config)
    if name == "tensorrt":
        from bertjax.mlperf.tensorrt_backend import TensorRTBackend

        return TensorRTBackend(directory, streams=streams, longest=longest)
    if name == "jax":
        from bertjax.mlperf.jax_backend import JaxBackend

        return JaxBackend(directory, longest=longest)
    if name == "noop":
        from bertjax.mlperf.noop_backend import NoopBackend

        return NoopBackend(streams=streams)
    if name == "openvino":
        from bertjax.mlperf.openvino_backend import OpenVINOBackend

        return OpenVINOBackend(cpu_graph(directory, config), config, streams=streams, threads=threads)
    from bertjax.mlperf.onnxruntime_backend import OnnxRuntimeBackend

    return OnnxRuntimeBackend(cpu_graph(directory, config), config, streams=streams, threads=threads)


def _fastest(directory: Path, config: BertConfig) -> str:
    if (directory / "model.engine").exists():
        from bertjax.tensorrt.binding import has_gpu

        if has_gpu():
            return "tensorrt"
    return cpu_engine(config)


def cpu_engine(config: BertConfig) -> str:
    """The faster of the CPU engines: `openvino`, or `onnxruntime` where OpenVINO's INT8 kernels would saturate."""
    return "onnxruntime" if config.quantization and cpu.saturates_int8() else "openvino"


def cpu_graph(directory: Path, config: BertConfig) -> Path:
    """The directory's graph for CPU engines, exported now if it is absent or not of these weights.

    Raises:
      UserError: the directory is no complete model.
    """
    from bertjax.onnx.export import default_path, export_onnx, is_current

    path = default_path(directory, config, "cpu")
    return path if is_current(path, directory, "cpu") else export_onnx(directory, flavour="cpu")


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
