"""What changing from one compiled model to another costs OpenVINO, by who owns the models of one shape.

    python benchmarks/shape_changes.py --model runs/minilm/student-int8

Every core takes batches of the shapes that Server meets most, one after the other. Three ways to hold the models: one
of open sizes with a stream for each core; one for each shape, with a stream for each core; one for each shape and core,
with one stream each (what serves). Shapes come either one at a time in long runs, as in Offline, or at random, as in
Server. Padded tokens per second, interleaved rounds, the median (range).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tqdm

from bertjax import machine, programs, rundir
from bertjax.data.batching import BatchPlan
from bertjax.engines.backend import require
from bertjax.engines.choose import cpu_graph
from bertjax.engines.openvino import read_served
from bertjax.engines.samples import SERVER_MULTIPLE, open_library
from bertjax.engines.timing import warmup
from bertjax.engines.timing.compare import interleaved
from bertjax.engines.timing.cost import BATCH_ROWS
from bertjax.errors import UserError
from bertjax.modeldir.config import INPUTS, BertConfig

TOKENS = 1024  # most padded ones in a batch
LONG_RUN = 30  # batches of one shape, where shapes do not come at random

Pick = Callable[[int, tuple[int, int]], Any]  # the request for a core's batch of a shape


def open_ways(directory: Path, shapes: list[tuple[int, int]], cores: int) -> dict[str, Pick]:
    """The three ways to hold a model; each is a function from core and shape to the request that runs it."""
    core = require("openvino", "openvino", "pip install openvino").Core()
    config = BertConfig.from_json(directory / "config.json")
    model = read_served(core, cpu_graph(directory, config), config)

    def requests(shape: tuple[int, int] | None, streams: int) -> list[Any]:
        one = model.clone()
        if shape is not None:
            one.reshape({name: list(shape) for name in INPUTS})
        pinned = {} if shape is None else {"ENABLE_CPU_PINNING": False}
        settings = {"NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": streams, "INFERENCE_PRECISION_HINT": "bf16"}
        compiled = core.compile_model(one, "CPU", settings | pinned)
        return [compiled.create_infer_request() for _ in range(streams)]

    opened = requests(None, cores)
    bar = tqdm.tqdm(shapes, desc="compile", unit="shape", leave=False, disable=None)
    fixed = {shape: (requests(shape, cores), [requests(shape, 1)[0] for _ in range(cores)]) for shape in bar}
    return {
        "open sizes": lambda stream, shape: opened[stream],
        "a model for each shape": lambda stream, shape: fixed[shape][0][stream],
        "a model for each shape and stream": lambda stream, shape: fixed[shape][1][stream],
    }


def tokens_per_second(
    pick: Pick, feeds: dict[tuple[int, int], dict[str, np.ndarray]], cores: int, *, mixed: bool, seconds: float
) -> float:
    """Padded tokens per second with all cores busy for so long."""
    shapes = list(feeds)

    def work(stream: int) -> float:
        order, begin, tokens, batches = random.Random(stream), time.perf_counter(), 0, 0
        while (elapsed := time.perf_counter() - begin) < seconds:
            shape = order.choice(shapes) if mixed else shapes[batches // LONG_RUN % len(shapes)]
            pick(stream, shape).infer(feeds[shape], share_inputs=True)
            tokens, batches = tokens + shape[0] * shape[1], batches + 1
        return tokens / elapsed

    with concurrent.futures.ThreadPoolExecutor(cores) as pool:
        return sum(pool.map(work, range(cores)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="INT8 model directory")
    add("--data", type=Path, help="SQuAD v1.1 file (default: the evaluation file of the model's run)")
    add("--shapes", type=int, default=12, help="how many, the largest of the commonest lengths first (default 12)")
    add("--rounds", type=int, default=3, help="interleaved rounds (default 3), after a warm-up")
    add("--seconds", type=float, default=3.0, help="of each row in a round (default 3)")
    options = parser.parse_args()

    config = BertConfig.from_json(options.model / "config.json")
    if config.quantization is None:
        raise UserError(f"--model: {options.model} is not quantized; name an INT8 model directory")
    data = options.data or rundir.default_data(options.model)
    _, library = open_library(data, options.model, rundir.window_settings(options.model))
    library.load(range(len(library.lengths)))
    plans = warmup.shapes_to_come(library, rows=BATCH_ROWS, tokens=TOKENS, multiple=SERVER_MULTIPLE)
    feeds = _feeds(library.gather, {plan.length: plan for plan in plans}, options.shapes)
    cores = machine.cores()
    ways = open_ways(options.model, list(feeds), cores)
    rows = [(name, mixed) for mixed in (False, True) for name in ways]
    for shape, feed in feeds.items():  # one thread alone first: see OpenVINOBackend on `to_dtype`
        for stream in range(cores):
            for pick in ways.values():
                pick(stream, shape).infer(feed, share_inputs=True)
    runs = [
        functools.partial(tokens_per_second, ways[name], feeds, cores, mixed=mixed, seconds=options.seconds)
        for name, mixed in rows
    ]
    rates = interleaved(runs, rounds=options.rounds)
    print("| models | shapes | padded tokens/s |\n|---|---|---|")
    for (name, mixed), found in zip(rows, rates.T, strict=True):
        order = "at random" if mixed else "in long runs"
        print(f"| {name} | {order} | {np.median(found):,.0f} ({found.min():,.0f} to {found.max():,.0f}) |")


def _feeds(
    gather: Callable[..., tuple[np.ndarray, ...]], largest: dict[int, BatchPlan], count: int
) -> dict[tuple[int, int], dict[str, np.ndarray]]:
    """Inputs of the largest batch of each length, in the order of `largest`, by shape."""
    some = list(largest.values())[:count]
    return {
        (len(plan.rows), plan.length): dict(zip(INPUTS, gather(plan.rows, plan.length), strict=True)) for plan in some
    }


if __name__ == "__main__":
    programs.run(main)
