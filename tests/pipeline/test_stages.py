"""The whole chain at a tiny size: what it leaves behind, how it resumes, and what it refuses."""

from __future__ import annotations

import collections
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from bertjax.data import batching
from bertjax.errors import UserError
from bertjax.modeldir import store
from bertjax.modeldir.config import count_macs
from bertjax.pipeline import prune, report, stages
from bertjax.pipeline import run as running
from bertjax.pipeline.run import Run, train_settings
from bertjax.pipeline.settings import RunSettings, Scratch
from bertjax.pruning import surgery
from bertjax.rundir import DIRECTORIES, read_metrics
from bertjax.training import distill as distillation
from bertjax.training import pretrain as training

TINY = RunSettings(
    max_seq=64,
    max_query=24,
    length_multiple=64,  # one shape a stage: each takes seconds to compile
    teacher_epochs=0.5,
    teacher_batch_size=16,
    teacher_learning_rate=1e-3,
    flops_reduction=3.0,
    ffn_group=1,
    importance_examples=40,
    distill_epochs=0.5,
    distill_batch_size=16,
    calibration_examples=20,
    qat_epochs=0.3,
    qat_batch_size=16,
    evaluations=1,
    scratch=Scratch(
        paragraphs=(60, 4, 6),
        vocab_size=300,
        hidden_size=16,
        num_layers=2,
        heads=4,
        ffn=48,
        pretrain_steps=4,
        pretrain_batch_size=8,
        pretrain_learning_rate=1e-3,
    ),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Run:
    settings = dataclasses.replace(TINY, output=str(tmp_path_factory.mktemp("runs") / "tiny"))
    return stages.run_pipeline(settings, "python train/distill.py")


def test_a_run_leaves_the_directories_and_the_record_that_others_read(finished: Run):
    folder = finished.folder
    for name in ("teacher", "student", "student-int8"):
        store.load_question_answering(folder / name)
    metrics = read_metrics(folder)
    assert metrics.keys() >= {"command", "versions", "machine", "seed", "data", "stages"}
    for name in ("teacher", "pruned", "distilled", "ptq", "int8"):
        wanted = {"exact_match", "f1", "parameters", "macs", "bytes", "seconds"}
        assert metrics["stages"][name].keys() == wanted
    assert metrics["data"]["eval_file"].endswith("eval.json") and metrics["data"]["max_seq"] == 64
    answers = json.loads((folder / "predictions" / "int8.json").read_text())
    assert len(answers) == 24


def test_the_student_is_small_not_masked(finished: Run):
    teacher = store.load_question_answering(finished.folder / "teacher").config
    stored = store.load_question_answering(finished.folder / "student-int8")
    student = stored.config
    assert count_macs(teacher, 64) / count_macs(student, 64) == pytest.approx(3.0, rel=0.02)
    assert student.quantization.trained and student.quantization.calibration_examples == 20
    total = sum(value.size for name, value in stored.tensors.items() if not name.endswith("_scale"))
    assert read_metrics(finished.folder)["stages"]["int8"]["parameters"] == total


def test_the_report_is_one_page_with_every_stage(finished: Run):
    page = report.write_report(finished.folder).read_text()
    assert page.count("<svg") == 2 and "INT8, trained" in page
    assert not re.search(r"""(src|href)=["']?(http|//)""", page)
    assert report.stage_table(finished.folder).count("\n") == 6


def test_interrupted_in_every_stage_it_ends_with_the_same_weights(finished: Run, tmp_path: Path, monkeypatch):
    """Each stage is stopped at its second batch: pre-training, then whatever runs while these directories exist.

    Distillation reads two batches before its own: the stage before is evaluated, and the start is scored.
    """
    settings = dataclasses.replace(TINY, output=str(tmp_path / "cut"))
    calls: collections.Counter = collections.Counter()

    def interrupting(function, stage_of):
        def wrapped(*args, **rest):
            stage = stage_of()
            calls[stage] += 1
            if calls[stage] == (
                4 if stage in (("teacher", "pruned"), ("teacher", "pruned", "distilled", "ptq")) else 2
            ):
                raise KeyboardInterrupt
            return function(*args, **rest)

        return wrapped

    monkeypatch.setattr(batching, "collate", interrupting(batching.collate, lambda: _state(tmp_path / "cut")))
    monkeypatch.setattr(training, "masked_batch", interrupting(training.masked_batch, lambda: "pretrain"))
    interrupts = 0
    while True:
        try:
            stages.run_pipeline(settings, "python train/distill.py")
            break
        except KeyboardInterrupt:
            interrupts += 1
    assert interrupts == 6  # pre-training, fine-tuning, importance, distillation, calibration, training on the grid
    for name in ("teacher", "student", "student-int8"):
        whole = store.read_tensors(finished.folder / name)
        pieced = store.read_tensors(tmp_path / "cut" / name)
        for key, value in whole.items():
            np.testing.assert_array_equal(value, pieced[key], err_msg=f"{name}: {key}")


def _state(folder: Path) -> tuple[str, ...]:
    """Which stages' directories are there."""
    return tuple(name for name, place in DIRECTORIES.items() if (folder / place).exists())


def test_a_second_call_does_nothing_again(finished: Run):
    before = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*.safetensors")}
    settings = dataclasses.replace(TINY, output=str(finished.folder))
    stages.run_pipeline(settings, "python train/distill.py")
    assert before == {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*.safetensors")}


def test_a_directory_with_other_settings_is_refused_and_left_alone(finished: Run):
    before = sorted(finished.folder.rglob("*"))
    settings = dataclasses.replace(TINY, output=str(finished.folder), seed=7)
    with pytest.raises(UserError, match="seed was 0 and is now 7"):
        stages.run_pipeline(settings, "python train/distill.py")
    assert sorted(finished.folder.rglob("*")) == before


def _files(finished: Run) -> dict[str, str]:
    corpus = finished.folder / "corpus"
    return {f"{name}_file": str(corpus / f"{name}.json") for name in ("train", "val", "eval")}


def test_a_finished_teacher_is_taken_as_it_is_and_stages_can_be_left_out(finished: Run, tmp_path: Path):
    settings = dataclasses.replace(
        TINY,
        output=str(tmp_path / "r"),
        scratch=None,
        teacher=str(finished.folder / "teacher"),
        skip=("prune", "distill", "qat", "evaluate"),
        **_files(finished),
    )
    run = stages.run_pipeline(settings, "python train/distill.py")
    teacher = store.read_tensors(finished.folder / "teacher")
    student = store.read_tensors(run.folder / "student-int8")
    for name, value in teacher.items():
        np.testing.assert_array_equal(student[name], value)
    assert "f1" not in read_metrics(run.folder)["stages"]["int8"]
    scored = stages.run_pipeline(dataclasses.replace(settings, skip=settings.skip[:-1]), "again, with scores")
    assert all("f1" in figures for figures in read_metrics(scored.folder)["stages"].values())
    rows = report.stage_table(scored.folder).splitlines()[2:]
    assert [row.split("  ")[0] for row in rows] == ["teacher", "INT8, calibrated"], "left out is not told as done"


def test_pruning_rounds_cut_in_steps_and_continue_after_an_interrupt(finished, tmp_path: Path, monkeypatch):
    settings = dataclasses.replace(
        TINY,
        output=str(tmp_path / "r"),
        scratch=None,
        teacher=str(finished.folder / "teacher"),
        pruning_rounds=2,
        repair_examples=0,
        skip=("calibrate", "evaluate"),
        **_files(finished),
    )
    whole = train_settings(TINY, "distill", finished.training_data("distill")).steps
    steps, cuts = [], []

    def distill(*arguments, settings, **rest):
        steps.append(settings.steps)
        return distillation.distill(*arguments, settings=settings, **rest)

    def cut(*arguments):
        cuts.append(arguments)
        if len(cuts) == 2:
            raise KeyboardInterrupt
        return surgery.cut(*arguments)

    monkeypatch.setattr(running, "distill", distill)
    monkeypatch.setattr(prune, "cut", cut)
    with pytest.raises(KeyboardInterrupt):
        stages.run_pipeline(settings, "python train/distill.py")
    first = store.read_tensors(tmp_path / "r" / "work" / "round-1" / "distilled")
    stages.run_pipeline(settings, "python train/distill.py")
    assert len(cuts) == 3 and len(steps) == 2 and steps[0] == steps[1] == pytest.approx(whole / 2, abs=1)
    teacher, middle, student = (
        store.load_question_answering(tmp_path / "r" / place).config
        for place in ("teacher", "work/round-1/distilled", "student")
    )
    assert count_macs(teacher, 64) / count_macs(middle, 64) == pytest.approx(3.0**0.5, rel=0.02)
    assert count_macs(teacher, 64) / count_macs(student, 64) == pytest.approx(3.0, rel=0.02)
    # The second cut is one of what the first round's training left, by importance of its own.
    start = store.read_tensors(tmp_path / "r" / "work" / "pruned")
    name = "bert.embeddings.LayerNorm.weight"
    np.testing.assert_array_equal(start[name], first[name])
    assert (tmp_path / "r" / "work" / "importance.npz").exists()


@pytest.mark.parametrize(
    "change, told",
    [
        ({"flops_reduction": 100.0, "pruning_rounds": 2}, "--flops-reduction 100"),
        ({"teacher": "/no/such/folder"}, "--teacher /no/such/folder: no such folder"),
        ({"eval_file": "/no/such/file.json"}, "/no/such/file.json: no such file"),
        ({"eval_file": None}, "--eval-file"),
        (
            {"teacher": "{run}/student-int8"},
            "student-int8: is an INT8 model; a floating-point one is wanted: take .*/student",
        ),
        ({"max_seq": 600}, "--max-seq 600: .*/config.json has max_position_embeddings 64; choose at most that"),
    ],
)
def test_wrong_input_is_told_in_one_line(finished: Run, tmp_path: Path, change: dict, told: str):
    given = {"scratch": None, "teacher": str(finished.folder / "teacher"), "skip": ("evaluate",)} | _files(finished)
    change = {name: v.format(run=finished.folder) if isinstance(v, str) else v for name, v in change.items()}
    settings = dataclasses.replace(TINY, output=str(tmp_path / "r"), **(given | change))
    with pytest.raises(UserError, match=told) as caught:
        stages.run_pipeline(settings, "python train/distill.py")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "r" / "student").exists() and not (tmp_path / "r" / "work" / "round-1" / "pruned").exists()


def test_a_checkpoint_of_another_shape_is_told_by_tensor(finished: Run, tmp_path: Path):
    teacher = store.load_question_answering(finished.folder / "teacher")
    config = dataclasses.replace(teacher.config, max_position_embeddings=99)
    store.save(tmp_path / "t", dataclasses.replace(teacher, config=config), tokenizer_from=finished.folder / "teacher")
    settings = dataclasses.replace(
        TINY, output=str(tmp_path / "r"), scratch=None, teacher=str(tmp_path / "t"), **_files(finished)
    )
    with pytest.raises(UserError, match=r"position_embeddings.weight is \[64, 16\], wanted \[99, 16\]"):
        stages.run_pipeline(settings, "python train/distill.py")
