"""Speed and memory of training on this machine: settings of glibc's allocator, and bfloat16, in interleaved runs.

    python benchmarks/train_step.py

Fine-tuning steps (forward, backward, AdamW) of a randomly initialized 6 x 384 encoder with BERT's vocabulary, on
batches of six lengths in turn. Each run is a process of its own, because the allocator can only be set before one
starts; programs set it themselves (`bertjax.programs.ALLOCATOR`). The table gives the median over rounds, the ratio
against glibc's default, and the most memory that any round took.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tqdm

from bertjax import machine, programs

FRUGAL = machine.ALLOCATOR.replace(f"mmap_threshold={1 << 34}", f"mmap_threshold={1 << 28}")
SETTINGS = {  # GLIBC_TUNABLES and the activations' dtype
    "default": ("", "float32"),
    "huge pages": ("glibc.malloc.hugetlb=1", "float32"),
    "huge pages, blocks up to 256 MB kept": (FRUGAL, "float32"),
    "huge pages, all memory kept (the programs' own)": (machine.ALLOCATOR, "float32"),
    "the same, in bfloat16": (machine.ALLOCATOR, "bfloat16"),
}
PARTS = (3, 6, 1, 5, 2, 4)  # sixths of the longest, in an order that is neither rising nor falling, as in training
TURNS = 4  # over all lengths; those before the last two warm up


def measure(batch: int, longest: int, dtype: str) -> tuple[float, float]:
    """Tokens per second of the training loop in this process, and the most memory that it took, in GB."""
    import numpy as np

    from bertjax.model.bert import BertForQuestionAnswering, bind, init_params
    from bertjax.modeldir.config import BertConfig
    from bertjax.training.loop import TrainSettings, train
    from bertjax.training.losses import span_cross_entropy

    config = BertConfig.dense(vocab_size=30522, hidden_size=384, num_layers=6, heads=12, ffn=1536)
    lengths = [longest * part // len(PARTS) for part in PARTS]
    random, times = np.random.default_rng(0), []

    def make_batch(step: int) -> dict[str, np.ndarray]:
        times.append(time.perf_counter())
        length = lengths[step % len(lengths)]
        shape = (batch, length)
        ids, ones = random.integers(1000, 30000, shape).astype(np.int32), np.ones(shape, np.int32)
        labels = random.integers(0, length, (2, batch)).astype(np.int32)
        return {"ids": ids, "ones": ones, "starts": labels[0], "ends": labels[1]}

    def loss(params, batch, key):
        output = bind(BertForQuestionAnswering, config, params, dtype=dtype)(batch["ids"], batch["ones"], batch["ones"])
        return span_cross_entropy(output, batch["ones"], batch["starts"], batch["ends"]).mean()

    with tempfile.TemporaryDirectory() as folder:
        train(
            params=init_params(BertForQuestionAnswering, config, seed=0),
            loss=loss,
            make_batch=make_batch,
            settings=TrainSettings(steps=TURNS * len(lengths) + 1, learning_rate=1e-4),
            folder=Path(folder),
            label="step",
        )
    rate = 2 * batch * sum(lengths) / (times[-1] - times[-1 - 2 * len(lengths)])
    return rate, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=24, help="windows in a batch (default 24)")
    parser.add_argument("--length", type=int, default=384, help="tokens of the longest windows (default 384)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default 3)")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="activations' dtype, with --once"
    )
    parser.add_argument("--once", action="store_true", help="measure in this process and print tokens/s and GB")
    options = parser.parse_args()
    if options.once:
        print(*measure(options.batch, options.length, options.dtype))
        return
    command = [sys.executable, __file__, "--once", "--batch", str(options.batch), "--length", str(options.length)]
    rates: dict[str, list[float]] = {name: [] for name in SETTINGS}
    most = dict.fromkeys(SETTINGS, 0.0)
    for _ in tqdm.trange(options.rounds, desc="rounds", disable=None):
        for name, (tunables, dtype) in SETTINGS.items():
            environment = os.environ | {"GLIBC_TUNABLES": tunables}
            done = subprocess.run(
                [*command, "--dtype", dtype],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                check=True,
            )
            rate, memory = map(float, done.stdout.split())
            rates[name].append(rate)
            most[name] = max(most[name], memory)
    print(f"\n| batches of {options.batch}, {options.length} tokens at most | tokens/s | speed | memory |")
    print("|---|---|---|---|")
    for name, found in rates.items():
        ratios = [one / base for one, base in zip(found, rates["default"], strict=True)]
        print(f"| {name} | {statistics.median(found):,.0f} | {statistics.median(ratios):.2f} | {most[name]:.1f} GB |")


if __name__ == "__main__":
    programs.run(main)
