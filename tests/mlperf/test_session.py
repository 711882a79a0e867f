"""Whole runs, each in its own process as LoadGen wants it."""

import json
import pickle
import shutil
import subprocess
import sys

import mlperf_loadgen
import numpy as np
import onnxruntime
import pytest

from bertjax import rundir
from bertjax.data.answers import predict
from bertjax.data.batching import plan_inference
from bertjax.data.metrics import score
from bertjax.data.windows import WindowSettings
from bertjax.engines.choose import open_backend
from bertjax.engines.samples import LENGTH_MULTIPLE, SampleLibrary, read_dataset
from bertjax.errors import UserError, WorkFailed
from bertjax.identity import digest_file
from bertjax.mlperf import gates, loadgen, logs, session
from bertjax.mlperf.logs import PERCENTILES, read_detail_log, read_logits, read_performance
from bertjax.mlperf.output import format_result
from bertjax.mlperf.result import record_result
from bertjax.mlperf.session import SessionSettings
from bertjax.modeldir.config import BertConfig
from bertjax.version import __version__

WINDOWS = WindowSettings(max_seq=128, doc_stride=64, max_query=32)


def settings_for(run_dir, log_root, **rest):
    defaults = {
        "model": run_dir / "student-int8",
        "data": run_dir / "eval.json",
        "log_root": log_root,
        "windows": WINDOWS,
        "scenario": "Offline",
        "mode": "PerformanceOnly",
        "backend": "onnxruntime",
        "duration_seconds": 0.5,
        "streams": 1,
        "threads": 1,
    }
    return SessionSettings(**(defaults | rest))


@pytest.mark.parametrize("scenario", ["Offline", "SingleStream", "Server", "MultiStream"])
def test_each_scenario_gives_what_loadgen_logged(run_dir, tmp_path, scenario):
    rate = {"target_qps": 60.0} if scenario == "Server" else {}
    result = session.run(settings_for(run_dir, tmp_path, scenario=scenario, **rate))
    found = result.performance
    logged, _ = read_detail_log(tmp_path / scenario / "PerformanceOnly")
    assert logged["effective_scenario"] == scenario and logged["effective_min_duration_ms"] == 500
    assert found.samples_per_second > 0 and found.queries >= 1 and not result.official_length
    latencies = [found.latency_ns[name] for name in ("min", *PERCENTILES, "max")]
    assert latencies == sorted(latencies) and latencies[0] > 0
    if scenario == "Server":  # MLPerf's bound, which a second reading of mlperf.conf in one process would lose
        assert found.target_latency_ns == 130_000_000 and result.target_qps == 60.0
    if scenario == "MultiStream":  # of queries, not of their samples
        assert found.latency_ns["99.00"] == logged["result_99.00_percentile_per_query_latency_ns"]
        assert found.latency_ns["mean"] == logged["result_mean_query_latency_ns"]
    assert result.effective == {key[10:]: value for key, value in logged.items() if key.startswith("effective_")}
    text = format_result(result)
    assert f"Scenario : {scenario}" in text and "99.90 percentile latency (ns)" in text and "short" in text
    assert ("Result is : VALID" in text) == found.valid


def test_a_full_disk_is_named_where_loadgens_log_is_cut_short(tmp_path, monkeypatch):
    (tmp_path / "mlperf_log_detail.txt").write_text("")
    monkeypatch.setattr(logs.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(WorkFailed, match="log is empty; the disk is full"):
        read_performance(tmp_path)


def test_a_log_without_its_percentiles_is_told(tmp_path):
    entry = {"key": "result_validity", "value": "VALID", "metadata": {"is_error": False}}
    (tmp_path / "mlperf_log_detail.txt").write_text(f":::MLLOG {json.dumps(entry)}\n")
    with pytest.raises(WorkFailed, match="no result_min_latency_ns in it: the run ended early"):
        read_performance(tmp_path)


def test_the_accuracy_log_holds_what_the_backend_gives(run_dir, tmp_path):
    result = session.run(settings_for(run_dir, tmp_path, mode="AccuracyOnly", batch_tokens=512))
    dataset = read_dataset(run_dir / "eval.json", run_dir / "student-int8", WINDOWS)
    logged_starts, logged_ends = read_logits(tmp_path / "Offline" / "AccuracyOnly", dataset)
    backend = open_backend("onnxruntime", run_dir / "student-int8", streams=1, threads=1, longest=128)
    library = SampleLibrary(dataset, BertConfig.from_json(run_dir / "student-int8" / "config.json").pad_token_id)
    library.load(range(len(dataset.windows)))
    for plan in plan_inference(dataset.lengths, tokens=512, multiple=LENGTH_MULTIPLE, longest=library.longest):
        starts, ends = backend.infer(*library.gather(plan.rows, plan.length))
        for row, index in enumerate(plan.rows):
            size = dataset.lengths[index]
            np.testing.assert_array_equal(logged_starts[index], starts[row, :size])
            np.testing.assert_array_equal(logged_ends[index], ends[row, :size])
    answers = predict(dataset.examples, dataset.windows, logged_starts, logged_ends)
    assert result.accuracy == score(dataset.examples, answers)


@pytest.mark.parametrize("scenario", ["Server", "MultiStream"])
def test_accuracy_does_not_hang_on_the_scenario(run_dir, tmp_path, scenario):
    """Within what batch shapes change: an INT8 rounding may flip, so F1 is compared, not logits."""
    rate = {"target_qps": 200.0} if scenario == "Server" else {}
    run = settings_for(run_dir, tmp_path, scenario=scenario, mode="AccuracyOnly", **rate)
    offline = settings_for(run_dir, tmp_path, mode="AccuracyOnly")
    assert session.run(run).accuracy.f1 == pytest.approx(session.run(offline).accuracy.f1, abs=3.0)


FAILING = """
import os, sys, pickle
from bertjax.mlperf import session_process
from bertjax.engines.backend import Backend
from bertjax.errors import WorkFailed
import numpy as np

class Failing(Backend):
    name = description = "failing"
    streams, batch_tokens = 1, 512
    def infer(self, ids, mask, types):
        if os.path.exists(sys.argv[1]):
            raise MemoryError("out of device memory")
        return np.zeros(ids.shape, np.float32), np.zeros(ids.shape, np.float32)

try:
    session_process.hold(*pickle.load(sys.stdin.buffer), lambda *args, **rest: Failing())
except WorkFailed as error:
    print(error)
sys.stdout.flush()
os._exit(0)
"""


def serve_on_stand_in(program, run, *arguments):
    """Make a run on the backend that a program defines, in a process of its own; returns what it printed."""
    command, content = [sys.executable, "-c", program, *arguments], pickle.dumps((run, session.check(run)))
    done = subprocess.run(command, input=content, capture_output=True, timeout=30, check=True)
    return done.stdout.decode()


@pytest.mark.parametrize("scenario", ["Offline", "SingleStream", "Server", "MultiStream"])
def test_a_backend_that_fails_in_mid_run_ends_it_with_the_cause(run_dir, tmp_path, scenario):
    run = settings_for(run_dir, tmp_path, scenario=scenario, mode="AccuracyOnly", target_qps=500.0)
    log = run.log_dir / "mlperf_log_detail.txt"  # is there from the run's beginning
    printed = serve_on_stand_in(FAILING, run, log)
    assert "failed in the middle of the run: MemoryError: out of device memory" in printed


SLOW = """
import os, sys, pickle, time
from bertjax.engines.backend import Backend
from bertjax.mlperf import session_process
import numpy as np

class Slow(Backend):
    name = description = "slow"
    streams, batch_tokens, shares_cores = 1, 1024, True
    def infer(self, ids, mask, types):
        time.sleep(1e-4 * ids.size)
        return np.zeros(ids.shape, np.float32), np.zeros(ids.shape, np.float32)

print(session_process.hold(*pickle.load(sys.stdin.buffer), lambda *args, **rest: Slow()).layout)
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.parametrize(("bound", "tokens"), [(400, 1024), (200, 512)])
def test_servers_batches_take_no_more_than_a_third_of_the_bound(run_dir, tmp_path, bound, tokens):
    """A batch of 1,024 tokens takes 102 ms here."""
    conf = tmp_path / "user.conf"
    conf.write_text(f"bert.Server.target_latency = {bound}\n")
    run = settings_for(run_dir, tmp_path, scenario="Server", target_qps=20.0, user_conf=conf)
    assert f"1 streams x 1 threads, batches of {tokens} tokens" in serve_on_stand_in(SLOW, run)


def test_a_serving_process_that_dies_is_told(run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(WorkFailed, match="ended with exit code 1"):
        session.run(settings_for(run_dir, tmp_path))


def test_user_conf_is_obeyed_and_flags_are_stronger(run_dir, tmp_path):
    path = tmp_path / "user.conf"
    path.write_text(
        "bert.Server.target_qps = 50\nbert.Server.min_duration = 700\n*.Server.min_query_count = 20\n"
        "bert.Server.target_latency = 90\nbert.Server.target_latency_percentile = 95\nbert-99.Server.target_qps = 7\n"
    )
    run = settings_for(run_dir, tmp_path, scenario="Server", user_conf=path, duration_seconds=None)
    result = session.run(run)
    logged, _ = read_detail_log(result.log_dir)
    assert (result.target_qps, result.duration_seconds) == (50.0, 0.7)
    assert logged["effective_min_query_count"] == 20
    text = format_result(result)
    for line in (
        f"Note     : {path}: line 6: bert-99.Server is not this run, which is bert.Server; passed over",
        "Run length: short, at least 0.7 s instead of 600 s, 20 instead of 100 queries at least; not for a submission",
        "Not as in mlperf.conf: the 95th percentile instead of the 99th",
        "Not as in mlperf.conf: a bound of 90 ms instead of 130 ms",
        "Bound of the 95.00 percentile   : 90000000",
    ):
        assert line in text
    result = session.run(settings_for(run_dir, tmp_path, scenario="Server", user_conf=path, target_qps=80.0))
    assert (result.target_qps, result.duration_seconds) == (80.0, 0.5)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"scenario": "Offlin"}, "--scenario Offlin"),
        ({"mode": "Performance"}, "--mode Performance"),
        ({"backend": "tvm"}, "--backend tvm"),
        ({"target_qps": 0.0}, "--target-qps 0.0"),
        ({"target_qps": 1e-6}, "--target-qps 1e-06: must lie between 0.01 and 10,000,000"),  # LoadGen waits for days
        ({"duration_seconds": -1.0}, "--duration -1.0"),
    ],
)
def test_wrong_settings_are_told_before_anything_runs(run_dir, tmp_path, change, told):
    with pytest.raises(UserError, match=told):
        session.check(settings_for(run_dir, tmp_path, **change))


@pytest.mark.parametrize(
    ("scenario", "audit", "planned"),
    [
        ("Offline", {}, 660.0),
        ("Offline", {"min_query_count": 10_833}, 10_833),
        ("Server", {"min_duration": 60_000, "target_qps": 50.0}, 3000.0),
        ("SingleStream", {}, 2000.0),  # twice the samples of the expected latency
        ("MultiStream", {"target_latency": 20.0, "samples_per_query": 4}, 4000.0),
    ],
)
def test_what_loadgen_plans_beforehand_must_fit_into_memory(monkeypatch, scenario, audit, planned):
    settings = mlperf_loadgen.TestSettings()
    settings.scenario = getattr(mlperf_loadgen.TestScenario, scenario)
    settings.min_duration_ms, settings.min_query_count = 10_000, 1
    settings.offline_expected_qps = settings.server_target_qps = 60.0
    settings.single_stream_expected_latency_ns = settings.multi_stream_expected_latency_ns = 10_000_000
    assert loadgen.planned_samples(settings, audit) == pytest.approx(planned)
    loadgen.check_plan(settings, audit)
    monkeypatch.setattr(loadgen, "memory_bytes", lambda: round(90 * planned))
    with pytest.raises(UserError, match="LoadGen would plan .* samples beforehand"):
        loadgen.check_plan(settings, audit)


def test_a_log_folder_that_cannot_be_written_is_told(run_dir, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        session.check(settings_for(run_dir, tmp_path / "file"))


def test_results_and_gates_of_a_run_directory(run_dir, tmp_path):
    model = run_dir / "student-int8"
    assert rundir.default_data(model) == run_dir / "eval.json"
    assert rundir.window_settings(model, max_query=16) == WindowSettings(max_seq=128, doc_stride=64, max_query=16)
    assert gates.reference_f1(model, 45)[0] == 90.0
    result = session.run(settings_for(run_dir, tmp_path, mode="AccuracyOnly"))
    assert record_result(model, result) == run_dir / "metrics.json"
    told = format_result(result)
    assert f"student-int8 of run {run_dir.name}, sha256 {result.model_digest[:16]}" in told
    data = run_dir / "eval.json"
    assert f"{data}, sha256 {digest_file(data)[:16]}\nSamples  : {result.windows} windows of 45 questions" in told
    assert (
        f"onnxruntime {onnxruntime.__version__}" in told and f"bertjax {__version__}" in told and "Warning" not in told
    )
    written = json.loads((run_dir / "metrics.json").read_text())
    assert written["seed"] == 7  # nothing else is lost
    recorded = written["loadgen"]["student-int8"]["Offline"]["accuracy"]
    assert recorded["f1"] == result.accuracy.f1 and recorded["data_digest"] == digest_file(data)
    assert recorded["samples"] == result.windows and recorded["non_finite"] == 0
    with pytest.raises(UserError, match="give --reference-f1"):
        gates.reference_f1(tmp_path, 45)


def test_the_missions_own_teacher_is_held_to_the_published_reference(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps({"stages": {"teacher": {"f1": 91.0}}}))
    (tmp_path / "settings.json").write_text(json.dumps({"teacher": f"google-bert/{gates.REFERENCE_MODEL}"}))
    assert gates.reference_f1(tmp_path / "student-int8", 10_570)[0] == 90.874
    assert gates.reference_f1(tmp_path / "student-int8", 500)[0] == 91.0  # a part of the set has its own reference
