"""A session's result, its record in metrics.json and its summary.json."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from bertjax import rundir
from bertjax.data.metrics import Score
from bertjax.engines.timing.layout import Layout
from bertjax.errors import UserError, WorkFailed
from bertjax.files import write_file_aside
from bertjax.mlperf.conf import (
    OFFICIAL_PERCENTILES,
    OFFICIAL_QUERIES,
    OFFICIAL_SECONDS,
    SAMPLES_PER_QUERY,
    SERVER_BOUND_MILLISECONDS,
)
from bertjax.mlperf.logs import Performance
from bertjax.mlperf.timeline import Timing
from bertjax.rundir import run_folder

SUMMARY = "summary.json"
STEPS = 200  # into which the run's time is cut


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """A session's result: no `accuracy` without a phase of accuracy, no `performance` after AccuracyOnly."""

    scenario: str
    mode: str
    run: str | None  # the run directory's name; None: the model lies in none
    model: str
    model_digest: str  # of `store.digest`
    data: Path
    data_digest: str  # SHA-256 of the data file
    versions: dict[str, str]  # of Python and of the packages that figures depend on
    backend: str
    description: str
    layout: Layout
    log_dir: Path
    questions: int
    windows: int  # LoadGen's samples
    non_finite: int  # answers that held NaN or infinity
    duration_seconds: float  # the least that LoadGen ran for, of `effective`
    target_qps: float | None  # Server only: the rate that was issued; after FindPeakPerformance the one that was found
    effective: dict[str, Any]  # the settings that held, as LoadGen logged them (`logs.read_effective`)
    audit_conf: Path | None
    notes: tuple[str, ...]  # lines of user.conf and audit.conf that LoadGen accepted and did nothing with
    resident_bytes: dict[str, int] | None  # of the session's process, at the `start` of the test and at its `end`
    performance: Performance | None
    accuracy: Score | None
    not_kept: tuple[str, ...] = ()  # files that could not be written, and why

    @property
    def measured(self) -> Performance:
        """The performance of a session that had a phase of it."""
        assert self.performance is not None, "AccuracyOnly measures nothing"
        return self.performance

    @property
    def official_length(self) -> bool:
        """Whether the run was as long as mlperf.conf wants, in time and in queries."""
        return not self.shortfalls

    @property
    def percentile(self) -> float:
        """The percentile of latency by which LoadGen judged the run, in percent."""
        return 100 * float(self.effective["target_latency_percentile"])

    @property
    def shortfalls(self) -> tuple[str, ...]:
        """In what the run was shorter than mlperf.conf's: what it was, and what that has instead."""
        held, found = self.effective, []
        if held["min_duration_ms"] < 1000 * OFFICIAL_SECONDS:
            found.append(f"at least {held['min_duration_ms'] / 1000:g} s instead of {OFFICIAL_SECONDS:.0f} s")
        offline, official = self.scenario == "Offline", OFFICIAL_QUERIES[self.scenario]
        count = held["min_sample_count" if offline else "min_query_count"]
        if count < official:
            unit = "samples" if offline else "queries"
            found.append(f"{count:,} instead of {official:,} {unit} at least")
        if held["max_duration_ms"]:
            found.append(f"at most {held['max_duration_ms'] / 1000:g} s")
        if held["max_query_count"]:
            found.append(f"at most {held['max_query_count']:,} queries")
        return tuple(found)

    @property
    def departures(self) -> tuple[str, ...]:
        """In what else the run differed from mlperf.conf: what it was, and what that has instead."""
        held, found = self.effective, []
        official = OFFICIAL_PERCENTILES.get(self.scenario, self.percentile)
        if abs(self.percentile - official) > 1e-6:
            found.append(f"the {self.percentile:g}th percentile instead of the {official:g}th")
        bound = held["target_latency_ns"] / 1e6
        if self.scenario == "Server" and bound != SERVER_BOUND_MILLISECONDS:
            found.append(f"a bound of {bound:g} ms instead of {SERVER_BOUND_MILLISECONDS:g} ms")
        if self.scenario == "MultiStream" and held["samples_per_query"] != SAMPLES_PER_QUERY:
            found.append(f"{held['samples_per_query']} samples a query instead of {SAMPLES_PER_QUERY}")
        if held["performance_issue_same"]:
            found.append("the same sample in every query")
        if held["performance_issue_unique"]:
            found.append("each sample once")
        return tuple(found)

    def record(self) -> dict[str, Any]:
        """The run's entry in `metrics.json`, under loadgen / model / scenario."""
        about: dict[str, Any] = {"backend": self.backend, "description": self.description, "logs": str(self.log_dir)}
        about |= {"model_digest": self.model_digest, "data": str(self.data), "data_digest": self.data_digest}
        about |= {"samples": self.windows, "non_finite": self.non_finite, "versions": self.versions}
        about["layout"] = dataclasses.asdict(self.layout)
        if self.audit_conf is not None:
            about["audit_conf"] = str(self.audit_conf)
        about["effective"] = self.effective
        found = {}
        if self.accuracy is not None:
            found["accuracy"] = about | {"questions": self.questions} | dataclasses.asdict(self.accuracy)
        if self.performance is not None:
            length = {"minimum_duration_seconds": self.duration_seconds, "official_length": self.official_length}
            issued = {"target_qps": self.target_qps}
            part = "peak" if self.mode == "FindPeakPerformance" else "performance"
            found[part] = about | length | issued | dataclasses.asdict(self.performance)
        return found


def record_result(model: Path, result: Result) -> Path | None:
    """Put a result in the place of its predecessor in the `metrics.json` of the model's run, if it is of one.

    Accuracy, performance and peak are replaced each by itself.

    Returns:
      That file; None if the model is of no run.

    Raises:
      UserError, WorkFailed: the file is broken or cannot be written.
    """
    folder = run_folder(model)
    if folder is None:
        return None
    rundir.update_metrics(folder, {"loadgen": {result.model: {result.scenario: result.record()}}}, depth=4)
    return folder / "metrics.json"


def try_record(model: Path, result: Result) -> str:
    """`record_result`, and a line that says where the result is or why not.

    A session that went well does not fail with a file that is broken or cannot be written: its result is printed, and
    in the log folder.
    """
    try:
        path = record_result(model, result)
    except (UserError, WorkFailed) as error:
        return f"Not recorded in the run: {error}"
    return f"Recorded in {path}" if path else f"Not recorded: {model} lies in no run directory"


def write_summary(result: Result, timing: Timing | None) -> Path:
    """Write the result and, if there is one, its course over time. Latencies in nanoseconds, all else in seconds.

    Raises:
      UserError, WorkFailed: the file cannot be written.
    """
    found: dict[str, Any] = dataclasses.asdict(result) | {
        "data": str(result.data),
        "log_dir": str(result.log_dir),
        "audit_conf": str(result.audit_conf) if result.audit_conf else None,
        "official_length": result.official_length,
    }
    if timing is not None:
        times, rates = timing.samples_per_second(STEPS)
        moments, counts = timing.samples_inside(STEPS)
        found["course"] = {
            "samples_per_second": {"seconds": times.tolist(), "values": rates.tolist()},
            "samples_waiting_or_running": {"seconds": moments.tolist(), "values": counts.tolist()},
        }
    path = result.log_dir / SUMMARY
    write_file_aside(path, json.dumps(found, indent=2) + "\n")
    return path
