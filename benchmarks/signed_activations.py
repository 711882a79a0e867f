"""What INT8 activations around 0 give OpenVINO against the same grid as unsigned ones around 128.

    python benchmarks/signed_activations.py --model runs/minilm/teacher --model runs/minilm/student-int8

Every model's shape, with random weights, is quantized in its dense layers alone and in its attention products too, and
served in both forms on one core, in turn, by processor time. `OpenVINOBackend` takes one of them, by the CPU and by
what is quantized. ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 in the environment shows a CPU with AMX as one that has VNNI and
BF16 only.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import onnx

from bertjax import programs
from bertjax.display import text_table
from bertjax.engines.openvino import OpenVINOBackend
from bertjax.engines.timing.compare import interleaved, steady_medians
from bertjax.engines.timing.shapes import Workload, timer
from bertjax.modeldir.config import BertConfig, Quantization
from bertjax.modeldir.untrained import random_model
from bertjax.onnx.dense import with_signed_activations
from bertjax.onnx.emit import emit
from bertjax.onnx.graph import CPU, ZERO_POINT

PLACEMENTS: dict[str, tuple[str, ...]] = {"dense": (), "dense + attention": ("attention",)}
FORMS = ("unsigned", "signed")


def in_form(graph: onnx.ModelProto, form: str) -> bytes:
    """The graph so that `OpenVINOBackend` leaves it as it is: signed, or with a zero point that it does not know."""
    if form == "signed":
        return with_signed_activations(graph.SerializeToString())
    for tensor in graph.graph.initializer:
        tensor.name = "unknown" if tensor.name == ZERO_POINT else tensor.name
    for node in graph.graph.node:
        node.input[:] = ["unknown" if name == ZERO_POINT else name for name in node.input]
    return graph.SerializeToString()


def open_form(config: BertConfig, form: str, shape: tuple[int, int]) -> OpenVINOBackend:
    """A compiled model of one batch shape, on one core."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(in_form(emit(random_model(config), CPU), form))
        backend = OpenVINOBackend(path, config, streams=1, threads=1)
        backend.compile_shapes([shape])
    return backend


def shape_of(text: str) -> tuple[int, int]:
    """`6x168`: six windows of 168 tokens."""
    windows, tokens = map(int, text.split("x"))
    return windows, tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, action="append", required=True, help="model directory; may be given several times")
    add(
        "--batch",
        nargs="+",
        type=shape_of,
        default=[(6, 168), (1, 200)],
        help="windows x tokens (default: 6x168 1x200)",
    )
    add("--seconds", type=float, default=30.0, help="seconds of measuring, at least (default: 30)")
    options = parser.parse_args()

    runs, names, pool = [], [], concurrent.futures.ThreadPoolExecutor(1)
    for model in options.model:
        config = BertConfig.from_json(model / "config.json")
        for placement, also in PLACEMENTS.items():
            quantization = Quantization.calibrated(also, calibrator="max", calibration_examples=0)
            quantized = dataclasses.replace(config, quantization=quantization)
            for shape in options.batch:
                load, feed = (
                    Workload(batch=shape[0], seq=shape[1], streams=1, threads=1),
                    (np.ones(shape, np.int64),) * 3,
                )
                runs += [timer(pool, load, open_form(quantized, form, shape), feed) for form in FORMS]
                names.append([str(model), placement, "{} x {}".format(*shape)])
    found = steady_medians(interleaved(runs, rounds=15, seconds=options.seconds)).reshape(-1, len(FORMS))
    rows = [
        [*name, f"{1e3 * unsigned:.2f}", f"{1e3 * signed:.2f}", f"{unsigned / signed:.2f}"]
        for name, (unsigned, signed) in zip(names, found, strict=True)
    ]
    print(text_table(["model", "INT8", "batch", "unsigned, ms", "signed, ms", "faster"], rows))


if __name__ == "__main__":
    programs.run(main)
