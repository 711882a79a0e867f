"""The cost of INT8 by activation scales, calibrator and placement of Q/DQ, before training; TensorRT's kernels for it.

    python benchmarks/quantization.py --model runs/minilm/student --train-file train.json.gz --data val.json.gz \\
        --output runs/quantization

Every row calibrates the same floating-point student on the same training windows and leaves a model directory
`OUTPUT/PLACEMENT-SCALES-CALIBRATOR`, whose speed `benchmarks/backends.py --model` measures. Rows whose directories
exist are not made again.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from pathlib import Path
from typing import get_args

import numpy as np
import tqdm
from scipy.special import rel_entr, softmax

import bench
from bertjax import files, programs
from bertjax.data.dataset import Dataset
from bertjax.errors import UserError
from bertjax.model.bert import Model
from bertjax.model.inference import Evaluation, Evaluator
from bertjax.modeldir import store
from bertjax.modeldir.config import ActivationScales, Calibrator, Quantization
from bertjax.quantization.calibrate import Ranges, quantize, record_ranges
from bertjax.quantization.calibrators import CALIBRATORS

PLACEMENTS: dict[str, tuple[str, ...]] = {
    "dense": (),
    "attention": ("attention",),
    "residual": ("residual",),
    "all": ("attention", "residual"),
}
SCALES: tuple[ActivationScales, ...] = get_args(ActivationScales)
COLUMNS = {
    "INT8": "{placement}",
    "a scale for each": "{activation_scales}",
    "calibrator": "{calibrator}",
    "EM": "{exact_match:.2f}",
    "F1": "{f1:.2f}",
    "against float": "{f1_change:+.2f}",
    "KL": "{kl_nats:.4f}",
    "INT8 GEMMs": "{int8_gemms}",
    "fused attention": "{fused_attention}",
    "residual adds": "{residual_reads}",
    "steps": "{steps}",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """Everything that all rows share."""

    student: Model
    source: Path  # the student's directory
    ranges: dict[str, Ranges]  # by what has a scale: each feature or each tensor
    exact: Evaluation  # of the student itself
    data: Dataset
    output: Path

    def score(self, name: str, model: Model) -> dict[str, float]:
        """Exact match, F1 and divergence from the student, measured once and then kept in a file."""
        path = self.output / f"{name}.json"
        if not path.exists():
            found = Evaluator(self.data)(model, label=name)
            scores = {"exact_match": found.score.exact_match, "f1": found.score.f1}
            files.write_file_aside(path, json.dumps(scores | {"kl": divergence(self.exact, found)}))
        return json.loads(path.read_text())

    def make(self, placement: str, record: Quantization) -> bench.Row:
        """Quantize, save, score and build one row's model."""
        directory = self.output / f"{placement}-{record.activation_scales}-{record.calibrator}"
        model = quantize(self.student, record, self.ranges[record.activation_scales])
        if not directory.exists():
            store.save(directory, model.stored(), tokenizer_from=self.source)
        found = self.score(directory.name, model)
        row = {
            "placement": placement,
            "activation_scales": record.activation_scales,
            "calibrator": record.calibrator,
            "exact_match": found["exact_match"],
            "f1": found["f1"],
            "f1_change": found["f1"] - self.exact.score.f1,
            "kl_nats": found["kl"],
        }
        return row | in_tensorrt(directory)

    def first(self) -> bench.Row:
        """The row of the floating-point student."""
        row = dict.fromkeys(
            ("activation_scales", "calibrator", "f1_change", "kl_nats")
            + ("int8_gemms", "fused_attention", "residual_reads", "steps")
        )
        exact = self.exact.score
        return {"placement": "floating point"} | row | {"exact_match": exact.exact_match, "f1": exact.f1}


def divergence(exact: Evaluation, found: Evaluation) -> float:
    """KL divergence of the distributions of start and end from the exact ones, in nats, mean over both and windows."""
    pairs = zip(exact.start_logits + exact.end_logits, found.start_logits + found.end_logits, strict=True)
    return float(np.mean([rel_entr(softmax(wanted), softmax(given)).sum() for wanted, given in pairs]))


def in_tensorrt(directory: Path) -> bench.Row:
    """INT8 GEMMs, fused attentions and what they multiply, what residual adds read, and steps of a built engine.

    Without TensorRT all are None.
    """
    from bertjax.tensorrt.build import BuildSettings
    from bertjax.tensorrt.export import export_engine
    from bertjax.tensorrt.source import source_from_directory

    source = source_from_directory(directory, "trt")
    few, usual, most = (min(tokens, source.config.max_position_embeddings) for tokens in (64, 192, 384))
    try:
        engine = export_engine(source, BuildSettings(batches=((1, 8, 32),), seq=(few, usual, most)))
    except UserError:
        return dict.fromkeys(("int8_gemms", "fused_attention", "residual_reads", "steps"))
    totals = engine.accounts[0].totals()
    attention = f"{totals['fused_attention']} of {totals['attention_layers']}"
    return {
        "int8_gemms": f"{totals['int8_gemms']} of {totals['dense_layers']}",
        "fused_attention": f"{attention}, {_counted(totals['attention_dtypes'])}",
        "residual_reads": _counted(totals["residual_reads"]),
        "steps": totals["steps"],
    }


def _counted(counter: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counter.items())


def prepare(options: argparse.Namespace) -> Rows:
    """Score the student and record its ranges under each kind of scale."""
    subject = bench.load_subject(options.model)
    model, data = subject.model, subject.read(options.data, questions=options.questions)
    exact = Evaluator(data)(model, label="float")
    training = subject.read(options.train_file)

    def ranges(scales: ActivationScales) -> Ranges:
        record = record_of("all", scales, CALIBRATORS[0], options.examples)
        return record_ranges(model, record, training, seed=options.seed)

    by_scales = {scales: ranges(scales) for scales in options.scales}
    return Rows(student=model, source=options.model, ranges=by_scales, exact=exact, data=data, output=options.output)


def record_of(placement: str, scales: ActivationScales, calibrator: Calibrator, examples: int) -> Quantization:
    """The record that a row's `config.json` gets."""
    return Quantization.calibrated(
        PLACEMENTS[placement], calibrator=calibrator, calibration_examples=examples, activation_scales=scales
    )


def main() -> None:
    parser = bench.flags("quantization", __doc__)
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="model directory of a floating-point student")
    add("--train-file", type=Path, required=True, metavar="FILE", help="SQuAD v1.1 file to calibrate on")
    add("--data", type=Path, required=True, metavar="FILE", help="SQuAD v1.1 file to score on")
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the quantized model directories")
    add("--scales", nargs="+", choices=SCALES, default=list(SCALES), help="a scale of dense inputs for each of these")
    add("--calibrator", nargs="+", choices=CALIBRATORS, default=["max"], help="default: max")
    add("--placement", nargs="+", choices=PLACEMENTS, default=list(PLACEMENTS), help="INT8 besides the dense layers")
    add("--questions", type=int, metavar="N", help="score on this many questions, drawn at random (default: all)")
    add("--examples", type=int, default=256, metavar="N", help="training windows to calibrate on (default 256)")
    add("--seed", type=int, default=0, metavar="N")
    options = parser.parse_args()

    rows = prepare(options)
    choices = list(itertools.product(options.placement, options.scales, options.calibrator))
    found = [rows.first()]
    for placement, scales, calibrator in tqdm.tqdm(choices, desc="rows", leave=False, disable=None):
        found.append(rows.make(placement, record_of(placement, scales, calibrator, options.examples)))
    bench.report(options, bench.Table(name="quantization", columns=COLUMNS, rows=found))


if __name__ == "__main__":
    programs.run(main)
