"""The share of the fastest INT8 products of OpenVINO that dense layers reach, and where the rest of the time goes.

    python benchmarks/roofline.py --model runs/minilm/student-int8

The roof is measured: for every shape of the model's dense layers and several numbers of tokens in a batch, a stack of
such layers alone, each one's output rounded to INT8 for the next. The best rate counts. It is compared with Offline:
sorted batches of the model's evaluation windows, a compiled model for each shape, in the encoder's dense
multiply-accumulates per second. Padding counts, since it is multiplied too. `Offline, dense layers` divides by the time
in dense layers, which includes their GELU and rounding; `Offline, whole run` divides by all time. The second table
shows the share of each kind of step, from OpenVINO's counters.

Rates are per core and in processor time, from a busy stream of one thread on each core.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tqdm
from onnx import helper

import bench
from bertjax import machine, programs, rundir
from bertjax.engines.backend import require
from bertjax.engines.choose import cpu_graph
from bertjax.engines.openvino import OpenVINOBackend
from bertjax.engines.timing.compare import REPEATS, Passes, interleaved, offline_passes, steady_medians
from bertjax.errors import UserError
from bertjax.modeldir import tensors
from bertjax.modeldir.config import BertConfig
from bertjax.modeldir.tensors import DenseSite
from bertjax.onnx.dense import add_dense, add_grid, with_signed_activations
from bertjax.onnx.emit import IR_VERSION, OPSET
from bertjax.onnx.graph import CPU, Graph

STACK_TOKENS = (512, 1024, 2048)
PAIRS = 4  # of layers in a stack: there and back


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stack:
    """Dense layers from `wide` to `narrow` and back, again and again, on `tokens` tokens, on every stream at once."""

    wide: int
    narrow: int
    tokens: int
    requests: list[Any]  # one per stream

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one stream."""
        return 2 * PAIRS * self.tokens * self.wide * self.narrow

    def processor_seconds(self) -> float:
        """Processor time of one run, each stream's equal share."""
        x = np.random.default_rng(0).standard_normal((self.tokens, self.wide), np.float32)
        with concurrent.futures.ThreadPoolExecutor(len(self.requests)) as pool:

            def run() -> None:
                list(pool.map(lambda request: request.infer([x], share_inputs=True), self.requests))

            run()  # not timed: a core that rested takes longer
            begin = time.process_time()
            run()
            return (time.process_time() - begin) / len(self.requests)


def stack_graph(wide: int, narrow: int) -> bytes:
    """The ONNX file of a stack, with random weights."""
    graph, random, x = Graph(CPU), np.random.default_rng(0), "x"
    for index in range(2 * PAIRS):
        inputs, outputs = (wide, narrow) if index % 2 == 0 else (narrow, wide)
        site = DenseSite(f"layer{index}", f"layer{index}.input_scale", inputs, outputs)
        parameters = {
            site.weight: random.standard_normal((outputs, inputs), np.float32) / np.float32(np.sqrt(inputs)),
            site.bias: np.zeros(outputs, np.float32),
            site.input_scale: np.full((), 3 / 127, np.float32),
            site.weight_scale: np.full(outputs, 0.03 / np.sqrt(inputs), np.float32),
        }
        x = add_grid(graph, f"layer{index}/input", x, site.input_scale, parameters[site.input_scale])
        x = add_dense(graph, f"layer{index}", x, parameters, site)
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["tokens", width])
        for name, width in (("x", wide), (x, wide))
    ]
    made = graph.finish(ends[:1], ends[1:])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    content = model.SerializeToString()
    return with_signed_activations(content) if machine.multiplies_signed() else content


def open_stacks(config: BertConfig, settings: dict[str, Any]) -> list[Stack]:
    """A stack for every shape of the model's dense layers and every number of tokens."""
    core, found = require("openvino", "openvino", "pip install openvino").Core(), []
    shapes = {tuple(sorted((site.inputs, site.outputs), reverse=True)) for site in tensors.dense_sites(config)}
    for wide, narrow in tqdm.tqdm(sorted(shapes), desc="compile", unit="stack", leave=False, disable=None):
        compiled = core.compile_model(core.read_model(stack_graph(wide, narrow)), "CPU", settings)
        for tokens in STACK_TOKENS:
            requests = [compiled.create_infer_request() for _ in range(settings["NUM_STREAMS"])]
            found.append(Stack(wide=wide, narrow=narrow, tokens=tokens, requests=requests))
    return found


def open_offline(backend: OpenVINOBackend, model: Path, data: Path | None, count: int) -> Passes:
    """Batches as Offline makes them, of at least `count` windows, each shape met by every stream."""
    tokens = backend.batch_tokens
    library, chosen = bench.load_windows(model, data, rundir.window_settings(model), count=count, tokens=2 * tokens)
    passes = offline_passes(backend, library, chosen, tokens=tokens, repeats=REPEATS)
    passes.compile_shapes().warm_up()
    return passes


def share_out(passes: Passes, backend: OpenVINOBackend, rounds: int) -> dict[tuple[str, str], float]:
    """Each type and kernel of steps and its share of the time, the largest first.

    Args:
      backend: keeps times and has one stream.
    """
    seconds: collections.Counter[tuple[str, str]] = collections.Counter()
    alone = dataclasses.replace(passes, backend=backend)
    alone.compile_shapes().warm_up()
    for _ in tqdm.trange(rounds, desc="counters", unit="round", leave=False, disable=None):
        for plan in alone.plans:
            alone.run(plan)
            seconds.update(backend.step_seconds())
    total = seconds.total()
    return {step: each / total for step, each in seconds.most_common()}


def is_dense(step: tuple[str, str]) -> bool:
    """Whether a step is a dense layer on an integer kernel."""
    kind, kernel = step
    return kind in OpenVINOBackend.dense_steps and OpenVINOBackend.integer_kernels.fullmatch(kernel) is not None


def measure(options: argparse.Namespace, config: BertConfig) -> tuple[bench.Table, bench.Table]:
    """Rates of dense layers, and each step's share of the time."""
    graph, cores = cpu_graph(options.model, config), machine.cores()
    backend = OpenVINOBackend(graph, config, streams=cores, threads=1)
    passes = open_offline(backend, options.model, options.data, options.windows)
    stacks = open_stacks(config, {"NUM_STREAMS": cores, "INFERENCE_NUM_THREADS": cores})
    times = interleaved(
        [passes.processor_seconds, *(stack.processor_seconds for stack in stacks)], rounds=options.rounds
    )
    usual = steady_medians(times)
    tokens = sum(len(plan.rows) * plan.length for plan in passes.plans) / cores
    macs = tokens * sum(site.inputs * site.outputs for site in tensors.dense_sites(config))
    watched = OpenVINOBackend(graph, config, streams=1, threads=1, profile=True)
    shares = share_out(passes, watched, max(1, options.rounds // 2))
    roof, best = max(
        ((stack.macs / seconds, stack) for stack, seconds in zip(stacks, usual[1:], strict=True)),
        key=lambda pair: pair[0],
    )
    rate = macs / usual[0]
    note = f"{backend.description}; {options.windows} windows, {options.rounds} rounds"
    return rate_table(best, roof, rate, shares, note), step_table(shares)


def rate_table(best: Stack, roof: float, rate: float, shares: dict[tuple[str, str], float], note: str) -> bench.Table:
    """Multiply-accumulates per second and core.

    Args:
      roof, rate: of the best stack, and of the encoder's dense layers in Offline by all time.
      shares: of the time, by step.
    """
    inside = rate / sum(share for step, share in shares.items() if is_dense(step))
    rates = {
        f"the roof: {best.wide} x {best.narrow}, {best.tokens} tokens": roof,
        "Offline, dense layers": inside,
        "Offline, whole run": rate,
    }
    rows = [{"layers": name, "macs_per_second": macs, "roof_share": macs / roof} for name, macs in rates.items()]
    columns: dict[str, bench.Cell] = {
        "dense layers": "{layers}",
        "GMAC/s and core": lambda row: f"{row['macs_per_second'] / 1e9:.0f}",
        "share of the roof": "{roof_share:.0%}",
    }
    return bench.Table(name="rates", columns=columns, rows=rows, note=note)


def step_table(shares: dict[tuple[str, str], float]) -> bench.Table:
    rows = [
        {"step": kind, "kernel": kernel, "time_share": share}
        for (kind, kernel), share in shares.items()
        if share >= 0.0005
    ]
    columns = {"step": "{step}", "kernel": "{kernel}", "share of time": "{time_share:.1%}"}
    return bench.Table(name="steps", columns=columns, rows=rows)


def main() -> None:
    parser = bench.flags("roofline", __doc__)
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="INT8 model directory")
    add("--data", type=Path, metavar="FILE", help="SQuAD v1.1 file (default: the evaluation file of the model's run)")
    add("--windows", type=int, default=128, metavar="N", help="windows in a pass, at least (default 128)")
    add("--rounds", type=int, default=7, metavar="N", help="interleaved rounds (default 7), after a warm-up")
    options = parser.parse_args()

    config = bench.load_config(options.model, quantized=True)
    if machine.saturates_int8():
        raise UserError("OpenVINO has no exact INT8 products on this CPU; take one with VNNI or AMX")
    bench.report(options, *measure(options, config))


if __name__ == "__main__":
    programs.run(main)
