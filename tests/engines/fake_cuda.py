"""`cuda.bindings.runtime` with host memory for device memory: what a stream is given runs when it is waited for."""

from __future__ import annotations

import ctypes
import enum
import types
from collections.abc import Callable

import numpy as np

Work = Callable[[], None]


class Status(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class Stream:
    def __init__(self) -> None:
        self.queued: list[Work] = []
        self.captured: list[Work] | None = None  # None outside a capture


class FakeCuda(types.ModuleType):
    """Remembers the calls in `calls` and what is not freed in `alive`; functions named in `refused` fail."""

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = enum.Enum("cudaMemcpyKind", ["cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"])
    cudaStreamCaptureMode = enum.Enum("cudaStreamCaptureMode", ["cudaStreamCaptureModeThreadLocal"])

    def __init__(self) -> None:
        super().__init__("cuda.bindings.runtime")
        self.calls: list[str] = []
        self.refused: set[str] = set()
        self.alive: dict[int, object] = {}
        self.kinds: dict[int, str] = {}  # of each address or handle: the function that made it
        self.largest = 1 << 20  # bytes of an allocation

    def __getattribute__(self, name: str):
        found = super().__getattribute__(name)
        if not name.startswith("cuda") or not callable(found) or isinstance(found, type):
            return found

        def call(*arguments):
            self.calls.append(name)
            return (Status.cudaErrorInvalidValue, None) if name in self.refused else found(*arguments)

        return call

    def stream(self, handle: int) -> Stream:
        return self.alive[handle]

    def enqueue(self, handle: int, work: Work) -> None:
        stream = self.stream(handle)
        (stream.queued if stream.captured is None else stream.captured).append(work)

    def cudaStreamCreateWithFlags(self, flags: int):
        assert flags == self.cudaStreamNonBlocking
        return self._make("stream", Stream())

    def cudaStreamDestroy(self, stream: int):
        return self._free("stream", stream)

    def cudaStreamSynchronize(self, stream: int):
        assert self.stream(stream).captured is None
        queued, self.stream(stream).queued = self.stream(stream).queued, []
        for work in queued:
            work()
        return (Status.cudaSuccess,)

    def cudaMalloc(self, size: int):
        return self._allocate("device", size)

    def cudaFree(self, devPtr: int):
        return self._free("device", devPtr)

    def cudaMallocHost(self, size: int):
        return self._allocate("host", size)

    def cudaFreeHost(self, ptr: int):
        return self._free("host", ptr)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: enum.Enum, stream: int):
        to_device = kind == self.cudaMemcpyKind.cudaMemcpyHostToDevice
        assert (self.kinds[dst], self.kinds[src]) == (("device", "host") if to_device else ("host", "device"))
        assert count <= min(self.alive[dst].nbytes, self.alive[src].nbytes)
        self.enqueue(stream, lambda: ctypes.memmove(dst, src, count) and None)
        return (Status.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: int, mode: enum.Enum):
        assert mode == self.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        assert not self.stream(stream).queued
        self.stream(stream).captured = []
        return (Status.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int):
        captured, self.stream(stream).captured = self.stream(stream).captured, None
        return self._make("graph", captured)

    def cudaGraphInstantiate(self, graph: int, flags: int):
        assert flags == 0 and self.kinds[graph] == "graph"
        return self._make("executable", list(self.alive[graph]))

    def cudaGraphDestroy(self, graph: int):
        return self._free("graph", graph)

    def cudaGraphExecDestroy(self, graphExec: int):
        return self._free("executable", graphExec)

    def cudaGraphLaunch(self, graphExec: int, stream: int):
        assert self.kinds[graphExec] == "executable"
        for work in self.alive[graphExec]:
            self.enqueue(stream, work)
        return (Status.cudaSuccess,)

    def cudaGetLastError(self):
        return (Status.cudaErrorInvalidValue,)

    def _allocate(self, kind: str, size: int):
        if size > self.largest:
            return Status.cudaErrorMemoryAllocation, None
        memory = np.zeros(size, np.uint8)
        return self._make(kind, memory, memory.ctypes.data)

    def _make(self, kind: str, thing: object, handle: int | None = None):
        handle = id(thing) if handle is None else handle
        self.alive[handle], self.kinds[handle] = thing, kind
        return Status.cudaSuccess, handle

    def _free(self, kind: str, handle: int):
        assert self.kinds[handle] == kind
        del self.alive[handle]
        return (Status.cudaSuccess,)
