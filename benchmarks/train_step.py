"""Speed and memory of training on this machine by settings of glibc's allocator, and in bfloat16.

    python benchmarks/train_step.py

Fine-tuning steps (forward, backward, AdamW) of a randomly initialized 6 x 384 encoder with BERT's vocabulary, on
batches of six lengths in turn, in interleaved rounds. Each run is a process of its own, because the allocator can only
be set before one starts; programs set it themselves (`bertjax.machine.ALLOCATOR`). The table gives the median over
rounds, the ratio to glibc's default, and the largest memory of any round.
"""

from __future__ import annotations

import argparse
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tqdm

import bench
from bertjax import machine, programs
from bertjax.errors import WorkFailed

FRUGAL = machine.ALLOCATOR.replace(f"mmap_threshold={1 << 34}", f"mmap_threshold={1 << 28}")
SETTINGS = {  # GLIBC_TUNABLES and the activations' dtype
    "default": ("", "float32"),
    "huge-pages": ("glibc.malloc.hugetlb=1", "float32"),
    "small-blocks-kept": (FRUGAL, "float32"),  # freed blocks of up to 256 MB are kept
    "all-kept": (machine.ALLOCATOR, "float32"),  # the programs' own
    "all-kept-bfloat16": (machine.ALLOCATOR, "bfloat16"),
}
ENCODER = {"vocab_size": 30522, "hidden_size": 384, "num_layers": 6, "heads": 12, "ffn": 1536}
PARTS = (3, 6, 1, 5, 2, 4)  # sixths of the longest length, neither rising nor falling, as in training
TURNS = 4  # over all lengths; only the last two are timed


def measure(windows: int, longest: int, dtype: str) -> tuple[float, float]:
    """Tokens per second of the training loop in this process, and its largest memory in bytes."""
    import jax
    import numpy as np

    from bertjax.model.bert import BertForQuestionAnswering, Params, bind, init_model
    from bertjax.modeldir.config import BertConfig
    from bertjax.training.loop import train
    from bertjax.training.losses import span_cross_entropy
    from bertjax.training.settings import TrainSettings

    model = init_model(BertForQuestionAnswering, BertConfig.dense(**ENCODER), seed=0)
    lengths = [longest * part // len(PARTS) for part in PARTS]
    random, times = np.random.default_rng(0), []

    def make_batch(step: int) -> dict[str, np.ndarray]:
        times.append(time.perf_counter())
        length = lengths[step % len(lengths)]
        shape = (windows, length)
        ids, ones = random.integers(1000, 30000, shape).astype(np.int32), np.ones(shape, np.int32)
        labels = random.integers(0, length, (2, windows)).astype(np.int32)
        return {"ids": ids, "ones": ones, "starts": labels[0], "ends": labels[1]}

    def loss(params: Params, batch: Any, key: jax.Array) -> jax.Array:
        module = bind(BertForQuestionAnswering, model.with_params(params), dtype=dtype)
        output = module(batch["ids"], batch["ones"], batch["ones"])
        return span_cross_entropy(output, batch["ones"], batch["starts"], batch["ends"]).mean()

    with tempfile.TemporaryDirectory() as folder:
        train(
            params=model.params,
            loss=loss,
            make_batch=make_batch,
            settings=TrainSettings(steps=TURNS * len(lengths) + 1, learning_rate=1e-4),
            folder=Path(folder),
            label="step",
        )
    rate = 2 * windows * sum(lengths) / (times[-1] - times[-1 - 2 * len(lengths)])
    return rate, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure_apart(options: argparse.Namespace, tunables: str, dtype: str) -> tuple[float, float]:
    """`measure` in a process of its own, with GLIBC_TUNABLES set.

    Raises:
      WorkFailed: it failed.
    """
    sizes = {"--batch": options.batch, "--length": options.length, "--dtype": dtype}
    command = [sys.executable, __file__, "--once", *(str(part) for pair in sizes.items() for part in pair)]
    environment = os.environ | {"GLIBC_TUNABLES": tunables}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WorkFailed(f"{shlex.join(command)}: exit code {done.returncode}\n{done.stderr}")
    rate, memory = map(float, done.stdout.split())
    return rate, memory


def compare(options: argparse.Namespace) -> bench.Table:
    """Every setting in every round."""
    rates: dict[str, list[float]] = {name: [] for name in options.settings}
    memory = dict.fromkeys(options.settings, 0.0)
    for _ in tqdm.trange(options.rounds, desc="rounds", leave=False, disable=None):
        for name in options.settings:
            rate, taken = measure_apart(options, *SETTINGS[name])
            rates[name].append(rate)
            memory[name] = max(memory[name], taken)
    rows = []
    for name, found in rates.items():
        tunables, dtype = SETTINGS[name]
        ratios = [one / base for one, base in zip(found, rates[options.settings[0]], strict=True)]
        rows.append(
            {
                "setting": name,
                "glibc_tunables": tunables,
                "dtype": dtype,
                "tokens_per_second": statistics.median(found),
                "speedup": statistics.median(ratios),
                "peak_bytes": memory[name],
            }
        )
    columns: dict[str, bench.Cell] = {
        "setting": "{setting}",
        "dtype": "{dtype}",
        "tokens/s": "{tokens_per_second:,.0f}",
        "speed": "{speedup:.2f}",
        "memory": lambda row: f"{row['peak_bytes'] / 1e9:.1f} GB",
    }
    note = f"batches of {options.batch} windows, at most {options.length} tokens each"
    return bench.Table(name="train_step", columns=columns, rows=rows, note=note)


def main() -> None:
    parser = bench.flags("train_step", __doc__)
    add = parser.add_argument
    add("--batch", type=int, default=24, metavar="N", help="windows in a batch (default 24)")
    add("--length", type=int, default=384, metavar="N", help="tokens of the longest windows (default 384)")
    add("--rounds", type=int, default=3, metavar="N", help="interleaved rounds (default 3)")
    add(
        "--settings",
        nargs="+",
        choices=SETTINGS,
        default=list(SETTINGS),
        help="rows (default: all); the first is the base of the ratios",
    )
    add("--dtype", choices=["float32", "bfloat16"], default="float32", help="activations' dtype, with --once")
    add("--once", action="store_true", help="measure in this process and print tokens/s and bytes")
    options = parser.parse_args()
    if options.once:
        print(*measure(options.batch, options.length, options.dtype))
    else:
        bench.report(options, compare(options))


if __name__ == "__main__":
    programs.run(main)
