"""The serving backend on a GPU that is made up: which profile runs, what reaches its buffers, what is refused."""

from __future__ import annotations

import concurrent.futures
import ctypes
import gc
import hashlib
import json
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest

from bertjax.engines import tensorrt
from bertjax.engines.tensorrt import EngineStream, TensorRTBackend
from bertjax.errors import UserError, WorkFailed
from bertjax.machine import Gpu
from bertjax.modeldir.config import INPUTS, OUTPUTS
from bertjax.onnx.emit import REVISION
from bertjax.onnx.export import source_digest
from tests.engines.fake_cuda import FakeCuda
from tests.engines.test_cuda_names import CUDA_CONSTANTS, CUDA_ENUMS, CUDA_FUNCTIONS
from tests.models import tiny_config, write_random_model
from tests.tensorrt.test_names import MISSING_IN

PROFILES = (((1, 16), (1, 16), (1, 64)), ((2, 32), (8, 32), (8, 64)))


class FakeContext:
    """Answers with `start = input_ids + attention_mask` and `end = token_type_ids + tokens`, and remembers the shapes.

    `tokens` is the sum of the whole mask, padding included.
    """

    def __init__(self, engine: FakeEngine) -> None:
        self._engine, self._addresses, self._shapes, self._met = engine, {}, {}, set()

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._profile = profile_index
        self._engine._cuda.stream(stream_handle)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert self._engine._cuda.kinds[memory] == "device"
        self._addresses[name] = memory
        return True

    def set_input_shape(self, name: str, shape: tuple[int, int]) -> bool:
        least, _, most = PROFILES[self._profile]
        assert least[0] <= shape[0] <= most[0] and least[1] <= shape[1] <= most[1]
        self._shapes[name] = shape
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        (shape,) = {self._shapes[name] for name in INPUTS}
        capturing = self._engine._cuda.stream(stream_handle).captured is not None
        if capturing and (self._engine._refuses_capture or shape not in self._met):
            return False
        self._met.add(shape)
        self._engine._cuda.enqueue(stream_handle, lambda: self._compute(stream_handle, shape))
        return True

    def _compute(self, stream_handle: int, shape: tuple[int, int]) -> None:
        assert {self._shapes[name] for name in INPUTS} == {shape}, "a captured context has changed"
        ids, mask, types = (self._array(name, ctypes.c_int64, shape) for name in INPUTS)
        starts, ends = (self._array(name, ctypes.c_float, shape) for name in OUTPUTS)
        starts[:], ends[:] = ids + mask, types + mask.sum()
        self._engine._ran.append((self._profile, shape))
        self._engine._touched.setdefault(stream_handle, set()).update(self._addresses.values())

    def _array(self, name: str, kind: type, shape: tuple[int, int]) -> np.ndarray:
        pointer = ctypes.cast(self._addresses[name], ctypes.POINTER(kind))
        return np.ctypeslib.as_array(pointer, shape)


class FakeEngine:
    num_optimization_profiles = len(PROFILES)

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda
        self._ran: list[tuple[int, tuple[int, int]]] = []
        self._touched: dict[int, set[int]] = {}  # device addresses by stream
        self._refuses_capture = False
        self._most_contexts = 100

    def create_execution_context(self, strategy: str) -> FakeContext | None:
        assert strategy == "ON_PROFILE_CHANGE"
        self._most_contexts -= 1
        return FakeContext(self) if self._most_contexts >= 0 else None

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
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
    return fake


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda) -> Path:
    FakeRuntime.engine = FakeEngine(cuda)
    for library in ("tensorrt", "tensorrt_rtx"):
        trt = types.ModuleType(library)
        trt.__version__ = "1.7"
        trt.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, severity: None})
        trt.Runtime, trt.nptype = FakeRuntime, lambda dtype: dtype
        trt.ExecutionContextAllocationStrategy = types.SimpleNamespace(ON_PROFILE_CHANGE="ON_PROFILE_CHANGE")
        monkeypatch.setitem(sys.modules, library, trt)
    monkeypatch.setattr(tensorrt, "find_gpu", lambda: Gpu(name="NVIDIA L4", compute_capability="8.9"))
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


def batch(rows: int, length: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    return tuple(rng.integers(0, most, (rows, length)) for most in (1000, 2, 2))


def test_a_batch_runs_in_the_profile_that_pads_it_least(model: Path) -> None:
    backend = TensorRTBackend(model, streams=1, longest=64)
    for rows, length in ((1, 40), (1, 8), (3, 40), (2, 8), (20, 64)):
        check(backend, rows, length)
    assert FakeRuntime.engine._ran == [
        (0, (1, 40)),
        (0, (1, 16)),
        (1, (3, 40)),
        (1, (2, 32)),
        (1, (8, 64)),
        (1, (8, 64)),
        (1, (4, 64)),
    ]
    assert backend.description == "tensorrt_rtx 1.7, model.engine, profiles up to 1 x 64, up to 8 x 64, streams 1"
    with pytest.raises(WorkFailed, match=r"1 x 65 tokens fits no profile .*1 x 64, 8 x 64"):
        backend.infer(*batch(1, 65))


def check(backend: TensorRTBackend, rows: int, length: int, seed: int = 0) -> None:
    ids, mask, types = batch(rows, length, seed)
    starts, ends = backend.infer(ids, mask, types)
    np.testing.assert_array_equal(starts, ids + mask)
    parts = [slice(first, first + 8) for first in range(0, rows, 8)]
    np.testing.assert_array_equal(ends, np.concatenate([types[part] + mask[part].sum() for part in parts]))
    assert starts.dtype == ends.dtype == np.float32


def calls_of(cuda: FakeCuda, backend: TensorRTBackend, *shape: int, seed: int = 0) -> list[str]:
    before = len(cuda.calls)
    check(backend, *shape, seed=seed)
    return cuda.calls[before:]


UP, DOWN, WAIT = ["cudaMemcpyAsync"] * 3, ["cudaMemcpyAsync"] * 2, ["cudaStreamSynchronize"]
CAPTURE = ["cudaStreamBeginCapture", *UP, *DOWN, "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphDestroy"]


def test_single_rows_are_captured_once_for_each_shape_and_then_replayed(model: Path, cuda: FakeCuda) -> None:
    write_record(model, library="tensorrt")
    backend = TensorRTBackend(model, streams=1, longest=64)
    first = calls_of(cuda, backend, 1, 40)
    assert first == [*UP, *DOWN, *WAIT, *WAIT, *UP, *DOWN, *WAIT, *CAPTURE]  # the lone wait is for the new context
    calls_of(cuda, backend, 1, 48)
    for seed in (1, 2):
        for length in (40, 48):
            assert calls_of(cuda, backend, 1, length, seed=seed) == ["cudaGraphLaunch", *WAIT]
    assert calls_of(cuda, backend, 3, 40) == calls_of(cuda, backend, 3, 40) == [*UP, *DOWN, *WAIT]


def test_only_so_many_graphs_are_kept(model: Path, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "MOST_GRAPHS", 2)
    write_record(model, library="tensorrt")
    backend = TensorRTBackend(model, streams=1, longest=64)
    for _ in range(2):
        for length in (24, 32, 40):
            check(backend, 1, length)
    assert list(cuda.kinds.values()).count("executable") == 2
    assert calls_of(cuda, backend, 1, 40) == [*UP, *DOWN, *WAIT]


@pytest.mark.parametrize(
    ("refuses", "ended"),
    [("cudaStreamBeginCapture", 0), ("cudaGraphInstantiate", 1), ("TensorRT", 1), ("memory", 0)],
)
def test_a_refused_capture_is_not_tried_again(model: Path, cuda: FakeCuda, refuses: str, ended: int) -> None:
    write_record(model, library="tensorrt")
    backend = TensorRTBackend(model, streams=1, longest=64)
    cuda.refused.add(refuses)
    FakeRuntime.engine._refuses_capture = refuses == "TensorRT"
    if refuses == "memory":
        FakeRuntime.engine._most_contexts = 0
    calls = calls_of(cuda, backend, 1, 40)
    assert ("cudaGetLastError" in calls) == (refuses != "memory")
    assert calls.count("cudaStreamEndCapture") == calls.count("cudaGraphDestroy") == ended
    assert calls_of(cuda, backend, 1, 40, seed=1) == [*UP, *DOWN, *WAIT]


def test_tensorrt_for_rtx_is_never_captured(model: Path, cuda: FakeCuda) -> None:
    backend = TensorRTBackend(model, streams=1, longest=64)
    assert calls_of(cuda, backend, 1, 40) == calls_of(cuda, backend, 1, 40) == [*UP, *DOWN, *WAIT]


def test_streams_share_no_buffer_and_run_at_once(model: Path, cuda: FakeCuda) -> None:
    write_record(model, library="tensorrt")
    backend = TensorRTBackend(model, streams=16, longest=64)
    assert backend.streams == 2
    together = threading.Barrier(2, timeout=10)
    run = EngineStream.run

    def meet(self: EngineStream, *arguments: object) -> list[np.ndarray]:
        together.wait()  # passes only if two are inside
        return run(self, *arguments)

    with pytest.MonkeyPatch.context() as patch, concurrent.futures.ThreadPoolExecutor(4) as pool:
        patch.setattr(EngineStream, "run", meet)
        list(pool.map(lambda seed: check(backend, 1 + seed % 2, 40, seed), range(40)))
    first, second = FakeRuntime.engine._touched.values()
    assert len(first) == len(second) == 5 and not first & second


def test_a_backend_frees_what_it_holds(model: Path, cuda: FakeCuda) -> None:
    write_record(model, library="tensorrt")
    backend = TensorRTBackend(model, streams=2, longest=64)
    check(backend, 1, 40)
    assert len(cuda.alive) == 2 * (1 + 2 * 5) + 1  # streams with two buffers for each tensor, and one graph
    del backend
    gc.collect()
    assert not cuda.alive and cuda.calls[-1] == "cudaStreamDestroy"


def test_too_little_memory_is_told_and_what_was_had_is_freed(model: Path, cuda: FakeCuda) -> None:
    cuda.largest = 2048  # the outputs fit, the inputs do not
    with pytest.raises(WorkFailed, match="cudaMalloc failed with cudaErrorMemoryAllocation"):
        TensorRTBackend(model, streams=1, longest=64)
    gc.collect()
    assert not cuda.alive


def test_the_fake_of_cuda_has_just_the_names_that_are_used() -> None:
    functions = {name for name in vars(FakeCuda) if name.startswith("cuda")}
    assert functions == set(CUDA_FUNCTIONS) | CUDA_ENUMS.keys() | set(CUDA_CONSTANTS)


def test_the_fakes_of_tensorrt_have_only_names_that_the_bindings_have() -> None:
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
        ({"emitter_revision": REVISION + 1}, "built by an older or newer bertjax"),
        ({"builder_revision": 0}, "built by an older or newer bertjax"),
        ({"compute_capability": None}, "broken, or of another version"),
    ],
)
def test_an_engine_of_something_else_is_refused_before_it_is_loaded(model: Path, changes: dict, told: str) -> None:
    FakeRuntime.engine = None
    write_record(model, **changes)
    with pytest.raises(UserError, match=told) as caught:
        TensorRTBackend(model, streams=1, longest=64)
    assert "export/to_trt.py" in str(caught.value)


def test_what_the_gpu_cannot_do_is_told(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="at most 64 tokens, the longest window has 65"):
        TensorRTBackend(model, streams=1, longest=65)
    FakeRuntime.engine = None
    with pytest.raises(UserError, match="cannot load it on this GPU"):
        TensorRTBackend(model, streams=1, longest=64)
    monkeypatch.setattr(tensorrt, "find_gpu", lambda: None)
    with pytest.raises(UserError, match="no NVIDIA GPU here; choose openvino or onnxruntime"):
        TensorRTBackend(model, streams=1, longest=64)
    (model / "model.engine").unlink()
    with pytest.raises(UserError, match="model.engine: no such file; make it with: python export/to_trt.py"):
        TensorRTBackend(model, streams=1, longest=64)
