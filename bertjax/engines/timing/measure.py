"""A backend's speed, measured in about a second: for the layout of its work, and for how much LoadGen is to issue."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import statistics
import time
from collections.abc import Sequence

import numpy as np
import tqdm

from bertjax.data.batching import BatchPlan, padded_length, plan_inference
from bertjax.engines.backend import Backend
from bertjax.engines.samples import LENGTH_MULTIPLE, SampleLibrary
from bertjax.engines.timing.warmup import single_multiple

ROUNDS = 3  # in which contenders are measured in turn
# Seconds between two backends. After a batch ONNX Runtime's idle threads spin on, for 60 ms on a Zen 3 core, and a
# backend that comes at once has that much less of the processor: two threads then took three times as long.
REST = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pass:
    """The rate of all streams together."""

    samples_per_second: float
    tokens_per_second: float  # padded ones
    batches: int  # of the stream that ran fewest


def throughput(backend: Backend, library: SampleLibrary, *, tokens: int, seconds: float) -> float:
    """Samples per second over batches as Offline makes them, drawn evenly from all lengths, all streams busy.

    At most `seconds` of warm-up and as much of measuring, but at least one batch per stream of each.
    """
    with concurrent.futures.ThreadPoolExecutor(backend.calls) as pool:
        plans = _warm_plans(pool, backend, library, tokens, seconds)
        return _run_for(pool, backend, library, plans, seconds).samples_per_second


def token_rates(contenders: Sequence[tuple[Backend, int]], library: SampleLibrary, *, seconds: float) -> list[float]:
    """Padded tokens per second of each backend with batches of so many tokens, which compare where samples would not:
    few batches hold samples of other lengths in each contender.

    They are measured in turn, so that a machine that slows down does so for all; the median of ROUNDS counts.
    At most `seconds` of warm-up and as much of measuring for each, but at least one batch per stream of each.
    """
    with concurrent.futures.ThreadPoolExecutor(max(backend.calls for backend, _ in contenders)) as pool:
        plans = [_warm_plans(pool, backend, library, tokens, seconds) for backend, tokens in contenders]
        rest = REST if len({id(backend) for backend, _ in contenders}) > 1 else 0.0
        rates: list[list[float]] = [[] for _ in contenders]
        for _ in tqdm.trange(ROUNDS, desc="streams and batches", leave=False, disable=None):
            for (backend, _), own, found in zip(contenders, plans, rates, strict=True):
                time.sleep(rest)
                found.append(_run_for(pool, backend, library, own, seconds / ROUNDS).tokens_per_second)
    return [statistics.median(found) for found in rates]


def _warm_plans(
    pool: concurrent.futures.Executor, backend: Backend, library: SampleLibrary, tokens: int, seconds: float
) -> list[BatchPlan]:
    """Batches of all lengths, shuffled, of which each stream has met its own: a shape's first run takes longer."""
    plans = plan_inference(library.lengths, tokens=tokens, multiple=LENGTH_MULTIPLE, longest=library.longest)
    plans = [plans[index] for index in np.random.default_rng(0).permutation(len(plans))]
    batches = _run_for(pool, backend, library, plans, seconds).batches
    return plans[: batches * backend.calls]


def _run_for(
    pool: concurrent.futures.Executor,
    backend: Backend,
    library: SampleLibrary,
    plans: Sequence[BatchPlan],
    seconds: float,
) -> _Pass:
    """Run batches on every stream until the time is over, each stream its own: every n-th of the plans."""

    def work(call: int) -> tuple[int, int, int, float]:
        begin, samples, tokens, batches = time.perf_counter(), 0, 0, 0
        while batches == 0 or time.perf_counter() - begin < seconds:
            plan = plans[(call + batches * backend.calls) % len(plans)]
            backend.infer(*library.gather(plan.rows, plan.length))
            samples, tokens, batches = samples + len(plan.rows), tokens + len(plan.rows) * plan.length, batches + 1
        return samples, tokens, batches, time.perf_counter() - begin

    # Each stream by its own clock: on the last batch the others would wait for the slowest.
    done = list(pool.map(work, range(backend.calls)))
    return _Pass(
        samples_per_second=sum(samples / elapsed for samples, _, _, elapsed in done),
        tokens_per_second=sum(tokens / elapsed for _, tokens, _, elapsed in done),
        batches=min(batches for _, _, batches, _ in done),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latencies:
    """The time of one window on each of several backends."""

    tokens: int  # of the window, padded
    p90_seconds: list[float]


def slow_latencies(backends: Sequence[Backend], library: SampleLibrary, *, seconds: float) -> Latencies:
    """The 90th percentile of a window's latency on each backend, by a window that 90 % of the library do not exceed.

    They are measured in turn, each for about `seconds` in all, so that a machine that slows down does so for all; and
    by a percentile, so that threads that wait for a core which another program has count with what they wait.
    """
    size = int(np.percentile(library.lengths, 90, method="higher"))
    index = int(np.argmax(library.lengths == size))
    length = padded_length(size, single_multiple(backends[0]), library.longest)
    batch = library.gather([index], length)
    times: list[list[float]] = [[] for _ in backends]
    for backend in backends:
        backend.compile_shapes([(1, length)])
        backend.infer(*batch)
    for _ in tqdm.trange(ROUNDS, desc="threads", leave=False, disable=None):
        for backend, found in zip(backends, times, strict=True):
            time.sleep(REST if len(backends) > 1 else 0.0)
            backend.infer(*batch)  # the cores come from a rest, which they do not have in a test
            begin = before = time.perf_counter()
            while before - begin < seconds / ROUNDS or before == begin:
                backend.infer(*batch)
                now = time.perf_counter()
                found.append(now - before)
                before = now
    return Latencies(tokens=length, p90_seconds=[float(np.percentile(found, 90)) for found in times])


def latency_ns(backend: Backend, library: SampleLibrary, *, seconds: float) -> int:
    """Mean nanoseconds of one sample at a time, of random lengths; at least two samples, the first unmeasured."""
    longest, multiple, random = library.longest, single_multiple(backend), np.random.default_rng(0)
    begin, times = time.perf_counter(), list[int]()
    while len(times) < 2 or time.perf_counter() - begin < seconds:
        before = time.perf_counter_ns()
        index = int(random.integers(len(library.lengths)))
        length = padded_length(int(library.lengths[index]), multiple, longest)
        backend.infer(*library.gather(np.array([index]), length))
        times.append(time.perf_counter_ns() - before)
    return int(np.mean(times[1:]))
