"""Repair against `numpy.linalg.lstsq` on activations that the model itself told."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from bertjax.data.batching import collate
from bertjax.data.dataset import Dataset
from bertjax.data.windows import Window
from bertjax.model.bert import BertForQuestionAnswering, Model, bind, init_model
from bertjax.modeldir.config import BertConfig
from bertjax.pruning.repair import fit, repair
from bertjax.pruning.search import Plan
from bertjax.pruning.surgery import cut

CONFIG = BertConfig.dense(vocab_size=40, hidden_size=16, num_layers=2, heads=4, ffn=12, max_position_embeddings=24)
PLAN = Plan(
    heads=(np.array([0, 2]), np.array([], np.int64)), ffn=(np.array([1, 4, 5, 9]), np.array([0, 7, 11])), loss=0.0
)


@pytest.fixture
def dataset() -> Dataset:
    random = np.random.default_rng(0)
    windows = [
        Window(
            example=index,
            input_ids=random.integers(5, 40, size).astype(np.int32),
            context_start=3,
            offsets=np.zeros((size - 4, 2), np.int32),
            max_context=np.ones(size - 4, bool),
            start=4,
            end=5,
        )
        for index, size in enumerate(random.integers(6, 24, 40))
    ]
    lengths = np.array([len(window) for window in windows], np.int32)
    return Dataset(examples=[], windows=windows, lengths=lengths, longest=24)


@pytest.fixture
def teacher() -> Model:
    fresh = init_model(BertForQuestionAnswering, CONFIG, seed=0)
    return fresh.with_params(
        {name: value * 8 if value.ndim == 2 and "embed" not in name else value for name, value in fresh.params.items()}
    )


def _told(model: Model, dataset: Dataset, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The activation told to `observe` under `name`, and the last hidden state, of all windows' tokens in turn."""
    batch = collate(dataset.windows, range(len(dataset.windows)), dataset.longest)
    ids, mask, types = (batch[key] for key in ("input_ids", "attention_mask", "token_type_ids"))
    seen: dict[str, np.ndarray] = {}
    output = bind(BertForQuestionAnswering, model)(ids, mask, types, observe=seen.__setitem__)
    return np.asarray(seen[name])[mask > 0], np.asarray(output.hidden_states[-1])[mask > 0]


@pytest.mark.parametrize(("block", "reads"), [("attention.output", "attention.self"), ("output", "intermediate.dense")])
def test_a_fitted_projection_is_the_least_squares_solution(teacher: Model, dataset: Dataset, block: str, reads: str):
    student = cut(teacher, PLAN)
    repaired = repair(teacher, student, dataset, examples=40, seed=0)
    name = f"bert.encoder.layer.0.{block}.dense"

    def told(model: Model, name: str) -> np.ndarray:
        return _told(model, dataset, f"{name}.input_scale")[0]

    hidden, full = told(repaired, name), told(teacher, name)
    residuals = [told(model, f"bert.encoder.layer.0.{reads}") for model in (teacher, repaired)]
    target = full @ teacher.params[f"{name}.weight"].T + teacher.params[f"{name}.bias"] + residuals[0] - residuals[1]
    rows = np.hstack([hidden, np.ones((len(hidden), 1))]).astype(np.float64)
    pull = np.sqrt(1e-4 * np.square(hidden).sum() / hidden.shape[1])
    drawn = pull * np.eye(hidden.shape[1], hidden.shape[1] + 1)
    wanted, *_ = np.linalg.lstsq(
        np.vstack([rows, drawn]), np.vstack([target, pull * np.asarray(student.params[f"{name}.weight"]).T]), rcond=None
    )
    np.testing.assert_allclose(repaired.params[f"{name}.weight"], wanted[:-1].T, atol=2e-4)
    np.testing.assert_allclose(repaired.params[f"{name}.bias"], wanted[-1], atol=2e-4)


def test_a_repair_looks_at_as_many_windows_as_asked_drawn_by_seed(teacher: Model, dataset: Dataset):
    student, name = cut(teacher, PLAN), "bert.encoder.layer.0.output.dense.weight"
    drawn = np.random.default_rng(2).permutation(len(dataset.windows))[:10]
    part = dataclasses.replace(
        dataset, windows=[dataset.windows[index] for index in drawn], lengths=dataset.lengths[drawn]
    )
    few, same, all_of_them = (
        repair(teacher, student, windows, examples=examples, seed=seed).params[name]
        for windows, examples, seed in ((dataset, 10, 2), (part, 10, 0), (dataset, 40, 2))
    )
    np.testing.assert_allclose(few, same, atol=1e-3)
    assert np.abs(few - all_of_them).max() > 1e-2


def test_a_gone_block_keeps_the_mean_of_what_it_gave():
    random = np.random.default_rng(0)
    target = random.normal(size=(50, 3))
    weight, bias = fit(np.array([[50.0]]), target.sum(axis=0)[None], None)
    assert weight is None
    np.testing.assert_allclose(bias, target.mean(axis=0))


def test_the_repaired_student_is_nearer_to_its_teacher(teacher: Model, dataset: Dataset):
    student, name = cut(teacher, PLAN), "bert.encoder.layer.0.attention.self.input_scale"
    repaired = repair(teacher, student, dataset, examples=40, seed=0)
    wanted = _told(teacher, dataset, name)[1]
    errors = [np.square(_told(model, dataset, name)[1] - wanted).mean() for model in (student, repaired)]
    assert errors[1] < 0.7 * errors[0]
    others = [key for key in student.params if not key.endswith(("output.dense.weight", "output.dense.bias"))]
    assert all(np.array_equal(repaired.params[key], student.params[key]) for key in others)


@pytest.mark.parametrize("gone", [False, True])
def test_an_uncut_model_stays_as_it_is(teacher: Model, dataset: Dataset, gone: bool):
    """With blocks gone it is a student of an earlier round, which is what a later round's cut is repaired to."""
    model = cut(teacher, PLAN) if gone else teacher
    repaired = repair(model, dataclasses.replace(model), dataset, examples=16, seed=1)
    for key, value in model.params.items():
        np.testing.assert_allclose(repaired.params[key], value, atol=2e-3, err_msg=key)
