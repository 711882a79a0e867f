"""What each choice in distillation, pruning in rounds and quantization-aware training gives: validation F1 by row.

    python benchmarks/distillation.py --run runs/minilm --flops-reduction 3 --train-questions 8000 --epochs 2

Every row distils the teacher of `--run` on the same slice of its training file; the first row is the default, each
other one changes one thing. Rows that change nothing before distillation start from the first row's pruned student,
those on the INT8 grid from its calibrated one. F1 is that of the run's whole validation file, of which the run's
`--val-questions` also choose the step that is kept. Run the same command again to continue an interrupted one: each row
is a run directory of its own, and what is done is not done again.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from bertjax import programs, rundir
from bertjax.errors import UserError
from bertjax.pipeline import stages
from bertjax.pipeline.settings import RunSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One thing that is changed, and the stage whose F1 tells what it gives."""

    changes: Mapping[str, Any]
    stage: str = "distilled"


FIRST = "default"
ROWS = {
    FIRST: Row(changes={}),
    "logits-only": Row(changes={"hidden_weight": 0.0}),
    "dynamic-map": Row(changes={"layer_map": "dynamic"}),
    "relations": Row(changes={"relation_weight": 1.0}),
    "relations-for-hidden": Row(changes={"relation_weight": 1.0, "hidden_weight": 0.0}),
    "temperature-1": Row(changes={"temperature": 1.0}),
    "temperature-4": Row(changes={"temperature": 4.0}),
    "labels-0": Row(changes={"label_weight": 0.0}),
    "labels-1": Row(changes={"label_weight": 1.0}),
    "averaged": Row(changes={"ema": 0.99}),
    "rounds-3": Row(changes={"pruning_rounds": 3}),
    "calibrated": Row(changes={}, stage="ptq"),
    "qat": Row(changes={}, stage="int8"),
    "qat-learned-scales": Row(changes={"learned_scales": True}, stage="int8"),
    "qat-averaged": Row(changes={"ema": 0.99}, stage="int8"),
}
SHARED = {  # what a row takes from the first one, and the stages whose figures come with it
    "distilled": (("teacher", "work/teacher-outputs", "work/importance.npz", "work/pruned"), ("teacher", "pruned")),
    "int8": (
        ("teacher", "work/teacher-outputs", "work/pruned", "student", "work/ptq"),
        ("teacher", "pruned", "distilled", "ptq"),
    ),
    "rounds": (("teacher", "work/teacher-outputs"), ("teacher",)),
}


def read_settings(run: Path) -> RunSettings:
    """The settings of a run whose teacher is finished, without what made the teacher."""
    recorded = rundir.read_settings(run)
    if not recorded or not (run / "teacher" / "config.json").exists():
        raise UserError(f"--run {run}: no run directory with a finished teacher; make one with train/distill.py")
    known = {field.name for field in dataclasses.fields(RunSettings)}
    found = {name: value for name, value in recorded.items() if name in known}
    found = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    if found["scratch"]:
        found |= {f"{part}_file": str(run / "corpus" / f"{part}.json") for part in ("train", "val")}
    if not found["val_file"]:
        raise UserError(f"--run {run}: has no validation file of its own (--val-file); rows are scored on it")
    own = {"teacher": str(run / "teacher"), "encoder": None, "scratch": None, "eval_file": found["val_file"]}
    own["cache"] = None  # it is of the run's training file, and the rows' is a slice of that
    return RunSettings(**(found | own))


def run_row(settings: RunSettings, name: str, folder: Path, command: str) -> dict[str, Any]:
    """Run or continue a row; the figures of its stages."""
    row, place = ROWS[name], folder / name
    if name == FIRST:
        skip = ("qat",)
    else:
        skip = () if row.stage == "int8" else ("calibrate", "qat")
        _share(folder / FIRST, place, "rounds" if "pruning_rounds" in row.changes else row.stage)
    settings = dataclasses.replace(settings, output=str(place), skip=skip, **row.changes)
    stages.run_pipeline(settings, command)
    jax.clear_caches()  # every row compiles steps of its own
    return rundir.read_metrics(place)["stages"]


def _share(first: Path, place: Path, what: str) -> None:
    """Link what the first row has made, and take over its figures."""
    names, stages = SHARED[what]
    for name in names:
        target = place / name
        if (first / name).exists() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(os.path.relpath(first / name, target.parent))
    if not (place / "metrics.json").exists():
        figures = rundir.read_metrics(first)["stages"]
        rundir.update_metrics(place, {"stages": {stage: figures[stage] for stage in stages}})


def table(seeds: Sequence[int], found: Mapping[str, Sequence[float]], teacher: Sequence[float]) -> str:
    """Markdown; `found` and `teacher` hold F1 for each of `seeds`."""
    header = ["row", *(f"F1, seed {seed}" for seed in seeds), "against default", "of teacher"]
    lines = [header, ["---"] * len(header), ["teacher", *(f"{f1:.2f}" for f1 in teacher), "", ""]]
    for name, scores in found.items():
        change = statistics.mean(own - base for own, base in zip(scores, found[FIRST], strict=True))
        share = statistics.mean(100 * own / whole for own, whole in zip(scores, teacher, strict=True))
        lines.append([name, *(f"{f1:.2f}" for f1 in scores), f"{change:+.2f}", f"{share:.1f} %"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--run", type=Path, required=True, help="run directory whose teacher, files and other settings are used")
    add("--output", type=Path, default=Path("runs/distillation"), help="where the rows are kept")
    add("--flops-reduction", type=float, help="how many times fewer multiply-accumulates (default: the run's)")
    add("--train-questions", type=int, default=8000, help="questions of the training file, drawn (default 8000)")
    add("--epochs", type=float, default=1.0, help="epochs of distillation over them (default 1)")
    add("--qat-epochs", type=float, default=0.5, help="epochs on the INT8 grid (default 0.5)")
    add("--seeds", default="0", help="one or several, with commas between them (default 0)")
    add("--rows", default=",".join(ROWS), help="rows to run, with commas between them (default: %(default)s)")
    options = parser.parse_args()

    wanted = options.rows.split(",")
    if unknown := [name for name in wanted if name not in ROWS]:
        raise UserError(f"--rows {','.join(unknown)}: unknown; there are {', '.join(ROWS)}")
    if not all(seed.isdigit() for seed in options.seeds.split(",")):
        raise UserError(f"--seeds {options.seeds}: whole numbers with commas between them are wanted")
    settings = dataclasses.replace(
        read_settings(options.run),
        train_questions=options.train_questions,
        distill_epochs=options.epochs,
        qat_epochs=options.qat_epochs,
    )
    if options.flops_reduction:
        settings = dataclasses.replace(settings, flops_reduction=options.flops_reduction)
    found: dict[str, list[float]] = {name: [] for name in ROWS if name in {FIRST, *wanted}}
    teacher: list[float] = []
    command = shlex.join(["python", *sys.argv])
    seeds = [int(seed) for seed in options.seeds.split(",")]
    for seed in seeds:
        seeded, folder = dataclasses.replace(settings, seed=seed), options.output / f"seed-{seed}"
        for name in found:
            stages = run_row(seeded, FIRST if name == "calibrated" else name, folder, command)
            found[name].append(stages[ROWS[name].stage]["f1"])
        teacher.append(stages["teacher"]["f1"])
    print(f"\n{table(seeds, found, teacher)}")


if __name__ == "__main__":
    programs.run(main)
