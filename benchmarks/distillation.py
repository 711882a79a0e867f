"""Validation F1 by choices in distillation, pruning in rounds and quantization-aware training.

    python benchmarks/distillation.py --run runs/minilm --flops-reduction 3 --train-questions 8000 --epochs 2

Every row distils the teacher of `--run` on the same slice of its training file; the first row is the default, and each
other row changes one thing. Rows that change nothing before distillation start from the first row's pruned student,
those on the INT8 grid from its calibrated student. F1 is measured on the run's whole validation file; the run's
`--val-questions` of it also choose the step that is kept. The same command continues an interrupted one: each row is a
run directory of its own, and finished stages are not run again.
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

import bench
from bertjax import programs, rundir
from bertjax.errors import UserError
from bertjax.pipeline import stages
from bertjax.pipeline.settings import RunSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """The settings that a row changes, and the stage whose F1 it shows."""

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
SHARED = {  # by kind of row: what it takes from the first row, and the stages whose figures come with that
    "distilled": (("teacher", "work/teacher-outputs", "work/importance.npz", "work/pruned"), ("teacher", "pruned")),
    "int8": (
        ("teacher", "work/teacher-outputs", "work/pruned", "student", "work/ptq"),
        ("teacher", "pruned", "distilled", "ptq"),
    ),
    "rounds": (("teacher", "work/teacher-outputs"), ("teacher",)),
}


def read_settings(run: Path) -> RunSettings:
    """The settings of a run whose teacher is finished, without those that made the teacher."""
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


def run_row(settings: RunSettings, name: str, folder: Path) -> dict[str, Any]:
    """Run or continue a row; the figures of its stages."""
    row, place = ROWS[name], folder / name
    if name == FIRST:
        skip: tuple[str, ...] = ("qat",)
    else:
        skip = () if row.stage == "int8" else ("calibrate", "qat")
        _share(folder / FIRST, place, "rounds" if "pruning_rounds" in row.changes else row.stage)
    settings = dataclasses.replace(settings, output=str(place), skip=skip, **row.changes)
    stages.run_pipeline(settings, shlex.join(["python", *sys.argv]))
    jax.clear_caches()  # every row compiles steps of its own
    return rundir.read_metrics(place)["stages"]


def _share(first: Path, place: Path, what: str) -> None:
    """Link the first row's folders into a row's, and copy its figures."""
    names, stages = SHARED[what]
    for name in names:
        target = place / name
        if (first / name).exists() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(os.path.relpath(first / name, target.parent))
    if not (place / "metrics.json").exists():
        figures = rundir.read_metrics(first)["stages"]
        rundir.update_metrics(place, {"stages": {stage: figures[stage] for stage in stages}})


def tabulate(found: Mapping[str, Sequence[bench.Row]], seeds: Sequence[int]) -> bench.Table:
    """F1 of each row for each seed; change and share are means over the seeds.

    Args:
      found: the figures of a row's stages for each of `seeds`; those of the teacher come with every row.
    """
    teacher = [stages["teacher"]["f1"] for stages in found[FIRST]]
    default = [stages[ROWS[FIRST].stage]["f1"] for stages in found[FIRST]]
    rows = [{"row": "teacher", "f1_change": None, "teacher_share": None} | _by_seed(seeds, teacher)]
    for name, figures in found.items():
        scores = [stages[ROWS[name].stage]["f1"] for stages in figures]
        change = statistics.mean(own - base for own, base in zip(scores, default, strict=True))
        share = statistics.mean(own / whole for own, whole in zip(scores, teacher, strict=True))
        rows.append({"row": name, "f1_change": change, "teacher_share": share} | _by_seed(seeds, scores))
    columns = {"row": "{row}"} | {f"F1, seed {seed}": f"{{f1_seed_{seed}:.2f}}" for seed in seeds}
    columns |= {"against default": "{f1_change:+.2f}", "of teacher": "{teacher_share:.1%}"}
    return bench.Table(name="distillation", columns=columns, rows=rows)


def _by_seed(seeds: Sequence[int], scores: Sequence[float]) -> bench.Row:
    return {f"f1_seed_{seed}": score for seed, score in zip(seeds, scores, strict=True)}


def parse() -> argparse.Namespace:
    parser = bench.flags("distillation", __doc__)
    add = parser.add_argument
    add("--run", type=Path, required=True, metavar="DIR", help="run whose teacher, files and other settings are used")
    add("--output", type=Path, default=Path("runs/distillation"), metavar="DIR", help="where the rows are kept")
    add("--flops-reduction", type=float, metavar="N", help="how many times fewer MACs (default: the run's)")
    add("--train-questions", type=int, default=8000, metavar="N", help="training questions, drawn (default 8000)")
    add("--epochs", type=float, default=1.0, metavar="N", help="epochs of distillation over them (default 1)")
    add("--qat-epochs", type=float, default=0.5, metavar="N", help="epochs on the INT8 grid (default 0.5)")
    add("--seeds", default="0", metavar="N,N", help="one or several (default 0)")
    add("--rows", default=",".join(ROWS), metavar="NAME,NAME", help="rows to run (default: %(default)s)")
    options = parser.parse_args()
    if unknown := [name for name in options.rows.split(",") if name not in ROWS]:
        raise UserError(f"--rows {','.join(unknown)}: unknown; there are {', '.join(ROWS)}")
    if not all(seed.isdigit() for seed in options.seeds.split(",")):
        raise UserError(f"--seeds {options.seeds}: must be whole numbers with commas between them")
    return options


def main() -> None:
    options = parse()
    settings = dataclasses.replace(
        read_settings(options.run),
        train_questions=options.train_questions,
        distill_epochs=options.epochs,
        qat_epochs=options.qat_epochs,
    )
    if options.flops_reduction:
        settings = dataclasses.replace(settings, flops_reduction=options.flops_reduction)
    names = [name for name in ROWS if name in {FIRST, *options.rows.split(",")}]
    found: dict[str, list[bench.Row]] = {name: [] for name in names}
    seeds = [int(seed) for seed in options.seeds.split(",")]
    for seed in seeds:
        seeded, folder = dataclasses.replace(settings, seed=seed), options.output / f"seed-{seed}"
        for name in names:
            found[name].append(run_row(seeded, FIRST if name == "calibrated" else name, folder))
    bench.report(options, tabulate(found, seeds))


if __name__ == "__main__":
    programs.run(main)
