"""What different importances keep of a teacher, at equal multiply-accumulates and before any training.

    python benchmarks/pruning.py --model runs/minilm/teacher --data val.json.gz --train-file train.json.gz

Every row cuts the same teacher by the same search; only the numbers that the search weighs differ. F1 is given of the
cut model as it is, and after `repair` has refitted its output projections on training windows in closed form. `--data`
should be a file that choices may be made on, not the one that scores are reported on.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from bertjax import programs, rundir
from bertjax.data.dataset import Dataset, load_dataset
from bertjax.data.tokenizer import load_tokenizer
from bertjax.display import text_table
from bertjax.model.bert import Model, Params, as_arrays, as_params
from bertjax.model.inference import Evaluator
from bertjax.modeldir import store
from bertjax.modeldir.tensors import layer_prefix
from bertjax.pruning.costs import mac_costs
from bertjax.pruning.importance import Importance, measure_importance
from bertjax.pruning.repair import repair
from bertjax.pruning.search import search
from bertjax.pruning.surgery import cut

Measure = Callable[[Model, Dataset, int, int], Importance]  # (teacher, training windows, examples, seed)


def by_gradients(summary: Callable[[jax.Array], jax.Array] | None = None) -> Measure:
    """Gate gradients under one summary; None is the library's own."""
    rest = {"summary": summary} if summary else {}
    return lambda teacher, train, examples, seed: measure_importance(
        teacher.config, teacher.params, train, examples=examples, seed=seed, **rest
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
    random, size = np.random.default_rng(seed), teacher.config.head_size
    layers = teacher.config.layers
    # A head owns four times its size in rows and columns, an FFN unit two: equal importance per weight.
    return _sums([2 * size * random.random(layer.heads) for layer in layers], [random.random(x.ffn) for x in layers])


def _sums(heads: list[np.ndarray], ffn: list[np.ndarray]) -> Importance:
    attention, widths = (np.array([layer.sum() for layer in part]) for part in (heads, ffn))
    return Importance(
        heads=tuple(heads), ffn=tuple(ffn), attention_blocks=attention, ffn_blocks=widths, layers=attention + widths
    )


MEASURES: dict[str, Measure] = {
    "Fisher, squared for each example": by_gradients(),
    "squared sum over each batch": by_gradients(lambda gradients: jnp.square(gradients.sum(axis=0))),
    "|gradient x weight| for each example": by_gradients(lambda gradients: jnp.abs(gradients).sum(axis=0)),
    "magnitude": by_magnitude,
    "random": at_random,
}


def score_cut(
    teacher: Model, importance: Importance, reduction: float, seq: int, train: Dataset, validation: Dataset, seed: int
) -> tuple[float, float, float]:
    """F1 of the cut model, F1 after repair, and the seconds that repair took."""
    plan = search(teacher.config, importance, mac_costs(teacher.config, seq), reduction=reduction, ffn_group=32)
    config, arrays = cut(teacher.config, as_arrays(teacher.params), plan)
    student = Model(config=config, params=as_params(arrays))
    evaluator = Evaluator(config, validation)
    begin = time.monotonic()
    repaired = repair(teacher, student, train, examples=512, seed=seed)
    seconds = time.monotonic() - begin
    return evaluator(student.params).score.f1, evaluator(repaired).score.f1, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="model directory of the teacher")
    add("--train-file", type=Path, required=True, help="SQuAD v1.1 file for gradients and repair")
    add("--data", type=Path, required=True, help="SQuAD v1.1 file to score on")
    add("--flops-reduction", default="2,3,5.6", help="one or several, with commas between them (default 2,3,5.6)")
    add("--questions", type=int, default=500, help="questions of --data, drawn at random (default 500)")
    add("--examples", type=int, default=2048, help="training windows for gradients (default 2048)")
    add("--seed", type=int, default=0)
    options = parser.parse_args()

    teacher = Model.of(store.load_question_answering(options.model))
    tokenizer, windows = load_tokenizer(options.model), rundir.window_settings(options.model)
    train = load_dataset(options.train_file, tokenizer, windows)
    validation = load_dataset(options.data, tokenizer, windows, questions=options.questions)
    whole = Evaluator(teacher.config, validation)(teacher.params).score.f1
    rows = []
    for name, measure in MEASURES.items():
        importance = measure(teacher, train, options.examples, options.seed)
        for reduction in map(float, options.flops_reduction.split(",")):
            cut_f1, repaired, seconds = score_cut(
                teacher, importance, reduction, windows.max_seq, train, validation, options.seed
            )
            rows.append([name, f"{reduction:g}x", f"{cut_f1:.2f}", f"{repaired:.2f}", f"{seconds:.0f} s"])
            print(*rows[-1], sep="  ", flush=True)
    print(f"\nteacher: F1 {whole:.2f} on {len(validation.examples)} questions\n")
    print(text_table(["importance", "MACs fewer", "F1, cut", "F1, repaired", "repair took"], rows))


if __name__ == "__main__":
    programs.run(main)
