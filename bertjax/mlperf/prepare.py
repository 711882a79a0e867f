"""Preparation of LoadGen's test: the backend and its layout, its shapes, the queue, and how much to issue."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from pathlib import Path

from bertjax import machine
from bertjax.engines.backend import Backend
from bertjax.engines.samples import LENGTH_MULTIPLE, SERVER_MULTIPLE, SampleLibrary
from bertjax.engines.timing import measure, warmup
from bertjax.engines.timing.cost import BATCH_ROWS, batch_cost
from bertjax.engines.timing.layout import Layout, choose_layout, choose_threads, core_shares
from bertjax.engines.workers.local import open_local
from bertjax.mlperf.conf import SHORT_SECONDS, server_bound_seconds
from bertjax.mlperf.loadgen import TestPlan
from bertjax.mlperf.plans import by_latency, by_length
from bertjax.mlperf.queues import BatchQueue, DynamicQueue, PlannedQueue
from bertjax.mlperf.session import Confs, SessionSettings, compile_seconds

SERVER_SHARE = 0.4  # of the measured throughput: the rate that Server issues if none is given
# Rows of the shapes that may come (None: full batches). Each is compiled for itself as far as time and memory go.
ROWS = {"Offline": None, "SingleStream": (1,), "Server": BATCH_ROWS, "MultiStream": (1, 2, 3, 4, 5, 6, 8)}
WARM = ("SingleStream", "Server", "MultiStream")  # every shape is met before the test
MEASURE_SECONDS = 1.0  # at most, of warm-up and again of measuring
CHOOSE_SECONDS = 0.25  # at most, of warm-up and again of measuring, for each way to share out the cores
MARGIN = 1.25  # more is planned than was measured, so that a test does not end before its time
OFFLINE_MARGIN = 1.1  # Offline is one query, as long as planned, and LoadGen plans a tenth more itself

# Batches that are tried, as shares of the backend's own number of tokens. Under a latency bound none larger, and on a
# slow machine smaller ones: a query behind a batch waits as long as that takes.
BATCH_SHARES = {"Offline": (1.0, 0.5, 2.0), "Server": (1.0, 0.5, 0.25)}
BOUND_SHARE = 1 / 3  # of Server's latency bound: no longer batches are chosen (benchmarks/server_queue.py)


def with_workers(
    settings: SessionSettings, open_with: Callable[..., Backend], ending: contextlib.ExitStack
) -> Callable[..., Backend]:
    """`open_with` itself, or a function that opens a pool of workers that call it; `ending` closes the pool."""

    def open_pool(name: str, model: Path, *, streams: int, threads: int, longest: int) -> Backend:
        one = functools.partial(open_with, name, model.resolve(), longest=longest)
        if settings.ray is not None:
            from bertjax.engines.workers.ray import close_ray, open_ray

            pool = open_ray(
                one, settings.ray, settings.workers, streams=settings.streams, threads=settings.threads or 1
            )
            ending.callback(close_ray, pool)
        else:
            pool = open_local(one, settings.workers or 1, streams=streams, threads=threads)
            ending.callback(pool.close)
        return pool

    return open_with if settings.workers is None and settings.ray is None else open_pool


def open_fastest(
    settings: SessionSettings, confs: Confs, open_with: Callable[..., Backend], library: SampleLibrary
) -> tuple[Backend, Layout]:
    """Open the backend as the settings say; where they leave streams, threads or batches open, as it is fastest."""
    cores, single = machine.cores(), settings.scenario == "SingleStream"

    def open_shared(streams: int, threads: int) -> Backend:
        return open_with(settings.backend, settings.model, streams=streams, threads=threads, longest=library.longest)

    seconds = min(CHOOSE_SECONDS, (settings.duration_seconds or SHORT_SECONDS) / 20)
    free = (settings.streams, settings.threads, settings.workers, settings.ray) == (None, None, None, None)
    if single and free and settings.mode != "AccuracyOnly":
        counts = [threads for _, threads in reversed(core_shares(cores))]
        return choose_threads(open_shared, library, counts, seconds=2 * seconds)
    measured = settings.mode != "AccuracyOnly" and settings.scenario in BATCH_SHARES
    if settings.streams is not None:
        shares = [(settings.streams, settings.threads or max(1, cores // settings.streams))]
    elif settings.workers is not None or settings.ray is not None:
        streams = max(settings.workers or 1, 1 if single else cores // (settings.threads or 1))
        shares = [(streams, settings.threads or max(1, cores // streams))]
    elif settings.threads is not None:
        shares = [(1 if single else max(1, cores // settings.threads), settings.threads)]
    else:
        shares = [(1, cores)] if single else core_shares(cores) if measured else [(cores, 1)]

    server = settings.scenario == "Server"
    return choose_layout(
        open_shared,
        library,
        shares,
        batch_tokens=settings.batch_tokens,
        batch_shares=BATCH_SHARES[settings.scenario] if measured else (1.0,),
        batch_seconds=BOUND_SHARE * server_bound_seconds(confs.user) if server else math.inf,
        seconds=seconds,
    )


def make_queue(scenario: str, backend: Backend, library: SampleLibrary, tokens: int, bound: float) -> BatchQueue | None:
    """The scenario's queue, None for SingleStream; `bound`: seconds that Server's latency may take."""
    if scenario == "SingleStream":
        return None
    if scenario == "Offline":
        return PlannedQueue(by_length(library.lengths, tokens=tokens))
    cost = batch_cost(backend, library, tokens=tokens, multiple=SERVER_MULTIPLE)
    if scenario == "MultiStream":
        return PlannedQueue(by_latency(library.lengths, tokens=tokens, cost=cost, streams=backend.streams))
    return DynamicQueue(library.lengths, tokens=tokens, cost=cost, budget=bound)


def plan_test(
    settings: SessionSettings, confs: Confs, backend: Backend, library: SampleLibrary, tokens: int
) -> TestPlan:
    """Meet the shapes that will come, and measure the rate or latency that neither settings nor user.conf give."""
    given = confs.user
    duration, qps, latency = settings.duration_seconds, settings.target_qps, None
    if duration is None and "min_duration" not in given:
        duration = SHORT_SECONDS
    seconds = min(MEASURE_SECONDS, (duration or SHORT_SECONDS) / 2)
    qps_missing = qps is None and "target_qps" not in given
    latency_missing = settings.mode != "AccuracyOnly" and "target_latency" not in given
    if settings.mode != "AccuracyOnly" and settings.scenario in ROWS:
        whole = given.get("min_duration", 600_000) / 1000 if duration is None else duration
        budget = compile_seconds(whole) if settings.compile_seconds is None else settings.compile_seconds
        rows, multiple = ROWS[settings.scenario], _length_multiple(settings.scenario, backend)
        plans = warmup.shapes_to_come(library, rows=rows, tokens=tokens, multiple=multiple)
        left = warmup.compile_shapes(backend, library, plans, seconds=budget)
        if settings.scenario in WARM:
            warmup.warm_up(backend, library, left)
    if settings.scenario == "SingleStream" and latency_missing:
        latency = round(measure.latency_ns(backend, library, seconds=seconds) / MARGIN)
    elif settings.scenario == "MultiStream" and latency_missing:
        rate = measure.throughput(backend, library, tokens=tokens, seconds=seconds)
        latency = round(given.get("samples_per_query", 8) / rate * 1e9 / MARGIN)
    elif settings.scenario == "Server" and qps_missing:
        qps = SERVER_SHARE * measure.throughput(backend, library, tokens=tokens, seconds=seconds)
    elif settings.scenario == "Offline" and settings.mode != "AccuracyOnly" and qps_missing:
        qps = OFFLINE_MARGIN * measure.throughput(backend, library, tokens=tokens, seconds=seconds)
    else:  # nothing to find out, but the first batches are slow on every engine
        measure.throughput(backend, library, tokens=tokens, seconds=0.0)
    return TestPlan(
        scenario=settings.scenario,
        mode=settings.mode,
        user_conf=settings.user_conf,
        duration_seconds=duration,
        target_qps=qps,
        expected_latency_ns=latency,
    )


def _length_multiple(scenario: str, backend: Backend) -> int:
    """Lengths are padded to multiples of this."""
    if scenario == "SingleStream":
        return warmup.single_multiple(backend)
    return LENGTH_MULTIPLE if scenario == "Offline" else SERVER_MULTIPLE
