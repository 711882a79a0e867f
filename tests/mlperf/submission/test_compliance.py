"""MLCommons' TEST01: what is compared, what is tolerated, and the test itself on tiny runs of both CPU engines."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bertjax.data.dataset import Dataset
from bertjax.data.metrics import Score
from bertjax.engines.samples import read_dataset
from bertjax.errors import UserError, WorkFailed
from bertjax.mlperf import session
from bertjax.mlperf.conf import SCENARIOS as ALL_SCENARIOS
from bertjax.mlperf.conf import read_conf
from bertjax.mlperf.logs import ACCURACY_LOG, read_answers, read_detail_log
from bertjax.mlperf.session import SessionSettings
from bertjax.mlperf.submission import accuracy, compliance
from bertjax.mlperf.submission.runs import ScenarioRuns
from tests.mlperf.submission.places import SCENARIOS, WINDOWS

CHECKOUT = os.environ.get("MLCOMMONS_INFERENCE")  # a checkout of mlcommons/inference

TEST04 = """\
# The format of this config file is 'key = value'.
*.Offline.mode = 2
*.Offline.performance_issue_unique = 0
*.Offline.performance_issue_same = 1
*.Offline.performance_issue_same_index = 3
*.Server.mode = 2
*.Server.performance_issue_same = 1
stable-diffusion-xl.Offline.min_query_count = 500
"""


@pytest.fixture(scope="module")
def dataset(settings: SessionSettings) -> Dataset:
    return read_dataset(settings.data, settings.model, WINDOWS)


def test_answers_are_counted_as_by_verify_accuracy_and_compared_to_the_last_bit() -> None:
    reference = [(0, b"aaaa"), (1, b"bbbb"), (1, b"bbbx"), (2, b""), (3, b"cccc")]
    found = [(0, b"aaaz"), (2, b""), (1, b"bbbb"), (1, b"xbbb"), (9, b"dddd"), (3, b"")]
    check = compliance.compare_answers(reference, found)
    assert check.counts == {
        "num_acc_log_entries": 5,
        "num_acc_log_duplicate_keys": 1,
        "num_acc_log_data_mismatch": 1,
        "num_perf_log_entries": 6,
        "num_perf_log_qsl_idx_match": 5,
        "num_perf_log_data_mismatch": 2,
        "num_missing_qsl_idxs": 1,
    }
    assert (check.entries, check.differing) == (6, 4) and not check.passed and not check.identical
    assert str(check).endswith("num_missing_qsl_idxs = 1\nTEST FAIL\n")
    check = compliance.compare_answers(reference, found[:3])
    assert check.passed and not check.identical and str(check).endswith("\nTEST PASS\n")
    assert compliance.compare_answers(reference, found[1:3]).identical
    nothing = compliance.compare_answers(reference, [])
    assert not nothing.passed and not nothing.identical


def test_logged_windows_are_scored_over_all_questions_by_their_last_answer(made: list[ScenarioRuns], dataset) -> None:
    answers = read_answers(made[0].accuracy)
    assert compliance.score_logged(answers, dataset, made[0].accuracy) == made[0].score
    wrong = [(index, np.zeros(len(data) // 4, np.float32).tobytes()) for index, data in answers]
    assert compliance.score_logged([*wrong, *answers], dataset, made[0].accuracy) == made[0].score
    some = [entry for entry in answers if dataset.windows[entry[0]].example < 3]
    whole = compliance.score_logged(answers, dataset, made[0].accuracy)
    part = compliance.score_logged(some, dataset, made[0].accuracy)
    assert part.f1 <= min(whole.f1, 100 * 3 / len(dataset.examples))
    for index in (0, len(dataset.windows)):
        with pytest.raises(WorkFailed, match=f"the answer of window {index} does not fit the data"):
            compliance.score_logged([(index, bytes(8))], dataset, made[0].accuracy)


@pytest.mark.parametrize(("f1", "passed"), [(89.2, True), (89.0, False), (90.9, True), (91.0, False), (0.0, False)])
def test_f1_may_differ_by_the_gates_share_of_the_audited_run(f1: float, passed: bool) -> None:
    scores = [Score(exact_match=0.0, f1=value) for value in (90.0, f1)]
    check = compliance.ScoreCheck(baseline=scores[0], compliance=scores[1], tolerance=0.01)
    assert check.passed == passed


def write_log(folder: Path, **values: object) -> Path:
    folder.mkdir(parents=True)
    lines = (json.dumps({"key": key, "value": value, "metadata": {"is_error": False}}) for key, value in values.items())
    (folder / "mlperf_log_detail.txt").write_text("".join(f":::MLLOG {line}\n" for line in lines))
    return folder


OFFLINE = {"effective_scenario": "Offline", "result_validity": "VALID", "result_samples_per_second": 100.0}
SINGLE = {"effective_scenario": "SingleStream", "result_validity": "VALID", "early_stopping_latency_ss": 200_000}
SERVER = {"effective_scenario": "Server", "result_validity": "VALID", "result_completed_samples_per_sec": 50.0}
SERVER |= {"effective_target_latency_ns": 130_000_000}


@pytest.mark.parametrize(
    ("reference", "changes", "verdict"),
    [
        (OFFLINE, {"result_samples_per_second": 90.0}, "TEST PASS"),
        (OFFLINE, {"result_samples_per_second": 111.0}, "TEST FAIL: Test score invalid"),
        (OFFLINE, {"result_validity": "INVALID"}, "TEST FAIL: Invalid results in"),
        (OFFLINE, {"effective_scenario": "Server"}, "TEST FAIL: Test and reference scenarios do not match!"),
        (SINGLE, {"early_stopping_latency_ss": 240_000}, "TEST PASS"),
        (SINGLE | {"early_stopping_latency_ss": 200_001}, {"early_stopping_latency_ss": 240_000}, "TEST FAIL"),
        (SERVER, {}, "TEST PASS"),
        (SERVER, {"effective_target_latency_ns": 1}, "TEST FAIL: Server target latency mismatch"),
    ],
)
def test_speed_is_compared_as_by_verify_performance(tmp_path: Path, reference, changes, verdict: str) -> None:
    first, second = write_log(tmp_path / "first", **reference), write_log(tmp_path / "second", **reference | changes)
    check = compliance.compare_speed(first, second)
    assert verdict in str(check).splitlines()[-1] and check.passed == (verdict == "TEST PASS")


@pytest.fixture(scope="module")
def verified(settings: SessionSettings, made: list[ScenarioRuns]) -> list[compliance.Verification]:
    """TEST01 of a submission's runs, of which none is made again."""
    told: list[session.Result] = []
    found = list(compliance.run_test01(settings, SCENARIOS, ["default", "high_accuracy"], told.append))
    assert [(result.scenario, result.mode, bool(result.audit_conf)) for result in told] == [
        (scenario, "PerformanceOnly", True) for scenario in SCENARIOS
    ]
    return found


def test_test01_passes_in_all_scenarios_on_onnx_runtime(verified, settings: SessionSettings, dataset) -> None:
    for found in verified:
        assert found.accuracy_passed and found.answers.entries > 5, str(found)
        assert found.scores is None or found.scores.tolerance == 0.001
        assert found.folder == settings.log_root / found.scenario / "TEST01"
        assert (found.folder / "verify_accuracy.txt").read_text() == str(found.answers)
        assert (found.folder / "verify_performance.txt").read_text() == str(found.speed)
        content = (settings.log_root / "TEST01" / found.scenario / "PerformanceOnly" / ACCURACY_LOG).read_bytes()
        parsed = accuracy.parse_accuracy((found.folder / "accuracy" / "accuracy.txt").read_text())
        assert parsed.score is not None and parsed.digest == accuracy.sha256(content)
        assert (found.folder / "accuracy" / ACCURACY_LOG).read_bytes() == accuracy.truncate(content)
        logged, _ = read_detail_log(found.folder / "performance" / "run_1")
        assert logged["effective_accuracy_log_sampling_target"] == 4096
        assert logged["effective_accuracy_log_rng_seed"] == 720381539243781796
        assert f"TEST01 {found.scenario}: {found.answers.entries} answers" in str(found)


def test_test01_passes_on_openvino(settings: SessionSettings, dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "audit.config").write_text(compliance.TEST01)
    # OpenVINO keeps its compiled model beside the graph, and the submission's runs are of the directory without it.
    model = shutil.copytree(settings.model, tmp_path / "student-int8")
    plain = dataclasses.replace(settings, model=model, backend="openvino", mode="AccuracyOnly", log_root=tmp_path)
    audited = dataclasses.replace(plain, mode="PerformanceOnly", audit_conf=tmp_path / "audit.config")
    score = session.run(plain).accuracy
    session.run(audited)
    assert score is not None
    run = ScenarioRuns(scenario="Offline", performance=audited.log_dir, accuracy=plain.log_dir, score=score, facts={})
    found = compliance.verify(run, audited.log_dir, dataset, tolerance=0.001, output=tmp_path / "TEST01")
    assert found.accuracy_passed and found.speed.reference == found.speed.found > 0, str(found)


def test_answers_that_differ_in_the_last_bit_are_held_to_their_f1(made, verified, dataset, tmp_path: Path) -> None:
    """The fallback: the audited run's answers, once with a changed bit each and once with the other sign.

    verify_accuracy.py, which looks at the lowest byte of the first logit alone, says the opposite.
    """
    source = verified[0].folder.parents[1] / "TEST01" / "Offline" / "PerformanceOnly"
    for name, change, passed in (
        ("bits", lambda logits: np.nextafter(logits, np.float32(np.inf)), True),
        ("wrong", lambda logits: -logits, False),
    ):
        folder = tmp_path / name
        folder.mkdir()
        for each in ("mlperf_log_detail.txt", "mlperf_log_summary.txt"):
            (folder / each).write_bytes((source / each).read_bytes())
        entries = [
            {"seq_id": 0, "qsl_idx": index, "data": change(np.frombuffer(data, np.float32)).tobytes().hex().upper()}
            for index, data in read_answers(source)
        ]
        (folder / ACCURACY_LOG).write_text(json.dumps(entries))
        found = compliance.verify(made[0], folder, dataset, tolerance=0.001, output=folder / "TEST01")
        assert (found.answers.passed, found.accuracy_passed) == (not passed, passed), str(found)
        texts = {path.name: path.read_text() for path in (folder / "TEST01" / "accuracy").glob("*.txt")}
        assert texts.keys() == {"accuracy.txt", "baseline_accuracy.txt", "compliance_accuracy.txt"}
        scores = {name: accuracy.parse_accuracy(text).score for name, text in texts.items()}
        assert scores["compliance_accuracy.txt"] == scores["accuracy.txt"] and found.scores is not None
        assert scores["baseline_accuracy.txt"].f1 == pytest.approx(found.scores.baseline.f1, abs=1e-6)


@pytest.mark.skipif(not CHECKOUT, reason="MLCOMMONS_INFERENCE names no checkout of mlcommons/inference")
def test_mlcommons_own_scripts_say_the_same(verified, made, settings: SessionSettings, tmp_path: Path) -> None:
    scripts = Path(CHECKOUT) / "compliance" / "TEST01"
    for found, run in zip(verified, made, strict=True):
        audited = settings.log_root / "TEST01" / found.scenario / "PerformanceOnly"
        command = ["bash", scripts / "create_accuracy_baseline.sh", run.accuracy / ACCURACY_LOG, audited / ACCURACY_LOG]
        subprocess.run(command, cwd=tmp_path, check=True)
        baseline = json.loads((tmp_path / "mlperf_log_accuracy_baseline.json").read_text())
        assert {entry["qsl_idx"] for entry in baseline} == {index for index, _ in read_answers(audited)}
        for script, file, text in (
            ("verify_accuracy.py", ACCURACY_LOG, str(found.answers)),
            ("verify_performance.py", "mlperf_log_detail.txt", str(found.speed)),
        ):
            reference = run.accuracy if file == ACCURACY_LOG else run.performance
            command = [sys.executable, scripts / script]
            command += ["-r", reference / file, "-t", audited / file]
            done = subprocess.run(command, capture_output=True, text=True)
            said = (done.stdout + done.stderr).strip().splitlines()
            if "Invalid results" in text:
                assert said[-1].startswith("TEST FAIL: Invalid results")
            else:
                assert set(text.splitlines()) <= set(said)


def test_test04_is_told_to_be_none_of_berts_and_its_file_is_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bert is exempt from TEST04"):
        compliance.check_test("TEST04")
    with pytest.raises(UserError, match="of bert MLCommons asks TEST01"):
        compliance.check_test("TEST06")
    compliance.check_test("test01")
    (tmp_path / "audit.config").write_text(TEST04)
    found = {scenario: read_conf(tmp_path / "audit.config", scenario, audit=True).values for scenario in ALL_SCENARIOS}
    same = {"performance_issue_unique": 0, "performance_issue_same": 1, "performance_issue_same_index": 3}
    assert found["Offline"] == {"mode": 2} | same and "min_query_count" not in found["Offline"]
    assert found["Server"] == {"mode": 2, "performance_issue_same": 1} and found["SingleStream"] == {}
