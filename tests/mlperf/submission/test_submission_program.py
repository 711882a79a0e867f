"""`serve/submission.py`, what it asks for, and the sample in docs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bertjax.errors import UserError
from bertjax.mlperf.submission import system
from bertjax.mlperf.submission.check import check_submission
from bertjax.mlperf.submission.rules import Bounds
from tests.mlperf.submission.places import SCENARIOS

ROOT = Path(__file__).resolve().parents[3]
SAMPLE = ROOT / "docs" / "submission-sample"  # three runs of 600 seconds with a real student


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
        (["check", "nowhere", "--reference-f1", "0.8"], "--reference-f1 0.8: wanted in percent"),
        (["--reference-f1", "908.74"], "--reference-f1 908.74: wanted in percent"),
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
