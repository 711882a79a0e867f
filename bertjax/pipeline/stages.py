"""The whole chain: teacher -> prune -> distill -> calibrate -> quantization-aware distillation, each evaluated.

Every stage reads a model directory and writes one. A stage whose directory is there is done; an interrupted stage
continues from its checkpoint in `work/`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax

from bertjax import rundir
from bertjax.data.answers import write_predictions
from bertjax.data.dataset import Dataset
from bertjax.machine import describe, package_versions
from bertjax.model.bert import BertForQuestionAnswering, Model, init_model
from bertjax.model.inference import Evaluator
from bertjax.modeldir import store
from bertjax.modeldir.config import BertConfig, count_macs
from bertjax.modeldir.tensors import count_parameters
from bertjax.pipeline import claim
from bertjax.pipeline.embedded import write_scratch_inputs
from bertjax.pipeline.prune import prune
from bertjax.pipeline.run import Run, distill_stage, train_settings, training_data
from bertjax.pipeline.settings import RunSettings, check_goal
from bertjax.pruning.latency import read_table
from bertjax.quantization.calibrate import quantize, record_ranges
from bertjax.training.finetune import fine_tune


def run_pipeline(settings: RunSettings, command: str) -> Run:
    """Run or continue all stages that are not skipped; every figure goes into `metrics.json`.

    Raises:
      UserError: wrong input, or the directory holds a run with other settings.
      WorkFailed: a stage failed.
    """
    run = prepare_teacher(settings, command)
    for stage, make in (("pruned", prune), ("distilled", _distill), ("ptq", _calibrate), ("int8", _qat)):
        if "calibrate" in settings.skip and stage in ("ptq", "int8"):
            break
        if not run.done(stage):
            make(run)
        _evaluate(run, stage)
    return run


def prepare_teacher(settings: RunSettings, command: str) -> Run:
    """The run with its inputs and its teacher, scored; the student's stages are not begun.

    Raises:
      UserError: wrong input, or the directory holds a run with other settings.
      WorkFailed: the teacher's training failed.
    """
    check_goal(settings)
    if settings.latency_table:
        read_table(Path(settings.latency_table))  # an error in it is raised before the teacher is trained
    claim.check_settings(settings)
    if settings.scratch is not None:
        claim.write(settings, {})
        run = Run(write_scratch_inputs(settings, settings.scratch), command)
    else:
        run = Run(settings, command)
        digests = claim.input_digests(run)
        claim.check_inputs(settings, digests)
        run.check_inputs()  # wrong input claims nothing
        claim.write(settings, digests)
    if not run.done("teacher"):
        _make_teacher(run)
    _record_run(run)
    _evaluate(run, "teacher")
    return run


def _record_run(run: Run) -> None:
    train, validation = run.datasets
    settings = run.settings
    data = {
        "train_file": rundir.recorded_path(run.folder, run.files.train),
        "val_file": rundir.recorded_path(run.folder, run.files.val) if run.files.val else None,
        "eval_file": rundir.recorded_path(run.folder, run.files.eval),
        "train_windows": len(train.windows),
        "val_windows": len(validation.windows),
        "max_seq": settings.max_seq,
        "doc_stride": settings.doc_stride,
        "max_query": settings.max_query,
    }
    machine = describe() | {"trained_on": jax.devices()[0].device_kind}
    about = {"command": run.command, "versions": package_versions(), "machine": machine}
    rundir.update_metrics(run.folder, about | {"seed": settings.seed, "data": data})


def _make_teacher(run: Run) -> None:
    with run.timed("teacher"):
        if run.settings.teacher:
            teacher = Model.of(store.load_question_answering(run.teacher_source, floating_point=True))
        else:
            encoder = Model.of(store.load_encoder(run.teacher_source))
            teacher = fine_tune_encoder(run.settings, encoder, *run.datasets, run.folder / "work" / "teacher")
        run.save("teacher", teacher)


def fine_tune_encoder(
    settings: RunSettings, encoder: Model, train: Dataset, validation: Dataset, folder: Path
) -> Model:
    """A pretrained encoder with a fresh span head, trained with the settings of the stage `teacher`.

    Args:
      folder: where checkpoints are kept.

    Raises:
      WorkFailed: the loss is no longer finite, or the disk is full.
    """
    config = dataclasses.replace(
        encoder.config, hidden_dropout=settings.hidden_dropout, attention_dropout=settings.attention_dropout
    )
    fresh = init_model(BertForQuestionAnswering, config, seed=settings.seed)
    data = training_data(settings, "teacher", train, validation)
    return fine_tune(
        fresh.with_params(fresh.params | encoder.params),
        data,
        settings=train_settings(settings, "teacher", data),
        folder=folder,
        dtype=settings.dtype,
    )


def _distill(run: Run) -> None:
    student = run.load("pruned")
    with run.timed("distilled"):
        if "distill" not in run.settings.skip:
            rounds = run.settings.pruning_rounds > 1 and "prune" not in run.settings.skip
            share, order = (0.5, run.settings.pruning_rounds - 1) if rounds else (1.0, 0)
            student = distill_stage(run, "distill", student, run.folder / "work" / "distill", order=order, share=share)
        run.save("distilled", student)


def _calibrate(run: Run) -> None:
    student, (train, _) = run.load("distilled"), run.datasets
    with run.timed("ptq"):
        record = run.settings.quantization(windows=len(train.windows))
        ranges = record_ranges(student, record, train, seed=run.settings.seed)
        run.save("ptq", quantize(student, record, ranges))


def _qat(run: Run) -> None:
    student = run.load("ptq")
    with run.timed("int8"):
        if "qat" not in run.settings.skip:
            order = run.settings.pruning_rounds
            student = distill_stage(run, "qat", student, run.folder / "work" / "qat", order=order)
            student = _trained_on_the_grid(student)
        run.save("int8", student)


def _trained_on_the_grid(student: Model) -> Model:
    """The same model, recorded as trained after its calibration."""
    assert student.config.quantization is not None, "calibration leaves a quantized student"
    record = dataclasses.replace(student.config.quantization, trained=True)
    return dataclasses.replace(student, config=dataclasses.replace(student.config, quantization=record))


def _evaluate(run: Run, stage: str) -> None:
    """Score a stage's model directory on the evaluation file, unless that is done or skipped."""
    directory = run.directory(stage)
    config = BertConfig.from_json(directory / "config.json")
    figures: dict[str, float] = {
        "parameters": count_parameters(config),
        "macs": count_macs(config, run.settings.max_seq),
        "bytes": store.weight_bytes(directory),
    }
    known = rundir.read_metrics(run.folder).get("stages", {}).get(stage, {})
    if "evaluate" not in run.settings.skip and "f1" not in known:
        found = Evaluator(run.eval_dataset)(run.load(stage), label=f"evaluate {stage}")
        figures |= {"exact_match": found.score.exact_match, "f1": found.score.f1}
        write_predictions(run.folder / "predictions" / f"{stage}.json", found.answers)
        print(f"{stage}: exact match {found.score.exact_match:.2f}, F1 {found.score.f1:.2f}")
    rundir.update_metrics(run.folder, {"stages": {stage: figures}})
