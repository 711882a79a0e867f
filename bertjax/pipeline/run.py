"""A run in its directory: its settings, data, teacher and stages, and the training settings that follow from them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp

from bertjax import rundir
from bertjax.data.batching import steps_per_epoch
from bertjax.data.dataset import Dataset, load_dataset
from bertjax.data.tokenizer import load_tokenizer
from bertjax.errors import UserError
from bertjax.model.bert import Model, Params
from bertjax.modeldir import store
from bertjax.modeldir.config import BertConfig
from bertjax.pipeline import inputs
from bertjax.pipeline.settings import RunSettings
from bertjax.rundir import DIRECTORIES
from bertjax.training.distill import DistillSettings, distill
from bertjax.training.loop import TrainSettings
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
            return store.model_directory(self.settings.teacher, "--teacher")
        if self.settings.encoder:
            return store.model_directory(self.settings.encoder, "--encoder")
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
        model = Model.of(store.load_question_answering(self.directory(stage)))
        return model.config, model.params

    def save(self, stage: str, config: BertConfig, params: Params) -> None:
        source = self.teacher_source if stage == "teacher" else self.directory("teacher")
        store.save(self.directory(stage), Model(config=config, params=params).stored(), tokenizer_from=source)

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


def distill_settings(settings: RunSettings) -> DistillSettings:
    return DistillSettings(
        temperature=settings.temperature,
        label_weight=settings.label_weight,
        hidden_weight=settings.hidden_weight,
        layer_map=settings.layer_map,
        relation_weight=settings.relation_weight,
        learned_scales=settings.learned_scales,
    )


def distill_stage(run: Run, stage: str, config: BertConfig, params: Params, folder: Path, share: float) -> Params:
    settings, (teacher, targets), (train, validation) = run.settings, run.targets, run.datasets
    return distill(
        config=config,
        params=params,
        layers=teacher.layers,
        targets=targets,
        dataset=train,
        validation=validation,
        batch_size=getattr(settings, f"{stage}_batch_size"),
        length_multiple=settings.length_multiple,
        distillation=distill_settings(settings),
        settings=train_settings(settings, stage, train, share),
        folder=folder,
        label=stage,
        dtype=jnp.dtype(settings.dtype),
    )
