"""One model on every engine: how far apart logits and scores are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tqdm

from bertjax import machine
from bertjax.data.answers import predict
from bertjax.data.batching import BatchPlan, plan_inference
from bertjax.data.dataset import Dataset
from bertjax.data.metrics import Score, score
from bertjax.engines.backend import Backend
from bertjax.engines.choose import open_backend
from bertjax.engines.onnxruntime import OnnxRuntimeBackend
from bertjax.engines.samples import SampleLibrary
from bertjax.modeldir.config import BertConfig
from bertjax.onnx.export import export_onnx

TOKENS = 2048  # padded ones in a batch
LENGTH_MULTIPLE = 64

# Unquantized engines compute the same but for rounding. On the INT8 grid a difference of 1e-7 can flip a rounding, so
# single logits differ; docs/quantization.md has figures of a trained student (0.02 to 0.035, 92.8 to 95.5 %).
FLOAT32_DISTANCE = 1e-4
FLOAT16_DISTANCE = 1e-2
INT8_DISTANCE = 0.1
INT8_ARGMAX = 0.85

Logits = tuple[list[np.ndarray], list[np.ndarray]]  # start and end logits of every window, float32 [its length]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine and the bounds that its arithmetic explains."""

    name: str
    backend: Backend
    distance: float  # most relative L2 from JAX
    argmax: float = 0.0  # least share of best starts and ends that are JAX's


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parity:
    """One engine's scores, and its logits compared with JAX's over all windows."""

    engine: str
    score: Score
    distance: float  # relative L2
    largest: float  # difference of two logits
    argmax: float  # share of best starts and ends that are the same
    faults: tuple[str, ...]  # bounds that are exceeded


def open_engines(directory: Path, longest: int) -> Iterator[Engine]:
    """JAX, both CPU engines, and ONNX Runtime on the graph that TensorRT gets.

    Raises:
      UserError: the directory is no complete model.
    """
    config = BertConfig.from_json(directory / "config.json")
    cores = machine.cores()

    def engine(name: str, backend: Backend, float_distance: float) -> Engine:
        if config.quantization:
            return Engine(name=name, backend=backend, distance=INT8_DISTANCE, argmax=INT8_ARGMAX)
        return Engine(name=name, backend=backend, distance=float_distance)

    for name in ("jax", "onnxruntime", "openvino"):
        backend = open_backend(name, directory, streams=1, threads=cores, longest=longest)
        yield engine(backend.description, backend, FLOAT32_DISTANCE)
    graph = export_onnx(directory, flavour="trt")
    witness = OnnxRuntimeBackend(graph, config, streams=1, threads=cores)
    yield engine(f"ONNX Runtime, {graph.name} (FP16 body)", witness, FLOAT16_DISTANCE)


def check_parity(directory: Path, data: Dataset, longest: int) -> Iterator[Parity]:
    """Run every engine on the same padded batches and compare it with JAX, which comes first.

    Args:
      data: windows of at most `longest` tokens.

    Raises:
      UserError: the directory is no complete model.
    """
    library = SampleLibrary(data, BertConfig.from_json(directory / "config.json").pad_token_id)
    library.load(range(len(data.windows)))
    plans = plan_inference(data.lengths, tokens=TOKENS, multiple=LENGTH_MULTIPLE, longest=library.longest)
    exact: Logits | None = None
    for engine in open_engines(directory, longest):
        found = run_all(engine, data, library, plans)
        exact = exact or found
        scores = score(data.examples, predict(data.examples, data.windows, *found))
        yield compare(engine, found, exact, scores)


def run_all(engine: Engine, data: Dataset, library: SampleLibrary, plans: Sequence[BatchPlan]) -> Logits:
    """The logits of every window, without padding."""
    starts: list[np.ndarray] = [np.empty(0)] * len(data.windows)
    ends = list(starts)
    with tqdm.tqdm(total=len(data.windows), desc=engine.name, unit="window", leave=False, disable=None) as bar:
        for plan in plans:
            found = engine.backend.infer(*library.gather(plan.rows.tolist(), plan.length))
            for index, start, end in zip(plan.rows, *found, strict=True):
                starts[index], ends[index] = start[: data.lengths[index]], end[: data.lengths[index]]
            bar.update(len(plan.rows))
    return starts, ends


def compare(engine: Engine, found: Logits, exact: Logits, scores: Score) -> Parity:
    """One engine's logits against the exact ones."""
    flat, reference = (np.concatenate([*starts, *ends]) for starts, ends in (found, exact))
    agree = [a.argmax() == b.argmax() for part in range(2) for a, b in zip(found[part], exact[part], strict=True)]
    argmax, distance = float(np.mean(agree)), float(np.linalg.norm(flat - reference) / np.linalg.norm(reference))
    faults = []
    if not distance <= engine.distance:  # NaN is a fault too
        faults.append(f"relative L2 {distance:.1e}, at most {engine.distance:.0e} expected")
    if argmax < engine.argmax:
        faults.append(f"argmax {argmax:.1%}, at least {engine.argmax:.0%} expected")
    return Parity(
        engine=engine.name,
        score=scores,
        distance=distance,
        largest=float(np.abs(flat - reference).max()),
        argmax=argmax,
        faults=tuple(faults),
    )
