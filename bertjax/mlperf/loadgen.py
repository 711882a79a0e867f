"""MLPerf LoadGen's own test, run over a system under test.

LoadGen is C++ with one global state: it reads a configuration once in the life of a process (a second reading is an
error and leaves out mlperf.conf), and no test of it can be ended early. So one process holds one session, and a
session is ended by ending its process: see `session_process`.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import mlperf_loadgen
import numpy as np

from bertjax.engines.samples import SampleLibrary
from bertjax.errors import UserError, WorkFailed
from bertjax.machine import memory_bytes
from bertjax.mlperf.conf import BENCHMARK, OFFICIAL_SECONDS
from bertjax.mlperf.session import Confs
from bertjax.mlperf.sut import SystemUnderTest
from bertjax.mlperf.timeline import Timeline

SAMPLE_BYTES = 100  # at least, of LoadGen's list of queries: 140 for a sample of Offline's, 300 of SingleStream's
MAX_PERFORMANCE_SAMPLES = 10_833  # mlperf.conf's performance_sample_count for bert


@dataclasses.dataclass(frozen=True, kw_only=True)
class TestPlan:
    """The test that LoadGen is asked for. Where a field is None, the user.conf decides, and then mlperf.conf."""

    scenario: str
    mode: str
    user_conf: Path | None
    duration_seconds: float | None
    target_qps: float | None  # Offline and Server: samples per second to plan for, or to issue
    expected_latency_ns: int | None  # SingleStream and MultiStream: of one query, to plan how many are needed


def make_settings(plan: TestPlan, confs: Confs, sample_count: int) -> mlperf_loadgen.TestSettings:
    """LoadGen's settings. A test shorter than mlperf.conf's 600 s drops mlperf.conf's minimum number of queries.

    Args:
      confs: of the session; LoadGen itself reads the audit.conf later, over these settings.

    Raises:
      UserError: LoadGen refuses the user.conf.
    """
    settings = mlperf_loadgen.TestSettings()
    # mlperf.conf is built in, and read before the user.conf; an empty one makes LoadGen read it too.
    path = plan.user_conf or os.devnull
    if settings.FromConfig(str(path), BENCHMARK, plan.scenario) != 0:
        raise UserError(f"{path}: LoadGen refuses it; lines read 'bert.Server.target_qps = 100'")
    settings.scenario = getattr(mlperf_loadgen.TestScenario, plan.scenario)
    settings.mode = getattr(mlperf_loadgen.TestMode, plan.mode)
    if plan.duration_seconds is not None:
        settings.min_duration_ms = round(plan.duration_seconds * 1000)
    shortest = confs.audit.get("min_duration", settings.min_duration_ms)
    if shortest < OFFICIAL_SECONDS * 1000 and "min_query_count" not in confs.user:
        settings.min_query_count = 1
    if plan.target_qps is not None:
        settings.offline_expected_qps = settings.server_target_qps = plan.target_qps
    if plan.expected_latency_ns is not None:
        settings.single_stream_expected_latency_ns = plan.expected_latency_ns
        settings.multi_stream_expected_latency_ns = plan.expected_latency_ns
    count = int(confs.user.get("performance_sample_count_override", 0)) or MAX_PERFORMANCE_SAMPLES
    settings.performance_sample_count_override = min(count, sample_count)
    return settings


def check_plan(settings: mlperf_loadgen.TestSettings, audit: Mapping[str, float]) -> None:
    """Check that what LoadGen plans before a test of performance fits into memory.

    Args:
      audit: the settings of the session's audit.conf, which LoadGen reads over `settings`.

    Raises:
      UserError: it does not.
    """
    planned, memory = planned_samples(settings, audit), memory_bytes()
    if memory and planned * SAMPLE_BYTES > memory:
        needed, there = planned * SAMPLE_BYTES / 2**30, memory / 2**30
        raise UserError(
            f"LoadGen would plan {planned:.3g} samples beforehand, more than {needed:,.0f} GiB, and there are"
            f" {there:,.0f} GiB: lower --duration, the rate or min_query_count, or raise target_latency"
        )


def planned_samples(settings: mlperf_loadgen.TestSettings, audit: Mapping[str, float]) -> float:
    """The samples of all queries that LoadGen makes before a test of performance (its GenerateQueries)."""
    seconds = audit.get("min_duration", settings.min_duration_ms) / 1e3
    least = audit.get("min_query_count", settings.min_query_count)
    scenario = mlperf_loadgen.TestScenario
    if settings.scenario == scenario.Offline:
        return max(least, 1.1 * seconds * audit.get("target_qps", settings.offline_expected_qps))
    if settings.scenario == scenario.Server:
        return max(least, seconds * audit.get("target_qps", settings.server_target_qps))
    if settings.scenario == scenario.SingleStream:
        milliseconds, rows = settings.single_stream_expected_latency_ns / 1e6, 1.0
    else:
        milliseconds = settings.multi_stream_expected_latency_ns / 1e6
        rows = audit.get("samples_per_query", settings.multi_stream_samples_per_query)
    return rows * max(least, 2 * seconds * 1e3 / audit.get("target_latency", milliseconds))


def complete(ids: Sequence[int], logits: np.ndarray, lengths: Sequence[int]) -> None:
    """Hand answers to LoadGen, which copies what it keeps before this returns. Arguments as `sut.Complete`."""
    start, (row_bytes, token_bytes, _) = logits.__array_interface__["data"][0], logits.strides
    answers = zip(ids, range(start, start + logits.nbytes, row_bytes), lengths, strict=True)
    mlperf_loadgen.QuerySamplesComplete(
        [mlperf_loadgen.QuerySampleResponse(sample, row, length * token_bytes) for sample, row, length in answers]
    )


def run_test(
    system: SystemUnderTest,
    library: SampleLibrary,
    timeline: Timeline,
    settings: mlperf_loadgen.TestSettings,
    log_dir: Path,
    audit_conf: Path | None,
    on_tick: Callable[[], None],
) -> None:
    """Run one test to its end, in a thread of its own, and close the system.

    Args:
      timeline: told of what is issued, and begun anew when LoadGen loads samples.
      audit_conf: LoadGen's last word on the settings, if given.
      on_tick: called about five times a second while the test goes on.

    Raises:
      WorkFailed: the backend failed. LoadGen's thread then waits for ever; end the process with `os._exit`.
    """
    thread = threading.Thread(
        target=_start_test, args=(system, library, timeline, settings, log_dir, audit_conf), daemon=True
    )
    thread.start()
    while thread.is_alive() and system.failure is None:
        thread.join(0.2)
        on_tick()
    if system.failure is not None:
        cause = (str(system.failure).strip().splitlines() or ["no message"])[0]
        kind = type(system.failure).__name__
        raise WorkFailed(f"the backend failed in the middle of the run: {kind}: {cause}") from system.failure
    system.close()


def _start_test(
    system: SystemUnderTest,
    library: SampleLibrary,
    timeline: Timeline,
    settings: mlperf_loadgen.TestSettings,
    log_dir: Path,
    audit_conf: Path | None,
) -> None:
    def issue(ids: Sequence[int], indices: Sequence[int]) -> None:
        timeline.issue(ids)
        system.issue(ids, indices)

    def load(indices: Sequence[int]) -> None:
        timeline.begin()
        library.load(indices)

    log = mlperf_loadgen.LogSettings()
    log.log_output.outdir = str(log_dir)
    log.log_output.copy_summary_to_stdout = False
    log.enable_trace = False
    count = len(library.lengths)
    performance_count = min(settings.performance_sample_count_override, count)
    sut = mlperf_loadgen.ConstructFastSUT(issue, lambda: None)
    qsl = mlperf_loadgen.ConstructQSL(count, performance_count, load, library.unload)
    # LoadGen's own default is a file of the working folder; a file that is not there it passes over.
    mlperf_loadgen.StartTestWithLogSettings(sut, qsl, settings, log, str(audit_conf or os.devnull + "/none"))
    mlperf_loadgen.DestroyQSL(qsl)
    mlperf_loadgen.DestroyFastSUT(sut)
