"""A run in its directory: its settings, data, teacher and stages, and the training settings that follow from them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from bertjax import rundir
from bertjax.data.dataset import Dataset, load_dataset
from bertjax.data.tokenizer import as_one_file, load_tokenizer
from bertjax.errors import UserError
from bertjax.model.bert import Model
from bertjax.modeldir import store
from bertjax.pipeline import inputs
from bertjax.pipeline.settings import RunSettings, TrainedStage
from bertjax.rundir import DIRECTORIES
from bertjax.training.data import TrainingData
from bertjax.training.distill import distill
from bertjax.training.settings import TrainSettings
from bertjax.training.teacher import Targets, Teacher, cache_bytes, make_targets


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
        """The folder that keeps the teacher's importance and outputs."""
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
        done = self.done("teacher")
        source = self.directory("teacher") if done else self.teacher_source
        tokenizer = inputs.fitting_tokenizer(source, self.settings, encoder=not done and not self.settings.teacher)
        return inputs.load_training(self.settings, self.files, tokenizer)

    @functools.cached_property
    def eval_dataset(self) -> Dataset:
        return load_dataset(self.files.eval, load_tokenizer(self.directory("teacher")), self.settings.windows)

    @functools.cached_property
    def teacher_source(self) -> Path:
        """The directory that the teacher is made from."""
        if self.settings.teacher:
            return store.model_directory(self.settings.teacher, "--teacher")
        if self.settings.encoder:
            return store.model_directory(self.settings.encoder, "--encoder")
        raise UserError("--teacher or --encoder: give one of them, or use --preset demo")

    def check_inputs(self) -> None:
        """Read the data, with the tokenizer of a model that fits the settings.

        Raises:
          UserError: a file is wrong, or the teacher, or what it is made from, does not fit.
        """
        _ = self.datasets

    @functools.cached_property
    def targets(self) -> Targets:
        """The teacher's outputs for the training windows, kept on disk within the settings' `cache_gib`."""
        model = self.load("teacher")
        layers = self.settings.distillation.teacher_layers(len(model.config.layers))
        teacher = Teacher(model=model, layers=layers)
        train, _ = self.datasets
        fits = cache_bytes(teacher, train) <= self.settings.cache_gib * 2**30
        cache = self.cache / "teacher-outputs" if fits else None
        return make_targets(teacher, train, cache=cache, dtype=self.settings.dtype)

    def training_data(self, stage: TrainedStage) -> TrainingData:
        """The run's windows in a stage's batches."""
        return training_data(self.settings, stage, *self.datasets)

    def load(self, stage: str) -> Model:
        """The model that a stage has left.

        Raises:
          UserError: its directory is no complete model.
        """
        return Model.of(store.load_question_answering(self.directory(stage)))

    def save(self, stage: str, model: Model) -> None:
        """Write a stage's model directory, with the teacher's tokenizer.

        Raises:
          UserError: the place cannot be written.
          WorkFailed: the disk is full.
        """
        source = self.teacher_source if stage == "teacher" else self.directory("teacher")
        with as_one_file(source, positions=model.config.max_position_embeddings) as tokenizer:
            store.save(self.directory(stage), model.stored(), tokenizer_from=tokenizer)

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the block's seconds to the stage's, also when it is interrupted."""
        begin = time.monotonic()
        try:
            yield
        finally:
            stages = rundir.read_metrics(self.folder).get("stages", {})
            seconds = stages.get(stage, {}).get("seconds", 0.0) + time.monotonic() - begin
            rundir.update_metrics(self.folder, {"stages": {stage: {"seconds": round(seconds, 1)}}})


def training_data(settings: RunSettings, stage: TrainedStage, train: Dataset, validation: Dataset) -> TrainingData:
    """These windows in a stage's batches."""
    return TrainingData(
        train=train,
        validation=validation,
        batch_size=settings.stage(stage).batch_size,
        length_multiple=settings.length_multiple,
    )


def train_settings(
    settings: RunSettings, stage: TrainedStage, data: TrainingData, *, share: float = 1.0, order: int = 0
) -> TrainSettings:
    """The loop's settings of a stage, for this share of its epochs, in a data order of this number."""
    part = settings.stage(stage)
    return TrainSettings(
        steps=max(1, round(data.steps_per_epoch * part.epochs * share)),
        learning_rate=part.learning_rate,
        ema=settings.ema,
        seed=settings.seed,
        order=order,
        evaluations=settings.evaluations,
    )


def distill_stage(
    run: Run, stage: Literal["distill", "qat"], student: Model, folder: Path, *, order: int, share: float = 1.0
) -> Model:
    """A student trained on the run's teacher.

    Args:
      stage: whose epochs, batches and learning rate are taken.
      folder: where checkpoints are kept.
      order: number of the data order; each distillation of a run has its own, so that short ones read other windows.
      share: the part of the stage's epochs that is trained now.

    Raises:
      WorkFailed: the loss is no longer finite, or the disk is full.
    """
    data = run.training_data(stage)
    return distill(
        student,
        run.targets,
        data,
        distillation=run.settings.distillation,
        settings=train_settings(run.settings, stage, data, share=share, order=order),
        folder=folder,
        label=stage,
        dtype=run.settings.dtype,
    )
