"""One LoadGen run in this process, which can make no second one."""

from __future__ import annotations

from collections.abc import Callable

import tqdm

from bertjax.config import BertConfig
from bertjax.errors import UserError, WorkFailed
from bertjax.mlperf import cpu, loadgen, measure
from bertjax.mlperf.backend import Backend, open_backend
from bertjax.mlperf.harness import SHORT_SECONDS, Result, ServeSettings
from bertjax.mlperf.layout import Layout, choose_layout, core_shares
from bertjax.mlperf.queues import BatchQueue, DynamicQueue, PlannedQueue
from bertjax.mlperf.results import read_accuracy, read_performance
from bertjax.mlperf.samples import SampleLibrary, read_dataset
from bertjax.mlperf.system import System
from bertjax.mlperf.userconf import read_user_conf

SERVER_SHARE = 0.4  # of the measured throughput: the rate that Server issues if none is given
WARM_ROWS = {"SingleStream": 1, "Server": 4}  # most rows of the shapes that are met before a run; others are rare there
FIXED = ("Offline", "SingleStream")  # whose batches have few shapes, each compiled for itself
FIX_SECONDS, FIX_SHARE = 60.0, 0.5  # at most, of compiling them, and as a share of the run's own time
MEASURE_SECONDS = 1.0  # at most, of warm-up and again of measuring
CHOOSE_SECONDS = 0.25  # at most, of warm-up and again of measuring, for each way to share out the cores
MARGIN = 1.25  # more is planned than was measured, so that a run does not end before its time

# Batches that are tried, as shares of the backend's own number of tokens. Under a latency bound none larger: whoever
# waits behind a batch waits as long as it takes.
BATCH_SHARES = {"Offline": (1.0, 0.5, 2.0), "Server": (1.0, 0.5)}


def serve(settings: ServeSettings, open_with: Callable[..., Backend] = open_backend) -> Result:
    """Make one run; see `harness.run`, which checks the settings and calls this in a process of its own.

    Raises:
      UserError, WorkFailed: as `harness.run`.
    """
    dataset = read_dataset(settings.data, settings.model, settings.windows)
    library = SampleLibrary(dataset, BertConfig.from_json(settings.model / "config.json").pad_token_id)
    library.load(range(len(library.lengths)))
    try:
        backend, layout = _open(settings, open_with, library)
        tokens = layout.batch_tokens
        load = _plan_load(settings, backend, library, tokens)
    except (UserError, WorkFailed):
        raise
    except Exception as error:
        raise WorkFailed(f"the backend failed on its first batches: {type(error).__name__}: {error}") from error
    test_settings = loadgen.make_settings(load, len(dataset.windows))
    system = System(backend, library, loadgen.complete, _make_queue(settings.scenario, backend, library, tokens))
    seconds, accuracy_only = test_settings.min_duration_ms / 1000, settings.mode == "AccuracyOnly"
    with _progress_bar(settings, seconds, len(dataset.windows)) as bar:

        def tick() -> None:
            done = system.completed if accuracy_only else bar.format_dict["elapsed"]
            bar.update(min(done, bar.total) - bar.n)

        loadgen.run(system, library, test_settings, settings.log_dir, tick)
    return Result(
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
        target_qps=test_settings.server_target_qps if settings.scenario == "Server" else None,
        performance=None if accuracy_only else read_performance(settings.log_dir),
        accuracy=read_accuracy(settings.log_dir, dataset) if accuracy_only else None,
    )


def _open(settings: ServeSettings, open_with: Callable[..., Backend], library: SampleLibrary) -> tuple[Backend, Layout]:
    """Open the backend as the settings say; where they leave streams, threads or batches open, as it is fastest."""
    cores, single = cpu.cores(), settings.scenario == "SingleStream"
    measured = settings.mode == "PerformanceOnly" and settings.scenario in BATCH_SHARES
    if settings.streams is not None:
        shares = [(settings.streams, settings.threads or max(1, cores // settings.streams))]
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
        seconds=min(CHOOSE_SECONDS, (settings.duration_seconds or SHORT_SECONDS) / 20),
    )


def _make_queue(scenario: str, backend: Backend, library: SampleLibrary, tokens: int) -> BatchQueue | None:
    if scenario == "SingleStream":
        return None
    if scenario == "Server":
        return DynamicQueue(library.lengths, tokens=tokens, workers=backend.streams)
    return PlannedQueue(library.lengths, tokens=tokens)


def _plan_load(settings: ServeSettings, backend: Backend, library: SampleLibrary, tokens: int) -> loadgen.Load:
    """Fill in what neither the settings nor the user.conf say, from a quick measurement where one is needed."""
    given = read_user_conf(settings.user_conf, settings.scenario) if settings.user_conf else {}
    duration, qps, latency = settings.duration_seconds, settings.target_qps, None
    if duration is None and "min_duration" not in given:
        duration = SHORT_SECONDS
    seconds = min(MEASURE_SECONDS, (duration or SHORT_SECONDS) / 2)
    qps_wanted = qps is None and "target_qps" not in given
    latency_wanted = settings.mode == "PerformanceOnly" and "target_latency" not in given
    if settings.mode == "PerformanceOnly" and settings.scenario in FIXED:
        whole = given.get("min_duration", 600_000) / 1000 if duration is None else duration
        budget = min(FIX_SECONDS, FIX_SHARE * whole)
        measure.fix_shapes(
            backend, library, tokens=1 if settings.scenario == "SingleStream" else tokens, seconds=budget
        )
    if settings.mode == "PerformanceOnly" and settings.scenario in WARM_ROWS:
        measure.warm_up(backend, library, rows=WARM_ROWS[settings.scenario], tokens=tokens)
    if settings.scenario == "SingleStream" and latency_wanted:
        latency = round(measure.latency_ns(backend, library, seconds=seconds) / MARGIN)
    elif settings.scenario == "MultiStream" and latency_wanted:
        rate = measure.throughput(backend, library, tokens=tokens, seconds=seconds)
        latency = round(given.get("samples_per_query", 8) / rate * 1e9 / MARGIN)
    elif settings.scenario == "Server" and qps_wanted:
        qps = SERVER_SHARE * measure.throughput(backend, library, tokens=tokens, seconds=seconds)
    elif settings.scenario == "Offline" and settings.mode == "PerformanceOnly" and qps_wanted:
        qps = MARGIN * measure.throughput(backend, library, tokens=tokens, seconds=seconds)
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
    form = "{l_bar}{bar}| {n:.0f}/{total:.0f} s"
    return tqdm.tqdm(desc=what, total=seconds, bar_format=form, leave=False, disable=None)
