"""Opening a model directory on an engine by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bertjax import machine
from bertjax.engines.backend import BACKENDS, Backend
from bertjax.errors import UserError
from bertjax.modeldir.config import BertConfig

if TYPE_CHECKING:
    from bertjax.engines.onnxruntime import OnnxRuntimeBackend
    from bertjax.engines.openvino import OpenVINOBackend


def open_backend(name: str, directory: Path, *, streams: int, threads: int, longest: int) -> Backend:
    """Open a model directory on a backend.

    Args:
      name: one of BACKENDS. `auto` takes `tensorrt` where an engine and a GPU are there, else the faster of the
        CPU engines (`cpu_engine`).
      streams, threads: concurrent calls, and threads of each; a backend on a device uses what fits it.
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
        from bertjax.engines.tensorrt import TensorRTBackend

        return TensorRTBackend(directory, streams=streams, longest=longest)
    if name == "jax":
        from bertjax.engines.jax import JaxBackend

        return JaxBackend(directory, longest=longest)
    if name == "noop":
        from bertjax.engines.noop import NoopBackend

        return NoopBackend(streams=streams)
    return open_cpu_engine(name, directory, streams=streams, threads=threads)


def open_cpu_engine(name: str, directory: Path, *, streams: int, threads: int) -> OpenVINOBackend | OnnxRuntimeBackend:
    """Open a model directory on one of CPU_ENGINES.

    Raises:
      UserError: the directory is no complete model, or the engine is missing or refuses it.
    """
    config = BertConfig.from_json(directory / "config.json")
    if name == "openvino":
        from bertjax.engines.openvino import OpenVINOBackend

        return OpenVINOBackend(cpu_graph(directory, config), config, streams=streams, threads=threads)
    from bertjax.engines.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(cpu_graph(directory, config), config, streams=streams, threads=threads)


def _fastest(directory: Path, config: BertConfig) -> str:
    if (directory / "model.engine").exists() and machine.has_gpu():
        return "tensorrt"
    return cpu_engine(config)


def cpu_engine(config: BertConfig) -> str:
    """The faster of the CPU engines: `openvino`, or `onnxruntime` where OpenVINO's INT8 kernels would saturate."""
    return "onnxruntime" if config.quantization and machine.saturates_int8() else "openvino"


def cpu_graph(directory: Path, config: BertConfig) -> Path:
    """The directory's graph for CPU engines, exported now if it is absent, changed or not of these weights.

    Raises:
      UserError: the directory is no complete model, or a new graph cannot be written there.
    """
    from bertjax.onnx.export import default_path, export_onnx, is_current

    path = default_path(directory, config, "cpu")
    if is_current(path, directory, "cpu"):
        return path
    if path.exists():
        print(f"{path}: not what bertjax writes from these weights; exported again")
    return export_onnx(directory, flavour="cpu")
