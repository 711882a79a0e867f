"""The pruning stage of a run: at once, or in rounds with distillation between them."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from bertjax import rundir
from bertjax.errors import UserError
from bertjax.model.bert import Model, as_arrays, as_params
from bertjax.modeldir.config import BertConfig
from bertjax.pipeline import inputs
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
    config, params = run.load("teacher")
    inputs.check_positions(config, run.settings)
    if "prune" in run.settings.skip:
        with run.timed("pruned"):
            run.save("pruned", config, params)
        return
    teacher = student = Model(config=config, params=params)
    if run.settings.pruning_rounds > 1:
        with run.timed("pruned"):  # a goal out of reach is told before anything is trained on the way to it
            make_plan(run, teacher)
    for index in range(1, run.settings.pruning_rounds):
        student = _pruning_round(run, index, teacher, student)
    with run.timed("pruned"):
        student = _cut(run, teacher, student, run.settings.reduction, f"round-{run.settings.pruning_rounds}")
        print(kept_table(config, student.config))
        if run.settings.latency_table:
            predicted = predict(run.settings, config, student.config)
            rundir.update_metrics(run.folder, {"predicted_latency": dataclasses.asdict(predicted)})
            print(predicted)
        draw_kept(run.folder / "pruning.svg", config, student.config)
        run.save("pruned", student.config, student.params)


def _pruning_round(run: Run, index: int, teacher: Model, student: Model) -> Model:
    """One of the rounds before the last: a cut by an equal factor, and an equal part of half of the distillation."""
    pruned, distilled = f"round-{index}/pruned", f"round-{index}/distilled"
    if not run.done(pruned):
        with run.timed("pruned"):
            goal = run.settings.reduction ** (index / run.settings.pruning_rounds)
            cut_student = _cut(run, teacher, student, goal, f"round-{index}")
            run.save(pruned, cut_student.config, cut_student.params)
    if not run.done(distilled):
        config, params = run.load(pruned)
        with run.timed("distilled"):
            if "distill" not in run.settings.skip:
                folder, share = run.folder / "work" / f"round-{index}", 0.5 / (run.settings.pruning_rounds - 1)
                params = distill_stage(run, "distill", config, params, folder, share)
            run.save(distilled, config, params)
    config, params = run.load(distilled)
    return Model(config=config, params=params)


def make_plan(run: Run, teacher: Model) -> Plan:
    """What the run's student keeps of the teacher if it is cut at once.

    Raises:
      UserError: the reduction that is asked for cannot be reached, or the latency table is of another model.
    """
    return _plan(run, teacher, teacher, run.settings.reduction, "", TOLERANCE)


def _plan(run: Run, teacher: Model, student: Model, reduction: float, place: str, tolerance: float) -> Plan:
    """What to keep of `student`, at 1/`reduction` of the teacher's cost, by what matters in it now.

    Args:
      place: the folder in `work/` that keeps the importance, unless it is the teacher's own.
      tolerance: as in `search`.
    """
    settings = run.settings
    path = (run.cache if student is teacher else run.folder / "work" / place) / "importance.npz"
    if not path.exists():
        examples = settings.importance_examples
        found = fisher.measure_importance(
            student.config, student.params, run.datasets[0], examples=examples, seed=settings.seed
        )
        fisher.save_importance(path, found)
    costs = run_costs(settings, teacher.config)
    return search(
        student.config,
        fisher.load_importance(path),
        costs,
        reduction=max(1.0, reduction * costs.total(student.config) / costs.total(teacher.config)),
        ffn_group=settings.ffn_group,
        tolerance=tolerance,
    )


def _cut(run: Run, teacher: Model, student: Model, reduction: float, place: str) -> Model:
    """`student` cut as `_plan` says, and repaired to give what it gave before.

    Not what the teacher gives: a trained student's blocks have moved away from the teacher's, and refitting them to
    those undoes it (a 2x student of real SQuAD cut to 2.5x: F1 70.1 before, 69.4 so, 65.3 with the teacher).
    """
    # What a round leaves may be too coarse to meet the next goal as nearly as the teacher can; it is passed then.
    tolerance = TOLERANCE if run.settings.pruning_rounds == 1 else math.inf
    plan = _plan(run, teacher, student, reduction, place, tolerance)
    config, arrays = cut(student.config, as_arrays(student.params), plan)
    # Dropout hardly helps a student: it has less capacity than its teacher, and soft targets regularize.
    config = dataclasses.replace(config, hidden_dropout=0.0, attention_dropout=0.0)
    smaller = Model(config=config, params=as_params(arrays))
    if not run.settings.repair_examples:
        return smaller
    examples = run.settings.repair_examples
    params = repair(student, smaller, run.datasets[0], examples=examples, seed=run.settings.seed)
    return dataclasses.replace(smaller, params=params)


def run_costs(settings: RunSettings, teacher: BertConfig) -> Costs:
    """What a run's search counts in: seconds by its latency table, or multiply-accumulates.

    Raises:
      UserError: the table cannot be read, or is of another model or arithmetic.
    """
    if not settings.latency_table:
        return mac_costs(teacher, settings.max_seq)
    table, name = read_table(Path(settings.latency_table)), f"--latency-table {settings.latency_table}"
    timed = table.about.get("quantize_also", [])
    if sorted(timed) != sorted(settings.quantize_also):
        raise UserError(f"{name}: timed with {' '.join(timed) or 'nothing'} in --quantize-also; ask for the same here")
    return table.costs(teacher, name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a run's latency table says of its student."""

    about: dict[str, Any]  # the table's
    dense_seconds: float  # of the teacher, were it INT8
    student_seconds: float
    reduction: float

    def __str__(self) -> str:
        small, dense = 1e3 * self.student_seconds, 1e3 * self.dense_seconds
        load = f"{self.about.get('batch')} x {self.about.get('seq')} tokens, {self.about.get('description')}"
        return f"predicted: {small:.2f} ms of {dense:.2f} ms, {self.reduction:.2f}x faster ({load})"


def predict(settings: RunSettings, teacher: BertConfig, student: BertConfig) -> Prediction:
    """The table's times of dense model and student; raises as `run_costs`."""
    costs = run_costs(settings, teacher)
    dense, small = costs.total(teacher), costs.total(student)
    about = read_table(Path(settings.latency_table)).about
    return Prediction(about=about, dense_seconds=dense, student_seconds=small, reduction=dense / small)
