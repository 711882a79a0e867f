"""Pruned for measured time against pruned for multiply-accumulates, before any training.

    python train/latency_table.py --model runs/minilm/teacher --output latency.json
    python benchmarks/latency_search.py --model runs/minilm/teacher --latency-table latency.json \\
        --train-file train.json.gz --data val.json.gz

For every reduction three students: one pruned for MACs, one pruned for the time that the table predicts of the first
one, and the fastest one that loses no more importance than it. All are then timed in turn, with random weights in INT8
on the table's backend, beside the dense model. With --data, F1 is given after repair as well; it should be a file that
choices may be made on.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from bertjax import programs, rundir
from bertjax.data.dataset import load_dataset
from bertjax.data.tokenizer import load_tokenizer
from bertjax.display import text_table
from bertjax.engines.timing.shapes import Workload, time_shapes
from bertjax.errors import UserError
from bertjax.model.bert import Model, as_params
from bertjax.model.inference import Evaluator
from bertjax.modeldir import store
from bertjax.modeldir.config import BertConfig, Quantization, count_macs
from bertjax.pruning.costs import Costs, mac_costs
from bertjax.pruning.importance import Importance, load_importance
from bertjax.pruning.latency import LatencyTable, probe, read_table
from bertjax.pruning.repair import repair
from bertjax.pruning.search import Plan, search
from bertjax.pruning.surgery import cut

REPAIR_EXAMPLES = 512


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


def measure(config: BertConfig, plans: dict[str, Plan], table: LatencyTable, seconds: float) -> np.ndarray:
    """How many times faster than the dense model each plan's shape runs."""
    about = table.about
    quantization = Quantization.calibrated(about["quantize_also"], calibrator="max", calibration_examples=0)
    shapes = [config, *(plan.config(config) for plan in plans.values())]
    shapes = [probe(config, quantization, [(layer.heads, layer.ffn) for layer in shape.layers]) for shape in shapes]
    load = Workload(**{field.name: about[field.name] for field in dataclasses.fields(Workload)})
    found, _ = time_shapes(shapes, load, backend=about["backend"], rounds=15, seconds=seconds)
    return found[0] / found[1:]


def repaired_scores(model: Path, plans: dict[str, Plan], train_file: Path, data: Path, questions: int) -> list[float]:
    """F1 of the teacher and of each plan's student after repair."""
    stored = store.load_question_answering(model)
    teacher = Model.of(stored)
    tokenizer, windows = load_tokenizer(model), rundir.window_settings(model)
    train = load_dataset(train_file, tokenizer, windows)
    validation = load_dataset(data, tokenizer, windows, questions=questions)
    scores = [Evaluator(teacher.config, validation)(teacher.params).score.f1]
    for plan in plans.values():
        shape, kept = cut(stored.config, stored.tensors, plan)
        student = Model(config=shape, params=as_params(kept))
        params = repair(teacher, student, train, examples=REPAIR_EXAMPLES, seed=0)
        scores.append(Evaluator(shape, validation)(params).score.f1)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="model directory of the teacher")
    add("--latency-table", type=Path, required=True, help="a table that train/latency_table.py made of it")
    add("--importance", type=Path, help="importance.npz (default: the one in the work folder of the model's run)")
    add("--flops-reduction", default="2,3,5.6", help="one or several, with commas between them (default 2,3,5.6)")
    add("--ffn-group", type=int, default=32, help="FFN widths are multiples of this (default 32)")
    add("--train-file", type=Path, help="SQuAD v1.1 file for repair")
    add("--data", type=Path, help="SQuAD v1.1 file to score repaired students on")
    add("--questions", type=int, default=500, help="questions of --data, drawn at random (default 500)")
    add("--seconds", type=float, default=30.0, help="seconds of timing, at least (default 30)")
    options = parser.parse_args()
    if (options.data is None) != (options.train_file is None):
        raise UserError("--data, --train-file: give both, or none and no F1 is measured")

    config, table = BertConfig.from_json(options.model / "config.json"), read_table(options.latency_table)
    path = options.importance or options.model.resolve().parent / "work" / "importance.npz"
    if not path.exists():
        raise UserError(f"{path}: no such file; name the importance.npz of a run with --importance")
    importance, seq = load_importance(path), rundir.window_settings(options.model).max_seq
    reductions = [float(part) for part in options.flops_reduction.split(",")]
    plans = make_plans(config, importance, table, reductions, seq=seq, group=options.ffn_group)
    measured = measure(config, plans, table, options.seconds)
    scores: list[float] = []
    if options.data:
        scores = repaired_scores(options.model, plans, options.train_file, options.data, options.questions)

    whole, time = sum(map(np.sum, (*importance.heads, *importance.ffn))), table.costs(config, "--latency-table")
    rows = []
    for (name, plan), faster in zip(plans.items(), measured, strict=True):
        shape = plan.config(config)
        fewer = count_macs(config, seq) / count_macs(shape, seq)
        predicted = time.total(config) / time.total(shape)
        cells = [f"{fewer:.2f}x", f"{predicted:.2f}x", f"{faster:.2f}x", f"{100 * plan.loss / whole:.2f} %"]
        rows.append([name, *cells])
    header = ["student", "MACs fewer", "predicted", "measured", "importance lost"]
    print(f"faster than the dense INT8 model on {table.about['description']}")
    if scores:
        print(f"F1 of the teacher: {scores[0]:.2f}")
        header.append("F1, repaired")
        rows = [[*row, f"{f1:.2f}"] for row, f1 in zip(rows, scores[1:], strict=True)]
    print(f"\n{text_table(header, rows)}")


if __name__ == "__main__":
    programs.run(main)
