"""From a model directory or an ONNX file to an engine with its record, `engine.json`, beside it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from bertjax.errors import UserError, WorkFailed
from bertjax.files import disk_error, write_file_aside
from bertjax.machine import describe, find_gpu
from bertjax.onnx.emit import REVISION as EMITTER
from bertjax.tensorrt.account import Account, make_accounts
from bertjax.tensorrt.binding import has_timing_cache, load_tensorrt
from bertjax.tensorrt.build import BuildSettings, BuiltEngine, build_engine, inspect_engine
from bertjax.tensorrt.record import REVISION, record_path
from bertjax.tensorrt.source import Source, prepare_onnx
from bertjax.tensorrt.steps import Step, steps_from_inspector, steps_from_log
from bertjax.version import __version__


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportedEngine:
    """An engine on disk with its accounts."""

    path: Path
    record_path: Path
    accounts: list[Account]  # one per optimization profile


def export_engine(
    source: Source, settings: BuildSettings, *, output: Path | None = None, timing_cache: Path | None = None
) -> ExportedEngine:
    """Build an engine and write it with its record.

    Args:
      source: the model; its ONNX file is written first if it is absent or stale.
      settings: profiles, target and workspace.
      output: the engine's file; None: `model.engine` beside `model.trt.onnx`, and so for other names.
      timing_cache: the file of the kernels' times, for TensorRT versions that measure them; None: beside the engine.

    Raises:
      UserError: the model is incomplete, TensorRT is not installed, the settings do not fit, or the place cannot be
        written. All of this is found before the build.
      WorkFailed: TensorRT could not build it, the disk is full, or the engine is written but its log lacks
        the list of steps.
    """
    positions = source.config.max_position_embeddings
    if settings.seq[2] > positions:
        raise UserError(f"--seq {settings.seq[2]}: the model has max_position_embeddings = {positions}")
    trt = load_tensorrt()
    path = Path(output) if output else _default_path(source)
    _check_place(path, "--output")
    cache = _timing_cache_path(trt, path, timing_cache)
    if cache is not None:
        _check_place(cache, "--timing-cache")
    source_sha256 = prepare_onnx(source)
    content = None if cache is None else cache.read_bytes() if cache.exists() else b""
    built = build_engine(trt, source.onnx_path, settings, timing_cache=content)
    steps, told_by = _read_steps(trt, built)
    accounts = make_accounts(source.config, steps, profiles=len(settings.batches))
    if cache is not None and built.timing_cache is not None:
        write_file_aside(cache, built.timing_cache)
    record = _record(trt, source, source_sha256, settings, built, accounts) | {"account_from": told_by}
    write_file_aside(path, built.serialized)
    write_file_aside(record_path(path), json.dumps(record, indent=2) + "\n")
    if not steps:
        raise WorkFailed(
            f"{path}: written, but the log of {trt.__name__} {trt.__version__} does not list the engine's steps,"
            " so nothing is known of its kernels"
        )
    return ExportedEngine(path=path, record_path=record_path(path), accounts=accounts)


def _default_path(source: Source) -> Path:
    name = source.onnx_path.name.removesuffix(".onnx").removesuffix(f".{source.flavour}")
    return source.onnx_path.with_name(f"{name}.engine")


def _check_place(path: Path, flag: str) -> None:
    """Refuse a place that cannot be written, before minutes of building."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; {flag} names a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise disk_error(path, error) from None


def _timing_cache_path(trt: ModuleType, engine: Path, wanted: Path | None) -> Path | None:
    if has_timing_cache(trt):
        return Path(wanted) if wanted else engine.with_suffix(".timing-cache")
    if wanted:
        raise UserError(f"--timing-cache: {trt.__name__} measures nothing while it builds; leave the flag out")
    return None


def _read_steps(trt: ModuleType, built: BuiltEngine) -> tuple[list[Step], str]:
    """The engine's steps and their source: the engine inspector if the GPU is here, else the builder's log."""
    gpu = find_gpu()
    if gpu and gpu.compute_capability == built.compute_capability:
        told = inspect_engine(trt, built.serialized)
        if told and (steps := steps_from_inspector(told)):
            return steps, "engine inspector"
    return steps_from_log(built.log), "builder log"


def _record(
    trt: ModuleType,
    source: Source,
    source_sha256: str,
    settings: BuildSettings,
    built: BuiltEngine,
    accounts: list[Account],
) -> dict[str, Any]:
    gpu = find_gpu()
    names = ("min", "opt", "max")
    return {
        "engine_sha256": hashlib.sha256(built.serialized).hexdigest(),
        "engine_bytes": len(built.serialized),
        "source_sha256": source_sha256,
        "flavour": source.flavour,
        "library": trt.__name__,
        "library_version": trt.__version__,
        "bertjax_version": __version__,
        "emitter_revision": EMITTER,
        "builder_revision": REVISION,
        "compute_capability": built.compute_capability,
        "gpu": gpu.name if gpu else None,
        "machine": describe(),
        "workspace_bytes": settings.workspace_bytes,
        "build_seconds": round(built.seconds, 3),
        "profiles": [
            {
                "batch": dict(zip(names, batch, strict=True)),
                "seq": dict(zip(names, settings.seq, strict=True)),
                "account": account.to_dict(),
            }
            for batch, account in zip(settings.batches, accounts, strict=True)
        ],
    }
