"""The serving backend on a GPU that is made up: which profile runs, what reaches its buffers, what is refused."""

from __future__ import annotations

import ctypes
import enum
import hashlib
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from bertjax.errors import UserError, WorkFailed
from bertjax.mlperf import tensorrt_backend
from bertjax.mlperf.tensorrt_backend import INPUTS, OUTPUTS, TensorRTBackend
from bertjax.onnx.export import source_digest
from bertjax.tensorrt.binding import Gpu
from tests.models import tiny_config, write_random_model
from tests.tensorrt.test_names import MISSING_IN

PROFILES = (((1, 16), (1, 16), (1, 64)), ((2, 32), (8, 32), (8, 64)))


class Status(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2


class FakeCuda(types.ModuleType):
    """`cuda.bindings.runtime` with host memory for device memory."""

    cudaMemcpyKind = enum.Enum("cudaMemcpyKind", ["cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"])

    def __init__(self) -> None:
        super().__init__("cuda.bindings.runtime")
        self.memory: list[np.ndarray] = []

    def cudaStreamCreate(self):
        return Status.cudaSuccess, 7

    def cudaMalloc(self, size: int):
        if size > 1 << 20:
            return Status.cudaErrorMemoryAllocation, None
        self.memory.append(np.zeros(size, np.uint8))
        return Status.cudaSuccess, self.memory[-1].ctypes.data

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind, stream: int):
        ctypes.memmove(target, source, size)
        return (Status.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int):
        return (Status.cudaSuccess,)


class FakeContext:
    """Answers with `start = input_ids + attention_mask` and `end = token_type_ids`, and remembers the shapes."""

    def __init__(self, ran: list[tuple[int, tuple[int, int]]]) -> None:
        self._ran, self._addresses, self._shapes = ran, {}, {}

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._profile = profile_index
        return stream_handle == 7

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def set_input_shape(self, name: str, shape: tuple[int, int]) -> bool:
        least, _, most = PROFILES[self._profile]
        assert least[0] <= shape[0] <= most[0] and least[1] <= shape[1] <= most[1]
        self._shapes[name] = shape
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        (shape,) = {self._shapes[name] for name in INPUTS}
        ids, mask, types = (self._array(name, ctypes.c_int64, shape) for name in INPUTS)
        starts, ends = (self._array(name, ctypes.c_float, shape) for name in OUTPUTS)
        starts[:], ends[:] = ids + mask, types
        self._ran.append((self._profile, shape))
        return True

    def _array(self, name: str, kind: type, shape: tuple[int, int]) -> np.ndarray:
        pointer = ctypes.cast(self._addresses[name], ctypes.POINTER(kind))
        return np.ctypeslib.as_array(pointer, shape)


class FakeEngine:
    num_optimization_profiles = len(PROFILES)

    def __init__(self) -> None:
        self._ran: list[tuple[int, tuple[int, int]]] = []

    def create_execution_context(self) -> FakeContext:
        return FakeContext(self._ran)

    def get_tensor_profile_shape(self, name: str, profile_index: int):
        return list(PROFILES[profile_index])

    def get_tensor_dtype(self, name: str):
        return np.int64 if name in INPUTS else np.float32


class FakeRuntime:
    engine: FakeEngine | None = None

    def __init__(self, logger) -> None: ...

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> FakeEngine | None:
        return FakeRuntime.engine


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    trt = types.ModuleType("tensorrt_rtx")
    trt.__version__ = "1.7"
    trt.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, severity: None})
    trt.Runtime, trt.nptype = FakeRuntime, lambda dtype: dtype
    FakeRuntime.engine = FakeEngine()
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", trt)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", FakeCuda())
    monkeypatch.setattr(tensorrt_backend, "find_gpu", lambda: Gpu(name="NVIDIA L4", compute_capability="8.9"))
    write_random_model(tmp_path / "model", tiny_config(((1, 32),)), seed=0)
    (tmp_path / "model" / "model.engine").write_bytes(b"engine")
    write_record(tmp_path / "model")
    return tmp_path / "model"


def write_record(model: Path, **changes: object) -> None:
    record = {
        "engine_sha256": hashlib.sha256(b"engine").hexdigest(),
        "source_sha256": source_digest(model),
        "library": "tensorrt_rtx",
        "library_version": "1.7",
        "compute_capability": "8.9",
    }
    (model / "engine.json").write_text(json.dumps(record | changes))


def batch(rows: int, length: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(rows)
    return tuple(rng.integers(0, most, (rows, length)) for most in (1000, 2, 2))


def test_a_batch_runs_in_the_profile_that_pads_it_least(model: Path) -> None:
    backend = TensorRTBackend(model, longest=64)
    for rows, length in ((1, 40), (1, 8), (3, 40), (2, 8), (20, 64)):
        ids, mask, types = batch(rows, length)
        starts, ends = backend.infer(ids, mask, types)
        np.testing.assert_array_equal(starts, ids + mask)
        np.testing.assert_array_equal(ends, types)
        assert starts.dtype == np.float32
    assert FakeRuntime.engine._ran == [
        (0, (1, 40)),
        (0, (1, 16)),
        (1, (3, 40)),
        (1, (2, 32)),
        (1, (8, 64)),
        (1, (8, 64)),
        (1, (4, 64)),
    ]
    assert backend.description == "tensorrt_rtx 1.7, model.engine, profiles up to 1 x 64, up to 8 x 64"
    with pytest.raises(WorkFailed, match=r"1 x 65 tokens fits no profile .*1 x 64, 8 x 64"):
        backend.infer(*batch(1, 65))


def test_the_fakes_have_only_names_that_the_bindings_have() -> None:
    for fake, real in ((FakeContext, "IExecutionContext"), (FakeEngine, "ICudaEngine"), (FakeRuntime, "Runtime")):
        names = {name for name in vars(fake) if not name.startswith("_")} - {"engine"}
        assert {f"{real}.{name}" for name in names} <= set(MISSING_IN)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"library_version": "1.6"}, r"built by tensorrt_rtx 1\.6, 1\.7 is installed; build it here with: python"),
        ({"compute_capability": "12.0"}, r"built for compute capability 12\.0, NVIDIA L4 here has 8\.9"),
        ({"engine_sha256": "0"}, "not of these weights"),
        ({"source_sha256": "0"}, "not of these weights"),
        ({"library": "other"}, "broken, or of another version"),
        ({"compute_capability": None}, "broken, or of another version"),
    ],
)
def test_an_engine_of_something_else_is_refused_before_it_is_loaded(model: Path, changes: dict, told: str) -> None:
    FakeRuntime.engine = None
    write_record(model, **changes)
    with pytest.raises(UserError, match=told) as caught:
        TensorRTBackend(model, longest=64)
    assert "export/to_trt.py" in str(caught.value)


def test_what_the_gpu_cannot_do_is_told(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="at most 64 tokens, the longest window has 65"):
        TensorRTBackend(model, longest=65)
    FakeRuntime.engine = None
    with pytest.raises(UserError, match="cannot load it on this GPU"):
        TensorRTBackend(model, longest=64)
    monkeypatch.setattr(tensorrt_backend, "find_gpu", lambda: None)
    with pytest.raises(UserError, match="no NVIDIA GPU here; choose openvino or onnxruntime"):
        TensorRTBackend(model, longest=64)
    (model / "model.engine").unlink()
    with pytest.raises(UserError, match="model.engine: no such file; make it with: python export/to_trt.py"):
        TensorRTBackend(model, longest=64)
