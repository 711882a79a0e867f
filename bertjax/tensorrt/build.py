"""Building an engine. One path for `tensorrt` 10 and 11 and for `tensorrt_rtx`, which share their Python API."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm

from bertjax.errors import UserError, WorkFailed
from bertjax.machine import find_gpu
from bertjax.modeldir.config import INPUTS, BertConfig

Range = tuple[int, int, int]  # least, optimal, most


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """Shapes and target of an engine: one optimization profile per entry of `batches`, all with the same `seq`.

    Invariants: every range is ascending and starts at 1 or more; the engine is fastest at its middle.
    """

    batches: tuple[Range, ...] = ((1, 1, 1), (1, 8, 32))  # sequences
    seq: Range = (64, 192, 384)  # tokens
    compute_capability: str | None = None  # of the target GPU; None: the GPU here, or 8.9 without one
    workspace_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        for flag, (least, optimal, most) in [("--seq", self.seq), *(("--batch", batch) for batch in self.batches)]:
            if not 1 <= least <= optimal <= most:
                raise UserError(f"{flag} {least},{optimal},{most}: wanted is least,optimal,most in ascending order")
        if self.workspace_bytes < 1:
            raise UserError("--workspace-mib: at least 1 is wanted")


def default_batches(config: BertConfig) -> tuple[Range, ...]:
    """A profile for SingleStream and one for Offline and Server.

    With a batch of exactly 1, TensorRT drops that axis and no longer finds a fused attention kernel for a layer with
    a single head (docs/tensorrt.md). A profile that goes to 2 and is tuned for 1 keeps it.
    """
    single_head = any(layer.heads == 1 for layer in config.layers)
    return (1, 1, 2 if single_head else 1), (1, 8, 32)


def default_seq(config: BertConfig) -> Range:
    """64 to 384 tokens and best at 192, within the model's positions."""
    least, optimal, most = (min(tokens, config.max_position_embeddings) for tokens in (64, 192, 384))
    return least, optimal, most


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuiltEngine:
    """A serialized engine with its builder's log."""

    serialized: bytes
    log: str  # all messages of the builder, one a line
    seconds: float
    compute_capability: str  # "8.9"
    timing_cache: bytes | None  # times of kernels that the builder measured; None if none was asked for


def build_engine(
    trt: ModuleType, onnx_path: Path, settings: BuildSettings, *, timing_cache: bytes | None = None
) -> BuiltEngine:
    """Parse an ONNX file that bertjax exported and build an engine with dynamic batch and sequence.

    Args:
      trt: the module that `binding.load_tensorrt` returned.
      onnx_path: the file; weights outside it are found beside it.
      settings: profiles, target and workspace.
      timing_cache: of an earlier build, b"" for a new cache, None to keep none. One of another GPU or another
        version counts as b"".

    Raises:
      UserError: this TensorRT cannot build for the compute capability asked for.
      WorkFailed: TensorRT does not start here, refuses a node or a profile, or finds no engine.
    """
    logger = _logger(trt)
    logger.clear()
    started = time.monotonic()
    try:
        builder = trt.Builder(logger)
    except TypeError:  # that is how pybind reports a null pointer
        raise WorkFailed(f"{trt.__name__} {trt.__version__} does not start here: {logger.last_error()}") from None
    config = builder.create_builder_config()
    capability = _set_target(trt, config, settings.compute_capability)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # without it the log does not list fused nodes
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    if timing_cache is not None:
        _set_timing_cache(config, timing_cache)
    network, parser = _parse(trt, logger, builder, onnx_path)
    _add_profiles(builder, config, settings)
    with _progress(trt, config) as cancelled:
        serialized = builder.build_serialized_network(network, config)
    del parser  # it owns the weights that the network points to, so it had to live until here
    if cancelled.is_set():
        raise KeyboardInterrupt
    if serialized is None:
        raise WorkFailed(f"{onnx_path}: {trt.__name__} found no engine: {logger.last_error()}")
    return BuiltEngine(
        serialized=bytes(serialized),
        log="\n".join(logger.lines),
        seconds=time.monotonic() - started,
        compute_capability=capability,
        timing_cache=None if timing_cache is None else bytes(config.get_timing_cache().serialize()),
    )


def inspect_engine(trt: ModuleType, serialized: bytes) -> str:
    """Load an engine on the GPU here and describe it.

    Returns:
      The JSON of `EngineInspector`; "" if the engine cannot be loaded.
    """
    runtime = trt.Runtime(_logger(trt))  # must outlive the engine
    engine = runtime.deserialize_cuda_engine(serialized)
    if engine is None:
        return ""
    return engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)


@functools.cache
def _logger(trt: Any) -> Any:
    """The one logger of this process: TensorRT keeps the first it is given while any of its objects lives."""

    class Logger(trt.ILogger):
        """Keeps everything and prints nothing: the account is read from it, and errors are raised."""

        def __init__(self) -> None:
            super().__init__()
            self.clear()

        def clear(self) -> None:
            self.lines: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            self.lines.append(message)
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(" ".join(message.split()))

        def last_error(self) -> str:
            return self.errors[-1] if self.errors else "no reason given"

    return Logger()


def _parse(trt: ModuleType, logger: Any, builder: Any, onnx_path: Path) -> tuple[Any, Any]:
    # TensorRT 10 needs the flag; TensorRT 11 and RTX are strongly typed with or without it.
    flags = 0
    if hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)):
        told = [parser.get_error(index) for index in range(parser.num_errors)]
        nodes = [f"{error.node_name() or 'the file'}: {' '.join(error.desc().split())}" for error in told]
        raise WorkFailed(f"{onnx_path}: {trt.__name__}'s parser refuses {'; '.join(nodes) or logger.last_error()}")
    return network, parser


def _set_target(trt: ModuleType, config: Any, wanted: str | None) -> str:
    """Choose the GPU to build for, and say which."""
    gpu = find_gpu()
    if not hasattr(config, "set_compute_capability"):
        if wanted:
            raise UserError("--compute-capability needs tensorrt-rtx; the full tensorrt builds for the GPU it runs on")
        return gpu.compute_capability if gpu else "unknown"
    if wanted is None and gpu:
        return gpu.compute_capability
    wanted = wanted or "8.9"
    known = {
        f"{name[2:-1]}.{name[-1]}": value
        for name, value in trt.ComputeCapability.__members__.items()
        if name.startswith("SM")
    }
    if wanted not in known:
        raise UserError(f"--compute-capability {wanted}: {trt.__name__} {trt.__version__} has {', '.join(known)}")
    config.num_compute_capabilities = 1
    config.set_compute_capability(known[wanted], 0)
    return wanted


def _set_timing_cache(config: Any, content: bytes) -> None:
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):  # broken, or of another GPU or version
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _add_profiles(builder: Any, config: Any, settings: BuildSettings) -> None:
    for batch in settings.batches:
        profile = builder.create_optimization_profile()
        for name in INPUTS:
            profile.set_shape(name, *zip(batch, settings.seq, strict=True))
        if config.add_optimization_profile(profile) < 0:
            raise WorkFailed(f"--batch {','.join(map(str, batch))}: TensorRT refuses this optimization profile")


@contextlib.contextmanager
def _progress(trt: Any, config: Any) -> Iterator[threading.Event]:
    """Show the builder's phases; yield an event that is set when Ctrl-C stopped it.

    An exception must not pass through the builder's C++ frames, so the interrupt becomes a polite request.
    """
    cancelled = threading.Event()
    if not hasattr(trt, "IProgressMonitor"):
        yield cancelled
        return
    bar = tqdm(desc="building the engine", unit="step", leave=False, disable=None)

    class Monitor(trt.IProgressMonitor):
        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            bar.set_postfix_str(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            bar.update()
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            pass

    monitor = Monitor()  # kept in a variable: the builder holds a bare pointer to it
    config.progress_monitor = monitor
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, lambda *_: cancelled.set()) if in_main_thread else None
    try:
        yield cancelled
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, before)
        bar.close()
