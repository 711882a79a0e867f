"""One teacher, many students: each is a run of its own under the sweep's folder and shares the teacher's results.

SWEEP/teacher/              fine-tuned and scored once
SWEEP/work/                 importance and teacher outputs, computed once
SWEEP/4x/, SWEEP/2x/, ...   run directories as `run_pipeline` leaves them; their teacher is hard-linked
SWEEP/sweep.json, .svg      the students' scores, costs and speeds, written again after every student
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from bertjax import files, machine, rundir
from bertjax.engines.timing.compare import offline_speeds
from bertjax.modeldir import store
from bertjax.modeldir.config import BertConfig
from bertjax.pipeline import report, stages, sweep_report
from bertjax.pipeline.prune import make_plan
from bertjax.pipeline.run import Run
from bertjax.pipeline.settings import RunSettings

Item = TypeVar("Item")


def student_name(settings: RunSettings) -> str:
    """The name of a student's run directory: 4x, or latency-4x."""
    return f"latency-{settings.reduction:g}x" if settings.latency_table else f"{settings.reduction:g}x"


def run_sweep(base: RunSettings, wanted: Sequence[RunSettings], command: str) -> Path:
    """Run or continue a sweep; returns its folder.

    Students are made in an order in which the first few already span the whole range. Those that the folder holds
    from before are kept and reported as well. Speeds of all are measured together at the end, and again whenever the
    students are others than last time.

    Args:
      base: what students share; its own reduction is not used. `output` is the sweep's folder.
      wanted: the students' settings, which differ from `base` in their reductions only.

    Raises:
      UserError: wrong input, a reduction out of reach, or the folder holds runs with other settings.
      WorkFailed: a stage failed.
    """
    folder = Path(base.output)
    teacher = stages.prepare_teacher(base, command)
    students = [_student_settings(teacher, one) for one in wanted]
    for settings in students:  # an error for a reduction out of reach, before any training
        _share_teacher(folder, settings)
        run = Run(settings, command)
        make_plan(run, run.load("teacher"))
    for number, settings in enumerate(bisecting(students), 1):
        if not _finished(Path(settings.output)):
            print(f"\n{student_name(settings)}: student {number} of {len(students)}")
            report.write_report(stages.run_pipeline(settings, command).folder)
            _write(folder, command, speed={})
    speed = sweep_report.read_sweep(folder).get("speed", {})
    models = {"teacher": folder / "teacher"}
    models |= {run.name: run / rundir.STUDENT for run in _finished_students(folder)}
    if speed.get("samples_per_second", {}).keys() != models.keys():
        speed = _measure_speeds(teacher, models)
    _write(folder, command, speed)
    return folder


def bisecting(items: list[Item]) -> list[Item]:
    """The middle one first, then the middles of both sides, and so on: the first few already span the whole range."""
    order, parts = [], [items]
    while parts:
        parts = [part for part in parts if part]
        order += [part[len(part) // 2] for part in parts]
        parts = [half for part in parts for half in (part[: len(part) // 2], part[len(part) // 2 + 1 :])]
    return order


def _student_settings(teacher: Run, wanted: RunSettings) -> RunSettings:
    """A run that finds the sweep's files, teacher and caches."""
    folder, shared = teacher.folder, teacher.settings
    return dataclasses.replace(
        wanted,
        output=str(folder / student_name(wanted)),
        teacher=str(folder / "teacher"),
        encoder=None,
        scratch=None,
        train_file=shared.train_file,
        val_file=shared.val_file,
        eval_file=shared.eval_file,
        cache=str(folder / "work"),
    )


def _share_teacher(sweep: Path, settings: RunSettings) -> None:
    """Give a run the teacher's directory, without a second copy on the disk, and its figures."""
    target = Path(settings.output) / "teacher"
    if target.exists():
        return
    teacher = rundir.read_metrics(sweep)["stages"]["teacher"]
    rundir.update_metrics(Path(settings.output), {"stages": {"teacher": teacher}})
    with files.write_aside(target) as aside:
        for name in ("config.json", "model.safetensors", *store.TOKENIZER_FILES):
            with contextlib.suppress(FileNotFoundError):
                _link(sweep / "teacher" / name, aside / name)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)  # stages replace files and never write into them
    except FileNotFoundError:
        raise
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _finished(run: Path) -> bool:
    figures = rundir.read_metrics(run).get("stages", {}).get("int8", {})
    return (run / rundir.STUDENT / "config.json").exists() and "f1" in figures


def _finished_students(folder: Path) -> list[Path]:
    return [path.parent for path in sorted(folder.glob("*/settings.json")) if _finished(path.parent)]


def _measure_speeds(teacher: Run, models: dict[str, Path]) -> dict[str, Any]:
    """Offline throughput of the teacher and of all students on this machine's default backend."""
    found = dataclasses.asdict(offline_speeds(list(models.values()), teacher.files.eval, teacher.settings.windows))
    return {
        key: dict(zip(models, value, strict=True)) if isinstance(value, list) else value for key, value in found.items()
    }


def _write(folder: Path, command: str, speed: dict[str, Any]) -> None:
    """Write `sweep.json` and its picture from the finished students' records."""
    shared = rundir.read_metrics(folder)
    students = sorted(map(_entry, _finished_students(folder)), key=lambda one: (one["goal"], one["reduction"]))
    about = {"command": command, "versions": machine.package_versions(), "machine": machine.describe()}
    about |= {key: shared[key] for key in ("seed", "data")}
    content = about | {"teacher": shared["stages"]["teacher"], "students": students, "speed": speed}
    files.write_file_aside(folder / "sweep.json", json.dumps(content, indent=2) + "\n")
    sweep_report.draw(folder)


def _entry(run: Path) -> dict[str, Any]:
    metrics, settings = rundir.read_metrics(run), rundir.read_settings(run)
    config = BertConfig.from_json(run / rundir.STUDENT / "config.json")
    goal = "latency" if settings["latency_table"] else "flops"
    return {
        "name": run.name,
        "goal": goal,
        "reduction": settings[f"{goal}_reduction"],
        "directory": f"{run.name}/{rundir.STUDENT}",
        "heads": [layer.heads for layer in config.layers],
        "ffn": [layer.ffn for layer in config.layers],
        "predicted_speedup": metrics.get("predicted_latency", {}).get("reduction"),
        "stages": {stage: figures for stage, figures in metrics["stages"].items() if stage != "teacher"},
    }
