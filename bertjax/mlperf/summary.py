"""`summary.json`: everything that a run gave, beside LoadGen's logs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from bertjax.mlperf.harness import Result
from bertjax.mlperf.timeline import Timing
from bertjax.modeldir import write_file_aside

SUMMARY = "summary.json"
STEPS = 200  # into which the run's time is cut


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
