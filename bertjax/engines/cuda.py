"""A CUDA stream with buffers of its own, and work on it captured as CUDA graphs. Through `cuda-python`."""

from __future__ import annotations

import ctypes
import dataclasses
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from bertjax.errors import WorkFailed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Buffer:
    """An array in page-locked host memory and as many bytes on the device."""

    host: np.ndarray  # [count], lives as long as its stream
    device: int  # address


class CudaStream:
    """A stream, its buffers and its graphs, freed when nothing refers to it any more and at the end of the process.

    Used by one thread at a time. What two streams do never meets: they wait neither for each other nor for the
    default stream, and each has buffers of its own.
    """

    def __init__(self, cuda: ModuleType):
        """Args:
          cuda: `cuda.bindings.runtime`.

        Raises:
          WorkFailed: CUDA refuses.
        """
        self._cuda = cuda
        self._owned: list[tuple[str, Any]] = []  # function that frees it, and what
        self.close = weakref.finalize(self, _free, cuda, self._owned)
        self._stream = self._own("cudaStreamDestroy", "cudaStreamCreateWithFlags", cuda.cudaStreamNonBlocking)

    @property
    def handle(self) -> int:
        """The stream as a number, as TensorRT takes it."""
        return int(self._stream)

    def allocate(self, count: int, dtype: np.dtype) -> Buffer:
        """Raises:
        WorkFailed: there is not enough memory.
        """
        size = count * dtype.itemsize
        device = int(self._own("cudaFree", "cudaMalloc", size))
        address = int(self._own("cudaFreeHost", "cudaMallocHost", size))
        return Buffer(
            host=np.frombuffer(memoryview((ctypes.c_byte * size).from_address(address)), dtype), device=device
        )

    def upload(self, buffer: Buffer, count: int) -> None:
        """Enqueue the copy of the first `count` elements to the device."""
        self._copy(buffer.device, buffer.host.ctypes.data, count * buffer.host.itemsize, "cudaMemcpyHostToDevice")

    def download(self, buffer: Buffer, count: int) -> None:
        """Enqueue the copy of the first `count` elements to the host; they are there after `synchronize`."""
        self._copy(buffer.host.ctypes.data, buffer.device, count * buffer.host.itemsize, "cudaMemcpyDeviceToHost")

    def synchronize(self) -> None:
        self._call("cudaStreamSynchronize", self._stream)

    def capture(self, enqueue: Callable[[], None]) -> Any | None:
        """Record what `enqueue` puts on the stream, which does not run, as a graph for `launch`.

        Returns:
          The executable graph; None where CUDA or `enqueue`, with WorkFailed, refuses.
        """
        graph = None
        try:
            # Other threads may allocate meanwhile; in the strictest mode that would spoil the capture.
            mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
            self._call("cudaStreamBeginCapture", self._stream, mode)
            try:
                enqueue()
            finally:  # else the stream stays in capture
                graph = self._call("cudaStreamEndCapture", self._stream)
            return self._own("cudaGraphExecDestroy", "cudaGraphInstantiate", graph, 0)
        except WorkFailed:
            self._cuda.cudaGetLastError()  # clears it: the next to ask would take it for its own
            return None
        finally:
            if graph is not None:
                self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any) -> None:
        """Enqueue all that a graph holds, which reads and writes its buffers as they are then."""
        self._call("cudaGraphLaunch", graph, self._stream)

    def _copy(self, target: int, source: int, size: int, kind: str) -> None:
        self._call("cudaMemcpyAsync", target, source, size, getattr(self._cuda.cudaMemcpyKind, kind), self._stream)

    def _own(self, free: str, make: str, *arguments: Any) -> Any:
        made = self._call(make, *arguments)
        self._owned.append((free, made))
        return made

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call the CUDA runtime, whose functions return a status and then their results."""
        status, *results = getattr(self._cuda, name)(*arguments)
        if int(status) != 0:
            raise WorkFailed(f"CUDA: {name} failed with {status.name}")
        return results[0] if results else None


def _free(cuda: ModuleType, owned: list[tuple[str, Any]]) -> None:
    """Free in reverse order, the stream last and once its work is done. Errors have nobody left to tell."""
    if owned:
        cuda.cudaStreamSynchronize(owned[0][1])
    while owned:
        free, what = owned.pop()
        getattr(cuda, free)(what)
