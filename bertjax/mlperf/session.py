"""One LoadGen run in this process, which can make no second one."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import mlperf_loadgen
import numpy as np
import tqdm

from bertjax import machine
from bertjax.engines.backend import Backend
from bertjax.engines.choose import open_backend
from bertjax.engines.samples import LENGTH_MULTIPLE, SERVER_MULTIPLE, SampleLibrary, open_library
from bertjax.engines.timing import measure, warmup
from bertjax.engines.timing.cost import BATCH_ROWS, batch_cost
from bertjax.engines.timing.layout import Layout, choose_layout, core_shares
from bertjax.engines.workers.local import open_local
from bertjax.errors import UserError, WorkFailed
from bertjax.machine import resident_bytes
from bertjax.mlperf import loadgen
from bertjax.mlperf.conf import SCORED, SHORT_SECONDS, read_audit_conf, read_user_conf, server_bound_seconds
from bertjax.mlperf.harness import ServeSettings, compile_seconds
from bertjax.mlperf.logs import read_accuracy, read_peak_rate, read_performance
from bertjax.mlperf.output import draw_run
from bertjax.mlperf.queues import BatchQueue, DynamicQueue, PlannedQueue
from bertjax.mlperf.result import Result, write_summary
from bertjax.mlperf.sut import System
from bertjax.mlperf.timeline import Timeline

SERVER_SHARE = 0.4  # of the measured throughput: the rate that Server issues if none is given
# Rows of the shapes that may come (None: full batches). Each is compiled for itself as far as time and memory go.
ROWS = {"Offline": None, "SingleStream": (1,), "Server": BATCH_ROWS}
WARM = ("SingleStream", "Server")  # every shape is met before a run
MEASURE_SECONDS = 1.0  # at most, of warm-up and again of measuring
CHOOSE_SECONDS = 0.25  # at most, of warm-up and again of measuring, for each way to share out the cores
TIMED = ("SubmissionRun", "PerformanceOnly")  # modes of which a picture is drawn: one phase of performance
MARGIN = 1.25  # more is planned than was measured, so that a run does not end before its time
OFFLINE_MARGIN = 1.1  # Offline is one query, as long as planned, and LoadGen plans a tenth more itself

# Batches that are tried, as shares of the backend's own number of tokens. Under a latency bound none larger, and on a
# slow machine smaller ones: whoever waits behind a batch waits as long as it takes.
BATCH_SHARES = {"Offline": (1.0, 0.5, 2.0), "Server": (1.0, 0.5, 0.25)}
BOUND_SHARE = 1 / 3  # of Server's latency bound: no longer batches are chosen (benchmarks/server_queue.py)


def serve(settings: ServeSettings, open_with: Callable[..., Backend] = open_backend) -> Result:
    """Make one run; see `harness.run`, which checks the settings and calls this in a process of its own.

    Raises:
      UserError, WorkFailed: as `harness.run`.
    """
    with contextlib.ExitStack() as workers:
        return _serve(settings, _with_workers(settings, open_with, workers))


def _serve(settings: ServeSettings, open_with: Callable[..., Backend]) -> Result:
    dataset, library = open_library(settings.data, settings.model, settings.windows)
    library.load(range(len(library.lengths)))
    try:
        backend, layout = _open(settings, open_with, library)
        tokens = layout.batch_tokens
        load = _plan_load(settings, backend, library, tokens)
        test_settings = loadgen.make_settings(load, len(dataset.windows))
        bound = test_settings.server_target_latency_ns / 1e9
        queue = _make_queue(settings.scenario, backend, library, tokens, bound)
    except (UserError, WorkFailed):
        raise
    except Exception as error:
        raise WorkFailed(f"the backend failed on its first batches: {type(error).__name__}: {error}") from error
    timeline = Timeline()

    def complete(ids: Sequence[int], logits: np.ndarray, lengths: Sequence[int]) -> None:
        timeline.complete(ids)
        loadgen.complete(ids, logits, lengths)

    system = System(backend, library, complete, queue, multiple=warmup.single_multiple(backend))
    audit = read_audit_conf(settings.audit_conf, settings.scenario) if settings.audit_conf else {}
    seconds = audit.get("min_duration", test_settings.min_duration_ms) / 1000
    memory = _run(settings, seconds, system, library, timeline, test_settings)
    result = Result(
        scenario=settings.scenario,
        mode=settings.mode,
        model=settings.model.resolve().name,
        backend=backend.name,
        description=backend.description,
        layout=layout,
        log_dir=settings.log_dir,
        questions=len(dataset.examples),
        windows=len(dataset.windows),
        duration_seconds=seconds,
        target_qps=_issued_rate(settings, test_settings.server_target_qps, audit),
        audit_conf=settings.audit_conf,
        resident_bytes=memory,
        performance=None if settings.mode == "AccuracyOnly" else read_performance(settings.log_dir),
        accuracy=read_accuracy(settings.log_dir, dataset) if settings.mode in SCORED else None,
    )
    timing = timeline.timing() if settings.mode in TIMED else None
    write_summary(result, timing)
    if timing is not None:
        draw_run(result, timing)
    return result


def _run(
    settings: ServeSettings,
    seconds: float,
    system: System,
    library: SampleLibrary,
    timeline: Timeline,
    test_settings: mlperf_loadgen.TestSettings,
) -> dict[str, int] | None:
    """Run LoadGen behind a progress bar; returns `Result.resident_bytes`."""
    memory: dict[str, int | None] = {}
    with _progress_bar(settings, seconds, len(library.lengths)) as bar:

        def tick() -> None:
            memory.setdefault("start", resident_bytes())  # LoadGen has made its queries by now
            done = system.completed if settings.mode == "AccuracyOnly" else bar.format_dict["elapsed"]
            bar.update(min(done, bar.total or done) - bar.n)

        loadgen.run(system, library, timeline, test_settings, settings.log_dir, settings.audit_conf, tick)
    memory["end"] = resident_bytes()
    return None if None in memory.values() else memory


def _issued_rate(settings: ServeSettings, planned: float, audit: dict[str, float]) -> float | None:
    if settings.scenario != "Server":
        return None
    if settings.mode == "FindPeakPerformance":
        return read_peak_rate(settings.log_dir)
    return audit.get("target_qps", planned)


def _open(settings: ServeSettings, open_with: Callable[..., Backend], library: SampleLibrary) -> tuple[Backend, Layout]:
    """Open the backend as the settings say; where they leave streams, threads or batches open, as it is fastest."""
    cores, single = machine.cores(), settings.scenario == "SingleStream"
    conf = read_user_conf(settings.user_conf, settings.scenario) if settings.user_conf else {}
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

    def open_shared(streams: int, threads: int) -> Backend:
        return open_with(settings.backend, settings.model, streams=streams, threads=threads, longest=library.longest)

    return choose_layout(
        open_shared,
        library,
        shares,
        batch_tokens=settings.batch_tokens,
        batch_shares=BATCH_SHARES[settings.scenario] if measured else (1.0,),
        batch_seconds=BOUND_SHARE * server_bound_seconds(conf) if settings.scenario == "Server" else math.inf,
        seconds=min(CHOOSE_SECONDS, (settings.duration_seconds or SHORT_SECONDS) / 20),
    )


def _with_workers(
    settings: ServeSettings, open_with: Callable[..., Backend], ending: contextlib.ExitStack
) -> Callable[..., Backend]:
    """`open_with` itself, or what opens a pool of workers that call it; `ending` closes the pool."""

    def open_pool(name: str, model: Path, *, streams: int, threads: int, longest: int) -> Backend:
        one = functools.partial(open_with, name, model.resolve(), longest=longest)
        if settings.ray is not None:
            from bertjax.engines.workers.ray import close_ray, open_ray

            pool = open_ray(
                one, settings.ray, settings.workers, streams=settings.streams, threads=settings.threads or 1
            )
            ending.callback(close_ray, pool)
        else:
            pool = open_local(one, settings.workers, streams=streams, threads=threads)
            ending.callback(pool.close)
        return pool

    return open_with if settings.workers is None and settings.ray is None else open_pool


def _length_multiple(scenario: str, backend: Backend) -> int:
    """What lengths are padded to."""
    if scenario == "SingleStream":
        return warmup.single_multiple(backend)
    return SERVER_MULTIPLE if scenario == "Server" else LENGTH_MULTIPLE


def _make_queue(
    scenario: str, backend: Backend, library: SampleLibrary, tokens: int, bound: float
) -> BatchQueue | None:
    """`bound`: seconds that Server's latency may take."""
    if scenario == "SingleStream":
        return None
    if scenario == "Server":
        cost = batch_cost(backend, library, tokens=tokens, multiple=SERVER_MULTIPLE)
        return DynamicQueue(library.lengths, tokens=tokens, cost=cost, budget=bound)
    return PlannedQueue(library.lengths, tokens=tokens)


def _plan_load(settings: ServeSettings, backend: Backend, library: SampleLibrary, tokens: int) -> loadgen.Load:
    """Fill in what neither the settings nor the user.conf say, from a quick measurement where one is needed."""
    given = read_user_conf(settings.user_conf, settings.scenario) if settings.user_conf else {}
    duration, qps, latency = settings.duration_seconds, settings.target_qps, None
    if duration is None and "min_duration" not in given:
        duration = SHORT_SECONDS
    seconds = min(MEASURE_SECONDS, (duration or SHORT_SECONDS) / 2)
    qps_wanted = qps is None and "target_qps" not in given
    latency_wanted = settings.mode != "AccuracyOnly" and "target_latency" not in given
    if settings.mode != "AccuracyOnly" and settings.scenario in ROWS:
        whole = given.get("min_duration", 600_000) / 1000 if duration is None else duration
        budget = compile_seconds(whole) if settings.compile_seconds is None else settings.compile_seconds
        rows, multiple = ROWS[settings.scenario], _length_multiple(settings.scenario, backend)
        plans = warmup.shapes_to_come(library, rows=rows, tokens=tokens, multiple=multiple)
        left = warmup.fix_shapes(backend, library, plans, seconds=budget)
        if settings.scenario in WARM:
            warmup.warm_up(backend, library, left)
    if settings.scenario == "SingleStream" and latency_wanted:
        latency = round(measure.latency_ns(backend, library, seconds=seconds) / MARGIN)
    elif settings.scenario == "MultiStream" and latency_wanted:
        rate = measure.throughput(backend, library, tokens=tokens, seconds=seconds)
        latency = round(given.get("samples_per_query", 8) / rate * 1e9 / MARGIN)
    elif settings.scenario == "Server" and qps_wanted:
        qps = SERVER_SHARE * measure.throughput(backend, library, tokens=tokens, seconds=seconds)
    elif settings.scenario == "Offline" and settings.mode != "AccuracyOnly" and qps_wanted:
        qps = OFFLINE_MARGIN * measure.throughput(backend, library, tokens=tokens, seconds=seconds)
    else:  # nothing to find out, but the first batches are slow on every engine
        measure.throughput(backend, library, tokens=tokens, seconds=0.0)
    return loadgen.Load(
        scenario=settings.scenario,
        mode=settings.mode,
        user_conf=settings.user_conf,
        duration_seconds=duration,
        target_qps=qps,
        expected_latency_ns=latency,
    )


def _progress_bar(settings: ServeSettings, seconds: float, count: int) -> tqdm.tqdm:
    what = f"{settings.scenario} {settings.mode}"
    if settings.mode == "AccuracyOnly":
        return tqdm.tqdm(desc=what, total=count, unit="window", leave=False, disable=None)
    if settings.mode == "FindPeakPerformance":  # nobody knows how many runs it will take
        return tqdm.tqdm(desc=what, bar_format="{desc}: {n:.0f} s", leave=False, disable=None)
    form = "{l_bar}{bar}| {n:.0f}/{total:.0f} s"
    return tqdm.tqdm(desc=what, total=seconds, bar_format=form, leave=False, disable=None)
