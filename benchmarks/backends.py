"""Speed of models and engines on the same windows, in interleaved rounds, against the MLPerf reference's way.

    python benchmarks/backends.py --model runs/minilm/teacher --model runs/minilm/student-int8 --data dev-v1.1.json.gz
    python benchmarks/backends.py --pad-to 8 16 32 64 --model runs/minilm/student-int8
    python benchmarks/backends.py --signed --model runs/minilm/teacher --model runs/minilm/student-int8

The baseline is what the MLPerf reference implementation does: ONNX Runtime in FP32, one window at a time, every window
padded to the full length. All other rows run the same windows in batches sorted by length. Each round runs every row
once and divides by that round's baseline; the table gives the median over the rounds and their range, so a machine that
changes its speed in between changes both sides. The last column counts the encoder's dense layers that the engine runs
on integer kernels, read from its compiled graph.

Besides the names that serve/loadgen.py takes, --backend takes `openvino-bf16` and `openvino-f32`: OpenVINO with what
the graph leaves in float in that type. An unquantized model on `openvino-bf16` shows what BF16 alone gives.

With --pad-to windows come one at a time, as in SingleStream, on OpenVINO with a compiled model for each length and all
cores. Less padding means less to compute, but more compiled models, whose kernels, weights and buffers have left the
caches when their turn comes again. No other program should run.

With --signed each model's shape gets random weights, is quantized in its dense layers alone and in its attention
products too, and runs on one core of OpenVINO with INT8 activations around 0 (signed) and with the same grid as uint8
around 128. It is timed in processor time. ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 in the environment hides AMX.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import tempfile
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import tqdm

import bench
from bertjax import machine, programs, rundir
from bertjax.data.batching import BatchPlan
from bertjax.engines.backend import CPU_ENGINES, Backend
from bertjax.engines.choose import cpu_graph, open_backend
from bertjax.engines.kernels import CpuEngine, dense_kernels, format_share
from bertjax.engines.openvino import OpenVINOBackend
from bertjax.engines.timing.compare import Passes, interleaved, offline_passes, single_passes, steady_medians
from bertjax.engines.timing.layout import core_shares
from bertjax.engines.timing.shapes import Workload, timer
from bertjax.errors import UserError
from bertjax.modeldir.config import BertConfig, Quantization
from bertjax.modeldir.untrained import random_model
from bertjax.onnx.dense import with_signed_activations
from bertjax.onnx.emit import emit
from bertjax.onnx.graph import CPU, ZERO_POINT

PLACEMENTS: dict[str, tuple[str, ...]] = {"dense": (), "dense + attention": ("attention",)}
FORMS = ("unsigned", "signed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contender:
    """A model on an engine, and the batches that it runs."""

    model: Path
    config: BertConfig
    batch_tokens: int
    passes: Passes

    def integer_share(self) -> str | None:
        """The encoder's dense layers on integer kernels, after a pass: `36 of 36`."""
        backend = self.passes.backend
        if backend.name not in CPU_ENGINES:
            return None
        return format_share(dense_kernels(self.config, cast(CpuEngine, backend)))


def open_contenders(options: argparse.Namespace, baseline: Path) -> list[Contender]:
    """The baseline, then one for each model, engine, way to share out the cores, and number of tokens in a batch."""
    windows = rundir.window_settings(options.model[0], max_seq=options.max_seq)
    data = options.data or rundir.default_data(options.model[0])
    longest, cores = windows.max_seq, machine.cores()
    library, chosen = bench.load_windows(baseline, data, windows, count=options.windows)
    reference = open_backend("onnxruntime", baseline, streams=1, threads=cores, longest=longest)
    single = [BatchPlan(rows=np.array([index]), length=longest) for index in chosen]
    passes = Passes(backend=reference, library=library, plans=single)
    found = [Contender(model=baseline, config=bench.load_config(baseline), batch_tokens=longest, passes=passes)]
    for model in options.model:
        config = bench.load_config(model)
        library, chosen = bench.load_windows(model, data, windows, count=options.windows)
        for name in options.backend or ("openvino", "onnxruntime"):
            for streams, threads in [(1, cores)] if name == "jax" else core_shares(cores):
                backend = _open(name, model, config, streams=streams, threads=threads, longest=longest)
                for tokens in options.batch_tokens:
                    passes = offline_passes(backend, library, chosen, tokens=tokens)
                    found.append(Contender(model=model, config=config, batch_tokens=tokens, passes=passes))
    return found


def _open(name: str, model: Path, config: BertConfig, *, streams: int, threads: int, longest: int) -> Backend:
    if name in ("openvino-bf16", "openvino-f32"):
        graph = cpu_graph(model, config)
        return OpenVINOBackend(graph, config, streams=streams, threads=threads, bf16=name == "openvino-bf16")
    return open_backend(name, model, streams=streams, threads=threads, longest=longest)


def compare_batches(options: argparse.Namespace) -> bench.Table:
    """Sorted batches of every model on every engine against the baseline."""
    baseline = options.baseline or options.model[0]
    bench.load_config(baseline, quantized=False, flag="--baseline")
    contenders = open_contenders(options, baseline)
    for one in tqdm.tqdm(contenders, desc="warm-up", leave=False, disable=None):
        one.passes.warm_up()
    times = interleaved([one.passes.seconds for one in contenders], rounds=options.rounds)
    windows, rows = len(contenders[0].passes.plans), []
    for index, one in enumerate(contenders):
        ratios = times[:, 0] / times[:, index]
        rows.append(
            {
                "model": bench.name_of(one.model),
                "backend": one.passes.backend.description,
                "batch_tokens": one.batch_tokens if index else None,
                "samples_per_second": windows / np.median(times[:, index]),
                "speedup": np.median(ratios),
                "speedup_lowest": ratios.min(),
                "speedup_highest": ratios.max(),
                "integer_layers": one.integer_share(),
            }
        )
    columns = {
        "model": "{model}",
        "engine": "{backend}",
        "batch tokens": "{batch_tokens}",
        "samples/s": "{samples_per_second:.1f}",
        "speed": "{speedup:.2f}",
        "range": "{speedup_lowest:.2f} to {speedup_highest:.2f}",
        "INT8 layers": "{integer_layers}",
    }
    note = (
        f"{windows} windows, {options.rounds} rounds, {machine.cores()} cores;"
        f" first row: batch 1 padded to {contenders[0].batch_tokens}"
    )
    return bench.Table(name="batches", columns=columns, rows=rows, note=note)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Padded:
    """A model, the multiple that its windows are padded to, and the seconds of every window in every round."""

    model: Path
    multiple: int
    passes: Passes
    rounds: list[np.ndarray] = dataclasses.field(default_factory=list)

    def run(self) -> float:
        """Seconds of one pass, each window's time kept."""
        self.rounds.append(self.passes.batch_seconds())
        return float(self.rounds[-1].sum())

    def row(self) -> bench.Row:
        lengths = [plan.length for plan in self.passes.plans]
        times = np.concatenate(self.rounds[1:])  # the first round warms up
        return {
            "model": bench.name_of(self.model),
            "multiple": self.multiple,
            "lengths": len(set(lengths)),
            "mean_tokens": np.mean(lengths),
            "mean_seconds": times.mean(),
            "p50_seconds": np.percentile(times, 50),
            "p90_seconds": np.percentile(times, 90),
        }


def compare_padding(options: argparse.Namespace) -> bench.Table:
    """One window at a time, padded to each of the multiples."""
    if min(options.pad_to) < 1:
        raise UserError("--pad-to: must be at least 1")
    found = []
    data = options.data or rundir.default_data(options.model[0])
    for model in options.model:
        config, windows = bench.load_config(model), rundir.window_settings(model, max_seq=options.max_seq)
        library, chosen = bench.load_windows(model, data, windows, count=options.windows)
        backend = OpenVINOBackend(cpu_graph(model, config), config, streams=1, threads=machine.cores())
        for multiple in tqdm.tqdm(options.pad_to, desc=f"compile {model.name}", leave=False, disable=None):
            passes = single_passes(backend, library, chosen, multiple=multiple)
            passes.compile_shapes().warm_up()
            found.append(Padded(model=model, multiple=multiple, passes=passes))
    interleaved([one.run for one in found], rounds=options.rounds)
    columns: dict[str, bench.Cell] = {
        "model": "{model}",
        "padded to": "{multiple}",
        "lengths": "{lengths}",
        "tokens": "{mean_tokens:.0f}",
        "mean, ms": lambda row: f"{1e3 * row['mean_seconds']:.2f}",
        "p50, ms": lambda row: f"{1e3 * row['p50_seconds']:.2f}",
        "p90, ms": lambda row: f"{1e3 * row['p90_seconds']:.2f}",
    }
    return bench.Table(name="padding", columns=columns, rows=[one.row() for one in found])


def in_form(graph: onnx.ModelProto, form: str) -> bytes:
    """The graph in a form that `OpenVINOBackend` does not change: signed, or with a zero point it does not know."""
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


def compare_forms(options: argparse.Namespace) -> bench.Table:
    """Signed against unsigned INT8 activations, for each model's shape, placement and batch."""
    runs, rows, pool = [], [], concurrent.futures.ThreadPoolExecutor(1)
    for model in options.model:
        config = bench.load_config(model)
        for placement, also in PLACEMENTS.items():
            quantization = Quantization.calibrated(also, calibrator="max", calibration_examples=0)
            quantized = dataclasses.replace(config, quantization=quantization)
            for windows, tokens in options.batch:
                load = Workload(batch=windows, seq=tokens, streams=1, threads=1)
                feed = (np.ones((windows, tokens), np.int64),) * 3
                runs += [timer(pool, load, open_form(quantized, form, (windows, tokens)), feed) for form in FORMS]
                about = {"model": bench.name_of(model), "placement": placement}
                rows.append(about | {"batch_windows": windows, "window_tokens": tokens})
    found = steady_medians(interleaved(runs, rounds=options.rounds, seconds=options.seconds))
    for row, (unsigned, signed) in zip(rows, found.reshape(-1, len(FORMS)), strict=True):
        row |= {"unsigned_seconds": unsigned, "signed_seconds": signed, "speedup": unsigned / signed}
    columns: dict[str, bench.Cell] = {
        "model": "{model}",
        "INT8": "{placement}",
        "batch": "{batch_windows} x {window_tokens}",
        "unsigned, ms": lambda row: f"{1e3 * row['unsigned_seconds']:.2f}",
        "signed, ms": lambda row: f"{1e3 * row['signed_seconds']:.2f}",
        "faster": "{speedup:.2f}",
    }
    return bench.Table(name="signed", columns=columns, rows=rows)


def shape_of(text: str) -> tuple[int, int]:
    """Parse `6x168`: six windows of 168 tokens."""
    windows, tokens = map(int, text.split("x"))
    return windows, tokens


def main() -> None:
    parser = bench.flags("backends", __doc__)
    add = parser.add_argument
    add("--model", type=Path, action="append", required=True, metavar="DIR", help="may be given several times")
    add("--data", type=Path, metavar="FILE", help="SQuAD v1.1 file (default: the evaluation file of the first run)")
    add("--windows", type=int, default=128, metavar="N", help="windows drawn from the file (default 128)")
    add("--rounds", type=int, default=5, metavar="N", help="interleaved rounds (default 5), after a warm-up")
    add("--max-seq", type=int, metavar="N", help="longest window, and the baseline's length (default: the run's)")
    batches = parser.add_argument_group("sorted batches")
    batches.add_argument("--baseline", type=Path, metavar="DIR", help="unquantized model (default: the first --model)")
    batches.add_argument("--backend", action="append", help="several times (default: openvino and onnxruntime)")
    batches.add_argument(
        "--batch-tokens", type=int, nargs="+", default=[1024], metavar="N", help="padded tokens (default 1024)"
    )
    others = parser.add_argument_group("instead of sorted batches")
    others.add_argument("--pad-to", type=int, nargs="+", metavar="N", help="one window at a time, padded to multiples")
    others.add_argument("--signed", action="store_true", help="signed INT8 activations against unsigned ones")
    others.add_argument(
        "--batch", nargs="+", type=shape_of, default=[(6, 168), (1, 200)], help="for --signed (default: 6x168 1x200)"
    )
    others.add_argument(
        "--seconds", type=float, default=30.0, metavar="N", help="for --signed: least seconds of measuring (default 30)"
    )
    options = parser.parse_args()
    if options.pad_to:
        table = compare_padding(options)
    elif options.signed:
        table = compare_forms(options)
    else:
        table = compare_batches(options)
    bench.report(options, table)


if __name__ == "__main__":
    programs.run(main)
