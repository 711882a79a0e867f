"""A session's result, its record in metrics.json and its summary.json."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from bertjax import rundir
from bertjax.data.metrics import Score
from bertjax.engines.timing.layout import Layout
from bertjax.files import write_file_aside
from bertjax.identity import digest_folder
from bertjax.mlperf.conf import OFFICIAL_SECONDS
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
    model: str
    model_digest: str  # of `digest_model`
    data_digest: str  # SHA-256 of the data file
    backend: str
    description: str
    layout: Layout
    log_dir: Path
    questions: int
    windows: int
    duration_seconds: float  # the minimum that LoadGen was asked for
    target_qps: float | None  # Server only: the rate that was issued; after FindPeakPerformance the one that was found
    audit_conf: Path | None
    resident_bytes: dict[str, int] | None  # of the session's process, at the `start` of the test and at its `end`
    performance: Performance | None
    accuracy: Score | None

    @property
    def measured(self) -> Performance:
        """The performance of a session that had a phase of it."""
        assert self.performance is not None, "AccuracyOnly measures nothing"
        return self.performance

    @property
    def official_length(self) -> bool:
        """Whether the run was as long as the rules want for a submission."""
        return self.duration_seconds >= OFFICIAL_SECONDS

    def record(self) -> dict[str, Any]:
        """The run's entry in `metrics.json`, under loadgen / model / scenario."""
        about: dict[str, Any] = {"backend": self.backend, "description": self.description, "logs": str(self.log_dir)}
        about["layout"] = dataclasses.asdict(self.layout)
        if self.audit_conf is not None:
            about["audit_conf"] = str(self.audit_conf)
        found = {}
        if self.accuracy is not None:
            found["accuracy"] = about | {"questions": self.questions} | dataclasses.asdict(self.accuracy)
        if self.performance is not None:
            length = {"minimum_duration_seconds": self.duration_seconds, "official_length": self.official_length}
            issued = {"target_qps": self.target_qps}
            part = "peak" if self.mode == "FindPeakPerformance" else "performance"
            found[part] = about | length | issued | dataclasses.asdict(self.performance)
        return found


def digest_model(model: Path) -> str:
    """Digest of what makes a model directory's answers: its shape, weights and tokenizer, not what was exported.

    Raises:
      OSError: a file cannot be read.
    """
    return digest_folder(model, "config.json", "model*.safetensors", "tokenizer*.json", "vocab.txt")


def record_result(model: Path, result: Result) -> Path | None:
    """Add a result to the `metrics.json` of the model's run, if it is of one; returns that file.

    Raises:
      UserError, WorkFailed: the file is broken or cannot be written.
    """
    folder = run_folder(model)
    if folder is None:
        return None
    rundir.update_metrics(folder, {"loadgen": {result.model: {result.scenario: result.record()}}})
    return folder / "metrics.json"


def write_summary(result: Result, timing: Timing | None) -> Path:
    """Write the result and, if there is one, its course over time. Latencies in nanoseconds, all else in seconds.

    Raises:
      UserError, WorkFailed: the file cannot be written.
    """
    found: dict[str, Any] = dataclasses.asdict(result) | {
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
