"""TensorRT, or TensorRT for RTX, on an NVIDIA GPU, with buffers through `cuda-python`."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bertjax.errors import UserError, WorkFailed
from bertjax.mlperf.backend import Logits, require
from bertjax.onnx.export import source_digest
from bertjax.tensorrt.binding import find_gpu
from bertjax.tensorrt.record import LIBRARIES, read_record

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUTS = ("start_logits", "end_logits")

Shape = tuple[int, int]  # sequences, tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """One optimization profile of an engine: the shapes that it takes, and the context that runs them."""

    smallest: Shape
    largest: Shape
    context: Any  # IExecutionContext


class TensorRTBackend:
    """An engine with an execution context for each of its profiles, which share device buffers. See `backend.Backend`.

    A batch runs in the profile that pads it least, one larger than every profile in several parts.
    """

    name = "tensorrt"
    streams = 1  # the GPU is filled by the batch
    batch_tokens = 32768

    def __init__(self, directory: Path, *, longest: int):
        """Deserialize `model.engine` and allocate its buffers.

        Raises:
          UserError: there is no engine, no GPU or no library; or the engine is of other weights, of another version
            of its library, for another GPU, or built for shorter windows.
          WorkFailed: CUDA refuses, for lack of memory or otherwise.
        """
        path = Path(directory) / "model.engine"
        trt = _library_of(path)
        self._cuda = require("cuda.bindings.runtime", self.name, "pip install cuda-python")
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))  # must outlive the engine
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise UserError(
                f"{path}: {trt.__name__} {trt.__version__} cannot load it on this GPU;"
                f" build it here with: python export/to_trt.py --model {directory}"
            )
        self._stream = self._call("cudaStreamCreate")
        self._profiles = [self._open_profile(path, index) for index in range(self._engine.num_optimization_profiles)]
        tokens = max(profile.largest[1] for profile in self._profiles)
        if longest > tokens:
            raise UserError(
                f"{path}: built for at most {tokens} tokens, the longest window has {longest};"
                " build it again with a larger --seq"
            )
        self._dtypes = {name: np.dtype(trt.nptype(self._engine.get_tensor_dtype(name))) for name in INPUTS + OUTPUTS}
        count = max(rows * length for rows, length in (profile.largest for profile in self._profiles))
        self._device = {
            name: int(self._call("cudaMalloc", count * self._dtypes[name].itemsize)) for name in INPUTS + OUTPUTS
        }
        for profile in self._profiles:
            for name, address in self._device.items():
                profile.context.set_tensor_address(name, address)
        self._lock = threading.Lock()
        shapes = ", ".join("up to {} x {}".format(*profile.largest) for profile in self._profiles)
        self.description = f"{trt.__name__} {trt.__version__}, {path.name}, profiles {shapes}"

    def _open_profile(self, path: Path, index: int) -> Profile:
        context = self._engine.create_execution_context()
        if context is None:
            raise UserError(f"{path}: no execution context (not enough GPU memory?); build it for smaller shapes")
        if not context.set_optimization_profile_async(index, int(self._stream)):
            raise WorkFailed(f"{path}: TensorRT refuses profile {index}; its log above says why")
        self._call("cudaStreamSynchronize", self._stream)
        smallest, _, largest = self._engine.get_tensor_profile_shape(INPUTS[0], index)
        return Profile(smallest=tuple(smallest), largest=tuple(largest), context=context)

    def infer(self, input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray) -> Logits:
        rows, length = input_ids.shape
        arrays = (input_ids, attention_mask, token_type_ids)
        most = max((profile.largest[0] for profile in self._profiles if length <= profile.largest[1]), default=rows)
        with self._lock:
            parts = [self._run([array[first : first + most] for array in arrays]) for first in range(0, rows, most)]
        starts, ends = (np.concatenate(column)[:, :length] for column in zip(*parts, strict=True))
        return starts, ends

    def _run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """One batch within a profile; returns start and end logits float32 [rows, padded length]."""
        rows, length = arrays[0].shape
        profile = choose_profile(self._profiles, rows, length)
        shape = max(rows, profile.smallest[0]), max(length, profile.smallest[1])
        pad = ((0, shape[0] - rows), (0, shape[1] - length))
        kinds = self._cuda.cudaMemcpyKind
        host = []  # kept until the stream is done with them
        for name, array in zip(INPUTS, arrays, strict=True):
            host.append(np.ascontiguousarray(np.pad(array, pad), self._dtypes[name]))
            profile.context.set_input_shape(name, shape)
            source, target = host[-1].ctypes.data, self._device[name]
            self._copy(target, source, host[-1].nbytes, kinds.cudaMemcpyHostToDevice)
        if not profile.context.execute_async_v3(int(self._stream)):
            raise WorkFailed("TensorRT refused to run a batch; its log above says why")
        results = [np.empty(shape, self._dtypes[name]) for name in OUTPUTS]
        for name, result in zip(OUTPUTS, results, strict=True):
            self._copy(result.ctypes.data, self._device[name], result.nbytes, kinds.cudaMemcpyDeviceToHost)
        self._call("cudaStreamSynchronize", self._stream)
        return [result[:rows].astype(np.float32) for result in results]

    def _copy(self, target: int, source: int, size: int, kind: Any) -> None:
        self._call("cudaMemcpyAsync", target, source, size, kind, self._stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call the CUDA runtime, whose functions return a status and then their results."""
        status, *results = getattr(self._cuda, name)(*arguments)
        if int(status) != 0:
            raise WorkFailed(f"CUDA: {name} failed with {status.name}")
        return results[0] if results else None


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
    name, version, wanted = record["library"], record["library_version"], record["compute_capability"]
    again = f"build it here with: python export/to_trt.py --model {path.parent}"
    gpu = find_gpu()
    if gpu is None:
        raise UserError("--backend tensorrt: no NVIDIA GPU here; choose openvino or onnxruntime")
    if gpu.compute_capability != wanted:
        raise UserError(
            f"{path}: built for compute capability {wanted}, {gpu.name} here has {gpu.compute_capability}; {again}"
        )
    trt = require(name, "tensorrt", LIBRARIES[name])
    if trt.__version__ != version:
        raise UserError(f"{path}: built by {name} {version}, {trt.__version__} is installed; {again}")
    return trt
