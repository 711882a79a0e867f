"""Fine-tuning on answer spans, and what every stage's loss draws."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

from bertjax.data.dataset import Dataset
from bertjax.model.bert import BertForQuestionAnswering, init_model
from bertjax.model.inference import Evaluator
from bertjax.training import distill, finetune
from bertjax.training.data import TrainingData
from bertjax.training.settings import DistillSettings, TrainSettings
from bertjax.training.teacher import Teacher, make_targets
from tests.models import tiny_config

CONFIG = tiny_config(quantized=False)


@pytest.fixture
def data(dataset: Dataset) -> TrainingData:
    return TrainingData(train=dataset, validation=dataset, batch_size=5, length_multiple=40)


def test_a_fine_tuned_model_answers_what_it_was_trained_on(tmp_path: Path, data: TrainingData):
    assert data.steps_per_epoch == 3
    start = init_model(BertForQuestionAnswering, CONFIG, seed=0)
    score = Evaluator(data.validation)
    settings = TrainSettings(steps=60, learning_rate=3e-3, evaluations=1)
    tuned = finetune.fine_tune(start, data, settings=settings, folder=tmp_path)
    assert score(tuned).score.f1 > 90 > 30 + score(start).score.f1


@pytest.mark.parametrize("stage", ["fine-tune", "distill"])
def test_a_stage_draws_its_dropout_from_the_steps_key(
    tmp_path: Path, data: TrainingData, stage: str, monkeypatch: pytest.MonkeyPatch
):
    model, given, settings = (
        init_model(BertForQuestionAnswering, CONFIG, seed=0),
        {},
        TrainSettings(steps=1, learning_rate=1),
    )
    module = finetune if stage == "fine-tune" else distill
    monkeypatch.setattr(module, "train", lambda **rest: given.update(rest) or rest["params"])
    if stage == "fine-tune":
        finetune.fine_tune(model, data, settings=settings, folder=tmp_path)
    else:
        targets = make_targets(Teacher(model=model, layers=(1,)), data.train, cache=None)
        distill.distill(
            model, targets, data, distillation=DistillSettings(), settings=settings, folder=tmp_path, label=stage
        )
    program = jax.make_jaxpr(given["loss"])(model.params, given["make_batch"](0), jax.random.key(0))
    assert "random_bits" in str(program)
