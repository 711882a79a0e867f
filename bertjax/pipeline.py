"""The whole chain: teacher -> prune -> distill -> calibrate -> quantization-aware distillation, each evaluated.

Every stage reads a model directory and writes one. A stage whose directory is there is done; a stage that was
interrupted goes on from its checkpoint in `work/`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from bertjax import inputs, modeldir, records
from bertjax.config import BertConfig, Quantization, count_macs
from bertjax.data import download
from bertjax.data.answers import write_predictions
from bertjax.data.dataset import Dataset, load_dataset
from bertjax.data.tokenizer import load_tokenizer
from bertjax.errors import UserError
from bertjax.evaluation import Evaluator
from bertjax.model import BertForQuestionAnswering, Params, init_params
from bertjax.pruning import importance as fisher
from bertjax.pruning.latency import predict, read_table, run_costs
from bertjax.pruning.picture import draw_kept, kept_table
from bertjax.pruning.repair import Model, repair
from bertjax.pruning.search import TOLERANCE, Plan, search
from bertjax.pruning.surgery import cut
from bertjax.quantization.calibrate import quantize, record_ranges
from bertjax.scratch import write_scratch_inputs
from bertjax.settings import RunSettings, check_goal, to_dict
from bertjax.tensors import count_parameters
from bertjax.training.distill import DistillSettings, distill
from bertjax.training.finetune import fine_tune, steps_per_epoch
from bertjax.training.loop import TrainSettings
from bertjax.training.teacher import Targets, Teacher, cache_bytes, make_targets

DIRECTORIES = {  # where each stage's model directory lies in the run directory; those of pruning rounds are in work/
    "teacher": "teacher",
    "pruned": "work/pruned",
    "distilled": "student",
    "ptq": "work/ptq",
    "int8": "student-int8",
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One run in its directory; data and teacher are read when a stage first asks for them."""

    settings: RunSettings
    command: str

    @property
    def folder(self) -> Path:
        return Path(self.settings.output)

    @property
    def cache(self) -> Path:
        """Where the teacher's importance and outputs are kept."""
        return Path(self.settings.cache) if self.settings.cache else self.folder / "work"

    def directory(self, stage: str) -> Path:
        return self.folder / DIRECTORIES.get(stage, f"work/{stage}")

    def done(self, stage: str) -> bool:
        return (self.directory(stage) / "config.json").exists()

    @functools.cached_property
    def files(self) -> inputs.Files:
        return inputs.resolve_files(self.settings)

    @functools.cached_property
    def datasets(self) -> tuple[Dataset, Dataset]:
        tokenizer = load_tokenizer(self.directory("teacher") if self.done("teacher") else self.teacher_source)
        return inputs.load_training(self.settings, self.files, tokenizer)

    @functools.cached_property
    def eval_dataset(self) -> Dataset:
        return load_dataset(
            self.files.eval, load_tokenizer(self.directory("teacher")), inputs.window_settings(self.settings)
        )

    @functools.cached_property
    def teacher_source(self) -> Path:
        """The directory that the teacher is made from."""
        if self.settings.teacher:
            return download.model_directory(self.settings.teacher, "--teacher")
        if self.settings.encoder:
            return download.model_directory(self.settings.encoder, "--encoder")
        raise UserError("--teacher or --encoder: give one of them, or use --preset demo")

    @functools.cached_property
    def targets(self) -> tuple[Teacher, Targets]:
        config, params = self.load("teacher")
        teacher = Teacher(
            config=config,
            params=params,
            layers=distill_settings(self.settings).teacher_layers(len(config.layers)),
        )
        train, _ = self.datasets
        fits = cache_bytes(teacher, train) <= self.settings.cache_gib * 2**30
        cache = self.cache / "teacher-outputs" if fits else None
        return teacher, make_targets(teacher, train, cache=cache, dtype=jnp.dtype(self.settings.dtype))

    def load(self, stage: str) -> tuple[BertConfig, Params]:
        config, arrays = modeldir.load_question_answering(self.directory(stage))
        return config, {name: jnp.asarray(value) for name, value in arrays.items()}

    def save(self, stage: str, config: BertConfig, params: Params) -> None:
        arrays = {name: np.asarray(value) for name, value in params.items()}
        source = self.teacher_source if stage == "teacher" else self.directory("teacher")
        modeldir.save(self.directory(stage), config, arrays, tokenizer_from=source)

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the block's seconds to the stage's, also when it is interrupted."""
        begin = time.monotonic()
        try:
            yield
        finally:
            stages = records.read_metrics(self.folder).get("stages", {})
            seconds = stages.get(stage, {}).get("seconds", 0.0) + time.monotonic() - begin
            records.update_metrics(self.folder, {"stages": {stage: {"seconds": round(seconds, 1)}}})


def run_pipeline(settings: RunSettings, command: str) -> Run:
    """Run or continue all stages that are not skipped; every figure goes into `metrics.json`.

    Raises:
      UserError: wrong input, or the directory holds a run with other settings.
      WorkFailed: a stage failed.
    """
    run = prepare_teacher(settings, command)
    for stage, make in (("pruned", _prune), ("distilled", _distill), ("ptq", _calibrate), ("int8", _qat)):
        if "calibrate" in settings.skip and stage in ("ptq", "int8"):
            break
        if not run.done(stage):
            make(run)
        _evaluate(run, stage)
    return run


def prepare_teacher(settings: RunSettings, command: str) -> Run:
    """The run with its inputs and its teacher, scored; the stages of the student are not begun.

    Raises as `run_pipeline`.
    """
    check_goal(settings)
    if settings.latency_table:
        read_table(Path(settings.latency_table))  # to be told before the teacher is trained
    _claim(settings)
    if settings.scratch is not None:
        settings = write_scratch_inputs(settings, settings.scratch)
    run = Run(settings, command)
    if not run.done("teacher"):
        _make_teacher(run)
    _record_run(run)
    _evaluate(run, "teacher")
    return run


def _claim(settings: RunSettings) -> None:
    """Write `settings.json`, or see that the one there is the same."""
    path = Path(settings.output) / "settings.json"
    wanted = json.loads(json.dumps(to_dict(settings)))
    if not path.exists():
        modeldir.write_file_aside(path, json.dumps(wanted, indent=2) + "\n")
        return
    try:
        found = json.loads(path.read_text())
    except json.JSONDecodeError:
        raise UserError(f"{path}: not valid JSON; give another --output") from None
    found = json.loads(json.dumps(to_dict(RunSettings()))) | found  # a field that is newer than the run
    changed = [name for name in wanted if found[name] != wanted[name]]
    if changed:
        what = ", ".join(f"{name} was {found[name]!r} and is now {wanted[name]!r}" for name in changed)
        raise UserError(f"{settings.output}: holds a run with other settings ({what}); give another --output")


def _record_run(run: Run) -> None:
    train, validation = run.datasets
    settings = run.settings
    data = {
        "train_file": str(run.files.train),
        "val_file": str(run.files.val) if run.files.val else None,
        "eval_file": str(run.files.eval),
        "train_windows": len(train.windows),
        "val_windows": len(validation.windows),
        "max_seq": settings.max_seq,
        "doc_stride": settings.doc_stride,
        "max_query": settings.max_query,
    }
    about = {"command": run.command, "versions": records.versions(), "machine": records.machine()}
    records.update_metrics(run.folder, about | {"seed": settings.seed, "data": data})


def _make_teacher(run: Run) -> None:
    with run.timed("teacher"):
        if run.settings.teacher:
            config, arrays = modeldir.load_question_answering(run.teacher_source)
            run.save("teacher", config, arrays)
            return
        train, validation = run.datasets
        config, params = fine_tune_encoder(
            run.settings, run.teacher_source, train, validation, run.folder / "work" / "teacher"
        )
        run.save("teacher", config, params)


def fine_tune_encoder(
    settings: RunSettings, encoder: Path, train: Dataset, validation: Dataset, folder: Path
) -> tuple[BertConfig, Params]:
    """A pretrained encoder with a fresh span head, trained with the settings' `teacher_` fields; raises as `train`."""
    config, arrays = modeldir.load_encoder(encoder)
    config = dataclasses.replace(
        config, hidden_dropout=settings.hidden_dropout, attention_dropout=settings.attention_dropout
    )
    _check_positions(config, settings)
    params = init_params(BertForQuestionAnswering, config, seed=settings.seed)
    params = fine_tune(
        config=config,
        params=params | {name: jnp.asarray(value) for name, value in arrays.items()},
        dataset=train,
        validation=validation,
        batch_size=settings.teacher_batch_size,
        settings=train_settings(settings, "teacher", train),
        folder=folder,
        dtype=jnp.dtype(settings.dtype),
    )
    return config, params


def train_settings(settings: RunSettings, stage: str, dataset: Dataset, share: float = 1.0) -> TrainSettings:
    """The loop's settings of `teacher`, `distill` or `qat`, for this share of the stage's epochs."""
    epochs, batch_size = (getattr(settings, f"{stage}_{field}") for field in ("epochs", "batch_size"))
    return TrainSettings(
        steps=max(1, round(steps_per_epoch(dataset, batch_size) * epochs * share)),
        learning_rate=getattr(settings, f"{stage}_learning_rate"),
        ema=settings.ema,
        seed=settings.seed,
        evaluations=settings.evaluations,
    )


def _check_positions(config: BertConfig, settings: RunSettings) -> None:
    if settings.max_seq > config.max_position_embeddings:
        raise UserError(f"--max-seq {settings.max_seq}: the model has {config.max_position_embeddings} positions")


def _prune(run: Run) -> None:
    config, params = run.load("teacher")
    _check_positions(config, run.settings)
    if "prune" in run.settings.skip:
        with run.timed("pruned"):
            run.save("pruned", config, params)
        return
    teacher = student = Model(config=config, params=params)
    if run.settings.pruning_rounds > 1:
        with run.timed("pruned"):  # a goal out of reach is told before anything is trained on the way to it
            make_plan(run, teacher)
    for index in range(1, run.settings.pruning_rounds):
        student = _pruning_round(run, index, teacher, student)
    with run.timed("pruned"):
        student = _cut(run, teacher, student, run.settings.reduction, f"round-{run.settings.pruning_rounds}")
        print(kept_table(config, student.config))
        if run.settings.latency_table:
            predicted = predict(run.settings, config, student.config)
            records.update_metrics(run.folder, {"predicted_latency": dataclasses.asdict(predicted)})
            print(predicted)
        draw_kept(run.folder / "pruning.svg", config, student.config)
        run.save("pruned", student.config, student.params)


def _pruning_round(run: Run, index: int, teacher: Model, student: Model) -> Model:
    """One of the rounds before the last: a cut by an equal factor, and an equal part of half of the distillation."""
    pruned, distilled = f"round-{index}/pruned", f"round-{index}/distilled"
    if not run.done(pruned):
        with run.timed("pruned"):
            goal = run.settings.reduction ** (index / run.settings.pruning_rounds)
            cut_student = _cut(run, teacher, student, goal, f"round-{index}")
            run.save(pruned, cut_student.config, cut_student.params)
    if not run.done(distilled):
        config, params = run.load(pruned)
        with run.timed("distilled"):
            if "distill" not in run.settings.skip:
                folder, share = run.folder / "work" / f"round-{index}", 0.5 / (run.settings.pruning_rounds - 1)
                params = _distill_stage(run, "distill", config, params, folder, share)
            run.save(distilled, config, params)
    config, params = run.load(distilled)
    return Model(config=config, params=params)


def make_plan(run: Run, teacher: Model) -> Plan:
    """What the run's student keeps of the teacher if it is cut at once.

    Raises:
      UserError: the reduction that is asked for cannot be reached, or the latency table is of another model.
    """
    return _plan(run, teacher, teacher, run.settings.reduction, "", TOLERANCE)


def _plan(run: Run, teacher: Model, student: Model, reduction: float, place: str, tolerance: float) -> Plan:
    """What to keep of `student`, at 1/`reduction` of the teacher's cost, by what matters in it now.

    Args:
      place: the folder in `work/` that keeps the importance, unless it is the teacher's own.
      tolerance: as in `search`.
    """
    settings = run.settings
    path = (run.cache if student is teacher else run.folder / "work" / place) / "importance.npz"
    if not path.exists():
        examples = settings.importance_examples
        found = fisher.measure_importance(
            student.config, student.params, run.datasets[0], examples=examples, seed=settings.seed
        )
        fisher.save_importance(path, found)
    costs = run_costs(settings, teacher.config)
    return search(
        student.config,
        fisher.load_importance(path),
        costs,
        reduction=max(1.0, reduction * costs.total(student.config) / costs.total(teacher.config)),
        ffn_group=settings.ffn_group,
        tolerance=tolerance,
    )


def _cut(run: Run, teacher: Model, student: Model, reduction: float, place: str) -> Model:
    """`student` cut as `_plan` says, and repaired to give what it gave before.

    Not what the teacher gives: a trained student's blocks have moved away from the teacher's, and refitting them to
    those undoes it (a 2x student of real SQuAD cut to 2.5x: F1 70.1 before, 69.4 so, 65.3 with the teacher).
    """
    # What a round leaves may be too coarse to meet the next goal as nearly as the teacher can; it is passed then.
    tolerance = TOLERANCE if run.settings.pruning_rounds == 1 else math.inf
    plan = _plan(run, teacher, student, reduction, place, tolerance)
    arrays = {name: np.asarray(value) for name, value in student.params.items()}
    config, arrays = cut(student.config, arrays, plan)
    # Dropout hardly helps a student: it has less capacity than its teacher, and soft targets regularize.
    config = dataclasses.replace(config, hidden_dropout=0.0, attention_dropout=0.0)
    smaller = Model(config=config, params={name: jnp.asarray(value) for name, value in arrays.items()})
    if not run.settings.repair_examples:
        return smaller
    examples = run.settings.repair_examples
    params = repair(student, smaller, run.datasets[0], examples=examples, seed=run.settings.seed)
    return dataclasses.replace(smaller, params=params)


def _distill(run: Run) -> None:
    config, params = run.load("pruned")
    with run.timed("distilled"):
        if "distill" not in run.settings.skip:
            rounds = run.settings.pruning_rounds > 1 and "prune" not in run.settings.skip
            folder, share = run.folder / "work" / "distill", 0.5 if rounds else 1.0
            params = _distill_stage(run, "distill", config, params, folder, share)
        run.save("distilled", config, params)


def _calibrate(run: Run) -> None:
    config, params = run.load("distilled")
    with run.timed("ptq"):
        record = Quantization.calibrated(
            run.settings.quantize_also,
            calibrator=run.settings.calibrator,
            calibration_examples=min(run.settings.calibration_examples, len(run.datasets[0].windows)),
        )
        config = dataclasses.replace(config, quantization=record)
        ranges = record_ranges(config, params, run.datasets[0], seed=run.settings.seed)
        run.save("ptq", config, quantize(config, params, ranges))


def _qat(run: Run) -> None:
    config, params = run.load("ptq")
    with run.timed("int8"):
        if "qat" not in run.settings.skip:
            params = _distill_stage(run, "qat", config, params, run.folder / "work" / "qat", 1.0)
            config = dataclasses.replace(config, quantization=dataclasses.replace(config.quantization, trained=True))
        run.save("int8", config, params)


def distill_settings(settings: RunSettings) -> DistillSettings:
    return DistillSettings(
        temperature=settings.temperature,
        label_weight=settings.label_weight,
        hidden_weight=settings.hidden_weight,
        layer_map=settings.layer_map,
        relation_weight=settings.relation_weight,
        learned_scales=settings.learned_scales,
    )


def _distill_stage(run: Run, stage: str, config: BertConfig, params: Params, folder: Path, share: float) -> Params:
    settings, (teacher, targets), (train, validation) = run.settings, run.targets, run.datasets
    return distill(
        config=config,
        params=params,
        layers=teacher.layers,
        targets=targets,
        dataset=train,
        validation=validation,
        batch_size=getattr(settings, f"{stage}_batch_size"),
        distillation=distill_settings(settings),
        settings=train_settings(settings, stage, train, share),
        folder=folder,
        label=stage,
        dtype=jnp.dtype(settings.dtype),
    )


def _evaluate(run: Run, stage: str) -> None:
    """Score a stage's model directory on the evaluation file, unless that is done or skipped."""
    directory = run.directory(stage)
    config = BertConfig.from_json(directory / "config.json")
    figures: dict[str, float] = {
        "parameters": count_parameters(config),
        "macs": count_macs(config, run.settings.max_seq),
        "bytes": modeldir.weight_bytes(directory),
    }
    known = records.read_metrics(run.folder).get("stages", {}).get(stage, {})
    if "evaluate" not in run.settings.skip and "f1" not in known:
        config, params = run.load(stage)
        found = Evaluator(config, run.eval_dataset)(params, label=f"evaluate {stage}")
        figures |= {"exact_match": found.score.exact_match, "f1": found.score.f1}
        write_predictions(run.folder / "predictions" / f"{stage}.json", found.answers)
        print(f"{stage}: exact match {found.score.exact_match:.2f}, F1 {found.score.f1:.2f}")
    records.update_metrics(run.folder, {"stages": {stage: figures}})
