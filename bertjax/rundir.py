"""A run directory: the places of its models, `metrics.json` with every figure it measured, and `settings.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bertjax.data.windows import WindowSettings
from bertjax.errors import UserError
from bertjax.files import locked, write_file_aside
from bertjax.modeldir.config import BertConfig

STUDENT = "student-int8"  # the directory that is served

DIRECTORIES = {  # each stage's model directory in the run directory; those of pruning rounds are in work/
    "teacher": "teacher",
    "pruned": "work/pruned",
    "distilled": "student",
    "ptq": "work/ptq",
    "int8": "student-int8",
}

_LEFT_OUT = {"prune": "pruned", "distill": "distilled", "qat": "int8"}  # a name that --skip takes, and its stage


def read_metrics(run: Path) -> dict[str, Any]:
    """The run's record, empty if it has none yet.

    Raises:
      UserError: `metrics.json` is there but broken.
    """
    return _read(Path(run) / "metrics.json", "move it away, and the next stage writes a new one")


def update_metrics(run: Path, patch: dict[str, Any], *, depth: int | None = None) -> dict[str, Any]:
    """Merge `patch` into the run's record, key by key, and write it; returns the merged record.

    Processes that do this at the same time wait for one another.

    Args:
      depth: levels of keys that are merged; a value below them replaces its predecessor whole. None: every level.

    Raises:
      UserError: `metrics.json` is broken, or cannot be written.
      WorkFailed: the disk is full.
    """
    path = Path(run) / "metrics.json"
    with locked(path):
        merged = _merge(read_metrics(run), patch, depth)
        write_file_aside(path, json.dumps(merged, indent=2) + "\n")
    return merged


def read_settings(run: Path) -> dict[str, Any]:
    """The content of the run's `settings.json`, empty if it has none.

    Raises:
      UserError: it is there but broken.
    """
    return _read(Path(run) / "settings.json", "the run cannot be continued without it: restore it, or give another run")


def _read(path: Path, mend: str) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON and of UTF-8
        raise UserError(f"{path}: not valid JSON ({error}); {mend}") from None


def made_stages(metrics: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of the stages that a run made, without those left out, whose model is that of the stage before.

    Args:
      metrics, settings: the content of the run's `metrics.json` and `settings.json`.
    """
    left_out = {stage for name, stage in _LEFT_OUT.items() if name in settings.get("skip", ())}
    return {stage: figures for stage, figures in metrics.get("stages", {}).items() if stage not in left_out}


def _merge(old: dict[str, Any], new: dict[str, Any], depth: int | None) -> dict[str, Any]:
    merged, below = dict(old), None if depth is None else depth - 1
    for key, value in new.items():
        both = below != 0 and isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value, below) if both else value
    return merged


def run_folder(model: Path) -> Path | None:
    """The run directory that holds a model directory; None if it is in none."""
    parent = Path(model).resolve().parent
    return parent if (parent / "metrics.json").exists() else None


def full_name(model: Path) -> str:
    """A model directory's name, behind that of its run if it is of one: `demo-student-int8`."""
    folder, name = run_folder(model), Path(model).resolve().name
    return f"{folder.name}-{name}" if folder else name


def default_data(model: Path) -> Path:
    """The evaluation file of the model's run.

    Raises:
      UserError: the model is in no run directory, or the run names no evaluation file.
    """
    recorded, folder = _data_record(model).get("eval_file"), run_folder(model)
    if recorded is None or folder is None:
        raise UserError(f"{model}: lies in no run directory that names an evaluation file; give --data FILE")
    path = find_recorded(folder, recorded)
    if path is None:
        raise UserError(f"{recorded}: the evaluation file of {folder}, and no such file; give --data FILE")
    return path


def recorded_path(run: Path, path: Path) -> str:
    """A file's name in a run's record: relative to the run directory if it lies in it, else absolute."""
    path, run = Path(path).resolve(), Path(run).resolve()
    return str(path.relative_to(run) if path.is_relative_to(run) else path)


def find_recorded(run: Path, name: str) -> Path | None:
    """The file of a name in a run's record, wherever the run directory lies now; None if there is none.

    0.1 recorded names relative to the folder that it was called in.
    """
    inside = [Path(*Path(name).parts[at:]) for at in range(len(Path(name).parts))]
    places = [run / inside[0], Path(name), *(run / tail for tail in inside[1:])]
    return next((place for place in places if place.is_file()), None)


def window_settings(
    model: Path, *, max_seq: int | None = None, doc_stride: int | None = None, max_query: int | None = None
) -> WindowSettings:
    """The given window settings, else those of the model's run, else MLPerf's within the model's positions.

    Raises:
      UserError: the model's `config.json` is missing or wrong.
    """
    recorded, usual = _data_record(model), WindowSettings()
    positions = BertConfig.from_json(Path(model) / "config.json").max_position_embeddings
    return WindowSettings(
        max_seq=max_seq or recorded.get("max_seq", min(usual.max_seq, positions)),
        doc_stride=doc_stride or recorded.get("doc_stride", usual.doc_stride),
        max_query=max_query or recorded.get("max_query", usual.max_query),
    )


def _data_record(model: Path) -> dict[str, Any]:
    folder = run_folder(model)
    return read_metrics(folder).get("data", {}) if folder else {}


def newest_student(root: Path = Path("runs")) -> Path:
    """The INT8 student of the run under `root` that finished last.

    A model directory is complete or absent, so its `config.json` is the sign of a finished one.

    Raises:
      UserError: no run under `root` has one.
    """
    found = [path for path in Path(root).glob("*/student-int8/config.json") if not path.parent.name.startswith(".")]
    if not found:
        raise UserError(f"no finished run under {root}/; run python train/distill.py first, or give --model DIR")
    return max(found, key=lambda path: path.stat().st_mtime).parent
