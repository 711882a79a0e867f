"""A quick look at a backend's speed before a run: LoadGen wants to know how much to issue."""

from __future__ import annotations

import concurrent.futures
import time

import numpy as np

from bertjax.data.batching import BatchPlan, padded_length, plan_inference
from bertjax.mlperf.backend import Backend
from bertjax.mlperf.queues import LENGTH_MULTIPLE
from bertjax.mlperf.samples import SampleLibrary


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
