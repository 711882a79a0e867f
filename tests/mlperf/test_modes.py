"""LoadGen's modes, an auditor's settings, and what is written beside LoadGen's logs."""

import concurrent.futures
import dataclasses
import json
from pathlib import Path

import pytest

from bertjax.errors import UserError
from bertjax.mlperf import logs, session
from bertjax.mlperf.logs import read_detail_log
from bertjax.mlperf.output import format_result
from tests.mlperf.test_session import settings_for


def test_a_submission_run_gives_accuracy_and_performance_of_one_run(run_dir, tmp_path):
    result = session.run(settings_for(run_dir, tmp_path, mode="SubmissionRun", scenario="SingleStream"))
    alone = session.run(settings_for(run_dir, tmp_path, mode="AccuracyOnly", scenario="SingleStream"))
    assert result.accuracy == alone.accuracy and alone.performance is None
    assert result.performance.queries > 1 and result.record().keys() == {"performance", "accuracy"}
    text = format_result(result)
    assert "F1          :" in text and "Result is :" in text

    summary = json.loads((result.log_dir / "summary.json").read_text())
    assert summary["accuracy"] == dataclasses.asdict(result.accuracy)
    assert summary["performance"]["latency_ns"] == result.performance.latency_ns
    assert summary["resident_bytes"]["end"] > 1 << 20
    assert "<svg" in (result.log_dir / "latency.svg").read_text()
    # The course is that of the performance phase: one query after the other, nothing left at its end.
    inside = summary["course"]["samples_waiting_or_running"]["values"]
    assert set(inside) == {0, 1} and inside[-1] == 0


def test_loadgens_own_search_finds_a_rate(run_dir, tmp_path):
    run = settings_for(
        run_dir, tmp_path, mode="FindPeakPerformance", scenario="Server", target_qps=400.0, duration_seconds=0.1
    )
    result = session.run(run)
    found = f"{result.target_qps:.2f}" if result.target_qps else "none"
    assert result.target_qps is None or result.target_qps >= 400.0
    assert f"Highest rate that LoadGen found : {found}" in format_result(result) and "peak" in result.record()


@pytest.mark.parametrize("scenario", ["Offline", "SingleStream", "MultiStream"])
def test_loadgens_own_search_is_refused_where_it_does_nothing(run_dir, tmp_path, scenario):
    with pytest.raises(UserError, match="--mode FindPeakPerformance: LoadGen searches for a rate in Server only"):
        session.check(settings_for(run_dir, tmp_path, mode="FindPeakPerformance", scenario=scenario))


def test_audit_conf_is_stronger_than_everything(run_dir, tmp_path):
    user, audit = tmp_path / "user.conf", tmp_path / "audit.conf"
    user.write_text("bert.Offline.performance_sample_count_override = 30\n")
    audit.write_text(
        "*.*.mode = 2\n*.*.accuracy_log_rng_seed = 720381539243781796\n*.*.accuracy_log_sampling_target = 16\n"
        "*.*.min_duration = 300\n*.Offline.performance_sample_count_override = 20\n"
    )
    result = session.run(settings_for(run_dir, tmp_path / "logs", user_conf=user, audit_conf=audit))
    logged, _ = read_detail_log(result.log_dir)
    assert logged["effective_performance_sample_count"] == 20
    assert logged["effective_min_duration_ms"] == 300 and result.duration_seconds == 0.3
    answers = json.loads((result.log_dir / "mlperf_log_accuracy.json").read_text())
    assert answers and result.accuracy is None  # MLPerf's TEST01: some answers of a performance run
    assert f"Audit    : {audit}" in format_result(result)


@pytest.mark.parametrize(
    ("user", "audit", "told"),
    [
        (
            {},
            {"performance_issue_same": 1, "performance_issue_same_index": 40},
            "a: performance_issue_same_index 40: .* 39",
        ),
        (
            {"performance_sample_count_override": 20},
            {"performance_issue_same": 1, "performance_issue_same_index": 20},
            "a: performance_issue_same_index 20: must be at most 19, as there are 40 samples",
        ),
        ({"accuracy_sample_count_override": 41}, {}, "u: accuracy_sample_count_override 41: must be at most 40"),
        (
            {},
            {"performance_sample_count_override": 10833},
            "a: performance_sample_count_override 10833: .* 40",
        ),
        ({"performance_issue_same": 1}, {"performance_issue_unique": 1}, "a: .* exclude each other"),
    ],
)
def test_settings_past_the_samples_end_are_told(run_dir, tmp_path, user, audit, told):
    settings = settings_for(run_dir, tmp_path, user_conf=Path("u"), audit_conf=Path("a"))
    with pytest.raises(UserError, match=told):
        session.check_counts(settings, session.Confs(user=user, audit=audit, notes=()), 40)


def test_settings_that_fit_the_samples_pass(run_dir, tmp_path):
    user = {"performance_sample_count_override": 10833}  # of which as many as there are are taken
    audit = {"performance_issue_same": 1, "performance_issue_same_index": 39, "accuracy_sample_count_override": 40}
    settings = settings_for(run_dir, tmp_path, user_conf=Path("u"), audit_conf=Path("a"))
    session.check_counts(settings, session.Confs(user=user, audit=audit, notes=()), 40)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("*.*.mode = two", "audit.conf:1: .*spaces included"),
        ("*.*.min_duratoin = 5", "audit.conf:1: 'min_duratoin'"),
        ("bert.*.mode = 2", "audit.conf:1: model 'bert': .*only lines of all models"),
        ("*.*.mode = 1", "audit.conf: its mode 1 is AccuracyOnly, not --mode PerformanceOnly"),
        ("*.*.mode = 7", "audit.conf:1: mode = 7: must lie between 0 and 3"),
    ],
)
def test_an_audit_conf_that_loadgen_would_pass_over_is_told(run_dir, tmp_path, line, told):
    audit = tmp_path / "audit.conf"
    audit.write_text(line + "\n")
    with pytest.raises(UserError, match=told):
        session.check(settings_for(run_dir, tmp_path, audit_conf=audit))


def test_an_audit_conf_that_is_not_there_is_told(run_dir, tmp_path):
    with pytest.raises(UserError, match="none.conf: not readable .*--audit-conf wants"):
        session.check(settings_for(run_dir, tmp_path, audit_conf=tmp_path / "none.conf"))


def test_every_call_gets_a_log_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logs.time, "strftime", lambda form: "20260101-000000")
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: logs.new_log_root("student"), range(8)))
    assert len(set(made)) == 8 and all(folder.is_dir() for folder in made)
    assert Path("build/logs/20260101-000000-student") in made
