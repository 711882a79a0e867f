"""MLCommons' compliance test TEST01: a timed run gives the answers of the accuracy run, at the submission's speed.

Source: mlcommons/inference at b66003e1, compliance/TEST01 (bert/audit.config, verify_accuracy.py,
verify_performance.py, create_accuracy_baseline.sh) and the submission checker's checks/compliance_check.py.

LoadGen writes a random part of a timed run's answers into its accuracy log. Each of them is compared with the accuracy
run's answer for the same window. Answers may differ in their last bits, since a window's neighbours in a batch and its
padding change the order of sums; then the two logs' F1 over the same windows must agree instead.

bert is exempt from TEST04 (output caching), as its samples vary in length: compliance/TEST04/README.md, and
`models_TEST04` of the checker's constants.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bertjax.data.answers import predict
from bertjax.data.dataset import Dataset
from bertjax.data.metrics import Score, score
from bertjax.engines.samples import read_dataset
from bertjax.errors import UserError, WorkFailed
from bertjax.files import write_aside, write_file_aside
from bertjax.mlperf import session
from bertjax.mlperf.logs import ACCURACY_LOG, read_answers, read_detail_log
from bertjax.mlperf.result import Result
from bertjax.mlperf.session import SessionSettings
from bertjax.mlperf.submission.accuracy import format_accuracy, sha256, truncate
from bertjax.mlperf.submission.rules import PERFORMANCE_FILES, RESULTS
from bertjax.mlperf.submission.runs import PERFORMANCE, ScenarioRuns, make_runs

TESTS = ("TEST01",)  # those that the checker asks of bert
TEST01 = """\
*.*.mode = 2
*.*.accuracy_log_rng_seed = 720381539243781796
*.*.accuracy_log_sampling_target = 4096
"""
SPEED_TOLERANCE = 0.10
QUICK_TOLERANCE = 0.20  # of queries as quick as QUICK_NANOSECONDS
QUICK_NANOSECONDS = {"SingleStream": 200_000, "MultiStream": 1_600_000}
SCORE_TOLERANCE = {"default": 0.01, "high_accuracy": 0.001}  # relative, of F1, by gate

Answers = Sequence[tuple[int, bytes]]  # windows and their answers, in the order of a log


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerCheck:
    """The answers of a timed run against those of the accuracy run.

    `counts` are the figures of verify_accuracy.py in its order, which compares the first byte of each answer alone.
    """

    counts: dict[str, int]
    entries: int  # answers of the timed run
    differing: int  # of these, answers of which any byte differs, or that the accuracy run does not have

    @property
    def passed(self) -> bool:
        """The verdict of verify_accuracy.py."""
        return self.counts["num_perf_log_data_mismatch"] == 0 and self.counts["num_perf_log_qsl_idx_match"] > 0

    @property
    def identical(self) -> bool:
        """Whether all answers are the same to the last bit."""
        return self.entries > 0 and self.differing == 0

    def __str__(self) -> str:
        """The text of a verify_accuracy.txt."""
        lines = [f"{name} = {value}" for name, value in self.counts.items()]
        return "\n".join([*lines, f"TEST {'PASS' if self.passed else 'FAIL'}"]) + "\n"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreCheck:
    """Scores of the windows that the timed run logged: by the accuracy run's answers, and by its own."""

    baseline: Score
    compliance: Score
    tolerance: float  # relative, of F1

    @property
    def change(self) -> float:
        """Relative difference of F1."""
        return abs(1 - self.baseline.f1 / self.compliance.f1) if self.compliance.f1 else float("inf")

    @property
    def passed(self) -> bool:
        return self.change <= self.tolerance


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeedCheck:
    """The figure that the scenario is ranked by, of the submission's run and of the audited one."""

    reference: float
    found: float
    tolerance: float  # relative
    fault: str = ""  # why the runs cannot be compared

    @property
    def passed(self) -> bool:
        low, high = (self.reference * (1 + sign * self.tolerance) for sign in (-1, 1))
        return not self.fault and low <= self.found <= high

    def __str__(self) -> str:
        """The text of a verify_performance.txt."""
        verdict = "TEST PASS" if self.passed else f"TEST FAIL: {self.fault or 'Test score invalid'}"
        return f"Reference score = {self.reference}\nTest score = {self.found}\n{verdict}\n"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verification:
    """The outcome of TEST01 in a scenario."""

    scenario: str
    answers: AnswerCheck
    scores: ScoreCheck | None  # if answers differ
    speed: SpeedCheck
    folder: Path  # TEST01 as a submission has it

    @property
    def accuracy_passed(self) -> bool:
        return self.answers.identical or (self.scores is not None and self.scores.passed)

    @property
    def passed(self) -> bool:
        return self.accuracy_passed and self.speed.passed

    def __str__(self) -> str:
        found = self.answers
        lines = [
            f"TEST01 {self.scenario}: {found.entries} answers of the timed run, {found.differing} differ from the"
            f" accuracy run's; verify_accuracy.py: {'PASS' if found.passed else 'FAIL'}"
        ]
        if self.scores is not None:
            lines.append(
                f"  F1 of these windows: {self.scores.baseline.f1:.4f} in the accuracy run,"
                f" {self.scores.compliance.f1:.4f} in the timed one: {self.scores.change:.3%} apart,"
                f" at most {self.scores.tolerance:.1%} allowed"
            )
        lines.append(f"  speed {self.speed.found:,.2f}, submission {self.speed.reference:,.2f}")
        lines += [f"  not comparable: {self.speed.fault}"] if self.speed.fault else []
        lines.append(f"  accuracy check pass: {self.accuracy_passed}; performance check pass: {self.speed.passed}")
        return "\n".join([*lines, f"  files: {self.folder}"])


def check_test(name: str) -> None:
    """Refuse a compliance test that MLCommons does not ask of bert.

    Raises:
      UserError: it is none of TESTS.
    """
    if name.upper() == "TEST04":
        raise UserError(f"--audit_test={name}: bert is exempt from TEST04, as its samples vary in length; run TEST01")
    if name.upper() not in TESTS:
        raise UserError(f"--audit_test={name}: unknown; of bert MLCommons asks {', '.join(TESTS)}")


def run_test01(
    settings: SessionSettings, scenarios: Sequence[str], gates: Sequence[str], on_result: Callable[[Result], None]
) -> Iterator[Verification]:
    """Run each scenario once more under TEST01's audit.config, and verify it against the submission's runs.

    The submission's runs are those of `make_runs`, which takes them from `log_root` if they are there. The audited run
    has their layout and, in Server, their rate. Its logs go to `<log_root>/TEST01/<scenario>`, the files for a
    submission to `<log_root>/<scenario>/TEST01`.

    Args:
      settings: with an `audit_conf`, that one is used instead of the built-in TEST01.
      gates: some of GATES; the strictest one's tolerance holds where answers differ.
      on_result: called after each session.

    Raises:
      UserError, WorkFailed: as `session.run`, or a log is not readable.
    """
    runs = make_runs(dataclasses.replace(settings, audit_conf=None), scenarios, on_result)
    root, tolerance = settings.log_root / "TEST01", min(SCORE_TOLERANCE[gate] for gate in gates)
    conf = settings.audit_conf or root / "audit.config"
    if settings.audit_conf is None:
        write_file_aside(conf, TEST01)
    dataset = read_dataset(settings.data, settings.model, settings.windows)
    for run in runs:
        audited = _audited_settings(settings, run, root, conf)
        on_result(session.run(audited))
        folder = settings.log_root / run.scenario / "TEST01"
        yield verify(run, audited.log_dir, dataset, tolerance=tolerance, output=folder)


def _audited_settings(settings: SessionSettings, run: ScenarioRuns, root: Path, conf: Path) -> SessionSettings:
    layout: dict[str, Any] = run.facts.get("layout", {})
    logged, _ = read_detail_log(run.performance)
    return dataclasses.replace(
        settings,
        scenario=run.scenario,
        mode=PERFORMANCE,
        log_root=root,
        audit_conf=conf,
        streams=layout.get("streams", settings.streams),
        threads=layout.get("threads", settings.threads),
        batch_tokens=layout.get("batch_tokens", settings.batch_tokens),
        target_qps=logged["effective_target_qps"] if run.scenario == "Server" else None,
    )


def verify(run: ScenarioRuns, audited: Path, dataset: Dataset, *, tolerance: float, output: Path) -> Verification:
    """Compare an audited run with a submission's runs, and write TEST01's files.

    Args:
      audited: LoadGen's logs of the run under TEST01's audit.config.
      tolerance: relative, of F1 where answers differ.
      output: the folder to write, as a submission has it in results/SYSTEM/BENCHMARK/SCENARIO/TEST01.

    Raises:
      WorkFailed: a log is not readable, or of other data.
      UserError: the folder cannot be written.
    """
    reference, found = read_answers(run.accuracy), read_answers(audited)
    answers = compare_answers(reference, found)
    scores = None
    if not answers.identical:
        logged = {index for index, _ in found}
        scores = ScoreCheck(
            baseline=score_logged([entry for entry in reference if entry[0] in logged], dataset, run.accuracy),
            compliance=score_logged(found, dataset, audited),
            tolerance=tolerance,
        )
    verification = Verification(
        scenario=run.scenario,
        answers=answers,
        scores=scores,
        speed=compare_speed(run.performance, audited),
        folder=output,
    )
    _write(verification, audited, score_logged(found, dataset, audited))
    return verification


def compare_answers(reference: Answers, found: Answers) -> AnswerCheck:
    """Count as verify_accuracy.py does; there, too, a window's next answer is compared with the one before."""
    exact: dict[int, bytes] = {}
    duplicates = inconsistent = matched = mismatched = 0
    for index, data in reference:
        duplicates += index in exact
        inconsistent += exact.setdefault(index, data) != data
    answers = dict(exact)
    for index, data in found:
        if index in answers:
            matched += 1
            mismatched += answers[index][:1] != data[:1]
        answers[index] = data
    counts = {
        "num_acc_log_entries": len(reference),
        "num_acc_log_duplicate_keys": duplicates,
        "num_acc_log_data_mismatch": inconsistent,
        "num_perf_log_entries": len(found),
        "num_perf_log_qsl_idx_match": matched,
        "num_perf_log_data_mismatch": mismatched,
        "num_missing_qsl_idxs": len(found) - matched,
    }
    return AnswerCheck(
        counts=counts, entries=len(found), differing=sum(exact.get(index) != data for index, data in found)
    )


def score_logged(answers: Answers, dataset: Dataset, log: Path) -> Score:
    """Score some windows' answers as MLCommons' script does: a question of which none is there counts as wrong.

    Args:
      answers: of several of one window the last one counts.
      log: the folder that an error names.

    Raises:
      WorkFailed: an answer is of no window of the data, or of another length.
    """
    last = dict(answers)
    logits = {index: np.frombuffer(data, np.float32).reshape(-1, 2) for index, data in last.items()}
    for index, pair in logits.items():
        if index >= len(dataset.windows) or len(pair) != len(dataset.windows[index]):
            raise WorkFailed(f"{log}/{ACCURACY_LOG}: the answer of window {index} does not fit the data")
    order = sorted(logits)
    windows = [dataset.windows[index] for index in order]
    starts, ends = ([logits[index][:, part] for index in order] for part in (0, 1))
    return score(dataset.examples, predict(dataset.examples, windows, starts, ends))


def compare_speed(reference: Path, audited: Path) -> SpeedCheck:
    """The two runs' speeds, as verify_performance.py compares them.

    Raises:
      WorkFailed: a log is not readable.
    """
    first, second = (read_detail_log(folder)[0] for folder in (reference, audited))
    scenario = first.get("effective_scenario")
    figure, _ = RESULTS.get(str(scenario), ("", ""))
    fault = ""
    for folder, logged in ((reference, first), (audited, second)):
        if logged.get("result_validity") != "VALID":
            fault = f"Invalid results in {folder}/mlperf_log_detail.txt"
        elif figure not in logged:
            fault = f"no {figure or 'scenario'} in {folder}/mlperf_log_detail.txt"
    if second.get("effective_scenario") != scenario:
        fault = "Test and reference scenarios do not match!"
    elif scenario == "Server" and first["effective_target_latency_ns"] != second["effective_target_latency_ns"]:
        fault = "Server target latency mismatch"
    known, found = (float(logged.get(figure, 0.0)) for logged in (first, second))
    quick = known <= QUICK_NANOSECONDS.get(str(scenario), -1)
    return SpeedCheck(
        reference=known, found=found, tolerance=QUICK_TOLERANCE if quick else SPEED_TOLERANCE, fault=fault
    )


def _write(verification: Verification, audited: Path, compliance: Score) -> None:
    content = (audited / ACCURACY_LOG).read_bytes()
    with write_aside(verification.folder) as folder:
        (folder / "verify_accuracy.txt").write_text(str(verification.answers))
        (folder / "verify_performance.txt").write_text(str(verification.speed))
        performance, accuracy = folder / "performance" / "run_1", folder / "accuracy"
        performance.mkdir(parents=True)
        accuracy.mkdir()
        for name in PERFORMANCE_FILES:
            shutil.copyfile(audited / name, performance / name)
        (accuracy / ACCURACY_LOG).write_bytes(truncate(content))
        (accuracy / "accuracy.txt").write_text(format_accuracy(compliance, sha256(content)))
        if verification.scores is not None:
            digest = sha256(content)
            (accuracy / "baseline_accuracy.txt").write_text(format_accuracy(verification.scores.baseline, digest))
            (accuracy / "compliance_accuracy.txt").write_text(format_accuracy(verification.scores.compliance, digest))
