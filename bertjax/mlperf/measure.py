"""Speed without LoadGen: a quick look before a run, which wants to know how much to issue, and comparisons."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np
import tqdm

from bertjax.data.batching import BatchPlan, padded_length, plan_inference
from bertjax.mlperf.backend import Backend
from bertjax.mlperf.queues import LENGTH_MULTIPLE
from bertjax.mlperf.samples import SampleLibrary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Passes:
    """A backend and the batches that it runs, again and again."""

    backend: Backend
    library: SampleLibrary
    plans: Sequence[BatchPlan]

    def seconds(self) -> float:
        """Time one pass over the batches, each stream taking the next one when it is free."""
        begin = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(self.backend.streams) as pool:
            list(pool.map(self._run, self.plans))
        return time.perf_counter() - begin

    def _run(self, plan: BatchPlan) -> None:
        self.backend.infer(*self.library.gather(plan.rows, plan.length))


def offline_passes(backend: Backend, library: SampleLibrary, chosen: np.ndarray, *, tokens: int) -> Passes:
    """Batches of the chosen, loaded windows as Offline makes them: sorted by length, the long ones first."""
    plans = plan_inference(library.lengths[chosen], tokens=tokens, multiple=LENGTH_MULTIPLE, longest=library.longest)
    plans = [BatchPlan(rows=chosen[plan.rows], length=plan.length) for plan in reversed(plans)]
    return Passes(backend=backend, library=library, plans=plans)


def interleaved(runs: Sequence[Callable[[], float]], *, rounds: int, seconds: float = 0.0) -> np.ndarray:
    """What each run took in each round, [rounds, runs]; a round does every run once, in random order.

    A first round, which is not counted, warms up.

    Args:
      rounds: how many at least; further ones follow until `seconds` are over.
    """
    random, found = np.random.default_rng(0), []
    begin, bar = time.monotonic(), tqdm.tqdm(desc="rounds", unit="round", leave=False, disable=None)
    while len(found) <= rounds or time.monotonic() - begin < seconds:
        found.append([0.0] * len(runs))
        for index in random.permutation(len(runs)):
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


def throughput(backend: Backend, library: SampleLibrary, *, tokens: int, seconds: float) -> float:
    """Samples per second over batches as Offline makes them, drawn evenly from all lengths, all streams busy.

    At most `seconds` of warm-up and as much of measuring, but at least one batch per stream of each.
    """
    longest = library.longest
    plans = plan_inference(library.lengths, tokens=tokens, multiple=LENGTH_MULTIPLE, longest=longest)
    plans = [plans[index] for index in np.random.default_rng(0).permutation(len(plans))]
    with concurrent.futures.ThreadPoolExecutor(backend.streams) as pool:
        _run_for(pool, backend, library, plans, seconds)
        return _run_for(pool, backend, library, plans, seconds)


def _run_for(
    pool: concurrent.futures.Executor,
    backend: Backend,
    library: SampleLibrary,
    plans: list[BatchPlan],
    seconds: float,
) -> float:
    begin = time.perf_counter()

    def work(stream: int) -> int:
        done, number = 0, stream
        while done == 0 or time.perf_counter() - begin < seconds:
            plan = plans[number % len(plans)]
            backend.infer(*library.gather(plan.rows, plan.length))
            done, number = done + len(plan.rows), number + backend.streams
        return done

    done = sum(pool.map(work, range(backend.streams)))
    return done / (time.perf_counter() - begin)


def latency_ns(backend: Backend, library: SampleLibrary, *, seconds: float) -> int:
    """Mean nanoseconds of one sample at a time, of random lengths; at least two samples, the first unmeasured."""
    longest, random = library.longest, np.random.default_rng(0)
    begin, times = time.perf_counter(), []
    while len(times) < 2 or time.perf_counter() - begin < seconds:
        before = time.perf_counter_ns()
        index = int(random.integers(len(library.lengths)))
        length = padded_length(int(library.lengths[index]), LENGTH_MULTIPLE, longest)
        backend.infer(*library.gather(np.array([index]), length))
        times.append(time.perf_counter_ns() - before)
    return int(np.mean(times[1:]))


def warm_up(backend: Backend, library: SampleLibrary, *, rows: int, tokens: int) -> None:
    """Run every shape that may come, of up to `rows` rows and `tokens` padded tokens, once on every stream.

    An engine prepares its kernels when it first meets a shape, which takes several times as long as running one:
    under a latency bound the first seconds would decide the result.
    """
    padded = [padded_length(int(length), LENGTH_MULTIPLE, library.longest) for length in library.lengths]
    index = {length: sample for sample, length in enumerate(padded)}
    shapes = [(n, length) for length in sorted(index) for n in range(1, rows + 1) if n == 1 or n * length <= tokens]
    with concurrent.futures.ThreadPoolExecutor(backend.streams) as pool:
        for count, length in tqdm.tqdm(shapes, desc="warm-up", unit="shape", leave=False, disable=None):
            batch = library.gather(np.full(count, index[length]), length)
            list(pool.map(lambda _, batch=batch: backend.infer(*batch), range(backend.streams)))
