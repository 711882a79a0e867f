"""How long models of given shapes take on an engine, with random weights: time does not depend on what they hold.

Streams of one thread are timed by the processor time that they take: whatever else the machine does hardly changes it,
where by the clock a batch that is interrupted once takes twice as long. Several threads wait for each other, often
busily, and are timed by the clock.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tqdm

from bertjax import modeldir, tensors
from bertjax.config import BertConfig
from bertjax.mlperf.backend import Backend, open_backend
from bertjax.mlperf.compare import interleaved, steady_medians


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
    """The batches that are timed: `streams` at once, each of `batch` full windows of `seq` tokens."""

    batch: int
    seq: int
    streams: int
    threads: int  # of each stream

    @property
    def clock(self) -> str:
        """What a batch is timed by."""
        return "processor time" if self.threads == 1 else "wall time"


def time_shapes(
    configs: Sequence[BertConfig], load: Load, *, backend: str, rounds: int, seconds: float
) -> tuple[np.ndarray, Backend]:
    """Seconds of a batch for each config, float64 [configs], all in turn in every round, and one of the backends.

    Args:
      backend: a name as `open_backend` takes it; it runs ONNX files of the project's own emitter.
      rounds, seconds: at least so many rounds, and further ones until so many seconds are over.

    Raises:
      UserError: the backend cannot run here.
    """
    random = np.random.default_rng(0)
    shape = (load.batch, load.seq)
    ids, ones = random.integers(0, min(config.vocab_size for config in configs), shape), np.ones(shape, np.int64)
    feed = (ids, ones, np.zeros(shape, np.int64))
    with concurrent.futures.ThreadPoolExecutor(load.streams) as pool:
        opened = []
        for config in tqdm.tqdm(configs, desc="compile", unit="model", leave=False, disable=None):
            opened.append(_open_random(config, load, backend))
        runs = [_timed(pool, load, model, feed) for model in opened]
        times = interleaved(runs, rounds=rounds, seconds=seconds)
    return steady_medians(times), opened[0]


def _timed(
    pool: concurrent.futures.Executor, load: Load, model: Backend, feed: tuple[np.ndarray, ...]
) -> Callable[[], float]:
    # Processor time adds up over the streams.
    clock, share = (time.process_time, load.streams) if load.threads == 1 else (time.perf_counter, 1)

    def run() -> float:
        begin = clock()
        list(pool.map(lambda _: model.infer(*feed), range(load.streams)))
        return (clock() - begin) / share

    return run


def _open_random(config: BertConfig, load: Load, backend: str) -> Backend:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "model"
        modeldir.save(directory, config, _random_tensors(config), tokenizer_from=directory)
        return open_backend(backend, directory, streams=load.streams, threads=load.threads, longest=load.seq)


def _random_tensors(config: BertConfig) -> modeldir.Tensors:
    random, found = np.random.default_rng(0), {}
    for name, shape in tensors.question_answering_shapes(config).items():
        if name.endswith("_scale"):
            found[name] = np.full(shape, 0.03, np.float32)
        elif name.endswith("LayerNorm.weight"):
            found[name] = np.ones(shape, np.float32)
        else:
            found[name] = random.standard_normal(shape, np.float32)
    return found
