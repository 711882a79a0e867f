"""The runs of a submission: made now, made by an earlier call, or collected from log folders."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tqdm

from bertjax import rundir
from bertjax.data.metrics import Score
from bertjax.data.windows import WindowSettings
from bertjax.engines.samples import read_dataset
from bertjax.errors import UserError
from bertjax.files import write_file_aside
from bertjax.mlperf import session
from bertjax.mlperf.logs import read_accuracy
from bertjax.mlperf.result import Result
from bertjax.mlperf.session import SessionSettings
from bertjax.mlperf.submission.accuracy import sha256
from bertjax.rundir import run_folder

PERFORMANCE, ACCURACY = MODES = ("PerformanceOnly", "AccuracyOnly")
_MARK = "run.json"  # in a log folder: the run has ended, how it was asked for, and what it gave


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenarioRuns:
    """A scenario's two runs: LoadGen's log folders, the score of the accuracy run, and what is known of the other."""

    scenario: str
    performance: Path
    accuracy: Path
    score: Score
    facts: dict[str, Any]  # `description`, `layout` and the rest of `Result.record`; empty for unknown logs


def make_runs(
    settings: SessionSettings, scenarios: Sequence[str], on_result: Callable[[Result], None]
) -> list[ScenarioRuns]:
    """Run what has not been run under `settings.log_root`, performance and accuracy of each scenario.

    A run is not repeated if it was VALID and nothing that it depends on has changed: the model and all files by their
    contents, and the settings. `target_qps` is for Server alone. `on_result` is called after each run that is made.

    Raises:
      UserError, WorkFailed: as `session.run`; runs that have ended before are kept.
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
    digests = _digests(settings)
    done = {key: _run_once(each, digests, on_result) for key, each in wanted.items()}
    return [
        ScenarioRuns(
            scenario=scenario,
            performance=wanted[scenario, PERFORMANCE].log_dir,
            accuracy=wanted[scenario, ACCURACY].log_dir,
            score=_score(done[scenario, ACCURACY]["accuracy"]),
            facts=done[scenario, PERFORMANCE]["performance"],
        )
        for scenario in scenarios
    ]


def collect_runs(
    folder: Path, scenarios: Sequence[str], *, model: Path, data: Path, windows: WindowSettings
) -> list[ScenarioRuns]:
    """Take runs of serve/loadgen.py or of `make_runs`, whose accuracy logs are scored here.

    Raises:
      UserError: a log folder is missing; one line names all of them.
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
    dataset = read_dataset(data, model, windows)
    return [
        ScenarioRuns(
            scenario=scenario,
            performance=found[scenario, PERFORMANCE],
            accuracy=found[scenario, ACCURACY],
            score=read_accuracy(found[scenario, ACCURACY], dataset),
            facts=_recorded(model, scenario, found[scenario, PERFORMANCE]),
        )
        for scenario in tqdm.tqdm(scenarios, desc="scoring", unit="log", leave=False, disable=None)
    ]


def _run_once(
    settings: SessionSettings, digests: dict[str, str], on_result: Callable[[Result], None]
) -> dict[str, Any]:
    asked = {key: value for key, value in dataclasses.asdict(settings).items() if not isinstance(value, Path)} | digests
    mark = settings.log_dir / _MARK
    before = _read_mark(mark)
    if before.get("asked") == asked and before.get("valid"):
        return before["result"]
    mark.unlink(missing_ok=True)  # LoadGen is about to overwrite the logs
    result = session.run(settings)
    on_result(result)
    valid = result.performance is None or result.performance.valid
    content = {"asked": asked, "valid": valid, "result": result.record()}
    write_file_aside(mark, json.dumps(content, indent=2) + "\n")
    return _read_mark(mark)["result"]


def _recorded(model: Path, scenario: str, logs: Path) -> dict[str, Any]:
    """What is known of collected logs: from `make_runs`, or from the `metrics.json` of the model's run."""
    known = _read_mark(logs / _MARK).get("result", {}).get("performance")
    folder = run_folder(model)
    if known is None and folder:
        ran = rundir.read_metrics(folder).get("loadgen", {}).get(Path(model).resolve().name, {})
        known = ran.get(scenario, {}).get("performance")
        if known is None or Path(known["logs"]).resolve() != logs.resolve():
            return {}
    return known or {}


def _read_mark(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _digests(settings: SessionSettings) -> dict[str, str]:
    """SHA-256 of the model's weights and config and of every file that the settings name."""
    files = {name: path for name, path in dataclasses.asdict(settings).items() if isinstance(path, Path)}
    files |= {name: settings.model / name for name in ("model.safetensors", "config.json")}
    return {name: sha256(path.read_bytes()) for name, path in files.items() if path.is_file()}


def _score(record: dict[str, Any]) -> Score:
    return Score(exact_match=record["exact_match"], f1=record["f1"])
