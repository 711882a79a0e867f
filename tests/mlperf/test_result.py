"""A result's statements about its run come from the settings that LoadGen logged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bertjax.engines.timing.layout import Layout
from bertjax.errors import WorkFailed
from bertjax.mlperf import output
from bertjax.mlperf.result import Result, write_summary

OFFICIAL: dict[str, Any] = {
    "min_duration_ms": 600_000,
    "max_duration_ms": 0,
    "min_query_count": 100,
    "max_query_count": 0,
    "min_sample_count": 100,
    "samples_per_query": 1,
    "target_latency_ns": 130_000_000,
    "target_latency_percentile": 0.99,
    "performance_issue_same": False,
    "performance_issue_unique": False,
}


def _result(scenario: str, **held: Any) -> Result:
    fields: dict[str, Any] = dict.fromkeys(Result.__dataclass_fields__)
    return Result(**fields | {"scenario": scenario, "effective": OFFICIAL | held})


@pytest.mark.parametrize(
    ("scenario", "held"),
    [
        ("Server", {}),
        ("SingleStream", {"target_latency_percentile": 0.9, "target_latency_ns": 0}),
        ("Offline", {"min_query_count": 1, "min_sample_count": 10_833}),
        ("MultiStream", {"min_query_count": 662, "samples_per_query": 8}),
    ],
)
def test_a_run_by_mlperf_conf_is_official(scenario: str, held: dict[str, Any]):
    result = _result(scenario, **held)
    assert result.official_length and result.shortfalls == () and result.departures == ()


@pytest.mark.parametrize(
    ("scenario", "held", "told"),
    [
        ("Server", {"min_duration_ms": 6}, "at least 0.006 s instead of 600 s"),
        ("SingleStream", {"min_query_count": 1}, "1 instead of 100 queries at least"),
        ("Offline", {"min_query_count": 1, "min_sample_count": 9000}, "9,000 instead of 10,833 samples at least"),
        ("MultiStream", {"min_query_count": 100}, "100 instead of 662 queries at least"),
        ("Server", {"max_duration_ms": 1000}, "at most 1 s"),
        ("Server", {"max_query_count": 7}, "at most 7 queries"),
    ],
)
def test_a_run_that_logged_less_is_short_whatever_was_asked_for(scenario: str, held: dict[str, Any], told: str):
    result = _result(scenario, **held)
    assert not result.official_length and result.shortfalls == (told,)


@pytest.mark.parametrize(
    ("scenario", "held", "told"),
    [
        ("Server", {"target_latency_ns": 1_000_000}, "a bound of 1 ms instead of 130 ms"),
        ("Server", {"target_latency_percentile": 0.5}, "the 50th percentile instead of the 99th"),
        ("MultiStream", {"samples_per_query": 2}, "2 samples a query instead of 8"),
        ("Offline", {"performance_issue_same": True}, "the same sample in every query"),
        ("Server", {"performance_issue_unique": True}, "each sample once"),
    ],
)
def test_what_else_is_not_mlperf_confs_is_told(scenario: str, held: dict[str, Any], told: str):
    assert _result(scenario, **held).departures == (told,)


def _session(tmp_path: Path, **rest: Any) -> Result:
    places = {"log_dir": tmp_path, "data": Path("eval.json"), "data_digest": "d" * 64, "model_digest": "e" * 64}
    about = {"scenario": "Offline", "model": "student-int8", "notes": (), "versions": {}, "effective": OFFICIAL}
    fields = dict.fromkeys(Result.__dataclass_fields__) | about | places | {"not_kept": (), "non_finite": 0}
    return Result(**fields | {"layout": Layout(streams=1, threads=1, batch_tokens=8, tried={})} | rest)


def _fail(error: Exception) -> Any:
    def write(*args: Any) -> None:
        raise error

    return write


def test_a_picture_that_cannot_be_made_leaves_the_summary_which_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "latency.svg").write_text("of an earlier session")
    monkeypatch.setattr(output, "write_summary", lambda result, timing: write_summary(result, None))
    for error in (WorkFailed("latency.svg: the disk is full"), ValueError("Image size of 1x1000000 pixels")):
        monkeypatch.setattr(output, "draw_run", _fail(error))
        kept = output.keep_result(_session(tmp_path), timing=object())  # type: ignore[arg-type]
        (told,) = kept.not_kept
        assert told.startswith("the picture: ") and told.endswith(str(error))
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["model"] == "student-int8" and written["not_kept"] == [told]
    shown = output.format_result(kept)
    assert f"Not kept : {told}" in shown and "Summary  : " in shown and "Picture  : " not in shown


def test_a_summary_that_cannot_be_written_leaves_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(output, "write_summary", _fail(WorkFailed("summary.json: the disk is full")))
    monkeypatch.setattr(output, "draw_run", lambda result, timing: (tmp_path / "latency.svg").write_text(""))
    kept = output.keep_result(_session(tmp_path, non_finite=3), timing=object())  # type: ignore[arg-type]
    shown = output.format_result(kept)
    assert "Not kept : the summary: summary.json: the disk is full" in shown and "Summary  : " not in shown
    assert "Picture  : " in shown
    assert "Warning  : 3 answers hold NaN or infinite logits" in shown
