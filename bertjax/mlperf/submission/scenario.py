"""Faults of one scenario's folder in a submission: its files, its two runs, its score."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bertjax.errors import UserError
from bertjax.mlperf.conf import read_user_conf
from bertjax.mlperf.submission import accuracy, rules
from bertjax.mlperf.submission.reading import DetailLog, read_object, read_text
from bertjax.mlperf.submission.rules import Bounds

_DETAIL = "mlperf_log_detail.txt"


def scenario_faults(folder: Path, bounds: Bounds) -> tuple[list[str], tuple[str, str, str]]:
    """Check a folder `<system>/<benchmark>/<scenario>`.

    Returns:
      One line per fault, and the scenario's result, its unit and its F1 for a table; a dash for what is not there.
    """
    missing = {name for name in rules.SCENARIO_FILES if not _has_content(folder / name)}
    faults = [f"{folder / name}: missing or empty" for name in rules.SCENARIO_FILES if name in missing]
    faults += _stray_faults(folder)
    if "measurements.json" not in missing:
        faults += _measurements_faults(folder / "measurements.json")
    if "user.conf" not in missing:
        try:
            read_user_conf(folder / "user.conf", folder.name)
        except UserError as error:
            faults.append(str(error))
    result = None
    if f"performance/run_1/{_DETAIL}" not in missing:
        result = _check_performance(folder / "performance" / "run_1", folder.name, bounds, faults)
    if f"accuracy/{_DETAIL}" not in missing:
        _check_accuracy_run(folder / "accuracy" / _DETAIL, folder.name, bounds, faults)
    parsed = None
    if "accuracy/accuracy.txt" not in missing:
        parsed = _check_score(folder / "accuracy" / "accuracy.txt", folder.parent.name, bounds, faults)
    if "accuracy/mlperf_log_accuracy.json" not in missing:
        path = folder / "accuracy" / "mlperf_log_accuracy.json"
        faults += [f"{path}: {fault}" for fault in _accuracy_log_faults(path, parsed.digest if parsed else None)]
    shown = f"{result:,}" if result is not None else "-"
    f1 = f"{parsed.score.f1:.3f}" if parsed and parsed.score else "-"
    return faults, (shown, rules.RESULTS[folder.name][1], f1)


def _stray_faults(folder: Path) -> Iterator[str]:
    """Files beside the required ones that the official checker reads and may stumble over."""
    if (folder / "performance" / "power").exists():
        yield f"{folder}/performance/power: power was not measured; leave the folder out"
    for path in sorted(folder.glob("TEST*/performance/run_1/" + _DETAIL)):
        faults: list[str] = []
        DetailLog(path, faults)
        yield from faults
    for path in sorted(folder.glob("TEST*/verify_*.txt")):
        faults = []
        read_text(path, faults)
        yield from faults


def _measurements_faults(path: Path) -> list[str]:
    faults: list[str] = []
    record = read_object(path, faults)
    if record:
        for field in rules.MEASUREMENTS:
            value = record.get(field)
            if value is None or value == "":
                faults.append(f"{path}: {field} is missing or empty")
            elif not isinstance(value, str):
                faults.append(f"{path}: {field} is {value!r}, wanted a text")
    elif not faults:
        faults.append(f"{path}: {', '.join(rules.MEASUREMENTS)}: missing")
    return faults


def _check_performance(log_dir: Path, scenario: str, bounds: Bounds, faults: list[str]) -> float | None:
    """Check a performance run; returns its result."""
    path = log_dir / _DETAIL
    log = DetailLog(path, faults)
    if not log.is_readable:
        return None
    _check_run(log, path, scenario, "PerformanceOnly", faults)
    numbers = log.numbers(rules.performance_numbers(scenario))
    truths = {key: log.truth(key) for key in rules.performance_truths(scenario)}
    summary = read_text(log_dir / "mlperf_log_summary.txt", faults) or ""
    faults += [f"{path}: {fault}" for fault in _validity_faults(log, summary)]
    faults += [f"{path}: {fault}" for fault in _performance_faults(numbers, scenario, bounds)]
    faults += [
        f"{path}: early stopping not met: too few queries for the percentile" for met in truths.values() if met is False
    ]
    return numbers.get(rules.RESULTS[scenario][0])


def _validity_faults(log: DetailLog, summary: str) -> Iterator[str]:
    validity = log.text("result_validity")
    if validity is None:
        return
    if validity != "VALID":
        reason = log.text("result_invalid_reason") if log.has("result_invalid_reason") else "no reason in the log"
        yield f"the run is {validity}: {' '.join(str(reason).split())}"
    elif "Result is : VALID" not in summary:
        yield "the run is VALID here, but mlperf_log_summary.txt beside it does not say so"


def _performance_faults(numbers: dict[str, float], scenario: str, bounds: Bounds) -> Iterator[str]:
    """Values that break a rule; those that are not in `numbers` have been told already."""
    shortest = numbers.get("effective_min_duration_ms", bounds.min_duration_ms)
    if shortest < bounds.min_duration_ms:
        yield f"min_duration was {shortest / 1000:g} s, wanted {bounds.min_duration_ms / 1000:g} s or more"
    if numbers.get("effective_max_duration_ms") or numbers.get("effective_max_query_count"):
        yield "the run had a max_duration or max_query_count, which cut it short"
    held = numbers.get("effective_performance_sample_count", bounds.samples)
    if held < bounds.samples:
        yield f"performance_sample_count was {held}, wanted {bounds.samples} or more"
    for name, seed in rules.SEEDS.items():
        if numbers.get(f"effective_{name}", seed) != seed:
            yield f"{name} was {numbers[f'effective_{name}']}, wanted {seed}"
    issued = numbers.get("effective_samples_per_query", bounds.samples)
    if scenario == "Offline" and issued < bounds.samples:
        yield f"the query had {issued} samples, wanted {bounds.samples} or more"
    if scenario == "Offline" and numbers.get("effective_min_query_count", 1) < 1:
        yield "min_query_count was 0, wanted 1 or more"
    if numbers.get(rules.RESULTS[scenario][0]) == 0:
        yield f"{rules.RESULTS[scenario][0]} is 0, which the official checker takes for no result"
    if scenario == "Server":
        yield from _server_faults(numbers, bounds)


def _server_faults(numbers: dict[str, float], bounds: Bounds) -> Iterator[str]:
    bound = numbers.get("effective_target_latency_ns", bounds.server_latency_ns)
    share = numbers.get("effective_target_latency_percentile", 0.99)
    if not 0 < bound <= bounds.server_latency_ns:
        yield f"target_latency was {bound / 1e6:g} ms, wanted at most {bounds.server_latency_ns / 1e6:g} ms"
    if not 0.99 <= share <= 1:
        yield f"target_latency_percentile was {share:g}, wanted 0.99"


def _check_accuracy_run(path: Path, scenario: str, bounds: Bounds, faults: list[str]) -> None:
    log = DetailLog(path, faults)
    if not log.is_readable:
        return
    _check_run(log, path, scenario, "AccuracyOnly", faults)
    counted = "effective_accuracy_sample_count"
    key = counted if log.has(counted) else "qsl_reported_total_count"
    answered = log.numbers([key]).get(key)
    if answered is not None and answered != bounds.samples:
        faults.append(f"{path}: the run had {answered} samples, wanted {bounds.samples}: the whole data set")


def _check_run(log: DetailLog, path: Path, scenario: str, mode: str, faults: list[str]) -> None:
    for key, wanted in (("effective_scenario", scenario), ("effective_test_mode", mode)):
        found = log.text(key)
        if found is not None and found != wanted:
            faults.append(f"{path}: {key} is {found}, wanted {wanted}")
    faults += [f"{path}: LoadGen logged an error: {error}" for error in log.errors]


def _check_score(path: Path, benchmark: str, bounds: Bounds, faults: list[str]) -> accuracy.Parsed | None:
    text = read_text(path, faults)
    if text is None:
        return None
    parsed = accuracy.parse_accuracy(text)
    faults += [f"{path}: {fault}" for fault in parsed.faults]
    share = rules.BENCHMARKS[benchmark]
    gate = share * bounds.reference_f1
    if parsed.score and parsed.score.f1 < gate:
        faults.append(
            f"{path}: F1 {parsed.score.f1:.3f} misses the gate of {benchmark}, {gate:.5f}"
            f" = {share:.1%} of {bounds.reference_f1:g}"
        )
    return parsed


def _accuracy_log_faults(path: Path, digest: str | None) -> Iterator[str]:
    content = path.read_bytes()
    if len(content) > rules.MAX_ACCURACY_LOG_BYTES:
        yield f"not truncated: {len(content):,} bytes, at most {rules.MAX_ACCURACY_LOG_BYTES:,} are accepted"
    elif not accuracy.is_truncated(content) and digest not in (None, accuracy.sha256(content)):
        yield "neither truncated in the official form nor the log whose hash accuracy.txt has"


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0
