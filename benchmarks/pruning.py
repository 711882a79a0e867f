"""Importances, and students pruned for time, at equal multiply-accumulates and before any training.

    python benchmarks/pruning.py --model runs/minilm/teacher --train-file train.json.gz --data val.json.gz
    python train/latency_table.py --model runs/minilm/teacher --output latency.json
    python benchmarks/pruning.py --model runs/minilm/teacher --latency-table latency.json

Each row cuts the same teacher by the same search; only the importances that the search weighs differ: `fisher` squares
the gate gradients of each example (the library's own), `batch` those of each batch's sum, `absolute` takes their
magnitudes, `magnitude` the squared weights, `random` nothing. F1 is that of the cut model, and of the same after
`repair` has refitted its output projections on training windows in closed form. `--data` should be a file that choices
may be made on, not the one that scores are reported on.

With --latency-table there are three students for every reduction: one pruned for multiply-accumulates, one pruned to
the time that the table predicts for the first, and the fastest one that loses no more importance than the first. All
are then timed in turn, with random weights in INT8 on the table's engine, beside the dense model. Files are only needed
for F1 after repair.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

import bench
from bertjax import programs, rundir
from bertjax.data.dataset import Dataset
from bertjax.engines.timing.shapes import Workload, time_shapes
from bertjax.errors import UserError
from bertjax.model.bert import Model, Params
from bertjax.model.inference import Evaluator
from bertjax.modeldir.config import BertConfig, Quantization, count_macs
from bertjax.modeldir.tensors import layer_prefix
from bertjax.pruning.costs import Costs, mac_costs
from bertjax.pruning.importance import Importance, load_importance, measure_importance
from bertjax.pruning.latency import LatencyTable, probe, read_table
from bertjax.pruning.repair import repair
from bertjax.pruning.search import Plan, search
from bertjax.pruning.surgery import cut

REPAIR_EXAMPLES = 512

Measure = Callable[[Model, Dataset, int, int], Importance]  # (teacher, training windows, examples, seed)


def by_gradients(summary: Callable[[jax.Array], jax.Array] | None = None) -> Measure:
    """Gate gradients under one summary; None is the library's own."""
    rest = {"summary": summary} if summary else {}
    return lambda teacher, train, examples, seed: measure_importance(
        teacher, train, examples=examples, seed=seed, **rest
    )


def by_magnitude(teacher: Model, train: Dataset, examples: int, seed: int) -> Importance:
    """The squared weights that a unit owns: rows of what leads into it, columns of what leads out."""
    size, heads, ffn = teacher.config.head_size, [], []
    for index in range(len(teacher.config.layers)):
        prefix = layer_prefix(index)
        weight = functools.partial(_squares, teacher.params)
        rows = sum(weight(f"{prefix}.attention.self.{part}", 1) for part in ("query", "key", "value"))
        heads.append((rows + weight(f"{prefix}.attention.output.dense", 0)).reshape(-1, size).sum(axis=1))
        ffn.append(weight(f"{prefix}.intermediate.dense", 1) + weight(f"{prefix}.output.dense", 0))
    return _sums(heads, ffn)


def _squares(params: Params, name: str, axis: int) -> np.ndarray:
    return np.square(np.asarray(params[f"{name}.weight"], np.float64)).sum(axis=axis)


def at_random(teacher: Model, train: Dataset, examples: int, seed: int) -> Importance:
    """Uniform random numbers, per weight: a head owns four times its size in rows and columns, an FFN unit two."""
    random, size = np.random.default_rng(seed), teacher.config.head_size
    layers = teacher.config.layers
    return _sums([2 * size * random.random(layer.heads) for layer in layers], [random.random(x.ffn) for x in layers])


def _sums(heads: list[np.ndarray], ffn: list[np.ndarray]) -> Importance:
    attention, widths = (np.array([layer.sum() for layer in part]) for part in (heads, ffn))
    return Importance(
        heads=tuple(heads), ffn=tuple(ffn), attention_blocks=attention, ffn_blocks=widths, layers=attention + widths
    )


MEASURES: dict[str, Measure] = {
    "fisher": by_gradients(),
    "batch": by_gradients(lambda gradients: jnp.square(gradients.sum(axis=0))),
    "absolute": by_gradients(lambda gradients: jnp.abs(gradients).sum(axis=0)),
    "magnitude": by_magnitude,
    "random": at_random,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scorer:
    """A teacher, and the windows to repair and to score its students on."""

    teacher: Model
    train: Dataset
    validation: Dataset
    seed: int

    def f1(self, model: Model) -> float:
        return Evaluator(self.validation)(model).score.f1

    def cut(self, plan: Plan) -> Model:
        return cut(self.teacher, plan)

    def repaired(self, student: Model) -> Model:
        return repair(self.teacher, student, self.train, examples=REPAIR_EXAMPLES, seed=self.seed)


def open_scorer(options: argparse.Namespace) -> tuple[Scorer, int]:
    """The teacher with both files, and the longest window in tokens."""
    subject = bench.load_subject(options.model)
    train = subject.read(options.train_file)
    validation = subject.read(options.data, questions=options.questions)
    scorer = Scorer(teacher=subject.model, train=train, validation=validation, seed=options.seed)
    return scorer, subject.windows.max_seq


def compare_importances(options: argparse.Namespace) -> bench.Table:
    """F1 of students cut by each importance at each reduction."""
    scorer, seq = open_scorer(options)
    teacher = scorer.teacher
    costs, rows = mac_costs(teacher.config, seq), []
    for name in tqdm.tqdm(options.importance, desc="importances", leave=False, disable=None):
        importance = MEASURES[name](teacher, scorer.train, options.examples, options.seed)
        for reduction in options.flops_reduction:
            plan = search(teacher.config, importance, costs, reduction=reduction, ffn_group=options.ffn_group)
            student, begin = scorer.cut(plan), time.monotonic()
            repaired = scorer.repaired(student)
            seconds = time.monotonic() - begin
            row = {"importance": name, "reduction": reduction, "f1_cut": scorer.f1(student)}
            rows.append(row | {"f1_repaired": scorer.f1(repaired), "repair_seconds": seconds})
    whole = scorer.f1(teacher)
    rows.insert(0, {"importance": "teacher", "reduction": 1.0, "f1_cut": whole, "f1_repaired": None})
    rows[0]["repair_seconds"] = None
    columns = {
        "importance": "{importance}",
        "MACs fewer": "{reduction:g}x",
        "F1, cut": "{f1_cut:.2f}",
        "F1, repaired": "{f1_repaired:.2f}",
        "repair took": "{repair_seconds:.0f} s",
    }
    note = f"{len(scorer.validation.examples)} questions"
    return bench.Table(name="importances", columns=columns, rows=rows, note=note)


def fastest_within(config: BertConfig, importance: Importance, costs: Costs, loss: float, group: int) -> Plan:
    """The plan of least cost that loses no more importance than `loss`, to 0.1 % of the reduction."""
    low, high, best = 1.0, 32.0, None
    while high / low > 1.001:
        middle = (low * high) ** 0.5
        try:
            plan = search(config, importance, costs, reduction=middle, ffn_group=group)
        except UserError:  # nothing near this reduction
            plan = None
        if plan and plan.loss <= loss:
            low, best = middle, plan
        else:
            high = middle
    return best or search(config, importance, costs, reduction=1.0, ffn_group=group)


def make_plans(
    config: BertConfig, importance: Importance, table: LatencyTable, reductions: list[float], *, seq: int, group: int
) -> dict[str, Plan]:
    """Three plans for every reduction, by name."""
    macs, time = mac_costs(config, seq), table.costs(config, "--latency-table")
    plans = {}
    for reduction in reductions:
        by_macs = search(config, importance, macs, reduction=reduction, ffn_group=group)
        faster = time.total(config) / time.total(by_macs.config(config))
        plans[f"{reduction:g}x fewer MACs"] = by_macs
        plans[f"time, as fast as {reduction:g}x"] = search(config, importance, time, reduction=faster, ffn_group=group)
        plans[f"time, as good as {reduction:g}x"] = fastest_within(config, importance, time, by_macs.loss, group)
    return plans


def measure_plans(config: BertConfig, plans: dict[str, Plan], table: LatencyTable, seconds: float) -> np.ndarray:
    """The speed of each plan's shape over the dense model's."""
    about = table.about
    quantization = Quantization.calibrated(about["quantize_also"], calibrator="max", calibration_examples=0)
    shapes = [config, *(plan.config(config) for plan in plans.values())]
    shapes = [probe(config, quantization, [(layer.heads, layer.ffn) for layer in shape.layers]) for shape in shapes]
    load = Workload(**{field.name: about[field.name] for field in dataclasses.fields(Workload)})
    found, _ = time_shapes(shapes, load, backend=about["backend"], rounds=15, seconds=seconds)
    return found[0] / found[1:]


def compare_times(options: argparse.Namespace) -> bench.Table:
    """Students pruned for measured time against students pruned for multiply-accumulates."""
    config, table = bench.load_config(options.model), read_table(options.latency_table)
    path = options.importance_file or options.model.resolve().parent / "work" / "importance.npz"
    importance, seq = load_importance(path), rundir.window_settings(options.model).max_seq
    if importance is None:
        raise UserError(f"{path}: no such file, or broken; name the importance.npz of a run with --importance-file")
    plans = make_plans(config, importance, table, options.flops_reduction, seq=seq, group=options.ffn_group)
    measured = measure_plans(config, plans, table, options.seconds)
    scorer = open_scorer(options)[0] if options.data else None
    whole, costs = sum(map(np.sum, (*importance.heads, *importance.ffn))), table.costs(config, "--latency-table")
    rows = []
    for (name, plan), faster in zip(plans.items(), measured, strict=True):
        shape = plan.config(config)
        rows.append(
            {
                "student": name,
                "macs_ratio": count_macs(config, seq) / count_macs(shape, seq),
                "predicted_speedup": costs.total(config) / costs.total(shape),
                "measured_speedup": faster,
                "importance_lost": plan.loss / whole,
                "f1_repaired": scorer.f1(scorer.repaired(scorer.cut(plan))) if scorer else None,
            }
        )
    columns = {
        "student": "{student}",
        "MACs fewer": "{macs_ratio:.2f}x",
        "predicted": "{predicted_speedup:.2f}x",
        "measured": "{measured_speedup:.2f}x",
        "importance lost": "{importance_lost:.2%}",
        "F1, repaired": "{f1_repaired:.2f}",
    }
    note = f"Speed against the dense INT8 model on {table.about['description']}"
    if scorer:
        note += f"; F1 of the teacher: {scorer.f1(scorer.teacher):.2f}"
    return bench.Table(name="times", columns=columns, rows=rows, note=note)


def main() -> None:
    parser = bench.flags("pruning", __doc__)
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="model directory of the teacher")
    add("--train-file", type=Path, metavar="FILE", help="SQuAD v1.1 file for gradients and repair")
    add("--data", type=Path, metavar="FILE", help="SQuAD v1.1 file to score on")
    add(
        "--flops-reduction",
        type=bench.numbers,
        default=[2.0, 3.0, 5.6],
        metavar="N,N",
        help="one or several (default 2,3,5.6)",
    )
    add("--ffn-group", type=int, default=32, metavar="N", help="FFN widths are multiples of this (default 32)")
    add("--questions", type=int, default=500, metavar="N", help="questions of --data, at random (default 500)")
    add("--examples", type=int, default=2048, metavar="N", help="training windows for gradients (default 2048)")
    add("--importance", nargs="+", choices=MEASURES, default=list(MEASURES), help="rows of the table (default: all)")
    add("--seed", type=int, default=0, metavar="N")
    times = parser.add_argument_group("pruning for time")
    times.add_argument("--latency-table", type=Path, metavar="FILE", help="made by train/latency_table.py of the model")
    times.add_argument("--importance-file", type=Path, metavar="FILE", help="importance.npz (default: the run's)")
    times.add_argument("--seconds", type=float, default=30.0, metavar="N", help="least seconds of timing (default 30)")
    options = parser.parse_args()
    if (options.data is None) != (options.train_file is None):
        raise UserError("--data, --train-file: F1 needs both; give both or neither")
    if options.latency_table is None and options.data is None:
        raise UserError("--data, --train-file: missing; only with --latency-table they may be left out")
    bench.report(options, compare_times(options) if options.latency_table else compare_importances(options))


if __name__ == "__main__":
    programs.run(main)
