"""TensorRT, or TensorRT for RTX, on an NVIDIA GPU, with buffers through `cuda-python`."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np

from bertjax.errors import UserError, WorkFailed
from bertjax.mlperf.backend import Logits, require
from bertjax.onnx.export import source_digest
from bertjax.tensorrt.binding import has_gpu

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUTS = ("start_logits", "end_logits")


class TensorRTBackend:
    """An engine with one execution context and device buffers of the profile's largest shape. See `backend.Backend`."""

    name = "tensorrt"
    streams = 1  # one context; the GPU is filled by the batch
    batch_tokens = 32768

    def __init__(self, directory: Path, *, longest: int):
        """Deserialize `model.engine` and allocate its buffers.

        Raises:
          UserError: there is no engine, no GPU or no library; or the engine is of other weights, of another library
            or GPU, or built for shorter windows.
        """
        path = Path(directory) / "model.engine"
        trt = _library_of(path)
        if not has_gpu():
            raise UserError("--backend tensorrt: no NVIDIA GPU here; choose openvino or onnxruntime")
        self._cuda = require("cuda.bindings.runtime", self.name, "pip install cuda-python")
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))  # must outlive the engine
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise UserError(
                f"{path}: {trt.__name__} {trt.__version__} cannot load it on this GPU;"
                f" build it here with: python export/to_trt.py --model {directory}"
            )
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise UserError(f"{path}: no execution context (not enough GPU memory?); build it for smaller shapes")
        shapes = [self._engine.get_tensor_profile_shape(name, 0) for name in INPUTS]
        self._smallest, self._largest = tuple(shapes[0][0]), tuple(shapes[0][2])
        if longest > self._largest[1]:
            raise UserError(
                f"{path}: built for at most {self._largest[1]} tokens, the longest window has {longest};"
                " build it again with a larger --seq"
            )
        self._dtypes = {name: np.dtype(trt.nptype(self._engine.get_tensor_dtype(name))) for name in INPUTS + OUTPUTS}
        self._stream = self._call("cudaStreamCreate")
        self._device: dict[str, int] = {}
        for name in INPUTS + OUTPUTS:
            count = self._largest[0] * self._largest[1]
            self._device[name] = int(self._call("cudaMalloc", count * self._dtypes[name].itemsize))
            self._context.set_tensor_address(name, self._device[name])
        self._lock = threading.Lock()
        rows, length = self._largest
        self.description = f"{trt.__name__} {trt.__version__}, {path.name}, profile up to {rows} x {length}"

    def infer(self, input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray) -> Logits:
        rows, length = input_ids.shape
        arrays = (input_ids, attention_mask, token_type_ids)
        with self._lock:
            parts = [
                self._run([array[first : first + self._largest[0]] for array in arrays])
                for first in range(0, rows, self._largest[0])
            ]
        starts, ends = (np.concatenate(column)[:, :length] for column in zip(*parts, strict=True))
        return starts, ends

    def _run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """One batch within the profile; returns start and end logits float32 [rows, padded length]."""
        rows, length = arrays[0].shape
        shape = max(rows, self._smallest[0]), max(length, self._smallest[1])
        pad = ((0, shape[0] - rows), (0, shape[1] - length))
        kinds = self._cuda.cudaMemcpyKind
        host = []  # kept until the stream is done with them
        for name, array in zip(INPUTS, arrays, strict=True):
            host.append(np.ascontiguousarray(np.pad(array, pad), self._dtypes[name]))
            self._context.set_input_shape(name, shape)
            source, target = host[-1].ctypes.data, self._device[name]
            self._copy(target, source, host[-1].nbytes, kinds.cudaMemcpyHostToDevice)
        if not self._context.execute_async_v3(int(self._stream)):
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


def _library_of(path: Path) -> Any:
    """The module, `tensorrt` or `tensorrt_rtx`, with which an engine was built, as `engine.json` beside it says.

    Raises:
      UserError: there is no engine, it is of other weights than its directory's, or the library is not installed.
    """
    mend = f"make it with: python export/to_trt.py --model {path.parent}"
    try:
        record = json.loads(path.with_name("engine.json").read_text(encoding="utf-8"))
        name = next(name for name in ("tensorrt", "tensorrt_rtx") if name in record["versions"])
        fits = record["engine_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        fits = fits and record["source_sha256"] == source_digest(path.parent)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no such file; {mend}") from None
    except (ValueError, KeyError, StopIteration, TypeError):
        raise UserError(f"{path.with_name('engine.json')}: broken, or of another version; {mend}") from None
    if not fits:
        raise UserError(f"{path}: not of these weights; {mend}")
    return require(name, "tensorrt", f"pip install {'tensorrt' if name == 'tensorrt' else 'tensorrt-rtx-cu13'}")
