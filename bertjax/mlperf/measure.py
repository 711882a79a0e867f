"""A quick look at a backend's speed before a run: LoadGen wants to know how much to issue."""

from __future__ import annotations

import concurrent.futures
import time

import numpy as np
import tqdm

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
