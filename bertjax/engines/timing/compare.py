"""Comparisons of speed: all run in turn, in many rounds, so that a machine that slows down does so for all."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tqdm

from bertjax import machine
from bertjax.data.batching import BatchPlan, padded_lengths, plan_inference
from bertjax.data.windows import WindowSettings
from bertjax.engines.backend import Backend
from bertjax.engines.choose import open_backend
from bertjax.engines.samples import LENGTH_MULTIPLE, SampleLibrary, open_library
from bertjax.engines.timing import measure, warmup

WINDOWS = 512
ROUNDS = 5
# Batches of each stream that are run untimed before a pass: serving's cores do not rest, and one that did takes up to
# twice as long for the next few milliseconds.
AHEAD = 4
# How often a benchmark runs each of Offline's batches. Offline has so many windows that a shape comes hundreds of times
# in a row, where a few windows change it with nearly every batch.
REPEATS = 4
SECONDS = 20.0  # small models get more rounds until then


@dataclasses.dataclass(frozen=True, kw_only=True)
class Passes:
    """A backend and the batches that it runs, again and again."""

    backend: Backend
    library: SampleLibrary
    plans: Sequence[BatchPlan]

    def seconds(self, clock: Callable[[], float] = time.perf_counter) -> float:
        """Time one pass over the batches, each stream taking the next one when it is free."""
        with concurrent.futures.ThreadPoolExecutor(self.backend.calls) as pool:
            list(pool.map(self.run, self._ahead()))
            begin = clock()
            list(pool.map(self.run, self.plans))
            return clock() - begin

    def batch_seconds(self, clock: Callable[[], float] = time.perf_counter) -> np.ndarray:
        """Seconds of each batch, float64 [plans], run one after another."""
        for plan in self._ahead():
            self.run(plan)
        found: list[float] = []
        for plan in self.plans:
            begin = clock()
            self.run(plan)
            found.append(clock() - begin)
        return np.array(found)

    def processor_seconds(self) -> float:
        """Processor time of one pass, each stream's equal share; other programs hardly change it.

        For streams of one thread: several wait for each other, often busily.
        """
        return self.seconds(time.process_time) / self.backend.streams

    @property
    def shapes(self) -> Sequence[BatchPlan]:
        """A batch of every shape."""
        return list({(len(plan.rows), plan.length): plan for plan in self.plans}.values())

    def compile_shapes(self) -> Passes:
        """Compile a model for every shape of the batches, where the backend can; returns itself."""
        self.backend.compile_shapes([(len(plan.rows), plan.length) for plan in self.shapes])
        return self

    def warm_up(self) -> None:
        """Meet every shape on every stream."""
        warmup.meet(self.backend, self.library, self.shapes)

    def run(self, plan: BatchPlan) -> None:
        """One batch."""
        self.backend.infer(*self.library.gather(plan.rows, plan.length))

    def _ahead(self) -> Sequence[BatchPlan]:
        return self.plans[: AHEAD * self.backend.calls]


def offline_passes(
    backend: Backend, library: SampleLibrary, chosen: np.ndarray, *, tokens: int, repeats: int = 1
) -> Passes:
    """Batches of the chosen, loaded windows as Offline makes them: sorted by length, the long ones first.

    Args:
      repeats: how often each batch runs, one after another.
    """
    plans = plan_inference(library.lengths[chosen], tokens=tokens, multiple=LENGTH_MULTIPLE, longest=library.longest)
    plans = [BatchPlan(rows=chosen[plan.rows], length=plan.length) for plan in reversed(plans) for _ in range(repeats)]
    return Passes(backend=backend, library=library, plans=plans)


def single_passes(backend: Backend, library: SampleLibrary, chosen: np.ndarray, *, multiple: int) -> Passes:
    """The chosen, loaded windows one at a time, padded to `multiple`, as SingleStream sends them."""
    lengths = padded_lengths(library.lengths[chosen], multiple, library.longest)
    plans = [BatchPlan(rows=np.array([row]), length=int(length)) for row, length in zip(chosen, lengths, strict=True)]
    return Passes(backend=backend, library=library, plans=plans)


def draw_windows(lengths: np.ndarray, *, count: int, tokens: int) -> np.ndarray:
    """Indices of at least `count` windows, int32: whole batches, at random, of those that Offline makes of them all.

    A plain draw has too few windows of one length to fill a batch, which Offline has.

    Args:
      lengths: int32 [windows].
      tokens: padded tokens in a batch. Batches of a half or a quarter of that are full, too.
    """
    plans = plan_inference(lengths, tokens=tokens, multiple=LENGTH_MULTIPLE, longest=int(lengths.max()))
    drawn: list[np.ndarray] = []
    for index in np.random.default_rng(0).permutation(len(plans)):
        if sum(map(len, drawn)) >= count:
            break
        drawn.append(plans[index].rows)
    return np.concatenate(drawn)


def interleaved(runs: Sequence[Callable[[], float]], *, rounds: int, seconds: float = 0.0) -> np.ndarray:
    """Seconds of each run in each round, float64 [rounds, runs]; a round does every run once, in random order.

    A first round, which is not counted, warms up. Before each run the one before gets `measure.REST` seconds to come to
    rest.

    Args:
      rounds: how many at least; further ones follow until `seconds` are over.
    """
    random, found = np.random.default_rng(0), list[list[float]]()
    begin, bar = time.monotonic(), tqdm.tqdm(desc="rounds", unit="round", leave=False, disable=None)
    while len(found) <= rounds or time.monotonic() - begin < seconds:
        found.append([0.0] * len(runs))
        for index in random.permutation(len(runs)):
            time.sleep(measure.REST)
            found[-1][index] = runs[index]()
        bar.update()
    bar.close()
    return np.array(found[1:])


def steady_medians(times: np.ndarray) -> np.ndarray:
    """The median of each run over rounds [rounds, runs], each round first brought to the usual speed of the machine.

    A round's speed is the median over its runs of how much longer than usual they took, so what slows the machine for
    a while slows no run against another.
    """
    slower = np.median(times / np.median(times, axis=0), axis=1, keepdims=True)
    return np.median(times / slower, axis=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speeds:
    """One entry per model; a speed-up is against the first one, with the 10th and 90th percentile of the rounds."""

    samples_per_second: list[float]
    speedup: list[float]
    speedup_low: list[float]
    speedup_high: list[float]
    description: list[str]
    windows: int
    rounds: int


def offline_speeds(models: Sequence[Path], data: Path, windows: WindowSettings, *, backend: str = "auto") -> Speeds:
    """Measure model directories that share a tokenizer, each with one single-threaded stream per core.

    Args:
      data: a SQuAD v1.1 file, of which `WINDOWS` windows are drawn at random.

    Raises:
      UserError: a model or the file is wrong, or the backend cannot run here.
    """
    dataset, library = open_library(data, models[0], windows)
    size = min(WINDOWS, len(dataset.windows))
    chosen = np.random.default_rng(0).choice(len(dataset.windows), size, replace=False)
    library.load(chosen.tolist())
    passes = []
    for model in tqdm.tqdm(models, desc="warm-up", unit="model", leave=False, disable=None):
        opened = open_backend(backend, model, streams=machine.cores(), threads=1, longest=windows.max_seq)
        passes.append(offline_passes(opened, library, chosen, tokens=opened.batch_tokens))
        passes[-1].warm_up()
    times = interleaved([one.seconds for one in passes], rounds=ROUNDS, seconds=SECONDS)
    usual = steady_medians(times)
    low, high = np.percentile(times[:, :1] / times, [10, 90], axis=0)
    return Speeds(
        samples_per_second=(size / usual).tolist(),
        speedup=(usual[0] / usual).tolist(),
        speedup_low=low.tolist(),
        speedup_high=high.tolist(),
        description=[one.backend.description for one in passes],
        windows=size,
        rounds=len(times),
    )
