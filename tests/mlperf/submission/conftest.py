"""A whole submission from short runs of a tiny model."""

import json
import re
import shutil

import pytest

from bertjax.engines.samples import read_dataset
from bertjax.mlperf.session import SessionSettings
from bertjax.mlperf.submission import rules, runs, system, tree
from bertjax.mlperf.submission.rules import Bounds
from tests.mlperf.submission.places import SCENARIOS, WINDOWS
from tests.models import tiny_config, write_random_model


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def settings(model, run_dir, tmp_path_factory):
    return SessionSettings(
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


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def machine():
    example = system.example_system()
    filled = {field: value or "N/A" for field, value in example.items()}
    return filled | {"submitter": "Somebody", "status": "available", "system_type": "datacenter,edge"}


@pytest.fixture(scope="session")
def good(model, made, machine, tmp_path_factory):
    output = tmp_path_factory.mktemp("good")
    tree.write_tree(
        output,
        tree.Submission(
            model=model, submitter="Somebody", system=machine, benchmarks=tuple(rules.BENCHMARKS), runs=made
        ),
    )
    return output


@pytest.fixture(scope="session")
def bounds(settings, made):
    windows = len(read_dataset(settings.data, settings.model, WINDOWS).windows)
    return Bounds(min_duration_ms=500, samples=windows, reference_f1=min(each.score.f1 for each in made))
