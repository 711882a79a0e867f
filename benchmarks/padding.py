"""What SingleStream's windows should be padded to where every length has a compiled model of its own, on OpenVINO.

    python benchmarks/padding.py --model runs/minilm/teacher --model runs/minilm/student-int8

Windows of the file at random, one at a time over all cores, as LoadGen sends them. The less they are padded,
the less there is to compute, and the more compiled models there are, whose kernels, weights and buffers have left the
caches when their turn comes again. All models and paddings run in turn in every round. Let nothing else run.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import tqdm

from bertjax import machine, programs, rundir
from bertjax.display import text_table
from bertjax.engines.choose import cpu_graph
from bertjax.engines.openvino import OpenVINOBackend
from bertjax.engines.samples import open_library
from bertjax.engines.timing.compare import Passes, interleaved, single_passes
from bertjax.errors import UserError
from bertjax.modeldir.config import BertConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A model, what its windows are padded to, and the seconds of every window in every round."""

    model: Path
    multiple: int
    passes: Passes
    rounds: list[np.ndarray] = dataclasses.field(default_factory=list)

    def run(self) -> float:
        """One pass, whose times are kept; its seconds."""
        self.rounds.append(self.passes.batch_seconds())
        return float(self.rounds[-1].sum())


def open_rows(model: Path, data: Path, multiples: list[int], windows: int) -> list[Row]:
    """A model's rows, which share its compiled shapes."""
    config = BertConfig.from_json(model / "config.json")
    backend = OpenVINOBackend(cpu_graph(model, config), config, streams=1, threads=machine.cores())
    dataset, library = open_library(data, model, rundir.window_settings(model))
    chosen = np.random.default_rng(0).choice(len(dataset.windows), min(windows, len(dataset.windows)), replace=False)
    library.load(chosen.tolist())
    rows = [
        Row(model=model, multiple=multiple, passes=single_passes(backend, library, chosen, multiple=multiple))
        for multiple in multiples
    ]
    for row in tqdm.tqdm(rows, desc=f"compile {model.name}", unit="row", leave=False, disable=None):
        row.passes.compile_shapes().warm_up()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, action="append", required=True, help="model directory; may be given several times")
    add("--data", type=Path, help="SQuAD v1.1 file (default: the evaluation file of the first model's run)")
    add("--multiples", type=int, nargs="+", default=[8, 16, 32, 64], help="paddings to compare (default: 8 16 32 64)")
    add("--windows", type=int, default=128, help="windows of a pass (default 128)")
    add("--rounds", type=int, default=5, help="interleaved rounds (default 5), after a warm-up")
    options = parser.parse_args()
    if min(options.multiples) < 1:
        raise UserError("--multiples: must be at least 1")

    data, rows = options.data or rundir.default_data(options.model[0]), []
    for model in options.model:
        rows += open_rows(model, data, options.multiples, options.windows)
    interleaved([row.run for row in rows], rounds=options.rounds)
    cells = []
    for row in rows:
        lengths = [plan.length for plan in row.passes.plans]
        times = 1e3 * np.concatenate(row.rounds[1:])  # the first round warms up
        found = [times.mean(), *np.percentile(times, [50, 90])]
        cells.append(
            [str(row.model), str(row.multiple), str(len(set(lengths))), f"{np.mean(lengths):.0f}"]
            + [f"{value:.2f}" for value in found]
        )
    print(text_table(["model", "padded to", "lengths", "tokens", "mean, ms", "p50, ms", "p90, ms"], cells))


if __name__ == "__main__":
    programs.run(main)
