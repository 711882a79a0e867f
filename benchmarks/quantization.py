"""What INT8 costs, by activation scales, calibrator and placement of Q/DQ, before training; what TensorRT makes of it.

    python benchmarks/quantization.py --model runs/minilm/student --train-file train.json.gz --data val.json.gz \\
        --output runs/quantization

Every row calibrates the same floating-point student on the same training windows and leaves a model directory
`OUTPUT/PLACEMENT-SCALES-CALIBRATOR`; `benchmarks/backends.py --model` measures its speed. Rows that are there are not
made again.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from pathlib import Path
from typing import get_args

import numpy as np
from scipy.special import rel_entr, softmax

from bertjax import files, programs, rundir
from bertjax.data.dataset import Dataset, load_dataset
from bertjax.data.tokenizer import load_tokenizer
from bertjax.display import text_table
from bertjax.errors import UserError
from bertjax.model.bert import Model
from bertjax.model.inference import Evaluation, Evaluator
from bertjax.modeldir import store
from bertjax.modeldir.config import ActivationScales, Quantization
from bertjax.quantization.calibrate import Ranges, quantize, record_ranges
from bertjax.quantization.calibrators import CALIBRATORS

PLACEMENTS = {"dense": (), "attention": ("attention",), "residual": ("residual",), "all": ("attention", "residual")}
SCALES: tuple[str, ...] = get_args(ActivationScales)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """What all rows share."""

    student: Model
    source: Path  # the student's directory
    ranges: dict[str, Ranges]  # by what has a scale, a feature or a tensor
    exact: Evaluation  # of the student itself
    data: Dataset
    output: Path

    def score(self, name: str, model: Model) -> dict[str, float]:
        """Exact match, F1 and divergence from the student, measured once and then kept in a file."""
        path = self.output / f"{name}.json"
        if not path.exists():
            found = Evaluator(model.config, self.data)(model.params, label=name)
            scores = {"exact_match": found.score.exact_match, "f1": found.score.f1}
            files.write_file_aside(path, json.dumps(scores | {"kl": divergence(self.exact, found)}))
        return json.loads(path.read_text())

    def row(self, placement: str, record: Quantization) -> list[str]:
        """Quantize, save, score and build one row's model."""
        directory = self.output / f"{placement}-{record.activation_scales}-{record.calibrator}"
        config = dataclasses.replace(self.student.config, quantization=record)
        params = quantize(config, self.student.params, self.ranges[record.activation_scales])
        if not directory.exists():
            store.save(directory, Model(config=config, params=params).stored(), tokenizer_from=self.source)
        found = self.score(directory.name, Model(config=config, params=params))
        scores = [f"{found['exact_match']:.2f}", f"{found['f1']:.2f}", f"{found['f1'] - self.exact.score.f1:+.2f}"]
        scores.append(f"{found['kl']:.4f}")
        return [placement, record.activation_scales, record.calibrator, *scores, *tensorrt_cells(directory)]


def divergence(exact: Evaluation, found: Evaluation) -> float:
    """KL divergence of the distributions of start and end from the exact ones, in nats, mean over both and windows."""
    pairs = zip(exact.start_logits + exact.end_logits, found.start_logits + found.end_logits, strict=True)
    return float(np.mean([rel_entr(softmax(wanted), softmax(given)).sum() for wanted, given in pairs]))


def tensorrt_cells(directory: Path) -> list[str]:
    """INT8 GEMMs, fused attentions and what they multiply, what residual adds read, steps; dashes without TensorRT."""
    from bertjax.tensorrt.build import BuildSettings
    from bertjax.tensorrt.export import export_engine
    from bertjax.tensorrt.source import source_from_directory

    source = source_from_directory(directory, "trt")
    seq = tuple(min(tokens, source.config.max_position_embeddings) for tokens in (64, 192, 384))
    try:
        engine = export_engine(source, BuildSettings(batches=((1, 8, 32),), seq=seq))
    except UserError:
        return ["-"] * 4
    totals = engine.accounts[0].totals()
    return [
        f"{totals['int8_gemms']} of {totals['dense_layers']}",
        f"{totals['fused_attention']} of {totals['attention_layers']}, {_counted(totals['attention_dtypes'])}",
        _counted(totals["residual_reads"]),
        str(totals["steps"]),
    ]


def _counted(counter: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counter.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="model directory of a floating-point student")
    add("--train-file", type=Path, required=True, help="SQuAD v1.1 file to calibrate on")
    add("--data", type=Path, required=True, help="SQuAD v1.1 file to score on")
    add("--output", type=Path, required=True, help="folder for the quantized model directories")
    add("--scales", nargs="+", choices=SCALES, default=list(SCALES), help="scales of dense inputs: for each of what")
    add("--calibrator", nargs="+", choices=CALIBRATORS, default=["max"], help="default: max")
    add("--placement", nargs="+", choices=PLACEMENTS, default=list(PLACEMENTS), help="INT8 beside the dense layers")
    add("--questions", type=int, help="score on this many questions, drawn at random (default: all)")
    add("--examples", type=int, default=256, help="training windows to calibrate on (default 256)")
    add("--seed", type=int, default=0)
    options = parser.parse_args()

    student = Model.of(store.load_question_answering(options.model))
    if student.config.quantization:
        raise UserError(f"--model: {options.model} is quantized; name the floating-point student")
    tokenizer, windows = load_tokenizer(options.model), rundir.window_settings(options.model)

    def record(placement: str, scales: str, calibrator: str) -> Quantization:
        about = {"activation_scales": scales, "calibrator": calibrator, "calibration_examples": options.examples}
        return Quantization.calibrated(PLACEMENTS[placement], **about)

    data = load_dataset(options.data, tokenizer, windows, questions=options.questions)
    exact = Evaluator(student.config, data)(student.params, label="float")
    training = load_dataset(options.train_file, tokenizer, windows)

    def ranges(scales: str) -> Ranges:
        everything = dataclasses.replace(student.config, quantization=record("all", scales, CALIBRATORS[0]))
        return record_ranges(everything, student.params, training, seed=options.seed)

    bench = Bench(
        student=student,
        source=options.model,
        ranges={scales: ranges(scales) for scales in options.scales},
        exact=exact,
        data=data,
        output=options.output,
    )
    base = [f"{exact.score.exact_match:.2f}", f"{exact.score.f1:.2f}"]
    rows = [["floating point", "-", "-", *base, "", "", "-", "-", "-", "-"]]
    for placement in options.placement:
        for scales, calibrator in itertools.product(options.scales, options.calibrator):
            rows.append(bench.row(placement, record(placement, scales, calibrator)))
            print(*rows[-1], sep="  ", flush=True)
    header = ["INT8", "a scale for each", "calibrator", "exact match", "F1", "against float", "KL"]
    print("\n" + text_table([*header, "INT8 GEMMs", "fused attention", "residual adds", "steps"], rows))


if __name__ == "__main__":
    programs.run(main)
