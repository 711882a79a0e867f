"""The programs under serve/, as a person calls them."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runs import write_run

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder with one finished run: what `python train/distill.py` leaves."""
    folder = tmp_path_factory.mktemp("work")
    run = folder / "runs" / "demo"
    write_run(run, 8, eval_file="runs/demo/eval.json", stages={"teacher": {"f1": 5.0}})
    return folder


def call(folder, program, *arguments):
    command = [sys.executable, ROOT / "serve" / program, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def test_loadgen_serves_the_newest_student_and_records_it(folder):
    done = call(folder, "loadgen.py", "--scenario", "Offline", "--duration", "0.5", "--backend", "onnxruntime")
    assert done.returncode == 0, done.stderr
    assert "Samples per second" in done.stdout and "Model    : student-int8" in done.stdout
    record = json.loads((folder / "runs/demo/metrics.json").read_text())["loadgen"]["student-int8"]["Offline"]
    assert record["performance"]["samples_per_second"] > 0
    layout = record["performance"]["layout"]
    taken = f"{layout['streams']} x {layout['threads']}, {layout['batch_tokens']} tokens"
    assert taken in layout["tried"] and taken in done.stdout
    assert (folder / record["performance"]["logs"] / "mlperf_log_detail.txt").exists()


def test_a_result_that_the_run_cannot_take_is_printed_and_kept_with_the_logs(folder):
    lock = folder / "runs/demo/.metrics.json.lock"
    lock.unlink(missing_ok=True)
    lock.mkdir()  # stands for a read-only run, for root too
    before = (folder / "runs/demo/metrics.json").read_bytes()
    try:
        done = call(folder, "loadgen.py", "--duration", "0.3", "--backend", "onnxruntime", "--logs", "kept")
    finally:
        lock.rmdir()
    assert done.returncode == 0 and "Samples per second" in done.stdout, done.stderr
    assert "Not recorded in the run: " in done.stdout and "cannot be written" in done.stdout
    assert json.loads((folder / "kept/Offline/PerformanceOnly/summary.json").read_text())["performance"]["queries"] == 1
    assert (folder / "runs/demo/metrics.json").read_bytes() == before


def test_audit_passes_and_misses_its_gate(folder):
    arguments = ["--benchmarks=bert-99", "--scenarios=offline", "--backend=onnxruntime"]
    audit = folder / "audit.config"  # as an auditor leaves it
    audit.write_text("*.*.min_duration = 300\n")
    done = call(folder, "audit.py", *arguments, "--test_mode=submissionrun")
    audit.unlink()
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout + done.stderr
    assert "Samples per second" in done.stdout and "Audit    : audit.config" in done.stdout
    arguments = [*arguments[1:], "--test_mode=AccuracyOnly", "--config_ver=default,high_accuracy"]
    done = call(folder, "audit.py", *arguments, "--reference-f1=101")
    assert done.returncode == 1 and "target 99.990" in done.stdout and "target 100.899" in done.stdout
    assert "gate default missed in Offline; accuracy gate high_accuracy missed in Offline" in done.stderr


@pytest.mark.parametrize(
    ("program", "arguments", "told"),
    [
        ("loadgen.py", ["--data", "nowhere.json"], "nowhere.json: no such file"),
        ("loadgen.py", ["--scenario", "Onffline"], "--scenario Onffline"),
        ("loadgen.py", ["--model", "nowhere"], "nowhere/config.json: no such file"),
        ("loadgen.py", ["--model", "untokenized"], "untokenized: no tokenizer.json"),
        ("loadgen.py", ["--max-seq", "1024"], "--max-seq 1024"),
        ("loadgen.py", ["--data", "broken.json"], "broken.json"),
        ("loadgen.py", ["--logs", "broken.json"], "broken.json/Offline/PerformanceOnly: cannot be written"),
        ("loadgen.py", ["--user-conf", "broken.json"], "broken.json:1"),
        ("loadgen.py", ["--audit-conf", "broken.json"], "broken.json:1"),
        ("loadgen.py", ["--mode", "FindPeakPerformance"], "--mode FindPeakPerformance"),
        ("loadgen.py", ["--find-peak"], "--find-peak: goes with --scenario Server"),
        ("audit.py", ["--test_mode=Fast"], "--test_mode=Fast: unknown"),
        ("audit.py", ["--scenarios=offline,Sever"], "--scenarios=Sever: unknown"),
        ("audit.py", ["--config_ver=default,fast"], "--config_ver=fast: unknown"),
        ("audit.py", ["--benchmarks=bert-99,resnet50"], "--benchmarks=resnet50: unknown"),
        ("audit.py", ["--audit_test=TEST04"], "--audit_test=TEST04: bert is exempt"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(folder, program, arguments, told):
    (folder / "broken.json").write_text("broken")
    if "untokenized" in arguments:
        shutil.copytree(folder / "runs/demo/student-int8", folder / "untokenized")
        (folder / "untokenized/vocab.txt").unlink()
        arguments = [*arguments, "--data", "runs/demo/eval.json"]
    done = call(folder, program, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and told in done.stderr and done.stderr.count("\n") == 1


def _children(parent):
    found = subprocess.run(["ps", "-o", "pid=,ppid=", "-e"], capture_output=True, text=True, check=True).stdout
    return [int(pid) for pid, owner in (line.split() for line in found.splitlines()) if int(owner) == parent]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_official_run_ends_within_seconds_and_leaves_no_process(folder, tmp_path, how):
    command = [sys.executable, ROOT / "serve" / "loadgen.py", "--scenario", "Server", "--duration", "600"]
    command += ["--target-qps", "50", "--backend", "onnxruntime", "--logs", tmp_path]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "Server" / "PerformanceOnly" / "mlperf_log_detail.txt"
    wait_until(log.exists)
    (child,) = _children(process.pid)
    process.send_signal(how)
    process.wait(timeout=10)
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{child}/cmdline").exists() or not Path(f"/proc/{child}/cmdline").read_bytes())


# Seconds: reading, opening, measuring, running, scoring; with workers: opening, running.
@pytest.mark.parametrize(("moment", "workers"), [(0.5, 0), (1.0, 0), (1.5, 0), (2.0, 0), (2.8, 0), (1.5, 2), (2.5, 2)])
def test_ctrl_c_at_any_moment_leaves_no_process(folder, tmp_path, moment, workers):
    command = [sys.executable, ROOT / "serve" / "loadgen.py", "--scenario", "Server", "--mode", "SubmissionRun"]
    command += ["--duration", "1", "--backend", "onnxruntime", "--logs", tmp_path]
    command += ["--workers", str(workers)] if workers else []
    marker = f"BERTJAX_TEST={tmp_path}"  # every descendant inherits it
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | dict([marker.split("=")])
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(moment + random.random() / 2)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 130 or (process.returncode == 0 and b"Recorded in" in output), errors
    assert b"Traceback" not in errors and b"Fatal" not in errors
    wait_until(lambda: not _marked(marker))


def _marked(marker):
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if marker.encode() in path.read_bytes():
                found.append(path)
        except OSError:
            pass  # it has ended, or is of somebody else
    return found


def wait_until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
