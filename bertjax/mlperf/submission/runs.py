"""The runs of a submission: made now, made by an earlier call, or collected from log folders."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tqdm

from bertjax.data.metrics import Score
from bertjax.data.windows import WindowSettings
from bertjax.engines.samples import read_dataset
from bertjax.errors import UserError
from bertjax.files import write_file_aside
from bertjax.identity import digest_file, digest_folder
from bertjax.machine import package_versions
from bertjax.mlperf import session
from bertjax.mlperf.logs import read_accuracy
from bertjax.mlperf.result import SUMMARY, Result
from bertjax.mlperf.session import SessionSettings
from bertjax.modeldir import store

PERFORMANCE, ACCURACY = MODES = ("PerformanceOnly", "AccuracyOnly")
FACTS = ("backend", "description", "layout")  # of summary.json, that a tree tells
_MARK = "run.json"  # in a log folder: the run has ended, how it was asked for, and what it gave


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenarioRuns:
    """A scenario's two runs: LoadGen's log folders, the score of the accuracy run, and what is known of the other."""

    scenario: str
    performance: Path
    accuracy: Path
    score: Score
    facts: dict[str, Any]  # FACTS of the performance run


def make_runs(
    settings: SessionSettings, scenarios: Sequence[str], on_result: Callable[[Result], None]
) -> list[ScenarioRuns]:
    """Run what has not been run under `settings.log_root`, performance and accuracy of each scenario.

    A run is not repeated if it was VALID and nothing that it depends on has changed: the model and all files by their
    contents, the settings, and the libraries' versions. `target_qps` is for Server alone. `on_result` is called after
    each run that is made.

    Raises:
      UserError: a setting or a file is wrong, or the backend cannot run here.
      WorkFailed: a run failed; those that have ended before are kept.
    """
    wanted = {
        (scenario, mode): dataclasses.replace(
            settings, scenario=scenario, mode=mode, target_qps=settings.target_qps if scenario == "Server" else None
        )
        for scenario in scenarios
        for mode in MODES
    }
    for each in wanted.values():  # a misspelt last scenario is told before the first one runs
        session.check(each)
    done = {key: _run_once(each, on_result) for key, each in wanted.items()}
    return [
        ScenarioRuns(
            scenario=scenario,
            performance=wanted[scenario, PERFORMANCE].log_dir,
            accuracy=wanted[scenario, ACCURACY].log_dir,
            score=_score(done[scenario, ACCURACY]["accuracy"]),
            facts={name: done[scenario, PERFORMANCE]["performance"][name] for name in FACTS},
        )
        for scenario in scenarios
    ]


def collect_runs(
    folder: Path, scenarios: Sequence[str], *, model: Path, data: Path, windows: WindowSettings
) -> list[ScenarioRuns]:
    """Take runs of serve/loadgen.py or of `make_runs`, whose accuracy logs are scored here.

    Raises:
      UserError: a log folder is missing (one line names all of them), or its run was of another model or other data.
      WorkFailed: an accuracy log does not fit the data.
    """
    found = {(scenario, mode): Path(folder) / scenario / mode for scenario in scenarios for mode in MODES}
    missing = [key for key, path in found.items() if not (path / "mlperf_log_detail.txt").exists()]
    if missing:
        names = ", ".join(f"{scenario}/{mode}" for scenario, mode in missing)
        raise UserError(
            f"--collect {folder}: no logs in {names}; make each with python serve/loadgen.py --logs {folder}"
            " --scenario ... --mode ..., or leave scenarios out with --scenarios"
        )
    digests = {"model": store.digest(model), "data": digest_file(data)}
    said = {key: _read_origin(path, key, digests) for key, path in found.items()}
    dataset = read_dataset(data, model, windows)
    return [
        ScenarioRuns(
            scenario=scenario,
            performance=found[scenario, PERFORMANCE],
            accuracy=found[scenario, ACCURACY],
            score=read_accuracy(found[scenario, ACCURACY], dataset),
            facts={name: said[scenario, PERFORMANCE].get(name) for name in FACTS},
        )
        for scenario in tqdm.tqdm(scenarios, desc="scoring", unit="log", leave=False, disable=None)
    ]


def _run_once(settings: SessionSettings, on_result: Callable[[Result], None]) -> dict[str, Any]:
    mark = settings.log_dir / _MARK
    before = _read_mark(mark)
    if before.get("asked") == _asked(settings) and before.get("valid"):
        return before["result"]
    mark.unlink(missing_ok=True)  # LoadGen is about to overwrite the logs
    result = session.run(settings)
    on_result(result)
    valid = result.performance is None or result.performance.valid
    # Digests are taken after the run, which may have exported the graph that it served.
    content = {"asked": _asked(settings), "valid": valid, "result": result.record()}
    write_file_aside(mark, json.dumps(content, indent=2) + "\n")
    return _read_mark(mark)["result"]


def _asked(settings: SessionSettings) -> dict[str, Any]:
    """Everything that a run depends on: settings, digests of the model directory's and the named files, and versions.

    All files of the model directory count: weights, tokenizer, exported graphs and engines.
    """
    fields = dataclasses.asdict(settings)
    files = {name: digest_file(path) for name, path in fields.items() if isinstance(path, Path) and path.is_file()}
    plain = {name: value for name, value in fields.items() if not isinstance(value, Path)}
    return plain | {"files": files, "model": digest_folder(settings.model), "versions": package_versions()}


def _read_origin(logs: Path, run: tuple[str, str], digests: dict[str, str]) -> dict[str, Any]:
    """The summary beside collected logs, which are of a model and data with these digests.

    Raises:
      UserError: they are of others, or do not say.
    """
    said, again = _read_mark(logs / SUMMARY), "make it again: python serve/loadgen.py --scenario {} --mode {}"
    for name, wanted in digests.items():
        found = said.get(f"{name}_digest")
        if found is None:
            raise UserError(f"{logs}: no {SUMMARY} that says of which {name} the run was; {again.format(*run)}")
        if found != wanted:
            raise UserError(f"{logs}: a run of another {name} (SHA-256 {str(found)[:12]}...); {again.format(*run)}")
    return said


def _read_mark(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _score(record: dict[str, Any]) -> Score:
    return Score(exact_match=record["exact_match"], f1=record["f1"])
