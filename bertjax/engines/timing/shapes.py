"""Time of models of given shapes on an engine, with random weights: it does not depend on their values.

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

from bertjax.engines.backend import Backend
from bertjax.engines.choose import open_backend
from bertjax.engines.timing.compare import interleaved, steady_medians
from bertjax.modeldir import store
from bertjax.modeldir.config import BertConfig, LayerShape
from bertjax.modeldir.untrained import UNCALIBRATED, random_model

BATCHES = 4  # that a stream runs in a round, one after another

# A BERT-large with 5.6 times fewer multiply-accumulates, cut unevenly: layers with one head, without attention, without
# FFN. FFN widths in units of 32.
_HEADS = (9, 10, 8, 8, 7, 7, 6, 6, 6, 5, 5, 5, 4, 4, 4, 3, 3, 2, 2, 1, 1, 1, 0, 0)
_FFN = (30, 28, 28, 26, 24, 24, 22, 22, 20, 19, 18, 17, 16, 14, 13, 12, 10, 8, 6, 4, 3, 1, 2, 0)


def cut_bert_large() -> BertConfig:
    """The shape of an INT8 student of BERT-large at 5.6 times fewer multiply-accumulates, as pruning leaves one."""
    layers = tuple(LayerShape(heads=heads, ffn=32 * units) for heads, units in zip(_HEADS, _FFN, strict=True))
    return dataclasses.replace(BertConfig.bert_large(), layers=layers, quantization=UNCALIBRATED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """The batches that are timed: `streams` at once, each of `batch` full windows of `seq` tokens."""

    batch: int
    seq: int
    streams: int
    threads: int  # of each stream

    @property
    def clock(self) -> str:
        """The clock that times a batch."""
        return "processor time" if self.threads == 1 else "wall time"


def time_shapes(
    configs: Sequence[BertConfig], load: Workload, *, backend: str, rounds: int, seconds: float
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
        runs = [timer(pool, load, model, feed) for model in opened]
        times = interleaved(runs, rounds=rounds, seconds=seconds)
    return steady_medians(times), opened[0]


def timer(
    pool: concurrent.futures.Executor, load: Workload, model: Backend, feed: tuple[np.ndarray, ...]
) -> Callable[[], float]:
    """A function that runs `load`'s batches on all streams and gives the seconds of one, by `load.clock`.

    Args:
      feed: input_ids, attention_mask and token_type_ids, int64 [batch, seq].
    """
    # Processor time adds up over the streams.
    clock, share = (time.process_time, load.streams) if load.threads == 1 else (time.perf_counter, 1)

    def stream(_: int) -> None:
        for _ in range(BATCHES):
            model.infer(*feed)

    def run() -> float:
        # Serving's cores do not rest, and one that did takes up to twice as long for some milliseconds.
        list(pool.map(lambda _: model.infer(*feed), range(load.streams)))
        begin = clock()
        list(pool.map(stream, range(load.streams)))
        return (clock() - begin) / (share * BATCHES)

    return run


def _open_random(config: BertConfig, load: Workload, backend: str) -> Backend:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "model"
        store.save(directory, random_model(config), tokenizer_from=directory)
        model = open_backend(backend, directory, streams=load.streams, threads=load.threads, longest=load.seq)
        model.compile_shapes([(load.batch, load.seq)])  # as Offline, Server and SingleStream have it
        return model
