"""TensorRT, or TensorRT for RTX, on an NVIDIA GPU, with buffers through `cuda-python`."""

from __future__ import annotations

import dataclasses
import queue
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from bertjax.engines.backend import Backend, Logits, Shape, require
from bertjax.engines.cuda import CudaStream
from bertjax.errors import UserError, WorkFailed
from bertjax.machine import find_gpu
from bertjax.modeldir.config import INPUTS, OUTPUTS
from bertjax.onnx.export import source_digest
from bertjax.tensorrt.record import LIBRARIES, read_record

MOST_STREAMS = 2  # copies and padding of one batch run beside the kernels of another; the GPU is filled by the batch
GRAPH_ROWS = 1  # batches of so many rows run as CUDA graphs: their kernels are shorter than their launches
MOST_GRAPHS = 64  # of a stream; windows of up to 384 tokens, padded to multiples of 8, have 48 lengths


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """One optimization profile of an engine: the shapes that it takes."""

    index: int
    smallest: Shape
    largest: Shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class CapturedRun:
    """A run of one shape as a CUDA graph, and the context that it was captured from, which nobody else may use."""

    executable: Any  # cudaGraphExec_t
    context: Any  # IExecutionContext


class TensorRTBackend(Backend):
    """An engine with streams that share nothing but its weights. See `backend.Backend`.

    A batch runs in the profile that pads it least, one larger than every profile in several parts.
    """

    name = "tensorrt"
    batch_tokens = 32768

    def __init__(self, directory: Path, *, streams: int, longest: int):
        """Deserialize `model.engine` and open its streams.

        Args:
          streams: at most MOST_STREAMS are opened.

        Raises:
          UserError: there is no engine, no GPU or no library; or the engine is of other weights, of another version
            of its library, for another GPU, or built for shorter windows.
          WorkFailed: CUDA refuses, for lack of memory or otherwise.
        """
        path = Path(directory) / "model.engine"
        trt = _library_of(path)
        cuda = require("cuda.bindings.runtime", self.name, "pip install cuda-python")
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))  # must outlive the engine
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise UserError(
                f"{path}: {trt.__name__} {trt.__version__} cannot load it on this GPU;"
                f" build it here with: python export/to_trt.py --model {directory}"
            )
        self._profiles = [self._read_profile(index) for index in range(self._engine.num_optimization_profiles)]
        tokens = max(profile.largest[1] for profile in self._profiles)
        if longest > tokens:
            raise UserError(
                f"{path}: built for at most {tokens} tokens, the longest window has {longest};"
                " build it again with a larger --seq"
            )
        self.streams = min(streams, MOST_STREAMS)
        self._pool: queue.SimpleQueue[EngineStream] = queue.SimpleQueue()
        for _ in range(self.streams):
            self._pool.put(EngineStream(trt, CudaStream(cuda), self._engine, self._profiles))
        shapes = ", ".join("up to {} x {}".format(*profile.largest) for profile in self._profiles)
        version = f"{trt.__name__} {trt.__version__}"
        self.description = f"{version}, {path.name}, profiles {shapes}, streams {self.streams}"

    def _read_profile(self, index: int) -> Profile:
        smallest, _, largest = self._engine.get_tensor_profile_shape(INPUTS[0], index)
        return Profile(index=index, smallest=tuple(smallest), largest=tuple(largest))

    def infer(self, input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray) -> Logits:
        rows, length = input_ids.shape
        arrays = (input_ids, attention_mask, token_type_ids)
        most = max((profile.largest[0] for profile in self._profiles if length <= profile.largest[1]), default=rows)
        stream = self._pool.get()
        try:
            parts = [
                self._run(stream, [array[first : first + most] for array in arrays]) for first in range(0, rows, most)
            ]
        finally:
            self._pool.put(stream)
        starts, ends = (np.concatenate(column) for column in zip(*parts, strict=True))
        return starts, ends

    def _run(self, stream: EngineStream, arrays: list[np.ndarray]) -> list[np.ndarray]:
        return stream.run(choose_profile(self._profiles, *arrays[0].shape), arrays)


class EngineStream:
    """A CUDA stream with buffers, an execution context for each profile, and graphs of the small shapes it has met.

    A graph stays valid as long as nothing changes the context that it was captured from, so each has one of its own.
    Used by one thread at a time.
    """

    def __init__(self, trt: ModuleType, stream: CudaStream, engine: Any, profiles: Sequence[Profile]):
        """Raises:
        WorkFailed: TensorRT or CUDA refuses, for lack of memory or otherwise.
        """
        self._trt, self._stream, self._engine = trt, stream, engine
        # TensorRT for RTX swaps better kernels in after the first runs of a shape; a graph would keep the first ones.
        self._captures = trt.__name__ == "tensorrt"
        count = max(rows * length for rows, length in (profile.largest for profile in profiles))
        dtypes = {name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))) for name in INPUTS + OUTPUTS}
        self._buffers = {name: stream.allocate(count, dtype) for name, dtype in dtypes.items()}
        self._contexts = [self._open_context(profile) for profile in profiles]
        self._graphs: dict[tuple[int, Shape], CapturedRun | None] = {}  # by profile; None: refused

    def run(self, profile: Profile, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """One batch within a profile, arrays [rows, length]; returns start and end logits float32 [rows, length].

        Raises:
          WorkFailed: TensorRT or CUDA fails.
        """
        rows, length = arrays[0].shape
        shape = max(rows, profile.smallest[0]), max(length, profile.smallest[1])
        for name, array in zip(INPUTS, arrays, strict=True):
            host = self._view(name, shape)
            host[:rows, :length] = array
            host[rows:], host[:rows, length:] = 0, 0
        key = profile.index, shape
        if graph := self._graphs.get(key):
            self._stream.launch(graph.executable)
            self._stream.synchronize()
        else:
            self._run_once(self._contexts[profile.index], shape)
        results = [self._view(name, shape)[:rows, :length].astype(np.float32) for name in OUTPUTS]
        small = self._captures and shape[0] <= GRAPH_ROWS
        if small and key not in self._graphs and len(self._graphs) < MOST_GRAPHS:
            self._graphs[key] = self._capture(profile, shape)
        return results

    def _run_once(self, context: Any, shape: Shape) -> None:
        for name in INPUTS:
            context.set_input_shape(name, shape)
        self._enqueue(context, shape)
        self._stream.synchronize()

    def _capture(self, profile: Profile, shape: Shape) -> CapturedRun | None:
        """None where there is no memory for another context, or a capture is refused."""
        try:
            context = self._open_context(profile)
            self._run_once(context, shape)  # a context's first run of a shape does what cannot be captured
        except WorkFailed:
            return None
        executable = self._stream.capture(lambda: self._enqueue(context, shape))
        return None if executable is None else CapturedRun(executable=executable, context=context)

    def _enqueue(self, context: Any, shape: Shape) -> None:
        count = shape[0] * shape[1]
        for name in INPUTS:
            self._stream.upload(self._buffers[name], count)
        if not context.execute_async_v3(self._stream.handle):
            raise WorkFailed("TensorRT refused to run a batch; its log above says why")
        for name in OUTPUTS:
            self._stream.download(self._buffers[name], count)

    def _view(self, name: str, shape: Shape) -> np.ndarray:
        return self._buffers[name].host[: shape[0] * shape[1]].reshape(shape)

    def _open_context(self, profile: Profile) -> Any:
        # Otherwise every context would hold memory for the largest of all profiles.
        strategy = self._trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        context = self._engine.create_execution_context(strategy)
        if context is None:
            raise WorkFailed("TensorRT opens no execution context (not enough GPU memory?); its log above says why")
        if not context.set_optimization_profile_async(profile.index, self._stream.handle):
            raise WorkFailed(f"TensorRT refuses profile {profile.index}; its log above says why")
        self._stream.synchronize()
        for name, buffer in self._buffers.items():
            context.set_tensor_address(name, buffer.device)
        return context


def choose_profile(profiles: Sequence[Profile], rows: int, length: int) -> Profile:
    """The profile in which a batch has the fewest padded tokens; of equals the one for the smallest batches.

    Raises:
      WorkFailed: no profile is large enough.
    """

    def cost(profile: Profile) -> tuple[int, int]:
        return max(rows, profile.smallest[0]) * max(length, profile.smallest[1]), profile.largest[0]

    fitting = [profile for profile in profiles if rows <= profile.largest[0] and length <= profile.largest[1]]
    if not fitting:
        known = ", ".join("{} x {}".format(*profile.largest) for profile in profiles)
        raise WorkFailed(f"a batch of {rows} x {length} tokens fits no profile of the engine (largest: {known})")
    return min(fitting, key=cost)


def _library_of(path: Path) -> Any:
    """The module with which an engine was built, if it is here in the same version and the engine is for this GPU.

    Neither TensorRT nor TensorRT for RTX loads an engine of another version of itself.

    Raises:
      UserError: there is no such engine or library, or no such GPU.
    """
    record = read_record(path, source_sha256=source_digest(path.parent))
    name, version, capability = record["library"], record["library_version"], record["compute_capability"]
    again = f"build it here with: python export/to_trt.py --model {path.parent}"
    gpu = find_gpu()
    if gpu is None:
        raise UserError("--backend tensorrt: no NVIDIA GPU here; choose openvino or onnxruntime")
    if gpu.compute_capability != capability:
        raise UserError(
            f"{path}: built for compute capability {capability}, {gpu.name} here has {gpu.compute_capability}; {again}"
        )
    trt = require(name, "tensorrt", LIBRARIES[name])
    if trt.__version__ != version:
        raise UserError(f"{path}: built by {name} {version}, {trt.__version__} is installed; {again}")
    return trt
