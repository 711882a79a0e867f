"""Speed of models and backends on the same windows, in interleaved runs, against the MLPerf reference's way.

    python benchmarks/backends.py --model runs/minilm/teacher --model runs/minilm/student-int8 --data dev-v1.1.json.gz

The yardstick is what the MLPerf reference implementation does: ONNX Runtime in FP32, one window at a time, every
window padded to the full length. Everything else runs the same windows in batches sorted by length. Each round runs
every row once and divides by that round's yardstick; the table gives the median over the rounds and their range, so a
machine that changes its speed in between changes both sides. The last column says how many of the encoder's dense
layers the engine runs on integer kernels, read from its compiled graph.

Beside the names of serve/loadgen.py, --backend takes `openvino-bf16` and `openvino-f32`: OpenVINO with what the graph
leaves in float in that type. An unquantized model on `openvino-bf16` shows what BF16 alone would give.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tqdm

from bertjax import machine, programs, rundir
from bertjax.data.batching import BatchPlan
from bertjax.data.windows import WindowSettings
from bertjax.engines.backend import CPU_ENGINES, Backend
from bertjax.engines.choose import cpu_graph, open_backend
from bertjax.engines.kernels import dense_kernels, format_share
from bertjax.engines.openvino import OpenVINOBackend
from bertjax.engines.samples import SampleLibrary, open_library
from bertjax.engines.timing.compare import Passes, interleaved, offline_passes
from bertjax.engines.timing.layout import core_shares
from bertjax.errors import UserError
from bertjax.modeldir.config import BertConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    model: str
    config: BertConfig
    batch_tokens: int
    passes: Passes

    def integer_share(self) -> str:
        """How many of the encoder's dense layers run on integer kernels, after a pass: `36 of 36`."""
        backend = self.passes.backend
        return format_share(dense_kernels(self.config, backend)) if backend.name in CPU_ENGINES else "-"


def make_rows(
    models: Sequence[Path],
    yardstick: Path,
    data: Path,
    windows: WindowSettings,
    *,
    backends: Sequence[str],
    count: int,
    batch_tokens: Sequence[int],
) -> list[Row]:
    """The yardstick's row, then one per model, backend, way to share out the cores, and number of tokens in a batch."""
    longest = windows.max_seq
    library, chosen = _load(yardstick, data, windows, count)
    reference = open_backend("onnxruntime", yardstick, streams=1, threads=machine.cores(), longest=longest)
    single = [BatchPlan(rows=np.array([index]), length=longest) for index in chosen]
    rows = [
        Row(
            model=f"{yardstick}, batch 1 x {longest}",
            config=BertConfig.from_json(yardstick / "config.json"),
            batch_tokens=longest,
            passes=Passes(backend=reference, library=library, plans=single),
        )
    ]
    for model in models:
        config, (library, chosen) = BertConfig.from_json(model / "config.json"), _load(model, data, windows, count)
        for name in backends:
            for streams, threads in [(1, machine.cores())] if name == "jax" else core_shares(machine.cores()):
                backend = _open(name, model, config, streams=streams, threads=threads, longest=longest)
                for tokens in batch_tokens:
                    passes = offline_passes(backend, library, chosen, tokens=tokens)
                    rows.append(Row(model=str(model), config=config, batch_tokens=tokens, passes=passes))
    return rows


def _open(name: str, model: Path, config: BertConfig, *, streams: int, threads: int, longest: int) -> Backend:
    if name in ("openvino-bf16", "openvino-f32"):
        graph = cpu_graph(model, config)
        return OpenVINOBackend(graph, config, streams=streams, threads=threads, bf16=name == "openvino-bf16")
    return open_backend(name, model, streams=streams, threads=threads, longest=longest)


def _load(model: Path, data: Path, windows: WindowSettings, count: int) -> tuple[SampleLibrary, np.ndarray]:
    """A model's library with `count` windows of the file loaded, the same for every model, and their indices."""
    dataset, library = open_library(data, model, windows)
    size = min(count, len(dataset.windows))
    chosen = np.random.default_rng(0).choice(len(dataset.windows), size, replace=False)
    library.longest = windows.max_seq  # the yardstick pads everything to it
    library.load(chosen.tolist())
    return library, chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, action="append", required=True, help="model directory; may be given several times")
    add("--yardstick", type=Path, help="unquantized model directory to compare with (default: the first --model)")
    add("--data", type=Path, help="SQuAD v1.1 file (default: the evaluation file of the first model's run)")
    add("--backend", action="append", help="may be given several times (default: openvino and onnxruntime)")
    add("--windows", type=int, default=128, help="windows drawn from the file (default 128)")
    add("--rounds", type=int, default=5, help="interleaved rounds (default 5), after a warm-up")
    add("--max-seq", type=int, help="longest window, and what the yardstick pads to (default: as in the model's run)")
    add("--batch-tokens", type=int, nargs="+", default=[1024], help="padded tokens in a sorted batch (default 1024)")
    options = parser.parse_args()

    yardstick = options.yardstick or options.model[0]
    if BertConfig.from_json(yardstick / "config.json").quantization:
        raise UserError(f"--yardstick: {yardstick} is quantized; name an FP32 model directory")
    rows = make_rows(
        options.model,
        yardstick,
        options.data or rundir.default_data(options.model[0]),
        rundir.window_settings(options.model[0], max_seq=options.max_seq),
        backends=options.backend or ("openvino", "onnxruntime"),
        count=options.windows,
        batch_tokens=options.batch_tokens,
    )
    for row in tqdm.tqdm(rows, desc="warm-up", leave=False, disable=None):
        row.passes.warm_up()
    times = interleaved([row.passes.seconds for row in rows], rounds=options.rounds)
    windows = len(rows[0].passes.plans)
    print(f"{windows} windows, {options.rounds} rounds, {machine.cores()} cores")
    print(
        "\n| model | backend | batch tokens | samples/s | speed | range | INT8 layers |\n|---|---|---|---|---|---|---|"
    )
    for column, row in enumerate(rows):
        ratios = times[:, 0] / times[:, column]
        rate = windows / np.median(times[:, column])
        print(
            f"| {row.model} | {row.passes.backend.description} | {row.batch_tokens} | {rate:.1f} |"
            f" {np.median(ratios):.2f} | {ratios.min():.2f} to {ratios.max():.2f} | {row.integer_share()} |"
        )


if __name__ == "__main__":
    programs.run(main)
