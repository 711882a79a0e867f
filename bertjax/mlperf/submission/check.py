"""A check of a submission tree that is stricter than the official one.

In the open division the official checker (v6.1) lets pass: an INVALID run, a missing scenario, an accuracy.txt without
a hash, any F1, errors that LoadGen logged in a performance run, and Server runs of bert with any bound on latency.
Here each of them is a fault. Everything that the official checker refuses or stumbles over is refused too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from bertjax.errors import UserError
from bertjax.mlperf.conf import SCENARIOS
from bertjax.mlperf.submission import rules
from bertjax.mlperf.submission.reading import read_object
from bertjax.mlperf.submission.rules import Bounds
from bertjax.mlperf.submission.scenario import scenario_faults
from bertjax.mlperf.submission.system import system_problems


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checked:
    """The outcome of a check: one line per fault, and the result of every scenario that has one."""

    faults: tuple[str, ...]
    results: tuple[tuple[str, ...], ...]  # system, benchmark, scenario, result, unit, F1


def check_submission(root: Path, bounds: Bounds) -> Checked:
    """Check every submitter under `<root>/open`.

    Raises:
      UserError: there is no such folder, or no submission in it.
    """
    root = Path(root)
    submitters = _visible(root / rules.DIVISION)
    if not submitters:
        raise UserError(
            f"{root}: no {rules.DIVISION}/SUBMITTER folder in it; give the folder that --output named when it was made"
        )
    faults = [
        f"{root / name}: another division, which the official checker would read; only {rules.DIVISION}/ is made here"
        for name in rules.OTHER_DIVISIONS
        if (root / name).is_dir()
    ]
    faults += _hidden_faults(root / rules.DIVISION)
    results: list[tuple[str, ...]] = []
    for submitter in submitters:
        _check_submitter(submitter, bounds, faults, results)
    relative = (fault.removeprefix(f"{root}/") for fault in faults)
    return Checked(faults=tuple(relative), results=tuple(results))


def _check_submitter(folder: Path, bounds: Bounds, faults: list[str], results: list[tuple[str, ...]]) -> None:
    for name in rules.FOLDERS:
        if not (folder / name).is_dir() or not any((folder / name).iterdir()):
            faults.append(f"{folder / name}: missing or empty")
    if (folder / "model_mapping.json").exists():
        faults.append(f"{folder}/model_mapping.json: the benchmarks here have their official names; leave it out")
    faults += _hidden_faults(folder / "results")
    systems = _visible(folder / "results")
    described = {path.stem for path in (folder / "systems").glob("*.json")}
    for name in sorted(described - {system.name for system in systems}):
        faults.append(f"{folder}/systems/{name}.json: no results of this system in results/{name}")
    for system in systems:
        _check_system(system, folder, bounds, faults, results)


def _check_system(
    system: Path, submitter: Path, bounds: Bounds, faults: list[str], results: list[tuple[str, ...]]
) -> None:
    path = submitter / "systems" / f"{system.name}.json"
    record = read_object(path, faults)
    faults.extend(f"{path}: {problem}" for problem in system_problems(record, submitter.name) if record)
    if path.with_name(f"{system.name}_power.yaml").exists():
        faults.append(f"{path.with_name(f'{system.name}_power.yaml')}: power was not measured; leave it out")
    faults += _hidden_faults(system)
    benchmarks = _visible(system)
    if not benchmarks:
        faults.append(f"{system}: no benchmark in it; wanted {' or '.join(rules.BENCHMARKS)}")
    for benchmark in benchmarks:
        if benchmark.name not in rules.BENCHMARKS:
            faults.append(f"{benchmark}: unknown benchmark; wanted {' or '.join(rules.BENCHMARKS)}")
            continue
        faults += _hidden_faults(benchmark)
        faults += _scenario_names(benchmark, str(record.get("system_type", "")))
        for scenario in _visible(benchmark):
            if scenario.name in SCENARIOS:
                found, row = scenario_faults(scenario, bounds)
                faults += found
                results.append((system.name, benchmark.name, scenario.name, *row))


def _scenario_names(benchmark: Path, system_type: str) -> Iterator[str]:
    there = {path.name for path in _visible(benchmark)}
    for name in rules.required_scenarios(system_type):
        if name not in there:
            yield f"{benchmark / name}: missing; a system of type {system_type} needs {name}"
    for name in sorted(there - set(SCENARIOS)):
        yield f"{benchmark / name}: unknown scenario; there are {', '.join(SCENARIOS)}"


def _visible(path: Path) -> list[Path]:
    """The folders in a folder, in the order of their names, but for hidden ones."""
    return sorted(each for each in path.glob("*") if each.is_dir() and not each.name.startswith("."))


def _hidden_faults(path: Path) -> Iterator[str]:
    for each in sorted(path.glob(".*")):
        if each.is_dir():
            yield f"{each}: a hidden folder, which the official checker takes for a part of the submission; remove it"
