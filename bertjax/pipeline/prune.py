"""The pruning stage of a run: at once, or in rounds with distillation between them."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from bertjax import rundir
from bertjax.errors import UserError
from bertjax.identity import make_identity
from bertjax.model.bert import Model
from bertjax.modeldir.config import BertConfig
from bertjax.pipeline.kept import draw_kept, kept_table
from bertjax.pipeline.run import Run, distill_stage
from bertjax.pipeline.settings import RunSettings
from bertjax.pruning import importance as fisher
from bertjax.pruning.costs import Costs, mac_costs
from bertjax.pruning.latency import read_table
from bertjax.pruning.repair import repair
from bertjax.pruning.search import TOLERANCE, Plan, search
from bertjax.pruning.surgery import cut


def prune(run: Run) -> None:
    """Make the stage `pruned`: the teacher cut to the run's goal, in as many rounds as its settings say.

    Raises:
      UserError: the goal cannot be reached, or a file that it needs cannot be read.
      WorkFailed: distillation between rounds failed, or the disk is full.
    """
    teacher = student = run.load("teacher")
    if "prune" in run.settings.skip:
        with run.timed("pruned"):
            run.save("pruned", teacher)
        return
    if run.settings.pruning_rounds > 1:
        with run.timed("pruned"):  # an error for a goal out of reach, before anything is trained
            make_plan(run, teacher)
    for index in range(1, run.settings.pruning_rounds):
        student = _pruning_round(run, index, teacher, student)
    with run.timed("pruned"):
        student = _cut(run, teacher, student, run.settings.reduction, f"round-{run.settings.pruning_rounds}")
        print(kept_table(teacher.config, student.config))
        if run.settings.latency_table:
            predicted = predict(run.settings, teacher.config, student.config)
            rundir.update_metrics(run.folder, {"predicted_latency": dataclasses.asdict(predicted)})
            print(predicted)
        draw_kept(run.folder / "pruning.svg", teacher.config, student.config)
        run.save("pruned", student)


def _pruning_round(run: Run, index: int, teacher: Model, student: Model) -> Model:
    """One of the rounds before the last: a cut by an equal factor, and an equal part of half of the distillation."""
    pruned, distilled = f"round-{index}/pruned", f"round-{index}/distilled"
    if not run.done(pruned):
        with run.timed("pruned"):
            goal = run.settings.reduction ** (index / run.settings.pruning_rounds)
            run.save(pruned, _cut(run, teacher, student, goal, f"round-{index}"))
    if not run.done(distilled):
        student = run.load(pruned)
        with run.timed("distilled"):
            if "distill" not in run.settings.skip:
                folder, share = run.folder / "work" / f"round-{index}", 0.5 / (run.settings.pruning_rounds - 1)
                student = distill_stage(run, "distill", student, folder, order=index - 1, share=share)
            run.save(distilled, student)
    return run.load(distilled)


def make_plan(run: Run, teacher: Model) -> Plan:
    """The plan of the run's student if it is cut at once.

    Raises:
      UserError: the reduction cannot be reached, or the latency table is of another model.
    """
    return _plan(run, teacher, teacher, run.settings.reduction, "", TOLERANCE)


def _plan(run: Run, teacher: Model, student: Model, reduction: float, place: str, tolerance: float) -> Plan:
    """The plan that cuts `student` to 1/`reduction` of the teacher's cost, by its own importance.

    Args:
      place: the folder in `work/` that keeps the importance, unless it is the teacher's own.
      tolerance: as in `search`.
    """
    settings = run.settings
    path = (run.cache if student is teacher else run.folder / "work" / place) / "importance.npz"
    windows, examples = run.datasets[0], settings.importance_examples
    identity = make_identity(
        method=fisher.METHOD, model=student.digest, windows=windows.digest, examples=examples, seed=settings.seed
    )
    importance = fisher.load_importance(path, identity)
    if importance is None:
        importance = fisher.measure_importance(student, windows, examples=examples, seed=settings.seed)
        fisher.save_importance(path, importance, identity)
    costs = run_costs(settings, teacher.config)
    return search(
        student.config,
        importance,
        costs,
        reduction=max(1.0, reduction * costs.total(student.config) / costs.total(teacher.config)),
        ffn_group=settings.ffn_group,
        tolerance=tolerance,
    )


def _cut(run: Run, teacher: Model, student: Model, reduction: float, place: str) -> Model:
    """`student` cut by its plan, with its blocks refitted to their own outputs before the cut.

    The teacher's outputs would be the wrong target: a trained student's blocks have moved away from the teacher's, and
    a refit to those undoes the training (a 2x student of real SQuAD cut to 2.5x: F1 70.1 before, 69.4 refitted to its
    own outputs, 65.3 to the teacher's).
    """
    # A student of an earlier round may be too coarse to meet the next goal closely; it then goes below it.
    tolerance = TOLERANCE if run.settings.pruning_rounds == 1 else math.inf
    plan = _plan(run, teacher, student, reduction, place, tolerance)
    smaller = cut(student, plan)
    # Dropout hardly helps a student: it has less capacity than its teacher, and soft targets regularize.
    config = dataclasses.replace(smaller.config, hidden_dropout=0.0, attention_dropout=0.0)
    smaller = dataclasses.replace(smaller, config=config)
    if not run.settings.repair_examples:
        return smaller
    examples = run.settings.repair_examples
    return repair(student, smaller, run.datasets[0], examples=examples, seed=run.settings.seed)


def run_costs(settings: RunSettings, teacher: BertConfig) -> Costs:
    """The costs that a run's search counts in: seconds by its latency table, or multiply-accumulates.

    Raises:
      UserError: the table cannot be read, or is of another model or arithmetic.
    """
    if not settings.latency_table:
        return mac_costs(teacher, settings.max_seq)
    table, name = read_table(Path(settings.latency_table)), f"--latency-table {settings.latency_table}"
    timed = table.about.get("quantize_also", [])
    if sorted(timed) != sorted(settings.quantize_also):
        raise UserError(f"{name}: timed with --quantize-also {' '.join(timed) or '(empty)'}; give the same here")
    return table.costs(teacher, name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """The times of a run's student and of its dense model by the latency table."""

    about: dict[str, Any]  # the table's
    dense_seconds: float  # of the teacher, were it INT8
    student_seconds: float
    reduction: float

    def __str__(self) -> str:
        small, dense = 1e3 * self.student_seconds, 1e3 * self.dense_seconds
        load = f"{self.about.get('batch')} x {self.about.get('seq')} tokens, {self.about.get('description')}"
        return f"predicted: {small:.2f} ms of {dense:.2f} ms, {self.reduction:.2f}x faster ({load})"


def predict(settings: RunSettings, teacher: BertConfig, student: BertConfig) -> Prediction:
    """The times of a dense INT8 model and of a student, by the run's latency table.

    Raises:
      UserError: the table cannot be read, or is of another model or arithmetic.
    """
    costs = run_costs(settings, teacher)
    dense, small = costs.total(teacher), costs.total(student)
    about = read_table(Path(str(settings.latency_table))).about
    return Prediction(about=about, dense_seconds=dense, student_seconds=small, reduction=dense / small)
