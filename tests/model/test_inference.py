"""Off a CPU windows are padded to one length, and nothing that is measured changes."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
import pytest

from bertjax.data.answers import predict
from bertjax.data.dataset import Dataset, from_examples
from bertjax.data.metrics import score
from bertjax.data.squad import Answer, Example
from bertjax.data.tokenizer import load_tokenizer
from bertjax.data.windows import WindowSettings
from bertjax.model.bert import Model
from bertjax.model.inference import Evaluator
from bertjax.modeldir.config import BertConfig
from bertjax.modeldir.untrained import random_model
from bertjax.pruning.importance import measure_importance
from bertjax.pruning.repair import repair
from bertjax.quantization.calibrate import record_ranges
from tests.models import QUANTIZATION, tiny_config, write_random_model

TEACHER = tiny_config(((2, 64), (2, 64)), quantized=False)
STUDENT = tiny_config(((1, 32), (2, 0)), quantized=False)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    """Windows of 10 to 150 tokens: three padded lengths on a CPU."""
    folder = tmp_path_factory.mktemp("model") / "m"
    write_random_model(folder, TEACHER, seed=0)
    random = np.random.default_rng(0)
    examples = []
    for words in (3, 40, 60, 80, 140):
        context = " ".join(["king", *random.choice(list("abcdefghijklmnopqrstuvwxyz0123456789"), words)])
        examples.append(
            Example(id=str(words), question="who", context=context, answers=(Answer(text="king", start=0),))
        )
    return from_examples(examples, load_tokenizer(folder), WindowSettings(max_seq=160, max_query=8))


def _model(config: BertConfig, seed: int) -> Model:
    return Model.of(random_model(config, seed=seed))


def _logits(dataset: Dataset) -> list[np.ndarray]:
    found = Evaluator(dataset)(_model(TEACHER, 1))
    assert found.answers == predict(dataset.examples, dataset.windows, found.start_logits, found.end_logits)
    assert found.score == score(dataset.examples, found.answers)
    return found.start_logits + found.end_logits


def _importance(dataset: Dataset) -> list[np.ndarray]:
    found = measure_importance(_model(TEACHER, 1), dataset, examples=5, seed=0)
    return [*found.heads, *found.ffn, found.layers]


def _repaired(dataset: Dataset) -> list[np.ndarray]:
    student = repair(_model(TEACHER, 1), _model(STUDENT, 2), dataset, examples=5, seed=0)
    return Evaluator(dataset)(student).start_logits


def _ranges(dataset: Dataset) -> list[np.ndarray]:
    return list(record_ranges(_model(TEACHER, 1), QUANTIZATION, dataset, seed=0).largest.values())


Measure = Callable[[Dataset], list[np.ndarray]]


# A refit on so few tokens answers to the last bits of its float32 sums.
@pytest.mark.parametrize(
    ("measure", "within"), [(_logits, 1e-5), (_importance, 1e-5), (_repaired, 2e-2), (_ranges, 1e-5)]
)
def test_padding_to_one_length_changes_no_figure(dataset: Dataset, measure: Measure, within: float, monkeypatch):
    wanted = measure(dataset)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for own, theirs in zip(measure(dataset), wanted, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=1e-3, atol=within)
