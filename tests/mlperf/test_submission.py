"""A whole submission from short runs of a tiny model, and the check's word on every way to spoil it."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bertjax.config import BertConfig
from bertjax.data.features import WindowSettings
from bertjax.errors import UserError
from bertjax.mlperf import harness
from bertjax.mlperf.harness import ServeSettings
from bertjax.mlperf.results import read_accuracy, read_detail_log
from bertjax.mlperf.samples import SampleLibrary, read_dataset
from bertjax.mlperf.submission import facts, rules, runs, system, tree
from bertjax.mlperf.submission.check import check_submission
from bertjax.mlperf.submission.rules import Bounds
from bertjax.mlperf.userconf import read_user_conf
from tests.models import tiny_config, write_random_model

WINDOWS = WindowSettings(max_seq=128, doc_stride=64, max_query=32)
SCENARIOS = ("Offline", "Server", "SingleStream")
ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "docs" / "submission-sample"  # three runs of 600 seconds with a real student


@pytest.fixture(scope="module")
def model(run_dir, tmp_path_factory):
    """The INT8 student of a run that says how it was made."""
    folder = tmp_path_factory.mktemp("submitted") / "run"
    shutil.copytree(run_dir, folder)
    write_random_model(folder / "teacher", tiny_config(layers=((2, 128), (2, 64)), quantized=False), seed=2)
    (folder / "settings.json").write_text(json.dumps({"teacher": None, "encoder": "/somewhere/private/minilm"}))
    stages = {"teacher": 90.0, "distilled": 89.0, "int8": 88.0}
    record = json.loads((folder / "metrics.json").read_text())
    record["stages"] = {
        name: {"f1": f1, "exact_match": f1, "parameters": 1000, "macs": 2000} for name, f1 in stages.items()
    }
    (folder / "metrics.json").write_text(json.dumps(record))
    return folder / "student-int8"


@pytest.fixture(scope="module")
def settings(model, run_dir, tmp_path_factory):
    return ServeSettings(
        model=model,
        data=run_dir / "eval.json",
        scenario="Offline",
        mode="PerformanceOnly",
        log_root=tmp_path_factory.mktemp("work"),
        windows=WINDOWS,
        backend="onnxruntime",
        streams=1,
        threads=1,
        duration_seconds=0.5,
        target_qps=200.0,
    )


@pytest.fixture(scope="module")
def made(settings):
    """Six runs. Whether runs of half a second are VALID is chance, so the logs are made to say that they are."""
    told = []
    for each in runs.make_runs(settings, SCENARIOS, told.append):
        detail, summary, mark = (
            each.performance / name for name in ("mlperf_log_detail.txt", "mlperf_log_summary.txt", "run.json")
        )
        text = re.sub('("result_validity", "value": )"INVALID"', r'\1"VALID"', detail.read_text())
        detail.write_text(re.sub('("early_stopping_met", "value": )false', r"\1true", text))
        summary.write_text(summary.read_text().replace(": INVALID", ": VALID"))
        mark.write_text(mark.read_text().replace('"valid": false', '"valid": true'))
    assert [(one.scenario, one.mode) for one in told] == [
        (scenario, mode) for scenario in SCENARIOS for mode in runs.MODES
    ]
    return runs.make_runs(settings, SCENARIOS, told.append)


@pytest.fixture(scope="module")
def machine():
    example = system.example_system()
    filled = {field: value or "N/A" for field, value in example.items()}
    return filled | {"submitter": "Somebody", "status": "available", "system_type": "datacenter,edge"}


@pytest.fixture(scope="module")
def good(model, made, machine, tmp_path_factory):
    output = tmp_path_factory.mktemp("good")
    tree.write_tree(
        output,
        tree.Submission(
            model=model, submitter="Somebody", system=machine, benchmarks=tuple(rules.BENCHMARKS), runs=made
        ),
    )
    return output


@pytest.fixture(scope="module")
def bounds(settings, made):
    windows = len(read_dataset(settings.data, settings.model, WINDOWS).windows)
    return Bounds(min_duration_ms=500, samples=windows, reference_f1=min(each.score.f1 for each in made))


def results(root, benchmark="bert-99"):
    (found,) = (root / "open" / "Somebody" / "results").glob(f"*/{benchmark}")
    return found


def test_a_good_tree_has_no_faults_and_tells_its_results(good, bounds, made):
    found = check_submission(good, bounds)
    assert found.faults == ()
    assert [row[1:3] for row in found.results] == [
        (benchmark, scenario) for benchmark in ("bert-99", "bert-99.9") for scenario in sorted(SCENARIOS)
    ]
    logged, _ = read_detail_log(made[0].performance)
    offline = found.results[0]
    assert offline[3:5] == (f"{logged['result_samples_per_second']:,}", "samples/s")


def test_what_the_tree_says_is_what_was_run(good, made, settings):
    for each in made:
        folder = results(good) / each.scenario
        full_log = (each.accuracy / "mlperf_log_accuracy.json").read_bytes()
        kept = (folder / "accuracy" / "mlperf_log_accuracy.json").read_bytes()
        assert kept == full_log[:4096] + b"\n\n...\n\n" + full_log[-4096:]
        text = (folder / "accuracy" / "accuracy.txt").read_text()
        assert f"hash={hashlib.sha256(full_log).hexdigest()}\n" in text
        # The official checker's own pattern (constants.py, ACC_PATTERN, F1).
        found = re.match(r"^{[\"\']exact_match[\"\']\:\s*[\d\.]+,\s*[\"\']f1[\"\']\:\s*([\d\.]+)}", text)
        score = read_accuracy(each.accuracy, read_dataset(settings.data, settings.model, WINDOWS))
        assert float(found[1]) == pytest.approx(score.f1, abs=1e-6)
        asked = read_user_conf(folder / "user.conf", each.scenario)
        assert asked["min_duration"] == 500
        assert each.scenario != "Server" or (asked["target_qps"], asked["target_latency"]) == (200.0, 130.0)
        readme = (folder / "README.md").read_text()
        assert "ONNX Runtime" in readme and "--backend onnxruntime --streams 1 --threads 1" in readme


def test_the_measurements_come_from_the_models_files(good, model):
    found = json.loads((results(good) / "Offline" / "measurements.json").read_text())
    config, teacher = (BertConfig.from_json(path / "config.json") for path in (model, model.parent / "teacher"))
    assert config.layers != teacher.layers
    assert "attention heads 4 -> 3, FFN units 192 -> 96" in found["weight_transformations"]
    assert "calibrator max over 8 examples" in found["weight_transformations"]
    assert found["starting_weights_filename"] == "model.safetensors of minilm"  # nobody's private folders
    assert found["retraining"] == "yes: fine-tuning of a pretrained encoder, distillation from the unpruned teacher"
    assert set(found["weight_data_types"].split(", ")) == {"int8", "fp32"}
    assert found["input_data_types"] == "int64"
    documented = (good / "open/Somebody/documentation/README.md").read_text()
    assert "int8" in documented and "88.000" in documented
    assert "calibrator `max` over 8" in (good / "open/Somebody/documentation/calibration.md").read_text()


def test_measurements_of_a_finished_teacher_that_nothing_was_done_to(model, tmp_path):
    teacher = tmp_path / "teacher"
    shutil.copytree(model.parent / "teacher", teacher)
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "settings.json").write_text(json.dumps({"teacher": "google-bert/bert-large", "encoder": None}))
    assert facts.measurements(teacher, None) == {
        "input_data_types": "int64",
        "retraining": "no",
        "starting_weights_filename": "model.safetensors of google-bert/bert-large",
        "weight_data_types": "fp32",
        "weight_transformations": "none",
    }
    (tmp_path / "settings.json").unlink()
    with pytest.raises(UserError, match="has to lie in a run directory"):
        facts.measurements(teacher, None)


def test_a_teacher_of_another_run_is_followed_to_what_that_run_began_with(model, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(model.parent, run)
    (run / "settings.json").write_text(json.dumps({"teacher": str(model.parent / "teacher"), "encoder": None}))
    found = facts.measurements(run / "student-int8", None)
    assert found["starting_weights_filename"] == "model.safetensors of minilm"
    assert found["retraining"].startswith("yes: fine-tuning of a pretrained encoder, distillation")


def test_the_input_type_is_what_backends_are_handed(settings):
    library = SampleLibrary(read_dataset(settings.data, settings.model, WINDOWS), 0)
    library.load([0])
    assert {array.dtype.name for array in library.gather(np.array([0]), int(library.lengths[0]))} == {facts.INPUT_TYPE}


def test_finished_runs_are_kept_and_others_repeated(settings, made, monkeypatch):
    asked = []

    def run(one):
        asked.append((one.scenario, one.mode))
        raise KeyboardInterrupt

    monkeypatch.setattr(harness, "run", run)
    assert runs.make_runs(settings, SCENARIOS, print) == made
    assert not asked
    with pytest.raises(KeyboardInterrupt):  # another rate is another Server run, and no other Offline run
        copied = shutil.copytree(settings.log_root, settings.log_root.with_name("copied"))
        runs.make_runs(dataclasses.replace(settings, target_qps=100.0, log_root=copied), SCENARIOS, print)
    assert asked == [("Server", "PerformanceOnly")]
    mark = copied / "Offline" / "PerformanceOnly" / "run.json"
    mark.write_text(mark.read_text().replace('"valid": true', '"valid": false'))
    with pytest.raises(KeyboardInterrupt):
        runs.make_runs(dataclasses.replace(settings, log_root=copied), SCENARIOS, print)
    assert asked[1:] == [("Offline", "PerformanceOnly")] and not mark.exists()


def test_the_user_conf_asks_for_the_same_run(good, made, settings, tmp_path):
    """LoadGen's expected latency and the planned length of the run, through the file alone."""
    path = results(good) / "SingleStream" / "user.conf"
    again = dataclasses.replace(
        settings, scenario="SingleStream", user_conf=path, duration_seconds=None, target_qps=None, log_root=tmp_path
    )
    first, second = (read_detail_log(folder)[0] for folder in (made[2].performance, harness.run(again).log_dir))
    for key in ("effective_min_duration_ms", "effective_min_query_count", "effective_target_qps"):
        assert second[key] == pytest.approx(first[key], rel=1e-4)


def test_logs_are_collected_and_scored(settings, made, tmp_path):
    found = runs.collect_runs(settings.log_root, SCENARIOS, model=settings.model, data=settings.data, windows=WINDOWS)
    assert found == made
    for path in shutil.copytree(settings.log_root, tmp_path / "logs").glob("*/*/run.json"):
        path.unlink()
    found = runs.collect_runs(tmp_path / "logs", ["Server"], model=settings.model, data=settings.data, windows=WINDOWS)
    assert found[0].facts == {} and found[0].score == made[1].score
    shutil.rmtree(tmp_path / "logs" / "Server" / "AccuracyOnly")
    with pytest.raises(UserError, match="no logs in Server/AccuracyOnly"):
        runs.collect_runs(tmp_path / "logs", SCENARIOS, model=settings.model, data=settings.data, windows=WINDOWS)


DETAIL = "Offline/performance/run_1/mlperf_log_detail.txt"


def swap(name, old, new):
    def spoil(folder):
        path = folder / name
        text = path.read_text()
        changed = re.sub(old, new, text, count=1)
        assert changed != text
        path.write_text(changed)

    return spoil


def logged(key, value, name=DETAIL):
    return swap(name, rf'"key": "{key}", "value": [^,]+', f'"key": "{key}", "value": {value}')


def log_error(folder):
    line = ':::MLLOG {"key": "error_runtime", "value": "clock went back", "metadata": {"is_error": true}}\n'
    with open(folder / DETAIL, "a") as log:
        log.write(line)


def whole_log(folder):
    (folder / "Offline/accuracy/mlperf_log_accuracy.json").write_text("0" * 20_000)


def other_short_log(folder):
    (folder / "Offline/accuracy/mlperf_log_accuracy.json").write_text("[]")


def system_field(field, value):
    def spoil(folder):
        (path,) = (folder.parents[2] / "systems").glob("*.json")
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {field: value}))

    return spoil


def removed(name):
    return lambda folder: (folder / name).unlink()


ACCURACY = "Offline/accuracy/accuracy.txt"
SERVER, SINGLE = (DETAIL.replace("Offline", scenario) for scenario in ("Server", "SingleStream"))
FAULTS = {
    "invalid": (logged("result_validity", '"INVALID"'), "the run is INVALID"),
    "summary": (swap(DETAIL.replace("detail", "summary"), ": VALID", ": INVALID"), "mlperf_log_summary.txt beside it"),
    "short": (logged("effective_min_duration_ms", 400), "min_duration was 0.4 s, wanted 0.5 s"),
    "cut short": (logged("effective_max_duration_ms", 1000), "max_duration"),
    "few samples": (logged("effective_performance_sample_count", 3), "performance_sample_count was 3"),
    "small query": (logged("effective_samples_per_query", 4), "the query had 4 samples"),
    "seed": (logged("effective_qsl_rng_seed", 5), "qsl_rng_seed was 5"),
    "other scenario": (logged("effective_scenario", '"SingleStream"'), "effective_scenario is SingleStream"),
    "other mode": (logged("effective_test_mode", '"AccuracyOnly"'), "effective_test_mode is AccuracyOnly"),
    "error": (log_error, "LoadGen logged an error: clock went back"),
    "broken log": (swap(DETAIL, ":::MLLOG .*", ":::MLLOG {"), "log is not readable"),
    "early": (
        logged("early_stopping_met", "false", SINGLE),
        "early stopping not met",
    ),
    "bound": (
        logged("effective_target_latency_ns", 200_000_000, SERVER),
        "target_latency was 200 ms, wanted at most 130 ms",
    ),
    "percentile": (
        logged("effective_target_latency_percentile", 0.9, SERVER),
        "target_latency_percentile was 0.9",
    ),
    "part of the data": (
        logged("effective_accuracy_sample_count", 7, "Offline/accuracy/mlperf_log_detail.txt"),
        "the run had 7 samples",
    ),
    "f1": (swap(ACCURACY, r'"f1": [\d.]+', '"f1": 0.1'), "F1 0.100 misses the gate of bert-99"),
    "no f1": (swap(ACCURACY, '"f1"', '"F1"'), "no line"),
    "no hash": (swap(ACCURACY, "hash=.*", ""), "no line hash="),
    "not truncated": (whole_log, "not truncated: 20,000 bytes"),
    "other log": (other_short_log, "neither truncated"),
    "scenario": (lambda folder: shutil.rmtree(folder / "Server"), "needs Server"),
    "unknown scenario": (lambda folder: (folder / "Onffline").mkdir(), "unknown scenario"),
    "file": (removed("Offline/README.md"), "README.md: missing or empty"),
    "empty file": (lambda folder: (folder / DETAIL).write_text(""), "detail.txt: missing or empty"),
    "field": (
        swap("Offline/measurements.json", '"retraining": ".*"', '"retraining": ""'),
        "retraining is missing or empty",
    ),
    "user.conf": (swap("Offline/user.conf", "target_qps", "target_qsp"), "'target_qsp' is no setting of LoadGen"),
    "folder": (lambda folder: shutil.rmtree(folder.parents[2] / "src"), "src: missing or empty"),
    "documentation": (lambda folder: shutil.rmtree(folder.parents[2] / "documentation"), "documentation: missing"),
    "idle system": (
        lambda folder: (folder.parents[2] / "systems" / "other.json").write_text("{}"),
        "no results of this system in results/other",
    ),
    "benchmark": (lambda folder: shutil.copytree(folder, folder.with_name("bert-98")), "unknown benchmark"),
    "status": (system_field("status", "soon"), "status is 'soon'"),
    "system field": (system_field("cooling", ""), "need a value (N/A where there is none): cooling"),
    "submitter": (system_field("submitter", "Another"), "submitter is 'Another', wanted 'Somebody'"),
    "number": (system_field("accelerators_per_node", "N/A"), "accelerators_per_node is 'N/A', wanted a whole number"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_told_once(good, bounds, tmp_path, name):
    spoil, told = FAULTS[name]
    root = shutil.copytree(good, tmp_path / "tree")
    shutil.rmtree(results(root, "bert-99.9"))
    spoil(results(root))
    (fault,) = check_submission(root, bounds).faults
    assert told in fault and "\n" not in fault
    assert fault.startswith("open/Somebody/") and fault.count("open/Somebody/") == 1


def test_all_faults_are_told_at_once(good, bounds, tmp_path):
    root = shutil.copytree(good, tmp_path / "tree")
    for name in ("short", "f1", "scenario", "status"):
        FAULTS[name][0](results(root))
    assert len(check_submission(root, bounds).faults) == 4
    with pytest.raises(UserError, match="no open/SUBMITTER folder"):
        check_submission(root / "open", bounds)


def test_an_example_system_lacks_only_what_no_program_can_know(machine, tmp_path):
    path = tmp_path / "system.json"
    path.write_text(json.dumps(system.example_system()))
    with pytest.raises(UserError, match="need a value .*status, system_type.*cooling"):
        system.read_system(path, "Somebody")
    path.write_text(json.dumps({key: value for key, value in machine.items() if key != "submitter"}))
    assert system.read_system(path, "Somebody")["submitter"] == "Somebody"
    path.write_text("[]")
    with pytest.raises(UserError, match="not a JSON object"):
        system.read_system(path, "Somebody")


def call(folder, *arguments):
    command = [sys.executable, ROOT / "serve" / "submission.py", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_the_program_makes_a_tree_from_logs_and_refuses_it(model, settings, made, machine, tmp_path):
    (tmp_path / "system.json").write_text(json.dumps(machine))
    arguments = ["--model", model, "--system", "system.json", "--submitter", "Somebody", "--output", "out"]
    done = call(tmp_path, *arguments, "--collect", settings.log_root)
    assert done.returncode == 1  # half a second, and the tree is there with the reason
    assert "min_duration was 0.5 s, wanted 600 s" in done.stdout and "not fit for submission" in done.stderr
    again = call(tmp_path, "check", "out")
    assert again.returncode == 1 and again.stdout == done.stdout.partition("\n")[2]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["check", "nowhere"], "no open/SUBMITTER folder"),
        (["--submitter", "me", "--output", "out"], "--system: give one"),
        (["--system", "nowhere.json", "--submitter", "me", "--output", "out"], "nowhere.json: not readable"),
        (["--system", "s", "--submitter", "a/b", "--output", "out"], "--submitter a/b"),
        (["--system", "s", "--submitter", "me", "--output", "out", "--benchmarks", "bert"], "--benchmarks bert"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(model, tmp_path, arguments, told):
    where = [] if arguments[0] == "check" else ["--model", model]
    done = call(tmp_path, *arguments, *where)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and told in done.stderr and done.stderr.count("\n") == 1


def test_the_sample_in_docs_has_three_valid_runs_and_no_fault_but_the_gate_of_a_larger_teacher():
    found = check_submission(SAMPLE, Bounds(reference_f1=77.489))  # its teacher's
    assert [row[2] for row in found.results] == list(SCENARIOS) and not found.faults
    faults = check_submission(SAMPLE, Bounds()).faults
    assert len(faults) == 3 and all("misses the gate of bert-99" in fault for fault in faults)


CHECKOUT = os.environ.get("MLCOMMONS_INFERENCE")  # a checkout of mlcommons/inference


# What the official checker lets pass in the open division: docs/submission.md has it as a table.
LET_PASS = {
    *("invalid", "error", "cut short", "small query", "other mode", "summary", "bound", "percentile"),
    *("f1", "no f1", "no hash", "other log", "scenario", "user.conf", "documentation", "idle system"),
}


def official_check(root, bounds, csv):
    """The official checker with its length of runs and size of the data set set to those of this test."""
    driver = (
        "import sys; from submission_checker import constants, main;"
        "from submission_checker.checks import performance_check as performance;"
        "performance.TEST_DURATION_MS = int(sys.argv.pop(1)); count = int(sys.argv.pop(1));"
        "sizes = constants.MODEL_CONFIG['v6.1'];"
        "[sizes[key].update({'bert-99': count, 'bert-99.9': count})"
        " for key in ('performance-sample-count', 'dataset-size')];"
        "sys.exit(main.main())"
    )
    command = [sys.executable, "-c", driver, str(bounds.min_duration_ms), str(bounds.samples)]
    command += ["--input", str(root), "--version", "v6.1", "--csv", str(csv)]
    environment = os.environ | {"PYTHONPATH": str(Path(CHECKOUT) / "tools" / "submission")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(not CHECKOUT, reason="MLCOMMONS_INFERENCE names no checkout of mlcommons/inference")
def test_the_official_checker_passes_the_tree_and_lets_some_faults_pass(good, bounds, tmp_path):
    done = official_check(good, bounds, tmp_path / "summary.csv")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Results=6, NoResults=0" in done.stderr and "submission looks OK" in done.stderr
    for name, (spoil, _) in FAULTS.items():
        root = shutil.copytree(good, tmp_path / name)
        shutil.rmtree(results(root, "bert-99.9"))
        spoil(results(root))
        assert (official_check(root, bounds, tmp_path / "summary.csv").returncode == 0) == (name in LET_PASS), name
