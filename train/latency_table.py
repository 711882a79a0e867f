"""Time the blocks of a model's students on an engine, for train/distill.py --latency-table.

    python train/latency_table.py --model runs/minilm/teacher --output latency.json
    python train/distill.py --teacher runs/minilm/teacher --latency-table latency.json --latency-reduction 3 ...

Only the model's shape is used. Small models of four equal layers, attention blocks with every number of heads or
FFN blocks of several widths, are exported as INT8 ONNX with random weights and run in turn. Four whole models at the
end show how well the times of blocks add up. With one thread a stream, the default, processor time is measured, which
other programs on the machine hardly change; with more threads let nothing else run.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from pathlib import Path
from typing import Any

from bertjax import machine, programs
from bertjax.display import text_table
from bertjax.engines.timing.shapes import Workload, time_shapes
from bertjax.errors import UserError
from bertjax.modeldir.config import BertConfig, Quantization
from bertjax.pruning import latency
from bertjax.pruning.latency import LatencyTable

BATCH_TOKENS = 1024  # of a batch, as Offline makes them


def parse() -> argparse.Namespace:
    """The flags, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="model directory of the teacher or of its encoder")
    add(
        "--output", type=Path, default=Path("latency.json"), metavar="FILE", help="file to write (default: %(default)s)"
    )
    add("--backend", default="auto", metavar="NAME", help="auto (default), openvino or onnxruntime")
    number = functools.partial(add, metavar="N", type=int)
    number("--seq", help="tokens of a window (default: 128, or as many as the model has positions)")
    number("--batch", help=f"windows of a batch (default: as many as make {BATCH_TOKENS} tokens)")
    number("--streams", help="batches at once (default: one per core, as in Offline; SingleStream has 1)")
    number("--threads", help="threads of each stream (default: an equal share of the cores)")
    number("--ffn-group", default=32, help="FFN widths are multiples of this (default: %(default)s)")
    number("--widths", default=48, help="FFN widths to time; others are interpolated (default: %(default)s)")
    number("--rounds", default=15, help="least number of interleaved rounds (default: %(default)s)")
    number("--seconds", type=float, default=30.0, help="least seconds of measuring (default: 30)")
    add("--quantize-also", nargs="*", default=[], choices=("attention", "residual"), help="as in train/distill.py")
    options = parser.parse_args()
    for name in ("seq", "batch", "streams", "threads", "ffn_group", "widths", "rounds"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    return options


def main() -> None:
    options = parse()

    config = BertConfig.from_json(options.model / "config.json")
    seq = options.seq or min(128, config.max_position_embeddings)
    if seq > config.max_position_embeddings:
        raise UserError(f"--seq {seq}: {options.model} has {config.max_position_embeddings} positions")
    streams = options.streams or machine.cores()
    threads = options.threads or max(1, machine.cores() // streams)
    load = Workload(batch=options.batch or max(1, BATCH_TOKENS // seq), seq=seq, streams=streams, threads=threads)
    also = options.quantize_also
    quantization = Quantization.calibrated(also, calibrator="max", calibration_examples=0)
    probes = latency.probe_shapes(config, quantization, group=options.ffn_group, widths=options.widths)
    checks = latency.check_shapes(config, quantization, group=options.ffn_group)
    times, backend = time_shapes(
        probes + checks, load, backend=options.backend, rounds=options.rounds, seconds=options.seconds
    )
    about = {"backend": backend.name, "description": backend.description, "quantize_also": also}
    about |= {"batch": load.batch, "seq": load.seq, "streams": load.streams, "threads": load.threads}
    about |= {"clock": load.clock, "versions": machine.package_versions(), "machine": machine.describe()}
    seconds = times.tolist()
    table = latency.table_from(probes, seconds[: len(probes)], about)
    table = latency.with_checks(table, checks, seconds[len(probes) :])
    latency.write_table(options.output, table)

    print(f"milliseconds of a block, {load.batch} x {seq} tokens, {load.clock}, {backend.description}\n")
    print(text_table(["heads", "ms", "FFN units", "ms"], _blocks(table)), end="\n\n")
    print(text_table(["whole model", "predicted", "measured", "ratio"], [_check(check) for check in table.checks]))
    print("\na factor common to all ratios is harmless: the search compares times of this table with each other only")
    print(f"\n{options.output}: for train/distill.py --latency-table")


def _blocks(table: LatencyTable) -> list[list[str]]:
    """Heads and FFN widths beside each other."""
    columns = ([[str(size), f"{1e3 * found:.3f}"] for size, found in part] for part in (table.attention, table.ffn))
    return [[*heads, *units] for heads, units in itertools.zip_longest(*columns, fillvalue=["", ""])]


def _check(check: dict[str, Any]) -> list[str]:
    what = f"{sum(check['heads'])} heads, {sum(check['ffn'])} units in {len(check['heads'])} layers"
    predicted, measured = (1e3 * check[name] for name in ("predicted", "measured"))
    return [what, f"{predicted:.2f}", f"{measured:.2f}", f"{predicted / measured:.2f}"]


if __name__ == "__main__":
    programs.run(main)
