"""The distillation losses: gradients against finite differences, the map worked by hand, relations against NumPy."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, rel_entr, softmax

from bertjax.model.bert import SpanOutput
from bertjax.training.losses import (
    closest_layers_distance,
    hidden_state_distance,
    least_ordered_sum,
    relation_divergence,
    soft_span_cross_entropy,
    span_cross_entropy,
)


def _states(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


LEAST = jax.jit(jax.value_and_grad(lambda table: least_ordered_sum(list(table))))  # compiles once a shape
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 3), columns=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_the_least_ordered_sum_is_that_of_trying_everything(rows: int, columns: int, seed: int):
    table = np.random.default_rng(seed).random((rows, columns)).astype(np.float32)
    tried = itertools.combinations_with_replacement(range(columns), rows)  # never falling
    sums = {path: sum(table[row, column] for row, column in enumerate(path)) for path in tried}
    best = min(sums, key=sums.get)
    found, chosen = LEAST(table)
    assert float(found) == pytest.approx(sums[best], rel=1e-5)
    np.testing.assert_array_equal(chosen, np.arange(columns) == np.array(best)[:, None])


def _span_output(start: np.ndarray, end: np.ndarray) -> SpanOutput:
    return SpanOutput(start_logits=jnp.asarray(start), end_logits=jnp.asarray(end), hidden_states=())


def test_span_losses_agree_with_scipy_on_real_tokens():
    start, end, their_start, their_end = _states(5, 4, 2, 5)
    labels, output = np.array([[4, 1], [0, 2]]), _span_output(start, end)
    real = [(window, slice(0, int(mask.sum()))) for window, mask in enumerate(MASK)]
    nats = [-log_softmax(start[w, r])[labels[0, w]] - log_softmax(end[w, r])[labels[1, w]] for w, r in real]
    np.testing.assert_allclose(span_cross_entropy(output, MASK, *labels), np.array(nats) / 2, rtol=1e-5)
    divergence = [
        rel_entr(softmax(theirs[w, r] / 3), softmax(own[w, r] / 3)).sum()
        for own, theirs in ((start, their_start), (end, their_end))
        for w, r in real
    ]
    found = soft_span_cross_entropy(output, their_start, their_end, MASK, 3.0)
    assert float(found) == pytest.approx(9 * np.mean(divergence), rel=1e-5)


def test_the_distance_of_states_is_relative_to_the_teachers_and_ignores_padding():
    student, teacher = _states(6, 2, 2, 5, 4)
    real = MASK > 0
    wanted = np.square(student - teacher)[real].mean() / np.square(teacher)[real].mean()
    assert float(hidden_state_distance(student, teacher, MASK)) == pytest.approx(wanted, rel=1e-5)
    nothing = hidden_state_distance(student, np.zeros_like(teacher), MASK)
    assert float(nothing) == pytest.approx(np.square(student)[real].sum() / 1e-6, rel=1e-5)


def test_each_teacher_layer_is_matched_with_the_closest_student_layer():
    one, two, three = _states(0, 3, 2, 5, 4)
    student, far = [one, one + 1.0, two, three], _states(1, 2, 5, 4) * 9
    assert float(closest_layers_distance(student, np.stack([one, two]), MASK)) == 0.0
    # Two teacher layers whose own nearest would fall from layer 3 to layer 1: keeping the order costs something.
    crossed = np.stack([two, one])
    per_layer = [[float(hidden_state_distance(own, theirs, MASK)) for own in student] for theirs in crossed]
    by_hand = min(per_layer[0][j] + per_layer[1][k] for j in range(4) for k in range(j, 4)) / 2
    assert float(closest_layers_distance(student, crossed, MASK)) == pytest.approx(by_hand, rel=1e-5)
    padded = np.where(MASK[..., None] > 0, np.stack([one, two]), far)
    assert float(closest_layers_distance(student, padded, MASK)) == 0.0


def _relation_divergence(student: np.ndarray, teacher: np.ndarray, mask: np.ndarray, size: int) -> float:
    """Window by window, without padding, in float64."""
    total, count = 0.0, 0
    for own, theirs, real in zip(student, teacher, mask, strict=True):
        tokens = int(real.sum())
        for begin in range(0, own.shape[-1], size):
            p, q = (
                np.exp(part @ part.T / np.sqrt(size))
                for part in (theirs[:tokens, begin : begin + size], own[:tokens, begin : begin + size])
            )
            p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)
            total += (p * np.log(p / q)).sum() / (own.shape[-1] // size)
        count += tokens
    return total / count


@pytest.mark.parametrize("width, size", [(64, 32), (48, 16), (20, 4), (33, 1)])
def test_relations_agree_with_numpy(width: int, size: int):
    student, teacher = _states(2, 2, 2, 5, width)
    found = float(relation_divergence(student, teacher, MASK))
    assert found == pytest.approx(_relation_divergence(student, teacher, MASK, size), rel=1e-4)
    assert float(relation_divergence(teacher, teacher, MASK)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", ["relations", "dynamic map"])
def test_gradients_are_the_finite_differences(name: str):
    student, teacher = _states(3, 2, 3, 2, 5, 16)

    def loss(states: jax.Array) -> jax.Array:
        if name == "relations":
            return relation_divergence(states[0], teacher[0], MASK)
        return closest_layers_distance(list(states), teacher, MASK)

    gradient = np.asarray(jax.grad(loss)(jnp.asarray(student)), np.float64)
    assert np.abs(gradient).max() > 1e-3 and not gradient[:, 1, 3:].any()
    random = np.random.default_rng(4)
    for _ in range(3):
        way = random.normal(size=student.shape)
        measured = (float(loss(student + 1e-2 * way)) - float(loss(student - 1e-2 * way))) / 2e-2
        assert (gradient * way).sum() == pytest.approx(measured, rel=1e-2, abs=1e-4)
