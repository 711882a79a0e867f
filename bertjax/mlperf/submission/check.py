"""A check of a submission tree that is stricter than the official one.

In the open division the official checker (v6.1) lets pass: an INVALID run, a missing scenario, an accuracy.txt without
a hash, any F1, errors that LoadGen logged in a performance run, and Server runs of bert with any bound on latency.
Here each of them is a fault. Everything that the official checker does refuse is refused too.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bertjax.errors import UserError, WorkFailed
from bertjax.mlperf.conf import SCENARIOS, read_user_conf
from bertjax.mlperf.logs import read_detail_log
from bertjax.mlperf.submission import accuracy, rules
from bertjax.mlperf.submission.rules import Bounds
from bertjax.mlperf.submission.system import system_problems

# The figure that a scenario is ranked by (constants.py, RESULT_FIELD_NEW), and its unit.
RESULTS = {
    "Offline": ("result_samples_per_second", "samples/s"),
    "Server": ("result_completed_samples_per_sec", "queries/s"),
    "SingleStream": ("early_stopping_latency_ss", "ns"),
    "MultiStream": ("early_stopping_latency_ms", "ns"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checked:
    """What a check found: one line per fault, and the result of every scenario that has one."""

    faults: tuple[str, ...]
    results: tuple[tuple[str, ...], ...]  # system, benchmark, scenario, result, unit, F1


def check_submission(root: Path, bounds: Bounds) -> Checked:
    """Check every submitter under `<root>/open`.

    Raises:
      UserError: there is no such folder, or no submission in it.
    """
    submitters = _folders(Path(root) / rules.DIVISION)
    if not submitters:
        raise UserError(
            f"{root}: no {rules.DIVISION}/SUBMITTER folder in it; give the folder that --output named when it was made"
        )
    faults: list[str] = []
    results: list[tuple[str, ...]] = []
    for submitter in submitters:
        _check_submitter(submitter, bounds, faults, results)
    relative = (fault.removeprefix(f"{root}/") for fault in faults)
    return Checked(faults=tuple(relative), results=tuple(results))


def _check_submitter(folder: Path, bounds: Bounds, faults: list[str], results: list[tuple[str, ...]]) -> None:
    for name in rules.FOLDERS:
        if not (folder / name).is_dir() or not any((folder / name).iterdir()):
            faults.append(f"{folder / name}: missing or empty")
    systems = _folders(folder / "results")
    described = {path.stem for path in (folder / "systems").glob("*.json")}
    for name in sorted(described - {system.name for system in systems}):
        faults.append(f"{folder}/systems/{name}.json: no results of this system in results/{name}")
    for system in systems:
        path = folder / "systems" / f"{system.name}.json"
        record = _read_json(path, faults)
        faults.extend(f"{path}: {problem}" for problem in system_problems(record, folder.name) if record)
        benchmarks = _folders(system)
        if not benchmarks:
            faults.append(f"{system}: no benchmark in it; wanted {' or '.join(rules.BENCHMARKS)}")
        for benchmark in benchmarks:
            if benchmark.name not in rules.BENCHMARKS:
                faults.append(f"{benchmark}: unknown benchmark; wanted {' or '.join(rules.BENCHMARKS)}")
                continue
            faults.extend(_missing_scenarios(benchmark, str(record.get("system_type", ""))))
            for scenario in _folders(benchmark):
                if scenario.name in SCENARIOS:
                    faults.extend(_scenario_faults(scenario, bounds))
                    results.append((system.name, benchmark.name, scenario.name, *_result(scenario)))


def _missing_scenarios(benchmark: Path, system_type: str) -> Iterator[str]:
    there = {path.name for path in _folders(benchmark)}
    for name in rules.required_scenarios(system_type):
        if name not in there:
            yield f"{benchmark / name}: missing; a system of type {system_type} needs {name}"
    for name in sorted(there - set(SCENARIOS)):
        yield f"{benchmark / name}: unknown scenario; there are {', '.join(SCENARIOS)}"


def _scenario_faults(folder: Path, bounds: Bounds) -> list[str]:
    missing = {name for name in rules.SCENARIO_FILES if not _has_content(folder / name)}
    faults = [f"{folder / name}: missing or empty" for name in rules.SCENARIO_FILES if name in missing]
    if "measurements.json" not in missing:
        path = folder / "measurements.json"
        record = _read_json(path, faults)
        faults += [f"{path}: {field} is missing or empty" for field in rules.MEASUREMENTS if not record.get(field)]
    if "user.conf" not in missing:
        try:
            read_user_conf(folder / "user.conf", folder.name)
        except UserError as error:
            faults.append(str(error))
    checks = {
        "performance/run_1/mlperf_log_detail.txt": _performance_faults,
        "accuracy/mlperf_log_detail.txt": _accuracy_run_faults,
        "accuracy/accuracy.txt": _accuracy_faults,
        "accuracy/mlperf_log_accuracy.json": _accuracy_log_faults,
    }
    for name, found in checks.items():
        if name not in missing:
            faults += [f"{folder / name}: {fault}" for fault in found(folder, bounds)]
    return faults


def _performance_faults(folder: Path, bounds: Bounds) -> Iterator[str]:
    scenario, log_dir = folder.name, folder / "performance" / "run_1"
    try:
        logged, errors = read_detail_log(log_dir)
    except WorkFailed as error:
        yield str(error).partition(": ")[2]  # without the path, which every fault begins with
        return
    yield from _run_faults(logged, errors, scenario, "PerformanceOnly")
    if logged.get("result_validity") != "VALID":
        reason = " ".join(str(logged.get("result_invalid_reason", "no result in the log")).split())
        yield f"the run is {logged.get('result_validity', 'unfinished')}: {reason}"
    elif "Result is : VALID" not in _read_text(log_dir / "mlperf_log_summary.txt"):
        yield "the run is VALID here, but mlperf_log_summary.txt beside it does not say so"
    shortest = logged.get("effective_min_duration_ms", 0)
    if shortest < bounds.min_duration_ms:
        yield f"min_duration was {shortest / 1000:g} s, wanted {bounds.min_duration_ms / 1000:g} s or more"
    if logged.get("effective_max_duration_ms") or logged.get("effective_max_query_count"):
        yield "the run had a max_duration or max_query_count, which cut it short"
    held = logged.get("effective_performance_sample_count", 0)
    if held < bounds.samples:
        yield f"performance_sample_count was {held}, wanted {bounds.samples} or more"
    for name, seed in rules.SEEDS.items():
        if logged.get(f"effective_{name}") != seed:
            yield f"{name} was {logged.get(f'effective_{name}')}, wanted {seed}"
    if scenario == "Offline" and logged.get("effective_samples_per_query", 0) < bounds.samples:
        issued = logged.get("effective_samples_per_query", 0)
        yield f"the query had {issued} samples, wanted {bounds.samples} or more"
    if scenario != "Offline" and not logged.get("early_stopping_met"):
        yield "early stopping not met: too few queries for the percentile"
    if scenario == "Server":
        yield from _server_faults(logged, bounds)


def _server_faults(logged: dict[str, Any], bounds: Bounds) -> Iterator[str]:
    bound, share = logged.get("effective_target_latency_ns", 0), logged.get("effective_target_latency_percentile", 0)
    if not 0 < bound <= bounds.server_latency_ns:
        yield f"target_latency was {bound / 1e6:g} ms, wanted at most {bounds.server_latency_ns / 1e6:g} ms"
    if share < 0.99:
        yield f"target_latency_percentile was {share:g}, wanted 0.99"


def _accuracy_run_faults(folder: Path, bounds: Bounds) -> Iterator[str]:
    try:
        logged, errors = read_detail_log(folder / "accuracy")
    except WorkFailed as error:
        yield str(error).partition(": ")[2]  # without the path, which every fault begins with
        return
    yield from _run_faults(logged, errors, folder.name, "AccuracyOnly")
    answered = logged.get("effective_accuracy_sample_count", logged.get("qsl_reported_total_count", 0))
    if answered != bounds.samples:
        yield f"the run had {answered} samples, wanted {bounds.samples}: the whole data set"


def _run_faults(logged: dict[str, Any], errors: tuple[str, ...], scenario: str, mode: str) -> Iterator[str]:
    for key, wanted in (("effective_scenario", scenario), ("effective_test_mode", mode)):
        if logged.get(key) != wanted:
            yield f"{key} is {logged.get(key)}, wanted {wanted}"
    for error in errors:
        yield f"LoadGen logged an error: {error}"


def _accuracy_faults(folder: Path, bounds: Bounds) -> Iterator[str]:
    score, digest = accuracy.parse_accuracy(_read_text(folder / "accuracy" / "accuracy.txt"))
    benchmark = folder.parent.name
    gate = rules.BENCHMARKS[benchmark] * bounds.reference_f1
    if score is None:
        yield 'no line {"exact_match": ..., "f1": ...}'
    elif score.f1 < gate:
        yield (
            f"F1 {score.f1:.3f} misses the gate of {benchmark}, {gate:.5f}"
            f" = {rules.BENCHMARKS[benchmark]:.1%} of {bounds.reference_f1:g}"
        )
    if digest is None:
        yield "no line hash= with the SHA-256 of the whole accuracy log"


def _accuracy_log_faults(folder: Path, bounds: Bounds) -> Iterator[str]:
    content = (folder / "accuracy" / "mlperf_log_accuracy.json").read_bytes()
    if len(content) > rules.MAX_ACCURACY_LOG_BYTES:
        yield f"not truncated: {len(content):,} bytes, at most {rules.MAX_ACCURACY_LOG_BYTES:,} are accepted"
    elif not accuracy.is_truncated(content):
        _, digest = accuracy.parse_accuracy(_read_text(folder / "accuracy" / "accuracy.txt"))
        if digest is not None and digest != accuracy.sha256(content):
            yield "neither truncated in the official form nor the log whose hash accuracy.txt has"


def _result(folder: Path) -> tuple[str, str, str]:
    """Result, unit and F1 for the table; a dash for what is not there."""
    key, unit = RESULTS[folder.name]
    try:
        value = read_detail_log(folder / "performance" / "run_1")[0].get(key)
    except WorkFailed:
        value = None
    score, _ = accuracy.parse_accuracy(_read_text(folder / "accuracy" / "accuracy.txt"))
    return f"{value:,}" if value is not None else "-", unit, f"{score.f1:.3f}" if score else "-"


def _folders(path: Path) -> list[Path]:
    return sorted(each for each in path.glob("*") if each.is_dir() and not each.name.startswith("."))


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _read_json(path: Path, faults: list[str]) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        faults.append(f"{path}: not readable as JSON ({error})")
        return {}
    if not isinstance(record, dict):
        faults.append(f"{path}: not a JSON object")
        return {}
    return record
