"""One model on every engine: how far logits and scores are apart.

    python benchmarks/parity.py --model runs/minilm/student-int8 --data dev-v1.1.json.gz

The first row is JAX, which is what training and evaluation use; the others are compared with it on the same padded
batches. `argmax` is the share of windows whose best start and best end agree.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tqdm

from bertjax import machine, programs, rundir
from bertjax.data.answers import predict
from bertjax.data.batching import BatchPlan, plan_inference
from bertjax.data.dataset import Dataset, load_dataset
from bertjax.data.metrics import score
from bertjax.data.tokenizer import load_tokenizer
from bertjax.display import text_table
from bertjax.engines.backend import Backend
from bertjax.engines.choose import open_backend
from bertjax.engines.onnxruntime import OnnxRuntimeBackend
from bertjax.engines.samples import SampleLibrary
from bertjax.modeldir.config import BertConfig
from bertjax.onnx.export import export_onnx

TOKENS = 2048
LENGTH_MULTIPLE = 64

Logits = tuple[list[np.ndarray], list[np.ndarray]]  # start and end logits of every window, float32 [its length]


def open_engines(directory: Path, longest: int) -> Iterator[tuple[str, Backend]]:
    """What a row is called and its engine: JAX, both CPU engines, ONNX Runtime on the graph that TensorRT gets."""
    settings = {"streams": 1, "threads": machine.cores()}
    for name in ("jax", "onnxruntime", "openvino"):
        backend = open_backend(name, directory, longest=longest, **settings)
        yield backend.description, backend
    config = BertConfig.from_json(directory / "config.json")
    graph = export_onnx(directory, flavour="trt")
    yield f"ONNX Runtime, {graph.name} (FP16 body)", OnnxRuntimeBackend(graph, config, **settings)


def run_all(name: str, backend: Backend, data: Dataset, library: SampleLibrary, plans: Sequence[BatchPlan]) -> Logits:
    """The logits of every window, without padding."""
    starts: list[np.ndarray] = [np.empty(0)] * len(data.windows)
    ends = list(starts)
    with tqdm.tqdm(total=len(data.windows), desc=name, unit="window", leave=False, disable=None) as bar:
        for plan in plans:
            found = backend.infer(*library.gather(plan.rows, plan.length))
            for index, start, end in zip(plan.rows, *found, strict=True):
                starts[index], ends[index] = start[: data.lengths[index]], end[: data.lengths[index]]
            bar.update(len(plan.rows))
    return starts, ends


def compare(found: Logits, wanted: Logits) -> list[str]:
    """Relative L2, largest difference, and argmax agreement of both logits over all windows."""
    flat, reference = (np.concatenate([*starts, *ends]) for starts, ends in (found, wanted))
    agree = [a.argmax() == b.argmax() for part in range(2) for a, b in zip(found[part], wanted[part], strict=True)]
    distance = np.linalg.norm(flat - reference) / np.linalg.norm(reference)
    return [f"{distance:.1e}", f"{np.abs(flat - reference).max():.1e}", f"{100 * np.mean(agree):.2f} %"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="model directory, quantized or not")
    add("--data", type=Path, help="SQuAD v1.1 file (default: the evaluation file of the model's run)")
    add("--questions", type=int, help="this many questions, drawn at random (default: all)")
    options = parser.parse_args()

    windows = rundir.window_settings(options.model)
    path = options.data or rundir.default_data(options.model)
    data = load_dataset(path, load_tokenizer(options.model), windows, questions=options.questions)
    library = SampleLibrary(data, BertConfig.from_json(options.model / "config.json").pad_token_id)
    library.load(range(len(data.windows)))
    plans = plan_inference(data.lengths, tokens=TOKENS, multiple=LENGTH_MULTIPLE, longest=windows.max_seq)
    rows, wanted = [], None
    for name, backend in open_engines(options.model, windows.max_seq):
        found = run_all(name, backend, data, library, plans)
        wanted = wanted or found
        scores = score(data.examples, predict(data.examples, data.windows, *found))
        rows.append([name, f"{scores.exact_match:.2f}", f"{scores.f1:.2f}", *compare(found, wanted)])
        print(*rows[-1], sep="  ", flush=True)
    print(f"\n{options.model}, {len(data.examples)} questions, {len(data.windows)} windows\n")
    print(text_table(["engine", "exact match", "F1", "relative L2", "largest difference", "argmax"], rows))


if __name__ == "__main__":
    programs.run(main)
