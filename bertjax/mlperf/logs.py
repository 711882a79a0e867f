"""Log folders, and what LoadGen's own logs in them say."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from bertjax.data.answers import predict
from bertjax.data.dataset import Dataset
from bertjax.data.metrics import Score, score
from bertjax.errors import WorkFailed
from bertjax.files import disk_error

LOGS = Path("build/logs")
ACCURACY_LOG = "mlperf_log_accuracy.json"
PERCENTILES = ("50.00", "90.00", "95.00", "97.00", "99.00", "99.90")
EFFECTIVE = (  # settings of which a result tells
    *("scenario", "test_mode", "min_duration_ms", "max_duration_ms", "min_query_count", "max_query_count"),
    *("min_sample_count", "samples_per_query", "target_qps", "target_latency_ns", "target_latency_percentile"),
    *("performance_sample_count", "performance_issue_unique", "performance_issue_same"),
)
_EFFECTIVE = "effective_"
_FULL = 1 << 20  # bytes: a disk with less room than this counts as full
_MARK = ":::MLLOG"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Performance:
    """A run's phase of performance. Latencies are of queries, in nanoseconds, as LoadGen measured them."""

    valid: bool
    checks: dict[str, bool]  # LoadGen's conditions and whether each was met
    reasons: tuple[str, ...]  # why it is not valid, and errors that LoadGen met
    queries: int
    samples_per_second: float  # Offline: all samples; Server: completed; single and multi-stream: one after the other
    scheduled_samples_per_second: float | None  # Server only
    latency_ns: dict[str, int]  # min, mean, max and PERCENTILES
    target_latency_ns: int | None  # Server only: the bound of its percentile
    early_stopping: tuple[str, ...]  # LoadGen's notes on whether the queries suffice for the percentile


def new_log_root(name: str) -> Path:
    """Make a new folder `build/logs/<time>-<name>`, this call's own whatever else starts in the same second.

    Raises:
      UserError, WorkFailed: it cannot be made.
    """
    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    for number in itertools.count(1):
        folder = LOGS / (stamp if number == 1 else f"{stamp}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise disk_error(folder, error) from None
        return folder
    raise AssertionError("numbers have no end")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of `mlperf_log_detail.txt`."""

    key: str
    value: Any
    is_error: bool


def read_entries(path: Path) -> list[Entry]:
    """Every entry of a detail log, by the rules of MLCommons' own parser (its `parsers/loadgen_parser.py`).

    That parser wants UTF-8, an entry on the very first line, and a JSON object after each mark; lines without a mark
    are passed over.

    Raises:
      WorkFailed: LoadGen left no such log, or the parser would not read it; the line is named.
    """
    path, number, entries = Path(path), 0, []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.startswith(_MARK):
                    entries.append(_entry(json.loads(line[len(_MARK) :])))
                elif number == 1:
                    raise ValueError(f"it does not begin with {_MARK}")
    except (OSError, ValueError, RecursionError) as error:
        where = f" line {number}:" if number else ""
        raise WorkFailed(f"{path}:{where} LoadGen's log is not readable ({error}{_if_full(path)})") from None
    if not entries:
        raise WorkFailed(f"{path}: LoadGen's log is empty{_if_full(path)}")
    return entries


def _entry(raw: Any) -> Entry:
    match raw:
        case {"key": str(key), "value": value, "metadata": {"is_error": bool(is_error)}}:
            return Entry(key=key, value=value, is_error=is_error)
    raise ValueError("an entry has a key, a value and metadata that says whether it is an error")


def read_detail_log(log_dir: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The last value of every key in `mlperf_log_detail.txt`, and the messages that it marks as errors.

    Raises:
      WorkFailed: LoadGen left no such log, or one that cannot be read.
    """
    entries = read_entries(Path(log_dir) / "mlperf_log_detail.txt")
    errors = tuple(str(entry.value).strip() for entry in entries if entry.is_error)
    return {entry.key: entry.value for entry in entries}, errors


def read_effective(log_dir: Path) -> dict[str, Any]:
    """The settings that held in a run, as LoadGen logged them: its `effective_*` records, without that prefix.

    Raises:
      WorkFailed: the log is unreadable, or lacks a setting.
    """
    values, errors = read_detail_log(log_dir)
    found = {key.removeprefix(_EFFECTIVE): value for key, value in values.items() if key.startswith(_EFFECTIVE)}
    missing = [key for key in EFFECTIVE if key not in found]
    if missing:
        why = _why(log_dir, errors)
        raise WorkFailed(f"{log_dir}/mlperf_log_detail.txt: no {_EFFECTIVE}{missing[0]} in it: {why}")
    return found


def read_performance(log_dir: Path) -> Performance:
    """The result of a run's phase of performance.

    Raises:
      WorkFailed: the log is unreadable, or holds no result or a part of one.
    """
    values, errors = read_detail_log(log_dir)
    # MultiStream's samples have latencies of their own beside those of their queries.
    of_query = "_query" if values.get("effective_scenario") == "MultiStream" else ""
    per_query = "_per_query" if of_query else ""
    keys = {name: f"result_{name}{of_query}_latency_ns" for name in ("min", "mean", "max")}
    keys |= {name: f"result_{name}_percentile{per_query}_latency_ns" for name in PERCENTILES}
    missing = [key for key in ("result_validity", *keys.values()) if key not in values]
    if missing:
        why = _why(log_dir, errors)
        raise WorkFailed(f"{log_dir}/mlperf_log_detail.txt: no {missing[0]} in it: {why}")
    checks = {
        "Performance constraints": "result_perf_constraints_met",
        "Min duration": "result_min_duration_met",
        "Min queries": "result_min_queries_met",
        "Early stopping": "early_stopping_met",
    }
    server = values["effective_scenario"] == "Server"
    return Performance(
        valid=values["result_validity"] == "VALID",
        checks={name: bool(values[key]) for name, key in checks.items() if key in values},
        reasons=(*_lines(values.get("result_invalid_reason", "")), *errors),
        queries=int(values["result_query_count"]),
        samples_per_second=_samples_per_second(values),
        scheduled_samples_per_second=float(values["result_scheduled_samples_per_sec"]) if server else None,
        latency_ns={name: int(values[key]) for name, key in keys.items()},
        target_latency_ns=int(values["effective_target_latency_ns"]) if server else None,
        early_stopping=_lines(values.get("early_stopping_result", "")),
    )


def _why(log_dir: Path, errors: tuple[str, ...]) -> str:
    """The likely reason why a log lacks an entry; LoadGen itself goes on without a word where it cannot write."""
    return "; ".join(errors) or f"the run ended early{_if_full(log_dir)}"


def _if_full(path: Path) -> str:
    try:
        return "; the disk is full" if shutil.disk_usage(path).free < _FULL else ""
    except OSError:
        return ""


def read_peak_rate(log_dir: Path) -> float | None:
    """The rate that LoadGen's FindPeakPerformance found; None if even the first one was too high.

    Raises:
      WorkFailed: the log is unreadable.
    """
    values, _ = read_detail_log(log_dir)
    _, found, rate = str(values.get("generic_message", "")).partition("Found peak performance field: ")
    return float(rate) if found else None


def _samples_per_second(values: dict[str, Any]) -> float:
    for key in ("result_samples_per_second", "result_completed_samples_per_sec"):
        if key in values:
            return float(values[key])
    # LoadGen gives single and multi-stream no such figure: queries follow one another without a gap.
    latency = values.get("result_mean_query_latency_ns", values["result_mean_latency_ns"])
    return 1e9 * values["effective_samples_per_query"] / max(latency, 1)


def _lines(text: str) -> tuple[str, ...]:
    """Of a string into which LoadGen joins notes, each after an asterisk."""
    notes = (" ".join(part.split()) for part in str(text).split(" * "))
    return tuple(note.removeprefix("* ") for note in notes if note)


def read_accuracy(log_dir: Path, dataset: Dataset) -> Score:
    """Score the answers in `mlperf_log_accuracy.json` with the project's own metric.

    Raises:
      WorkFailed: the log is unreadable, or a window has no answer or one of another length.
    """
    starts, ends = read_logits(log_dir, dataset)
    return score(dataset.examples, predict(dataset.examples, dataset.windows, starts, ends))


def read_answers(log_dir: Path) -> list[tuple[int, bytes]]:
    """Windows and their answers in the order of `mlperf_log_accuracy.json`: all of an accuracy run, some of an audited.

    Raises:
      WorkFailed: LoadGen left no such log, or one that cannot be read.
    """
    path = Path(log_dir) / ACCURACY_LOG
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return [(int(entry["qsl_idx"]), bytes.fromhex(entry["data"])) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorkFailed(f"{path}: LoadGen's log is not readable ({error}{_if_full(path)})") from None


def read_logits(log_dir: Path, dataset: Dataset) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Start and end logits of every window, float32 [tokens] each.

    Raises:
      WorkFailed: the log is unreadable, or a window has no answer or one of another length.
    """
    path = Path(log_dir) / ACCURACY_LOG
    found = {index: np.frombuffer(data, np.float32).reshape(-1, 2) for index, data in read_answers(log_dir)}
    count = len(dataset.windows)
    fits = (index in found and len(found[index]) == len(window) for index, window in enumerate(dataset.windows))
    # MultiStream repeats samples to fill its last query, so there may be more answers than windows.
    if len(found) != count or not all(fits):
        raise WorkFailed(f"{path}: {len(found)} answers for {count} windows, or answers of another length")
    pairs = [found[index] for index in range(count)]
    return [pair[:, 0] for pair in pairs], [pair[:, 1] for pair in pairs]
