"""The contents of a submission's tree, against the runs and the models that it was made of."""

import dataclasses
import hashlib
import json
import re
import shutil

import numpy as np
import pytest

from bertjax.engines.samples import SampleLibrary, read_dataset
from bertjax.errors import UserError
from bertjax.mlperf import session
from bertjax.mlperf.conf import read_user_conf
from bertjax.mlperf.logs import read_accuracy, read_detail_log
from bertjax.mlperf.submission import measurements, runs, tree
from bertjax.mlperf.submission.check import check_submission
from bertjax.modeldir.config import BertConfig
from tests.mlperf.submission.places import SCENARIOS, WINDOWS, results


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
    (documented,) = (path.read_text() for path in (good / "open/Somebody/documentation").glob("*-bert-99.md"))
    assert "int8" in documented and "88.000" in documented and "calibrator `max` over\n8 examples" in documented


def test_measurements_of_a_finished_teacher_that_nothing_was_done_to(model, tmp_path):
    teacher = tmp_path / "teacher"
    shutil.copytree(model.parent / "teacher", teacher)
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "settings.json").write_text(json.dumps({"teacher": "google-bert/bert-large", "encoder": None}))
    assert measurements.measurements(teacher, None) == {
        "input_data_types": "int64",
        "retraining": "no",
        "starting_weights_filename": "model.safetensors of google-bert/bert-large",
        "weight_data_types": "fp32",
        "weight_transformations": "none",
    }
    (tmp_path / "settings.json").unlink()
    with pytest.raises(UserError, match="has to lie in a run directory"):
        measurements.measurements(teacher, None)


def test_a_teacher_of_another_run_is_followed_to_what_that_run_began_with(model, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(model.parent, run)
    (run / "settings.json").write_text(json.dumps({"teacher": str(model.parent / "teacher"), "encoder": None}))
    found = measurements.measurements(run / "student-int8", None)
    assert found["starting_weights_filename"] == "model.safetensors of minilm"
    assert found["retraining"].startswith("yes: fine-tuning of a pretrained encoder, distillation")


def test_the_input_type_is_what_backends_are_handed(settings):
    library = SampleLibrary(read_dataset(settings.data, settings.model, WINDOWS), 0)
    library.load([0])
    assert {array.dtype.name for array in library.gather(np.array([0]), int(library.lengths[0]))} == {
        measurements.INPUT_TYPE
    }


def test_finished_runs_are_kept_and_others_repeated(settings, made, monkeypatch):
    asked = []

    def run(one):
        asked.append((one.scenario, one.mode))
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "run", run)
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
    first, second = (read_detail_log(folder)[0] for folder in (made[2].performance, session.run(again).log_dir))
    for key in ("effective_min_duration_ms", "effective_min_query_count", "effective_target_qps"):
        assert second[key] == pytest.approx(first[key], rel=1e-4)


def test_logs_are_collected_and_scored(settings, made, tmp_path):
    found = runs.collect_runs(settings.log_root, SCENARIOS, model=settings.model, data=settings.data, windows=WINDOWS)
    assert found == made
    shutil.copytree(settings.log_root, tmp_path / "logs")
    shutil.rmtree(tmp_path / "logs" / "Server" / "AccuracyOnly")
    with pytest.raises(UserError, match="no logs in Server/AccuracyOnly"):
        runs.collect_runs(tmp_path / "logs", SCENARIOS, model=settings.model, data=settings.data, windows=WINDOWS)


@pytest.mark.parametrize("mode", runs.MODES)
@pytest.mark.parametrize("name", ["model", "data"])
def test_logs_of_another_model_or_of_other_data_are_not_collected(settings, made, tmp_path, mode, name):
    def collect():
        return runs.collect_runs(root, ["Offline"], model=settings.model, data=settings.data, windows=WINDOWS)

    root = shutil.copytree(settings.log_root, tmp_path / "logs")
    path = root / "Offline" / mode / "summary.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps(said | {f"{name}_digest": "0" * 64}))
    with pytest.raises(UserError, match=f"Offline/{mode}: a run of another {name}"):
        collect()
    path.write_text(json.dumps({key: value for key, value in said.items() if key != f"{name}_digest"}))
    with pytest.raises(UserError, match=f"says of which {name} the run was; .*--scenario Offline --mode {mode}"):
        collect()


def test_a_system_and_a_benchmark_are_added_beside_what_is_there(good, bounds, model, made, machine, tmp_path):
    root = shutil.copytree(good, tmp_path / "tree")
    shutil.rmtree(results(root, "bert-99.9"))
    kept = {path: path.read_bytes() for path in (root / "open" / "Somebody" / "results").rglob("*.*") if path.is_file()}
    one = tree.Submission(model=model, submitter="Somebody", system=machine, benchmarks=("bert-99.9",), runs=made[:1])
    tree.write_tree(root, one)  # another benchmark, of one scenario
    other = machine | {"system_name": "another machine", "system_type": "edge"}
    tree.write_tree(root, dataclasses.replace(one, system=other, benchmarks=("bert-99",), runs=made))
    assert all(path.read_bytes() == content for path, content in kept.items())
    found = check_submission(root, bounds)
    assert len(found.results) == 3 + 1 + 3 and len({row[0] for row in found.results}) == 2
    assert [fault.partition(": ")[2][:7] for fault in found.faults] == ["missing"] * 2  # Server and SingleStream
    with pytest.raises(UserError, match="describes another machine of that name \\(cooling differ"):
        tree.write_tree(root, dataclasses.replace(one, system=machine | {"cooling": "water"}))


def test_a_run_with_another_tokenizer_graph_or_library_is_made_again(settings, made, monkeypatch, tmp_path):
    copied = shutil.copytree(settings.log_root, tmp_path / "logs")
    directory = shutil.copytree(settings.model.parent, tmp_path / "run") / settings.model.name
    again = dataclasses.replace(settings, log_root=copied, model=directory)
    monkeypatch.setattr(session, "run", lambda one: pytest.fail("nothing has changed"))
    runs.make_runs(again, SCENARIOS, print)

    def run(one):
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "run", run)
    for name in ("vocab.txt", "model.cpu.onnx"):
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content + b" ")
        with pytest.raises(KeyboardInterrupt):
            runs.make_runs(
                dataclasses.replace(again, log_root=shutil.copytree(copied, tmp_path / name)), SCENARIOS, print
            )
        (directory / name).write_bytes(content)
    monkeypatch.setattr(runs, "package_versions", lambda: {"onnxruntime": "1.0"})
    with pytest.raises(KeyboardInterrupt):
        runs.make_runs(again, SCENARIOS, print)
