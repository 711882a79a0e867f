"""`metrics.json`: every number that a run measured, with what is needed to measure it again."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

from bertjax.errors import UserError
from bertjax.modeldir import write_file_aside

_PACKAGES = ("bertjax", "jax", "flax", "optax", "tokenizers", "onnx", "onnxruntime", "openvino", "mlcommons-loadgen")

_LEFT_OUT = {"prune": "pruned", "distill": "distilled", "qat": "int8"}  # what --skip takes, and the stage it leaves out


def read_metrics(run: Path) -> dict[str, Any]:
    """The run's record, empty if it has none yet.

    Raises:
      UserError: `metrics.json` is there but broken.
    """
    return _read(Path(run) / "metrics.json", "move it away, and the next stage writes a new one")


def update_metrics(run: Path, patch: dict[str, Any]) -> dict[str, Any]:
    """Merge `patch` into the run's record, key by key at every depth, write it in one step, and return it."""
    merged = _merge(read_metrics(run), patch)
    write_file_aside(Path(run) / "metrics.json", json.dumps(merged, indent=2) + "\n")
    return merged


def read_settings(run: Path) -> dict[str, Any]:
    """What the run's `settings.json` holds, empty if it has none.

    Raises:
      UserError: it is there but broken.
    """
    return _read(Path(run) / "settings.json", "it says how the run was made: bring it back, or take another run")


def _read(path: Path, mend: str) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON and of UTF-8
        raise UserError(f"{path}: not valid JSON ({error}); {mend}") from None


def made_stages(metrics: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The figures of the stages that a run made, without those left out, whose model is that of the stage before.

    Args:
      metrics, settings: what `metrics.json` and `settings.json` of the run hold.
    """
    left_out = {stage for name, stage in _LEFT_OUT.items() if name in settings.get("skip", ())}
    return {stage: figures for stage, figures in metrics.get("stages", {}).items() if stage not in left_out}


def _merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for key, value in new.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that figures depend on; a package that is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Processor, cores, instruction sets that decide INT8 speed, and memory in bytes."""
    model, flags = platform.processor() or platform.machine(), set()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
            if line.startswith("flags"):
                flags = set(line.split(":", 1)[1].split())
    except OSError:
        pass
    telling = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": model,
        "cores": cores,
        "instructions": [name for name in telling if name in flags],
        "memory_bytes": memory,
    }
