"""Building an engine. One path for `tensorrt` 10 and 11 and for `tensorrt_rtx`, which share their Python API."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm

from bertjax.errors import UserError, WorkFailed
from bertjax.tensorrt.binding import has_gpu

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """What an engine is built for.

    Invariants: both ranges are ascending and start at 1 or more; the engine is fastest at the middle one.
    """

    batch: tuple[int, int, int] = (1, 8, 32)  # least, optimal and most sequences
    seq: tuple[int, int, int] = (64, 192, 384)  # least, optimal and most tokens
    compute_capability: str | None = None  # of the target GPU; None: the GPU here, or 8.9 without one
    workspace_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        for name in ("batch", "seq"):
            least, optimal, most = getattr(self, name)
            if not 1 <= least <= optimal <= most:
                raise UserError(f"--{name} {least},{optimal},{most}: wanted is least,optimal,most in ascending order")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuiltEngine:
    """A serialized engine and how it came to be."""

    serialized: bytes
    log: str  # everything the builder said, one message a line
    seconds: float
    compute_capability: str  # "8.9", or "current": the GPU of this machine


def build_engine(trt: ModuleType, onnx_path: Path, settings: BuildSettings) -> BuiltEngine:
    """Parse an ONNX file of the `trt` flavour and build an engine with dynamic batch and sequence.

    Args:
      trt: what `binding.load_tensorrt` returned.
      onnx_path: the file; weights outside it are found beside it.
      settings: profile, target and workspace.

    Raises:
      UserError: this TensorRT cannot build for the compute capability asked for.
      WorkFailed: TensorRT does not start here, refuses a node, or finds no engine.
    """
    logger = _make_logger(trt)
    started = time.monotonic()
    try:
        builder = trt.Builder(logger)
    except TypeError:  # pybind's word for a null pointer
        raise WorkFailed(f"{trt.__name__} {trt.__version__} does not start here: {logger.last_error()}") from None
    network, parser = _parse(trt, logger, builder, onnx_path)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the log does not say what was fused
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    capability = _set_target(trt, config, settings.compute_capability)
    profile = builder.create_optimization_profile()
    for name in _INPUTS:
        profile.set_shape(name, *zip(settings.batch, settings.seq, strict=True))
    config.add_optimization_profile(profile)
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
    )


def _make_logger(trt: ModuleType) -> Any:
    class Logger(trt.ILogger):
        """Keeps everything and prints nothing: the account is read from it, and errors are raised."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
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
    if not hasattr(config, "set_compute_capability"):
        if wanted:
            raise UserError("--compute-capability needs tensorrt-rtx; the full tensorrt builds for the GPU it runs on")
        return "current"
    if wanted is None and has_gpu():
        return "current"
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


@contextlib.contextmanager
def _progress(trt: ModuleType, config: Any) -> Iterator[threading.Event]:
    """Show the builder's phases; yield an event that is set when Ctrl-C stopped it.

    An exception must not pass through the builder's C++ frames, so the interrupt becomes a polite request.
    """
    cancelled = threading.Event()
    if not hasattr(trt, "IProgressMonitor"):
        yield cancelled
        return
    bar = tqdm(desc="building the engine", unit="step", leave=False, disable=None)

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

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
