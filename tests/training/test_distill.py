"""The teacher's outputs on disk, the losses, and the batches that training reads."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from bertjax.data.batching import batch_maker
from bertjax.data.metrics import Score
from bertjax.errors import WorkFailed
from bertjax.model.bert import BertForQuestionAnswering, Model, Params, SpanOutput, bind, init_model
from bertjax.model.fakequant import weight_scales
from bertjax.model.inference import Evaluator
from bertjax.modeldir.tensors import dense_sites, question_answering_shapes
from bertjax.modeldir.untrained import random_model
from bertjax.training.data import TrainingData
from bertjax.training.distill import distill, distillation_loss
from bertjax.training.losses import (
    closest_layers_distance,
    hidden_state_distance,
    relation_divergence,
    soft_span_cross_entropy,
    span_cross_entropy,
)
from bertjax.training.settings import DistillSettings, TrainSettings, distilled_layers
from bertjax.training.teacher import Teacher, cache_bytes, make_targets
from tests.models import tiny_config

CONFIG = tiny_config(quantized=False)  # of the fixture `dataset`


@pytest.fixture(scope="module")
def teacher():
    return Teacher(model=init_model(BertForQuestionAnswering, CONFIG, seed=5), layers=(1, 2))


def test_cached_outputs_are_the_teachers_own(tmp_path: Path, dataset, teacher):
    make_batch = batch_maker(dataset, pad_id=CONFIG.pad_token_id, batch_size=4, multiple=32, seed=0)
    fresh = make_targets(teacher, dataset, cache=None)
    first = make_targets(teacher, dataset, cache=tmp_path)
    for step in range(3):
        first.add(make_batch(step))
    (folder,) = tmp_path.iterdir()
    mark = np.load(folder / "logits.npy")
    mark[0, 0] = 77.0  # the first token of the first window: a sign that outputs are read and not computed again
    np.save(folder / "logits.npy", mark)
    again = make_targets(teacher, dataset, cache=tmp_path)
    seen = 0
    for step in range(3):
        batch = make_batch(step)
        wanted, found, mask = fresh.add(batch), again.add(batch), batch["attention_mask"] > 0
        start, marked = np.array(found["teacher_start"]), batch["rows"] == 0
        seen += int((start[marked, 0] == 77.0).sum())
        start[marked, 0] = wanted["teacher_start"][marked, 0]
        np.testing.assert_array_equal(start[mask], wanted["teacher_start"][mask])
        np.testing.assert_array_equal(found["teacher_end"][mask], wanted["teacher_end"][mask])
        np.testing.assert_array_equal(found["teacher_hidden"][:, mask], wanted["teacher_hidden"][:, mask])
    assert seen == 1


def test_without_layers_only_logits_are_kept(tmp_path: Path, dataset, teacher):
    logits = dataclasses.replace(teacher, layers=DistillSettings(hidden_weight=0.0).teacher_layers(2))
    batch = batch_maker(dataset, pad_id=CONFIG.pad_token_id, batch_size=12, multiple=32, seed=0)(0)
    both = make_targets(teacher, dataset, cache=tmp_path).add(batch)
    found = make_targets(logits, dataset, cache=tmp_path).add(batch)
    assert "teacher_hidden" not in found
    np.testing.assert_array_equal(found["teacher_start"], both["teacher_start"])
    stored = sum(path.stat().st_size for path in (tmp_path / "logits").iterdir())
    assert cache_bytes(logits, dataset) == 4 * dataset.lengths.sum() <= stored < cache_bytes(teacher, dataset)
    again = make_targets(teacher, dataset, cache=tmp_path).add(batch)
    np.testing.assert_array_equal(again["teacher_hidden"], both["teacher_hidden"])


def test_a_cache_larger_than_the_disk_is_told(tmp_path: Path, dataset, teacher, monkeypatch):
    needed = cache_bytes(teacher, dataset)
    assert needed == dataset.lengths.sum() * 2 * (2 + 2 * CONFIG.hidden_size)
    for free in (needed, needed - 1):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, free=free: SimpleNamespace(free=free))
        with contextlib.nullcontext() if free == needed else pytest.raises(WorkFailed, match="disk is full"):
            make_targets(teacher, dataset, cache=tmp_path / str(free))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    make_targets(teacher, dataset, cache=tmp_path / str(needed))  # it is there already


def test_a_cache_of_other_windows_is_made_anew(tmp_path: Path, dataset, teacher):
    batch = batch_maker(dataset, pad_id=CONFIG.pad_token_id, batch_size=12, multiple=32, seed=0)(0)
    wanted = make_targets(teacher, dataset, cache=tmp_path).add(batch)
    fewer = dataclasses.replace(dataset, windows=dataset.windows[:5], lengths=dataset.lengths[:5])
    make_targets(teacher, fewer, cache=tmp_path)
    found = make_targets(teacher, dataset, cache=tmp_path).add(batch)
    np.testing.assert_array_equal(found["teacher_hidden"], wanted["teacher_hidden"])


def test_outputs_of_another_teacher_or_not_whole_are_said_and_computed_anew(tmp_path: Path, dataset, teacher, capsys):
    batch = batch_maker(dataset, pad_id=CONFIG.pad_token_id, batch_size=12, multiple=32, seed=0)(0)
    wanted = make_targets(teacher, dataset, cache=None).add(batch)
    other = dataclasses.replace(teacher, model=init_model(BertForQuestionAnswering, CONFIG, seed=8))
    make_targets(other, dataset, cache=tmp_path).add(batch)
    (folder,) = tmp_path.iterdir()
    for spoil, told in (
        (lambda: None, "of other teacher; computed anew"),
        (lambda: os.truncate(folder / "hidden.npy", (folder / "hidden.npy").stat().st_size // 2), "not whole"),
        (lambda: (folder / "logits.npy").unlink(), "not whole"),
        (lambda: (folder / "done.npy").write_bytes(b""), "not whole"),
        (lambda: shutil.copyfile(folder / "logits.npy", folder / "hidden.npy"), "of another size"),
    ):
        spoil()
        found = make_targets(teacher, dataset, cache=tmp_path).add(batch)
        assert told in capsys.readouterr().out
        real = batch["attention_mask"] > 0
        np.testing.assert_array_equal(found["teacher_hidden"][:, real], wanted["teacher_hidden"][:, real])


def test_outputs_count_only_once_they_are_on_the_disk(tmp_path: Path, dataset, teacher):
    """A writer that is killed, or a power failure, may lose outputs, and never leaves zeros that count as such."""
    batch = batch_maker(dataset, pad_id=CONFIG.pad_token_id, batch_size=4, multiple=32, seed=0)(0)
    targets = make_targets(teacher, dataset, cache=tmp_path)
    targets.add(batch)
    (folder,) = tmp_path.iterdir()
    assert np.load(folder / "done.npy").sum() == 0
    targets.keep()
    assert np.load(folder / "done.npy").sum() == 4


def test_each_distillation_reads_the_windows_in_its_own_order(dataset):
    orders = [TrainSettings(steps=1, learning_rate=1.0, seed=3, order=order).data_seed for order in (0, 1, 2)]
    data = TrainingData(train=dataset, validation=dataset, batch_size=4, length_multiple=32)
    first = [tuple(data.batches(pad_id=0, seed=seed)(0)["rows"]) for seed in orders]
    assert orders[0] == 3 and len(set(first)) == 3


def test_distilling_moves_a_student_towards_its_teacher(tmp_path: Path, dataset, teacher):
    student = init_model(BertForQuestionAnswering, CONFIG, seed=6)
    targets = make_targets(teacher, dataset, cache=None)
    batch = targets.add(batch_maker(dataset, pad_id=CONFIG.pad_token_id, batch_size=12, multiple=32, seed=0)(0))

    def distance(model: Model) -> float:
        module = bind(BertForQuestionAnswering, model)
        output = module(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
        return float(
            hidden_state_distance(output.hidden_states[2], batch["teacher_hidden"][1], batch["attention_mask"])
        )

    trained = distill(
        student,
        targets,
        TrainingData(train=dataset, validation=dataset, batch_size=4, length_multiple=32),
        distillation=DistillSettings(),
        settings=TrainSettings(steps=40, learning_rate=3e-3),
        folder=tmp_path,
        label="distill",
    )
    assert distance(trained) < 0.5 * distance(student)


def test_the_loss_is_the_weighted_sum_of_its_terms(dataset, teacher):
    batch = make_targets(teacher, dataset, cache=None).add(
        batch_maker(dataset, pad_id=CONFIG.pad_token_id, batch_size=12, multiple=32, seed=0)(0)
    )
    student = bind(BertForQuestionAnswering, init_model(BertForQuestionAnswering, CONFIG, seed=6))
    output, mask = (
        student(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]),
        batch["attention_mask"],
    )

    def loss(**changes: float | str) -> float:
        terms = {"label_weight": 0.0, "hidden_weight": 0.0} | changes
        return float(distillation_loss(output, batch, DistillSettings(**terms), teacher.layers))

    soft = loss()
    assert soft == float(soft_span_cross_entropy(output, batch["teacher_start"], batch["teacher_end"], mask, 2.0))
    labels = span_cross_entropy(output, mask, batch["starts"], batch["ends"]).mean()
    assert loss(label_weight=0.5) - soft == pytest.approx(0.5 * float(labels), rel=1e-4)
    states, theirs = output.hidden_states, batch["teacher_hidden"]
    fixed = (hidden_state_distance(states[1], theirs[0], mask) + hidden_state_distance(states[2], theirs[1], mask)) / 2
    assert loss(hidden_weight=3.0) - soft == pytest.approx(3.0 * float(fixed), rel=1e-4)
    closest = closest_layers_distance(states[1:], theirs, mask)
    assert loss(hidden_weight=3.0, layer_map="dynamic") - soft == pytest.approx(3.0 * float(closest), rel=1e-4)
    related = relation_divergence(states[2], theirs[1], mask)
    assert loss(relation_weight=2.0) - soft == pytest.approx(2.0 * float(related), rel=1e-3)


def _train_on_the_grid(
    folder: Path, dataset, teacher, *, learned_scales: bool, evaluations: int
) -> tuple[Params, Params]:
    """A calibrated student of one layer, and the same after a step on all windows at the rate 3e-3."""
    config = dataclasses.replace(tiny_config(((1, 32),)), hidden_dropout=0.0, attention_dropout=0.0)
    start = Model.of(random_model(config, seed=3))
    start = start.with_params(start.params | weight_scales(config, start.params))
    trained = distill(
        start,
        make_targets(dataclasses.replace(teacher, layers=()), dataset, cache=None),
        TrainingData(train=dataset, validation=dataset, batch_size=12, length_multiple=32),
        distillation=DistillSettings(hidden_weight=0.0, learned_scales=learned_scales),
        settings=TrainSettings(steps=2, learning_rate=3e-3, evaluations=evaluations),
        folder=folder,
        label="qat",
    )
    assert {name: value.shape for name, value in trained.params.items()} == question_answering_shapes(config)
    return start.params, trained.params


@pytest.mark.parametrize("learned_scales", [False, True])
def test_activation_scales_move_only_where_they_are_learned(tmp_path: Path, dataset, teacher, learned_scales: bool):
    start, trained = _train_on_the_grid(tmp_path, dataset, teacher, learned_scales=learned_scales, evaluations=0)
    input_scales = {site.weight_scale: site.input_scale for site in dense_sites(tiny_config(((1, 32),)))}
    for name, value in trained.items():
        if name.endswith(".weight_scale"):
            inputs = trained[input_scales[name]]
            weight = np.asarray(trained[name.removesuffix("_scale")]) * np.asarray(inputs / inputs.max())
            np.testing.assert_allclose(value, np.abs(weight).max(axis=1) / 127, rtol=1e-6)
        elif name.endswith("_scale"):
            moved = np.abs(np.log(value / start[name]))  # of a first step of Adam's, which has the learning rate's size
            np.testing.assert_allclose(np.median(moved), 20 * 3e-3 * learned_scales, rtol=1e-3)
            assert np.all((moved > 0) == learned_scales)


def test_training_on_the_grid_that_loses_keeps_the_calibrated_student(tmp_path: Path, dataset, teacher, monkeypatch):
    scores = iter([50.0, 49.0])

    def score(self: Evaluator, model: Model, *, label: str) -> SimpleNamespace:
        return SimpleNamespace(score=Score(exact_match=0.0, f1=next(scores)))

    monkeypatch.setattr(Evaluator, "__call__", score)
    start, kept = _train_on_the_grid(tmp_path, dataset, teacher, learned_scales=True, evaluations=1)
    for name, value in start.items():
        np.testing.assert_array_equal(kept[name], value, err_msg=name)


def test_the_evaluator_gives_the_models_own_logits_for_every_window(dataset, teacher):
    found = Evaluator(dataset)(teacher.model)
    assert found.answers.keys() == {example.id for example in dataset.examples}
    window = dataset.windows[7]
    ids = window.input_ids[None]
    types = (np.arange(len(window)) >= window.context_start).astype(np.int32)[None]
    alone = bind(BertForQuestionAnswering, teacher.model)(ids, np.ones_like(ids), types)
    np.testing.assert_allclose(found.start_logits[7], alone.start_logits[0], atol=1e-5)
    np.testing.assert_allclose(found.end_logits[7], alone.end_logits[0], atol=1e-5)


def _output(logits: np.ndarray) -> SpanOutput:
    return SpanOutput(start_logits=jnp.asarray(logits), end_logits=jnp.asarray(logits), hidden_states=())


def test_soft_loss_is_zero_for_the_teachers_own_logits_and_ignores_padding():
    logits, mask = np.array([[1.0, 2.0, -1.0, 7.0]]), np.array([[1, 1, 1, 0]])
    other = np.array([[1.0, 2.0, -1.0, -3.0]])
    assert float(soft_span_cross_entropy(_output(logits), other, other, mask, 2.0)) == pytest.approx(0.0, abs=1e-6)
    p, q = np.array([0.7, 0.3]), np.array([0.5, 0.5])
    found = soft_span_cross_entropy(
        _output(2 * np.log(q)[None]), 2 * np.log(p)[None], 2 * np.log(p)[None], np.ones((1, 2)), 2.0
    )
    assert float(found) == pytest.approx(4 * float((p * np.log(p / q)).sum()), rel=1e-4)


def test_span_loss_is_the_mean_of_both_ends():
    logits, mask = np.log(np.array([[0.5, 0.25, 0.25]])), np.ones((1, 3))
    found = span_cross_entropy(_output(logits), mask, np.array([0]), np.array([1]))
    assert float(found[0]) == pytest.approx(-(np.log(0.5) + np.log(0.25)) / 2)


def test_by_default_a_student_is_distilled_from_spans_at_two_degrees_labels_and_layers():
    settings = DistillSettings()
    assert (settings.temperature, settings.label_weight, settings.hidden_weight) == (2.0, 0.2, 1.0)
    assert settings.layer_map == "fixed" and not settings.relation_weight and not settings.learned_scales
    assert (
        settings.teacher_layers(6) == (2, 4, 6) == DistillSettings(hidden_weight=0, relation_weight=1).teacher_layers(6)
    )
    assert DistillSettings(hidden_weight=0).teacher_layers(6) == ()


def test_the_distilled_layers_end_each_third():
    assert distilled_layers(24) == (8, 16, 24)
    assert distilled_layers(4) == (1, 3, 4)
    assert distilled_layers(1) == (1,)
