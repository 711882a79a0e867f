"""Writing the tree of an open-division submission."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bertjax import version
from bertjax.display import text_table
from bertjax.errors import UserError
from bertjax.files import write_aside
from bertjax.mlperf.logs import read_detail_log
from bertjax.mlperf.submission import accuracy, measurements
from bertjax.mlperf.submission.reading import read_object
from bertjax.mlperf.submission.rules import DIVISION, PERFORMANCE_FILES
from bertjax.mlperf.submission.runs import ScenarioRuns
from bertjax.mlperf.submission.system import system_id
from bertjax.modeldir.config import BertConfig, Quantization

_SOURCES = ("train", "export", "serve", "pyproject.toml", "requirements.lock", "README.md", "LICENSE")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Submission:
    """The runs of one model on one system, and what the tree says of both."""

    model: Path
    submitter: str
    system: dict[str, Any]  # as `system.read_system` gives it
    benchmarks: tuple[str, ...]  # of rules.BENCHMARKS; all have the same runs
    runs: Sequence[ScenarioRuns]


def write_tree(output: Path, submission: Submission) -> Path:
    """Write `<output>/open/<submitter>`, complete or not at all; returns it.

    Other systems, benchmarks and scenarios that are there stay. Those of this submission, the source code and the
    documentation of its benchmarks are written anew.

    Raises:
      UserError: the model is of no run directory, the place cannot be written, or the tree has results of another
        system of the same name.
      WorkFailed: a log is unreadable, or the disk is full.
    """
    target = Path(output) / DIVISION / submission.submitter
    name = system_id(submission.system)
    _check_same_system(target / "systems" / f"{name}.json", submission.system)
    with write_aside(target) as aside:
        if target.exists():
            shutil.copytree(target, aside, symlinks=True, dirs_exist_ok=True)
        _write(aside / "systems" / f"{name}.json", _to_json(submission.system))
        _copy_sources(aside / "src")
        for benchmark in submission.benchmarks:
            _write(aside / "documentation" / f"{name}-{benchmark}.md", _documentation(submission))
        for runs in submission.runs:
            files = _scenario_files(submission, runs)
            for benchmark in submission.benchmarks:
                folder = aside / "results" / name / benchmark / runs.scenario
                shutil.rmtree(folder, ignore_errors=True)
                for path, content in files.items():
                    _write(folder / path, content)
    return target


def _check_same_system(path: Path, wanted: dict[str, Any]) -> None:
    """See that results which are there were made on the machine that `wanted` describes."""
    if not path.exists():
        return
    faults: list[str] = []
    found = read_object(path, faults)
    if faults:
        raise UserError(f"{'; '.join(faults)}; mend it, or move it away with its results")
    fields = [field for field in {**found, **wanted} if found.get(field) != wanted.get(field)]
    if fields:
        raise UserError(
            f"{path}: describes another machine of that name ({', '.join(fields)} differ); give system.json another"
            " system_name, or the tree another --output"
        )


def _scenario_files(submission: Submission, runs: ScenarioRuns) -> dict[str, str | bytes]:
    logged, _ = read_detail_log(runs.performance)
    full_log = (runs.accuracy / "mlperf_log_accuracy.json").read_bytes()
    found: dict[str, str | bytes] = {
        "measurements.json": _to_json(measurements.measurements(submission.model, runs.facts.get("description"))),
        "user.conf": accuracy.user_conf(runs.scenario, logged),
        "README.md": _scenario_readme(submission.model, runs),
        "accuracy/accuracy.txt": accuracy.format_accuracy(runs.score, accuracy.sha256(full_log)),
        "accuracy/mlperf_log_accuracy.json": accuracy.truncate(full_log),
    }
    for name in PERFORMANCE_FILES:
        found[f"performance/run_1/{name}"] = (runs.performance / name).read_bytes()
        found[f"accuracy/{name}"] = (runs.accuracy / name).read_bytes()
    return found


def _scenario_readme(model: Path, runs: ScenarioRuns) -> str:
    lines = [f"# {model.resolve().name}, {runs.scenario}", ""]
    flags = ""
    if runs.facts:
        lines.append(f"* Backend: {runs.facts['description']}")
        flags = f" --backend {runs.facts['backend']}"
    layout = runs.facts.get("layout")
    if layout:
        flags += f" --streams {layout['streams']} --threads {layout['threads']} --batch-tokens {layout['batch_tokens']}"
    lines.append(f"* Accuracy: exact match {runs.score.exact_match:.3f}, F1 {runs.score.f1:.3f}")
    lines += ["", "The runs can be made again with the code in `src/` and this folder's `user.conf`:", ""]
    for mode in ("PerformanceOnly", "AccuracyOnly"):
        lines.append(
            f"    python serve/loadgen.py --model DIR --scenario {runs.scenario} --mode {mode}{flags}"
            " --user-conf user.conf"
        )
    return "\n".join([*lines, ""])


def _documentation(submission: Submission) -> str:
    """The making of the model, stage by stage, and its calibration, as Markdown."""
    model, served = submission.model, submission.runs[0].facts.get("description")
    lines = [f"# How {model.resolve().name} was made", ""]
    lines += [f"* {key.replace('_', ' ')}: {value}" for key, value in measurements.measurements(model, served).items()]
    rows = [
        (name, f"{stage['f1']:.3f}", f"{stage['exact_match']:.3f}", f"{stage['parameters']:,}", f"{stage['macs']:,}")
        for name, stage in measurements.stages_table(model)
    ]
    if rows:
        header = ("stage", "F1", "exact match", "parameters", "multiply-accumulates")
        lines += ["", "Every stage of the run on the evaluation file:", ""]
        lines += [f"    {line}" for line in text_table(header, rows).splitlines()]
    quantization = BertConfig.from_json(Path(model) / "config.json").quantization
    if quantization:
        lines += ["", "## Calibration", "", *_calibration(quantization)]
    return "\n".join([*lines, ""])


def _calibration(record: Quantization) -> Iterator[str]:
    yield f"Symmetric INT8. Activations: one scale per {record.activation_scales}, amax / 127, zero point 0;"
    yield "weights: one scale per output channel."
    if record.activation_scales == "feature":
        yield "Each feature is brought to the widest one's range by a multiplication, which its weights undo."
    yield f"The ranges of activations come from the calibrator `{record.calibrator}` over"
    yield f"{record.calibration_examples} examples of the training data."
    if record.trained:
        yield "The weights were then trained further with the quantization simulated."


def _copy_sources(folder: Path) -> None:
    """Copy the library, and of a checkout its programs too, in place of what is there."""
    shutil.rmtree(folder, ignore_errors=True)
    package = Path(version.__file__).parent
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(package, folder / package.name, ignore=ignore)
    for name in _SOURCES:
        source = package.parent / name
        if not (package.parent / "pyproject.toml").exists() or not source.exists():
            continue
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignore)
        else:
            shutil.copyfile(source, folder / name)


def _write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def _to_json(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=2) + "\n"
