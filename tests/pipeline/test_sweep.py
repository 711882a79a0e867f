"""A sweep of two tiny students that is interrupted and continued, and what a person sees of one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from bertjax.data.corpus import write_corpus
from bertjax.engines.timing import compare
from bertjax.modeldir.config import BertConfig, count_macs
from bertjax.pipeline import stages, sweep, sweep_report
from bertjax.pipeline.run import Run
from bertjax.pipeline.settings import RunSettings
from bertjax.rundir import read_metrics
from tests.models import tiny_config, write_random_model


@pytest.fixture
def base(tmp_path: Path) -> RunSettings:
    """A sweep whose teacher is random and whose students are not trained: what is shared does not depend on it."""
    config = dataclasses.replace(tiny_config(((2, 64), (2, 64)), quantized=False), max_position_embeddings=64)
    write_random_model(tmp_path / "model", config, seed=0)
    files = write_corpus(tmp_path / "corpus", seed=0, train=12, val=3, evaluation=3)
    return RunSettings(
        output=str(tmp_path / "sweep"),
        teacher=str(tmp_path / "model"),
        train_file=str(files.train),
        val_file=str(files.val),
        eval_file=str(files.eval),
        max_seq=64,
        max_query=24,
        ffn_group=1,
        importance_examples=10,
        repair_examples=0,
        calibration_examples=5,
        skip=("distill", "qat"),
    )


def test_an_interrupted_sweep_goes_on_and_shares_what_the_teacher_gave(base: RunSettings, monkeypatch):
    folder = Path(base.output)
    wanted = [dataclasses.replace(base, flops_reduction=reduction) for reduction in (2.0, 4.0)]
    monkeypatch.setattr(compare, "SECONDS", 0.0)
    calibrate, begun = stages._calibrate, []

    def interrupted(run: Run) -> None:
        begun.append(run.folder.name)
        if len(begun) == 2:
            raise KeyboardInterrupt
        calibrate(run)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stages, "_calibrate", interrupted)
        sweep.run_sweep(base, wanted, "python train/sweep.py")
    assert begun == ["4x", "2x"]
    early = sweep_report.read_sweep(folder)
    assert [student["name"] for student in early["students"]] == ["4x"] and not early["speed"]
    kept = [*folder.rglob("*.safetensors"), folder / "work" / "importance.npz"]
    before = [path.stat().st_mtime_ns for path in kept]

    sweep.run_sweep(base, wanted, "python train/sweep.py")
    assert before == [path.stat().st_mtime_ns for path in kept]
    found = sweep_report.read_sweep(folder)
    told = [(one["name"], one["goal"], one["reduction"]) for one in found["students"]]
    assert told == [("2x", "flops", 2.0), ("4x", "flops", 4.0)]
    teacher = BertConfig.from_json(folder / "teacher" / "config.json")
    for student in found["students"]:
        config = BertConfig.from_json(folder / student["directory"] / "config.json")
        assert count_macs(teacher, 64) / count_macs(config, 64) == pytest.approx(student["reduction"], rel=0.02)
        run = folder / student["name"]
        assert student["stages"]["int8"] == read_metrics(run)["stages"]["int8"]
        assert (run / "teacher" / "model.safetensors").samefile(folder / "teacher" / "model.safetensors")
        assert not (run / "work" / "importance.npz").exists()
    assert found["speed"]["samples_per_second"].keys() == {"teacher", "2x", "4x"}
    assert sweep_report.sweep_table(folder).count("\n") == 4

    # One of them again: nothing is made or measured anew, and the other one is not forgotten.
    sweep.run_sweep(base, wanted[:1], "python train/sweep.py")
    assert sweep_report.read_sweep(folder) == found


def test_the_first_few_students_span_the_range():
    assert sweep.bisecting([1.5, 2, 3, 4, 5.6, 8]) == [4, 2, 8, 1.5, 3, 5.6]
    assert sweep.bisecting([]) == []


def _student(name: str, f1: float, macs: float, goal: str = "flops") -> dict:
    reduction = float(name.removeprefix("latency-").removesuffix("x"))
    int8 = {"f1": f1, "macs": macs, "parameters": macs}
    return {"name": name, "goal": goal, "reduction": reduction, "directory": f"{name}/s", "stages": {"int8": int8}}


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """A sweep whose 3x is beaten: 4x is smaller, faster and better."""
    students = [_student("2x", 89.5, 5e6), _student("3x", 86.0, 3e6), _student("4x", 88.0, 2e6)]
    students.append(_student("latency-2x", 89.2, 6e6, "latency"))
    rates = {"teacher": 100.0, "2x": 310.0, "3x": 400.0, "4x": 500.0, "latency-2x": 350.0}
    content = {
        "machine": {"cores": 2},
        "data": {"max_seq": 64},
        "teacher": {"f1": 90.0, "macs": 1e7, "parameters": 1e7},
        "students": students,
        "speed": {"samples_per_second": rates, "speedup": {name: rate / 100 for name, rate in rates.items()}},
    }
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    return tmp_path


def test_the_advice_is_the_fastest_student_within_the_gate(told: Path):
    assert "fastest with 99% of the teacher's F1: latency-2x, 3.50x" in sweep_report.advice(told)
    content = json.loads((told / "sweep.json").read_text())
    content["teacher"]["f1"] = 95.0
    (told / "sweep.json").write_text(json.dumps(content))
    assert "none keeps 99% of the teacher's F1; nearest: 2x, 3.10x" in sweep_report.advice(told)


def test_the_picture_names_every_student_and_is_drawn_before_speeds_are_known(told: Path):
    sweep_report.draw(told)
    picture = (told / "sweep.svg").read_text()
    for label, times in (
        ("2x", 4),
        ("3x", 2),
        ("4x", 2),
        ("99 % of the teacher", 2),
        ("samples/s, Offline, 2 cores", 1),
    ):
        assert picture.count(f"<!-- {label} -->") == times, label
    content = json.loads((told / "sweep.json").read_text())
    (told / "sweep.json").write_text(json.dumps(content | {"speed": {}}))
    sweep_report.draw(told)
    assert "samples/s" not in (told / "sweep.svg").read_text()


def test_what_is_beaten_is_not_on_the_front():
    points = [(5.0, 89.5), (3.0, 86.0), (2.0, 88.0)]
    assert sweep_report.front(points, fewer_is_better=True) == [(2.0, 88.0), (5.0, 89.5)]
    assert sweep_report.front([(310.0, 89.5), (500.0, 88.0), (400.0, 86.0)], fewer_is_better=False) == [
        (310.0, 89.5),
        (500.0, 88.0),
    ]
