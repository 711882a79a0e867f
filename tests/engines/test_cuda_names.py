"""The names of `cuda.bindings.runtime` that bertjax uses, against the source and against the published bindings."""

from __future__ import annotations

import inspect
import re

import pytest

from tests.tensorrt.names import ROOT

# Each function with its number of arguments.
CUDA_FUNCTIONS = {
    "cudaStreamCreateWithFlags": 1,
    "cudaStreamDestroy": 1,
    "cudaStreamSynchronize": 1,
    "cudaMalloc": 1,
    "cudaFree": 1,
    "cudaMallocHost": 1,
    "cudaFreeHost": 1,
    "cudaMemcpyAsync": 5,
    "cudaStreamBeginCapture": 2,
    "cudaStreamEndCapture": 1,
    "cudaGraphInstantiate": 2,
    "cudaGraphDestroy": 1,
    "cudaGraphExecDestroy": 1,
    "cudaGraphLaunch": 2,
    "cudaGetLastError": 0,
}
CUDA_ENUMS = {
    "cudaMemcpyKind": {"cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"},
    "cudaStreamCaptureMode": {"cudaStreamCaptureModeThreadLocal"},
}
CUDA_CONSTANTS = ("cudaStreamNonBlocking",)


def test_the_tables_have_just_the_names_that_are_used() -> None:
    used = set(re.findall(r"\bcuda[A-Z]\w+", (ROOT / "bertjax/engines/cuda.py").read_text()))
    assert used == {*CUDA_FUNCTIONS, *CUDA_ENUMS, *CUDA_CONSTANTS}.union(*CUDA_ENUMS.values())


def test_the_installed_bindings_have_them() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    for name, arguments in CUDA_FUNCTIONS.items():
        assert len(inspect.signature(getattr(runtime, name)).parameters) == arguments, name
    for name, members in CUDA_ENUMS.items():
        assert members <= set(getattr(runtime, name).__members__), name
    assert all(isinstance(getattr(runtime, name), int) for name in CUDA_CONSTANTS)
